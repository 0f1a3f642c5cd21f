"""What each stage says about its own work: one record a stage, written as `summary.json`, read by later stages.

`dropped` and `counts` give a number of rows for each reason, in words.
"""

from collections.abc import Hashable, Mapping, Sequence
from typing import ClassVar, Final, Literal

import numpy as np
from pydantic import Field, field_validator

from constitutional.base.frozen import Frozen
from constitutional.base.stats import clustered_share, share_of_clusters, wilson
from constitutional.judging.people import PeoplesWork
from constitutional.training import metrics

Direction = Literal["higher", "lower"]


class Summary(Frozen, allow_inf_nan=True):
    """What a stage says about its own work; a number may be missing (NaN), which the written summary says by null."""

    stages: ClassVar[tuple[str, ...]]
    """The stages that write this record."""


class PromptsSummary(Summary):
    """Of the stage `prompts`."""

    stages = ("prompts",)
    train: int
    held_out: int
    repeated: int
    """Prompts of the file that were left out, because the same prompt stands earlier."""


class LabelerCheckSummary(Summary):
    """Of the stage `labeler_check`."""

    stages = ("labeler_check",)
    left_out_principles: tuple[str, ...]
    """Principles that every judge misjudges, so that nothing is labelled by them."""
    warnings: tuple[str, ...]
    canaries: int
    """Comparisons with a plain answer on which the labeler was tried."""
    canaries_failed: int
    """Canaries where the answer was unreadable, or where both orders preferred the wrong response."""


class CritiqueReviseSummary(Summary):
    """Of the stage `critique_revise`."""

    stages = ("critique_revise",)
    prompts: int
    left_out: int
    """Drafts that training cannot use, because a reply was empty, cut off or too long to ask for."""
    cut_off_drafts: int
    """Drafts that reached `draft_max_tokens`, and are left out."""
    shortened: int = 0
    """Replies that were cut off, and end with their last whole sentence."""
    steps: int
    """Rounds of critique and revision, over all drafts."""
    found_nothing: int
    """Rounds in which the critique found nothing wrong."""
    changed: int
    """Drafts that the revisions changed."""


class SftSummary(Summary):
    """Of the stage `sft`."""

    stages = ("sft",)
    nothing_revised: bool
    """Critics left every draft as it was, so nothing was trained: the SFT model is the base model."""
    revision: int = 0
    """Examples that are revisions."""
    helpful: int = 0
    """Examples that are helpful samples."""
    helpful_missing: int = 0
    """Helpful samples that `sft.helpful_share` asks for beyond those that there are."""
    helpful_on_evaluation_prompts: int
    """Helpful samples of a file that were left out, because their prompts are held out."""
    work: PeoplesWork | None = None
    """Of those who wrote the file of helpful samples; None where there is none, or it names nobody."""
    unsigned: int = 0
    """Samples of the file of which it is not said who wrote them."""
    trained_on: int = 0
    steps: int = 0
    dropped: dict[str, int]


class SamplePairsSummary(Summary):
    """Of the stage `sample_pairs`."""

    stages = ("sample_pairs",)
    prompts: int
    comparisons: int
    prompts_without_pair: int
    failed_responses: int
    """Responses that the model could not give, such as to a conversation that its chat template refuses."""
    empty_responses: int
    cut_off_responses: int
    shortened_responses: int = 0
    """Responses that were cut off, and end with their last whole sentence."""
    repeated_responses: int


class LabelSummary(Summary):
    """Of the stage `label`."""

    stages = ("label",)
    comparisons: int
    """Comparisons that could be judged."""
    rated: int = 0
    """Responses that the labeler gave a score."""
    unrated: int = 0
    """Responses that the labeler gave no score, so that they were not compared."""
    judgements: int
    unreadable: int
    problem: str = ""
    """Why most responses have no score, or most of the labeler's judgements no answer, and what to do; empty
    otherwise."""
    too_long: int
    conflicts: int
    ties: int
    position_bias: float | None
    """Share of readings that prefer the response shown first; 0.5 means no bias, None that no reading prefers any."""
    bounded: int = 0
    """Judgements whose probability is only a bound, as the engine tells the likeliest tokens alone."""
    overridden: int = 0
    """Judgements that count for nothing, because a principle that overrides theirs prefers the other response."""
    settled: int = 0
    """Comparisons with such judgements, whose label is by the principles that override."""


