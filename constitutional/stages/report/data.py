"""What a report shows, as plain values: nothing here reads a file or knows of HTML.

A part that is None, or empty, was not measured, and the page says so.
"""

from typing import Final, TypeVar

from pydantic import Field, SerializeAsAny

from constitutional.base.frozen import Frozen
from constitutional.base.records import Comparison, GoldPoint, Message, Preference, Revision, Rollout, Sample, Verdict
from constitutional.base.stats import FEWEST
from constitutional.constitution.constitution import Constitution
from constitutional.engines.spending import Calls
from constitutional.judging.scores import Measurement, Score
from constitutional.judging.understanding import PrincipleMeaning
from constitutional.stages.context import StageForecast
from constitutional.stages.summaries import Direction, Histogram, RewardQuality, Share, Summary

S = TypeVar("S", bound=Summary)

FEW: Final = FEWEST
"""A number from fewer observations is shown, and nothing is concluded from it."""
TOO_FEW: Final = "too few to tell"
"""How the page marks such a number."""

MODELS: Final[dict[str, str]] = {"base": "Base", "sft_model": "SL", "policy": "RL"}
"""The models of a run in the order in which they are made, and what the page calls them."""


class PrincipleQuality(Frozen):
    """How the labeler did by one principle."""

    principle: str
    text: str
    weight: float
    accuracy: Share | None = None
    """On the principle's own examples."""
    judged: int = 0
    """Comparisons of the run that were judged by it."""
    unreadable: int = 0
    conflicts: Share | None = None
    """Share of the readable judgements where the two orders preferred different responses."""
    ties: int = 0
    """Conflicts where both readings lie within 10 points of 50%: the labeler hardly has a preference."""
    first: Share | None = None
    """Share of readings that preferred the response shown first; 50% means no bias."""
    by_rule: bool = False
    """Whether a rule that counts decides, and no judge."""


class LabelerQuality(Frozen):
    """How the labeler did."""

    principles: tuple[PrincipleQuality, ...]
    probabilities: Histogram | None = None
    """Of P(a is better) over all readable judgements, from 0 to 1."""
    method: str = ""
    """How it was asked, in words; empty where nothing was judged."""
    bounded: int = 0
    """Judgements whose probability is only a bound."""


class JudgesAgreement(Frozen):
    """Two judges of a panel on the comparisons on which both prefer a response."""

    judges: tuple[str, str]
    same: Share
    """Those on which both prefer the same."""
    kappa: float | None
    """Cohen's kappa, -1 to 1; 0 is chance. None where it is not defined."""


class Panel(Frozen):
    """The judges of a run beside the labeler, and how far all of them agree."""

    judges: dict[str, LabelerQuality]
    """By name, without the labeler."""
    pairs: tuple[JudgesAgreement, ...]
    split: dict[str, Share]
    """Share of comparisons on which judges prefer different responses, by principle; those that no two judges have a
    preference on are not counted."""
    split_in_all: Share | None


class PeopleRate(Frozen):
    """A rate that rests on people's votes."""

    name: str
    hint: str = ""
    value: float
    low: float
    high: float
    n: int
    to_halve: int | None = None
    """How many more votes would make the interval half as wide, where that is known."""
    caution: str = ""
    """Why the interval may be too narrow; empty where nothing is known against it."""


class CorrectedRates(Frozen):
    """A rate of the last model by the labeler or the critic, and what people's answers make of it."""

    name: str
    rates: tuple[PeopleRate, ...]
    """By the labeler or the critic first, then corrected, then from people's answers alone; those that are missing are
    explained in the notes."""
    notes: tuple[str, ...] = ()


class Contradiction(Frozen):
    """A comparison on which people and the labeler prefer different responses."""

    comparison: Comparison
    principles: tuple[str, ...]
    labeler: float
    """The labeler's probability that response a is better."""
    votes: tuple[Verdict, ...]


class PeopleReport(Frozen):
    """What people's votes say of the labeler."""

    agreement: tuple[PeopleRate, ...]
    """The labeler's with people, in all (weighted, and by prediction-powered inference), on the audit set, by principle
    and by kind of prompt; last people's with each other."""
    chance_corrected: dict[str, str]
    """Of people with each other: the number with its interval, or why there is none."""
    labeler_beyond_chance: dict[str, str] = Field(default={})
    """The same of the labeler with people, on the audit set where there is one."""
    win_rates: tuple[CorrectedRates, ...] = ()
    """Of the last model, by whom it is against."""
    violations: tuple[CorrectedRates, ...] = ()
    """Of the last model over all principles, then by principle, where people answered."""
    wrong: tuple[Contradiction, ...]
    gold: tuple[PeopleRate, ...] = ()
    """The share of the known answers that a rater gave on gold items, by rater; empty where there were none."""


