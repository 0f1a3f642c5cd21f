"""Which of two responses follows the constitution better (Bai et al. 2022, section 4.1; Lee et al. 2023, section 2.1).

A comparison is judged by one principle, drawn for it (Bai et al.), or by all of them, in both orders; `labeler.py` says
how a model is asked. The stage `label`, the evaluation and `constitutional check` all label by this.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator
from typing import Literal

from pydantic import Field

from constitutional.base.errors import expect_all
from constitutional.base.records import Comparison, Judgement
from constitutional.base.seeds import rng_of
from constitutional.base.stats import weighted_mean
from constitutional.base.templates import Prompts, load_prompts
from constitutional.constitution.constitution import Constitution
from constitutional.engines.base import Engine
from constitutional.engines.stories import side_by_side
from constitutional.judging.labeler import JudgementTask, Labeler, LabelerSettings


class LabelSettings(LabelerSettings):
    """How comparisons are judged."""

    principles: Literal["one", "all"] = "one"
    """A comparison is judged by one principle, drawn by weight, or by all of them."""
    min_accuracy: float = Field(default=0.0, ge=0, le=1)
    """Principles by which the labeler is right less often than this, on the principle's own examples, are left out."""
    max_canary_failures: float = Field(default=0.5, ge=0, le=1)
    """Labelling stops where the labeler fails at more than this share of comparisons whose answer is plain."""

    @property
    def draws(self) -> bool:
        """Whether anything is drawn, so that labels depend on a seed."""
        return self.principles == "one" or self.method == "votes" or self.temperature > 0


def label(
    comparisons: Iterable[Comparison],
    constitution: Constitution,
    engine: Engine,
    templates: Prompts | None = None,
    settings: LabelSettings | None = None,
    seed: int = 0,
) -> Iterator[Judgement]:
    """Judgements of each comparison, one for each principle that it is judged by, in order.

    Without `templates` it is asked in the project's own words, without `settings` as `constitutional run` does.
    """
    settings = settings or LabelSettings()
    labeler = Labeler(engine, templates or load_prompts(), settings, seed)
    expected = expect_all(comparisons, Comparison, "label")
    tasks = (task for comparison in expected for task in _tasks(comparison, constitution, settings, seed))
    return side_by_side(map(labeler.judge, tasks))


def readable(judgements: Iterable[Judgement]) -> list[Judgement]:
    """The judgements that have a probability and count for something."""
    return [judgement for judgement in judgements if judgement.p_a is not None and judgement.weight > 0]


def combine(judgements: Iterable[Judgement]) -> float | None:
    """The probability that response a is better: the mean over a comparison's readable judgements, by weight.

    None if no judgement is readable. A judgement whose two orders conflict counts with the probability that it has.
    """
    pairs = [(judgement.p_a, judgement.weight) for judgement in readable(judgements) if judgement.p_a is not None]
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
    if settings.principles == "one":
        rng = rng_of(seed, "label", comparison.id)
        yield JudgementTask(comparison, constitution.draw(rng, ()), 1.0)  # the draw was by weight; it counts once
    else:
        for principle in constitution.principles:
            yield JudgementTask(comparison, principle, principle.weight)