class MixSummary(Summary):
    """Of the stage `mix`."""

    stages = ("mix",)
    comparisons: int
    """Comparisons of the run's own."""
    decided: int
    """Comparisons of the run's own that give a preference, by the labeler or by a person."""
    conflicts: int
    """Undecided comparisons where the labeler's two orders prefer different responses."""
    near_a_half: int
    """The other undecided comparisons: their probability is nearer to 0.5 than `mix.margin`."""
    train: int
    """Preferences to train on."""
    held_out: int
    """Preferences to measure the reward model on."""
    counts: dict[str, int]
    work: PeoplesWork | None = None
    """Behind the verdicts of `mix.verdicts`; None where the run names no such file."""
    labelled: dict[str, str] = Field(default_factory=dict)
    """Files of `mix.human` that a model labelled, with what is known of it: `is labelled by …`."""

    @property
    def judged(self) -> int:
        """Comparisons of the run's own that the labeler or a person judged."""
        return self.comparisons - self.counts.get("comparisons not judged", 0)


class SpotCheckSummary(Summary):
    """Of the stage `spotcheck`."""

    stages = ("spotcheck",)
    comparisons: int
    """Comparisons that people were to look at."""
    audit: int
    """Of these, the audit set, which is never trained on."""
    votes_wanted: int
    votes: int
    """Raters' own, without skips; a rater's verdicts on one comparison, in all and by principle, are one."""
    raters: int
    answered: int
    """Planned comparisons with a vote."""
    simulated: bool
    """Whether the votes were made up from the sandbox's exact traits, and nobody voted."""


class Share(Frozen):
    """A proportion and the counts behind it."""

    right: int
    n: int
    value: float
    low: float
    """Lower end of the 95% interval."""
    high: float

    @classmethod
    def of(cls, right: int, n: int) -> "Share | None":
        """The share with Wilson's 95% interval, which takes the rows for independent; None if nothing was counted."""
        return cls(right=right, n=n, value=right / n, **wilson(right, n)._asdict()) if n else None

    @classmethod
    def clustered(cls, outcomes: Sequence[tuple[bool, Hashable]]) -> "Share | None":
        """The share of outcomes that are true, where those of one cluster, such as a prompt, depend on each other."""
        if not outcomes:
            return None
        right = sum(outcome for outcome, _ in outcomes)
        low, high = clustered_share([float(outcome) for outcome, _ in outcomes], [cluster for _, cluster in outcomes])
        return cls(right=right, n=len(outcomes), value=right / len(outcomes), low=low, high=high)

    @classmethod
    def of_clusters(cls, alike: Mapping[tuple[int, int], int]) -> "Share | None":
        """The same from how many clusters there are of every number of outcomes that are true and of all."""
        right = sum(true * count for (true, _), count in alike.items())
        n = sum(every * count for (_, every), count in alike.items())
        if not n:
            return None
        low, high = share_of_clusters(alike)
        return cls(right=right, n=n, value=right / n, low=low, high=high)


class Histogram(Frozen):
    """Counts between neighbouring edges."""

    edges: tuple[float, ...]
    """In rising order, one more than there are counts."""
    counts: tuple[int, ...]

    @classmethod
    def of(cls, values: Sequence[float], low: float, high: float, bins: int = 10) -> "Histogram | None":
        """Counts of values from low to high in equal bins, the last with its upper edge; None without values."""
        if not values:
            return None
        places = ((np.array(values, float) - low) / (high - low) * bins + 1e-9).astype(int)
        counts = np.bincount(np.minimum(places, bins - 1), minlength=bins).tolist()
        return cls(edges=tuple(low + (high - low) * index / bins for index in range(bins + 1)), counts=tuple(counts))


class CalibrationBin(Frozen):
    """Held-out preferences for which about the same was predicted."""

    predicted: float
    """Mean predicted probability, 0 to 1."""
    observed: float
    """Share, or mean soft target, that came true."""
    n: int