class Curve(Frozen, allow_inf_nan=True):
    """A quantity over a training's steps."""

    stage: str
    metric: str
    """As the training log calls it, such as `loss`."""
    lines: dict[str, tuple[tuple[float, float], ...]]
    """(step, value) as logged; one line, or one for each member of an ensemble, by name."""


class ExampleChoice(Frozen):
    """What the labeler preferred on a prompt, and why."""

    preference: Preference
    reasons: tuple[tuple[str, str], ...]
    """(principle's text, what the labeler wrote) for each reading that gave a reason."""


class RevisionExample(Frozen):
    """A draft on the way into the training set, and what was preferred later on the same prompt."""

    revision: Revision
    choice: ExampleChoice | None = None


class RolloutExample(Frozen):
    """What the policy answered during the training."""

    conversation: tuple[Message, ...]
    rollout: Rollout


class LeftOut(Frozen):
    """What a stage could not use."""

    stage: str
    what: str
    total: int | None
    """How many there were; None where they were not counted, or where the counts are of several kinds."""
    reasons: dict[str, int]
    """Why, and how many; empty if everything was used."""


class WorkRow(Frozen):
    """People's work behind one of a run's sources, in words."""

    source: str
    raters: str
    votes: str
    skips: str
    hours: str
    exposures: str
    pay: str


class WorkReport(Frozen):
    """Who did the work that people did."""

    rows: tuple[WorkRow, ...] = ()
    notes: tuple[str, ...]
    """What a reader must know of it, in whole sentences; at least one."""


class Provenance(Frozen):
    """What the numbers came from."""

    constitution: str
    version: str
    digest: str
    principles: dict[str, str]
    """Text by id."""
    reasons: dict[str, str] = Field(default_factory=dict)
    """The reason for a principle by its id, where it has one."""
    overrides: dict[str, tuple[str, ...]] = Field(default_factory=dict)
    """By id, the ids of the principles that give way to it, where there are any."""
    versions: dict[str, str]
    identities: dict[str, str]
    """Digests and identities of models and files, by the name of the model or file."""
    people: WorkReport | None = None
    """None in a page that was made up without a run."""
    config: str | None = None
    """The resolved configuration as JSON text."""


class StageCost(Frozen):
    """What a stage asked of models and took, beside what a dry run had forecast."""

    stage: str
    calls: Calls
    """From its last start to its end."""
    seconds: float
    """The same."""
    forecast: StageForecast | None = None


class RunReport(Frozen):
    """One run."""

    name: str
    folder: str = ""
    """As it is typed; empty where nobody said."""
    scores: tuple[Score, ...]
    wanted: dict[str, Direction]
    """The direction that the constitution asks for, by measure."""
    understood: tuple[PrincipleMeaning, ...] = ()
    """By principle; empty where no stage asked for it."""
    labeler: LabelerQuality | None = None
    """The labeler itself, without the other judges of a panel."""
    panel: Panel | None = None
    """None where the labeler alone judged."""
    people: PeopleReport | None = None
    """None where nobody voted."""
    reward: RewardQuality | None = None
    targets: Histogram | None = None
    """Of the probability that the chosen response is better, 0.5 to 1, in the preferences to train on."""
    sources: dict[str, int] = Field(default_factory=dict)
    """Preferences by source and split, such as `ai, train` and `human, held out`."""
    curves: tuple[Curve, ...] = ()
    gold: tuple[GoldPoint, ...] = ()
    """Scores of an online training's replies, stretch by stretch, for one judge after another."""
    rollouts: tuple[RolloutExample, ...] = ()
    revisions: tuple[RevisionExample, ...] = ()
    replies: tuple[Sample, ...] = ()
    left_out: tuple[LeftOut, ...] = ()
    summaries: dict[str, SerializeAsAny[Summary]] = Field(default_factory=dict)
    """By stage, in running order."""
    costs: tuple[StageCost, ...] = ()
    """By stage, in running order."""
    provenance: Provenance
    constitution: Constitution | None = None
    """As selected and weighted for this run; it is compared with another run's."""
    measurements: tuple[Measurement, ...] = ()
    """What the scores are the means of, prompt by prompt."""

    def summary(self, kind: type[S]) -> S | None:
        """The summary of this kind; None if this run has no stage that writes one."""
        return next((summary for summary in self.summaries.values() if isinstance(summary, kind)), None)
