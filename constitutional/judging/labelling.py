"""Which of two responses follows the constitution better (Bai et al. 2022, section 4.1; Lee et al. 2023, section 2.1).

A comparison is judged by one principle, drawn for it (Bai et al.), or by all of them, in both orders; or only those
comparisons are judged that a principle tells apart (`choosing.py`). `labeler.py` says how a model is asked. Several
judges may judge the same comparisons (a panel). The stage `label`, the evaluation and `constitutional check` all label
by this.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from typing import Annotated, Literal, NamedTuple, TypeVar

from pydantic import Field

from constitutional.base.errors import expect_all
from constitutional.base.records import LABELER, Comparison, Judgement, Message
from constitutional.base.seeds import rng_of
from constitutional.base.stats import weighted_mean
from constitutional.base.templates import Prompts, load_prompts
from constitutional.constitution.constitution import Constitution
from constitutional.engines.base import Engine, without_thinking
from constitutional.engines.stories import side_by_side, together
from constitutional.judging.choosing import principle_for, telling
from constitutional.judging.labeler import CUT_OFF, THINKING, JudgementTask, Labeler, LabelerSettings
from constitutional.judging.priorities import JudgementLike, overridden

Weight = Annotated[float, Field(gt=0)]
J = TypeVar("J", bound=JudgementLike)


class LabelSettings(LabelerSettings):
    """How comparisons are judged."""

    principles: Literal["one", "all", "telling"] = "one"
    """A comparison is judged by one principle, drawn by weight, or by all of them; where two of all disagree and one
    overrides the other, it decides. With `telling`, one principle is drawn for a prompt, first among those that its
    draft violated and no other of them overrides; the labeler scores each of the prompt's responses by it, from 1 to
    10; and only comparisons of responses at least one point apart are judged. A comparison that stands alone is then
    judged by one principle. The evaluation draws one principle for a prompt, unless it is `all`."""
    telling_pairs: int = Field(default=2, ge=1)
    """Most comparisons of a prompt that are judged with `principles: telling`: those whose scores are furthest
    apart."""
    min_accuracy: float = Field(default=0.0, ge=0, le=1)
    """Principles by which the labeler is right less often than this, on the principle's own examples, are left out."""
    max_canary_failures: float = Field(default=0.5, ge=0, le=1)
    """Labelling stops where a labeler fails at more than this share of comparisons whose answer is plain."""
    weights: dict[str, Weight] = Field(default_factory=dict)
    """Weights of the judges' judgements by name, such as {labeler: 1, second: 2}; a judge that is not named has 1."""

    @property
    def draws(self) -> bool:
        """Whether anything is drawn, so that labels depend on a seed."""
        return self.principles != "all" or self.method == "votes" or self.temperature > 0


class Judge(NamedTuple):
    """A labeler of a panel."""

    labeler: Labeler
    weight: float
    principles: Collection[str]
    """Ids of those that it is trusted with."""


def label(  # noqa: PLR0913 - what the public function consists of
    comparisons: Iterable[Comparison],
    constitution: Constitution,
    engine: Engine,
    templates: Prompts | None = None,
    settings: LabelSettings | None = None,
    seed: int = 0,
    *,
    sharpness: Mapping[str, float] | None = None,
    ended: Callable[[int], None] | None = None,
) -> Iterator[Judgement]:
    """Judgements of each comparison, one for each principle that it is judged by, in order.

    Without `templates` it is asked in the project's own words, without `settings` as `constitutional run` does. `ended`
    is told how many judgements have been made, in whatever order. `sharpness` is that of a `Labeler`. The engine is
    given the principles' words as the constitution has them (`Principle.words`). A run gives the sandbox's model other
    words where it would misread them; `judging.understanding.in_known_words` makes such a constitution.
    """
    settings = settings or LabelSettings()
    labeler = Labeler(engine, templates or load_prompts(), settings, seed, sharpness=sharpness)
    judge = Judge(labeler, 1.0, [principle.id for principle in constitution.principles])
    return label_by([judge], comparisons, constitution, settings, seed, ended=ended)


def label_by(
    judges: Sequence[Judge],
    comparisons: Iterable[Comparison],
    constitution: Constitution,
    settings: LabelSettings,
    seed: int,
    *,
    ended: Callable[[int], None] | None = None,
) -> Iterator[Judgement]:
    """The same by several judges: of each comparison and principle, a judgement of each judge that is trusted with it.

    `ended` is told how many of these pairs have been judged.
    """
    expected = expect_all(comparisons, Comparison, "label")
    tasks = (task for comparison in expected for task in _tasks(comparison, constitution, settings, seed))
    judged = side_by_side((_judged(judges, task) for task in tasks), ended=ended)
    return (judgement for judgements in judged for judgement in judgements)


async def _judged(judges: Sequence[Judge], task: JudgementTask) -> list[Judgement]:
    return await together(
        judge.labeler.judge(task._replace(weight=task.weight * judge.weight))
        for judge in judges
        if task.principle.id in judge.principles
    )