class RewardQuality(Frozen):
    """How a reward model does on preferences that it was not trained on."""

    accuracy: dict[str, Share]
    """Share in which the chosen reply scores higher, by source (`ai`, `human`), and in `all`; sources without held-out
    preferences are left out."""
    calibration: tuple[CalibrationBin, ...] = ()
    calibration_error: float | None = None
    """Expected calibration error, 0 to 1; 0 is perfect. None where too few preferences are held out."""
    length_correlation: float | None = None
    """Pearson's correlation of score and length in words, -1 to 1. None where too few preferences are held out."""
    mean: float | None = None
    """Mean score of the reference samples, by the first member."""
    deviation: float | None = None
    scores: Histogram | None = None

    @property
    def measured(self) -> int:
        """Preferences that calibration and the correlation with length rest on."""
        return sum(row.n for row in self.calibration)


class RewardSummary(Summary):
    """Of the stage `reward`."""

    stages = ("reward",)
    pairs: int
    """Preferences that were trained on; 0 means that no reward model was trained."""
    dropped: dict[str, int]
    quality: RewardQuality | None
    """None where no reward model was trained."""


class DpoSummary(Summary):
    """Of the stage `dpo`."""

    stages = ("dpo",)
    pairs: int
    """Preferences that were trained on; 0 means that the policy is the SFT model."""
    steps: int
    dropped: dict[str, int]


_LAST: Final = {"reward": "reward", "kl": metrics.KL, "length": metrics.LENGTH, "truncated": metrics.CUT_OFF}
"""What a summary says of the last line of a log, by its name in former summaries."""


def last_of(log: Sequence[Mapping[str, float | None]]) -> dict[str, float | None] | None:
    """What `OnlineSummary.last` holds, of the lines of a training log; None without a line."""
    last = metrics.current(log[-1]) if log else None
    return {name: last.get(name) for name in _LAST.values()} if last is not None else None


class OnlineSummary(Summary):
    """Of the stages that train on replies of the policy's own: `ppo`, `grpo` and `rloo`."""

    stages = ("ppo", "grpo", "rloo")
    prompts: int
    """Prompts that replies are drawn to; 0 means that nothing was trained, and that the policy is the SFT model."""
    replies: int
    """Replies that were drawn and trained on."""
    steps: int
    """Steps of the optimizer's schedule: phases of PPO."""
    dropped: dict[str, int]
    examples: int = 0
    """Supervised examples that PPO-ptx goes on learning."""
    examples_left_out: int = 0
    """Supervised examples that PPO-ptx leaves out, because they are longer than a prompt and a reply may be."""
    critic_share: float | None = None
    """Share of the reward model's weights that the critic's adapters hold; None where they hold all of it."""
    last: dict[str, float | None] | None = None
    """From the last line of the log: `reward`, `objective/kl` (nats of a reply from the SFT model),
    `completions/mean_length` (tokens) and `completions/clipped_ratio` (share of replies that reached the most tokens
    allowed); None where the trainer gives no number."""

    @field_validator("last")
    @classmethod
    def _by_the_names_of_logs(cls, last: dict[str, float | None] | None) -> dict[str, float | None] | None:
        return {_LAST.get(name, name): number for name, number in last.items()} if last is not None else None


class AdoptedSummary(Summary):
    """Of the stage `adopted`, which trains nothing."""

    stages = ("adopted",)
    folder: str
    """The last part of the folder's path."""
    digest: str
    """SHA-256 over the files of the folder."""
    same_as_sft: bool
    """The files are those of the SFT model, so nothing was trained elsewhere."""


class EvaluateSummary(Summary):
    """Of the stage `evaluate`."""

    stages = ("evaluate",)
    prompts: int
    """Held-out prompts that the models answered."""
    counts: dict[str, int]
    critiqued: dict[str, str]
    """By id, the words by which the critic counted violations, of principles that the run leaves out too."""
    wanted: dict[str, Direction] | None
    """Where the constitution wants each of the sandbox's traits to go; None where no prompt is the sandbox's."""
    misunderstood: tuple[str, ...] = ()
    """For each principle whose tags say one thing and whose words the critic takes for another: a sentence on it."""
    guessed: tuple[str, ...] = ()
    """For each principle without such tags: what the critic takes it for, on which its direction rests."""


class ReportSummary(Summary):
    """Of the stage `report`, which has nothing to add to its page."""

    stages = ("report",)


SUMMARIES: Final[dict[str, type[Summary]]] = {
    stage: summary for summary in Summary.__subclasses__() for stage in summary.stages
}
"""The record that each stage writes."""