class PromptJudgements(NamedTuple):
    """What the labeler makes of the responses to one prompt."""

    scores: dict[str, int | None]
    """By response, from 1 to 10; None where the labeler gave no score."""
    problems: list[str]
    """Of the responses without a score."""
    judgements: list[Judgement]
    """Of the comparisons that the scores tell apart; often none."""


def label_telling(
    comparisons: Iterable[Comparison],
    constitution: Constitution,
    judges: Sequence[Judge],
    violated: Mapping[str, Collection[str]],
    settings: LabelSettings,
    *,
    ended: Callable[[int], None] | None = None,
) -> Iterator[PromptJudgements]:
    """For each prompt, in order, judgements of the comparisons that its principle tells apart.

    Args:
        comparisons: all that could be judged; those of one prompt stand together.
        constitution: the principles that are drawn.
        judges: the first scores the responses one by one; then all compare two of them.
        violated: by prompt's id, the principles that its draft violated, which are drawn first.
        settings: how many comparisons of a prompt are judged.
        ended: told how many prompts are done, in whatever order.
    """

    async def judge(name: str, group: Sequence[Comparison]) -> PromptJudgements:
        labeler = judges[0].labeler
        principle = principle_for(name, constitution, violated.get(name, ()), labeler.seed)
        responses = list(dict.fromkeys(text for comparison in group for text in (comparison.a, comparison.b)))
        conversations = [(*group[0].prompt.messages, Message("assistant", text)) for text in responses]
        ratings = await together(labeler.rating(conversation, principle) for conversation in conversations)
        scores = {response: rating.score for response, rating in zip(responses, ratings, strict=True)}
        pairs = telling(group, scores, settings.telling_pairs)
        judged = await together(_judged(judges, JudgementTask(pair, principle)) for pair in pairs)
        problems = [rating.problem for rating in ratings if rating.problem]
        return PromptJudgements(scores, problems, [judgement for judgements in judged for judgement in judgements])

    by_prompt = groupby(comparisons, lambda comparison: comparison.prompt.id)
    return side_by_side((judge(name, list(group)) for name, group in by_prompt), ended=ended)


def why_unread(problems: Sequence[str] | Mapping[str, int], labeler: Labeler, otherwise: str) -> str:
    """The most frequent problem of a judge's replies, and what to do.

    Args:
        problems: at least one, of replies that could not be read, or how often each occurs.
        labeler: the judge.
        otherwise: what to do where the replies were not cut off.
    """
    counts = Counter(problems)
    problem, count = counts.most_common(1)[0]
    remedy = otherwise
    if CUT_OFF in problem:
        remedy = f"label.max_tokens={2 * labeler.settings.max_tokens}"
        role = LABELER if labeler.judge_name == LABELER else f"panel.{labeler.judge_name}"
        if THINKING in problem:
            remedy += f", or {without_thinking(role)}"
        elif labeler.engine.abilities.structured:  # some models never end JSON, whatever the limit
            remedy = f"{role}.structured=no, by which it answers in words, or {remedy}"
        remedy = f"type {remedy}"
    return f"{problem} ({count} of {counts.total()}); {remedy}"


def readable(judgements: Iterable[J]) -> list[J]:
    """The judgements that have a probability and count for something."""
    return [judgement for judgement in judgements if judgement.p_a is not None and judgement.weight > 0]


def decisive(judgements: Iterable[J]) -> list[J]:
    """A comparison's readable judgements, without those by a principle that another overrides (`priorities.py`)."""
    usable = readable(judgements)
    beaten = overridden(usable)
    return [judgement for judgement in usable if judgement.principle not in beaten] if beaten else usable


def combine(judgements: Iterable[JudgementLike]) -> float | None:
    """The probability that response a is better: the mean over a comparison's readable judgements, by weight.

    None if no judgement is readable. A judgement whose two orders conflict counts with the probability that it has.
    One by a principle that is overridden does not count.
    """
    return mean_of(decisive(judgements))


def mean_of(judgements: Iterable[JudgementLike]) -> float | None:
    """The mean over readable judgements, by weight; None where there is none."""
    pairs = [(judgement.p_a, judgement.weight) for judgement in judgements if judgement.p_a is not None]
    return weighted_mean([p_a for p_a, _ in pairs], [weight for _, weight in pairs])


def probabilities_of(judgements: Iterable[Judgement]) -> dict[str, float | None]:
    """By comparison, what `combine` makes of its judgements."""
    groups: defaultdict[str, list[Judgement]] = defaultdict(list)
    for judgement in judgements:
        groups[judgement.comparison].append(judgement)
    return {comparison: combine(group) for comparison, group in groups.items()}


def _tasks(
    comparison: Comparison, constitution: Constitution, settings: LabelSettings, seed: int
) -> Iterator[JudgementTask]:
    if settings.principles == "all":
        for principle in constitution.principles:
            above = constitution.overridden_by.get(principle.id, ())
            yield JudgementTask(comparison, principle, principle.weight, above)
    else:
        rng = rng_of(seed, "label", comparison.id)
        yield JudgementTask(comparison, constitution.draw(rng, ()), 1.0)  # the draw was by weight; it counts once
