"""Which of two responses follows the constitution better (Bai et al. 2022, section 4.1; Lee et al. 2023, section 2.1).

Each comparison is judged by one principle drawn for it (Bai et al.) or by all of them, in both orders; `labeler.py`
says how a model is asked. What differs from the papers: the labeler is first tried on the constitution's own examples,
and on comparisons whose answer is plain, because training amplifies what it misjudges. That is a stage of its own, the
first that asks a model anything, so that a labeler of no use ends a run before hours of training and not after.
"""

import math
import random
import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Literal, NamedTuple

from pydantic import Field

from constitutional.base.errors import RunError, expect_all
from constitutional.base.records import Comparison, Judgement, Message, Prompt, Record
from constitutional.base.stats import Interval, calibration_error, weighted_mean, wilson
from constitutional.base.templates import Prompts, load_prompts
from constitutional.constitution.constitution import Constitution, Example, Principle
from constitutional.engines.base import Engine
from constitutional.judging.labeler import ORDERS, TOO_LONG, Ask, Labeler, LabelerSettings
from constitutional.stages.context import StageContext

TOGETHER = 256
"""Comparisons that are asked about side by side, so that the engine can batch them."""

NEAR_CHANCE = 0.6
"""A labeler that is right less often than this by a principle teaches little but noise by it."""

TOO_FEW = 3
"""Of so few readable examples, or fewer, nobody can tell whether the labeler is near chance."""

NULL_ANSWERS = (":", "Thought process:", ".")
"""Answers that say nothing but take some labelers in (Zhao et al. 2025, "One token to fool LLM-as-a-judge")."""


class Settings(LabelerSettings):
    """How comparisons are judged."""

    principles: Literal["one", "all"] = "one"
    """Judge a comparison by one principle, drawn by weight, or by all of them."""
    min_accuracy: float = Field(default=0.0, ge=0, le=1)
    """Principles by which the labeler is right less often than this, on their own examples, are left out."""
    max_canary_failures: float = Field(default=0.5, ge=0, le=1)
    """Labelling stops where the labeler fails at more than this share of comparisons whose answer is plain."""


# 1. Comparisons to judgements.


def label(
    comparisons: Iterable[Comparison],
    constitution: Constitution,
    engine: Engine,
    templates: Prompts | None = None,
    settings: Settings | None = None,
    seed: int = 0,
) -> Iterator[Judgement]:
    """Judgements of each comparison, one for each principle that it is judged by, in order.

    Without `templates` it is asked in the project's own words, without `settings` as `constitutional run` does.
    """
    settings = settings or Settings()
    labeler = Labeler(engine, templates or load_prompts(), settings, seed)
    iterator = expect_all(comparisons, Comparison, "label")
    while chunk := list(islice(iterator, TOGETHER)):
        asks = [ask for comparison in chunk for ask in _asks(comparison, constitution, settings, seed)]
        yield from labeler.judge(asks)


def combine(judgements: Sequence[Judgement]) -> float | None:
    """The probability that a is better in all: the mean over a comparison's principles by weight.

    Unreadable ones are left out; None if nothing is left. Where the orders conflict the probability counts as it is.
    """
    readable = [(judgement.p_a, judgement.weight) for judgement in judgements if judgement.p_a is not None]
    return weighted_mean([p_a for p_a, _ in readable], [weight for _, weight in readable])


def _asks(comparison: Comparison, constitution: Constitution, settings: Settings, seed: int) -> Iterator[Ask]:
    if settings.principles == "one":
        rng = random.Random(f"{seed} label {comparison.id}")
        yield Ask(comparison, constitution.draw(rng, ()), 1.0)  # the draw was by weight; it counts once
    else:
        for principle in constitution.principles:
            yield Ask(comparison, principle, principle.weight)


# 2. How good the labeler is.


class PrincipleAccuracy(Record):
    """How a labeler judges a principle's own examples."""

    principle: str
    n: int
    """Examples, each asked about in both orders."""
    right: int
    """Examples by which the better response got a probability over a half."""
    unreadable: int
    conflicts: int
    """Examples where the labeler kept the position and not the response."""
    mean_p_correct: float | None
    """The mean probability of the better response, over the readable ones."""

    @property
    def accuracy(self) -> float | None:
        """Right ones among the readable; None if there is none."""
        readable = self.n - self.unreadable
        return self.right / readable if readable else None

    @property
    def near_chance(self) -> bool:
        """Whether labels by it are little but noise; where no example can be read they certainly are."""
        return self.n > 0 and (self.accuracy or 0.0) < NEAR_CHANCE


def measure_labeler(
    constitution: Constitution, engine: Engine, templates: Prompts, settings: Settings
) -> list[PrincipleAccuracy]:
    """Judge each principle's own examples by that principle, whose better responses are known."""
    asks = [
        Ask(_example(example.prompt, example.better, example.worse), principle, 1.0)
        for principle in constitution.principles
        for example in _telling(principle)
    ]
    judged: dict[str, list[Judgement]] = defaultdict(list)
    for judgement in Labeler(engine, templates, settings, seed=0).judge(asks):
        judged[judgement.principle].append(judgement)
    return [_accuracy(principle.id, judged[principle.id]) for principle in constitution.principles]


def _telling(principle: Principle) -> list[Example]:
    """The examples that tell a better response from a worse one; the linter warns of the others."""
    return [each for each in principle.examples if each.better.strip() != each.worse.strip()]


def _example(prompt: str, better: str, worse: str) -> Comparison:
    """With the better response as a."""
    return Comparison(prompt=Prompt(messages=(Message("user", prompt),)), a=better, b=worse, model="example")


def _accuracy(principle: str, judgements: Sequence[Judgement]) -> PrincipleAccuracy:
    p_correct = [judgement.p_a for judgement in judgements if judgement.p_a is not None]
    return PrincipleAccuracy(
        principle=principle,
        n=len(judgements),
        right=sum(p > 0.5 for p in p_correct),
        unreadable=len(judgements) - len(p_correct),
        conflicts=sum(judgement.conflict for judgement in judgements),
        mean_p_correct=math.fsum(p_correct) / len(p_correct) if p_correct else None,
    )


class Trust(NamedTuple):
    """What the measurement of a labeler leads to."""

    constitution: Constitution
    """Without the principles that are left out."""
    left_out: list[str]
    warnings: list[str]


def trusted(constitution: Constitution, accuracies: Sequence[PrincipleAccuracy], settings: Settings) -> Trust:
    """Leave out the principles that the labeler misjudges, and warn of those by which it is near chance."""
    left_out = []
    warnings = []
    for each in accuracies:
        if not each.n:
            warnings.append(f"principle '{each.principle}' has no examples, so nobody knows how well it is judged")
            continue
        accuracy = each.accuracy
        shown = "cannot be read" if accuracy is None else f"is right in {each.right} of {each.n - each.unreadable}"
        if (accuracy or 0.0) < settings.min_accuracy:
            left_out.append(each.principle)
            warnings.append(f"principle '{each.principle}' is left out: the labeler {shown} on its examples")
        elif each.near_chance:
            how = "too few to tell" if 0 < each.n - each.unreadable <= TOO_FEW else "near chance"
            warnings.append(f"principle '{each.principle}': the labeler {shown} on its examples, {how}")
    if left_out and len(left_out) == len(constitution.principles):
        raise RunError(
            f"The labeler is right in less than {settings.min_accuracy:.0%} of the examples of every principle, so "
            "nothing is left to label by; take another labeler or method, or lower label.min_accuracy"
        )
    kept = constitution.select(None, left_out, {}) if left_out else constitution
    return Trust(kept, left_out, warnings)


class Canary(NamedTuple):
    """A comparison whose answer is plain: a, by this principle."""

    comparison: Comparison
    principle: Principle


class CanaryResult(NamedTuple):
    """How many canaries the labeler failed at."""

    n: int
    failed: int


def canaries(constitution: Constitution) -> list[Canary]:
    """Each example of a principle twice: its better response against the worse one, and against an empty phrase."""
    return [
        Canary(_example(example.prompt, example.better, worse), principle)
        for principle in constitution.principles
        for index, example in enumerate(_telling(principle))
        for worse in (example.worse, NULL_ANSWERS[index % len(NULL_ANSWERS)])
    ]


def check_canaries(constitution: Constitution, engine: Engine, templates: Prompts, settings: Settings) -> CanaryResult:
    """Judge the canaries; without examples there are none.

    A canary fails if it cannot be read or if the wrong response is preferred whatever the order. To waver between the
    orders is no failure: such a judgement is near a half and moves little.

    Raises:
        RunError: more of them fail than `max_canary_failures` allows.
    """
    asks = [Ask(canary.comparison, canary.principle, 1.0) for canary in canaries(constitution)]
    judgements = Labeler(engine, templates, settings, seed=0).judge(asks)
    failed = [each for each in judgements if each.p_a is None or (each.p_a < 0.5 and not each.conflict)]
    if len(failed) > settings.max_canary_failures * len(judgements):
        principles = ", ".join(f"'{name}'" for name in dict.fromkeys(each.principle for each in failed))
        raise RunError(
            f"The labeler fails at {len(failed)} of {len(judgements)} comparisons whose answer is plain, by the "
            f"principles {principles}; such labels would train the opposite of what is asked. Look at `constitutional "
            "check`, take another labeler or method, or raise label.max_canary_failures"
        )
    return CanaryResult(len(judgements), len(failed))


class LabelerAccuracy(NamedTuple):
    """A labeler against given answers."""

    n: int
    """Comparisons with an answer."""
    right: int
    """Those whose answer got a probability over a half."""
    unreadable: int
    """Those that got no probability; they count as not right."""
    accuracy: float
    interval: Interval
    """Wilson's, 95%."""
    calibration_error: float | None
    """Expected calibration error of the preferred response's probability; None if none is readable."""
    position_bias: float | None
    """Share of readings that prefer the response shown first; 0.5 is none, None if no reading prefers either."""


def accuracy_against(judgements: Iterable[Judgement], answers: Mapping[str, Literal["a", "b"]]) -> LabelerAccuracy:
    """How often the labeler finds the answer, by comparison id; over all principles of a comparison."""
    judged: dict[str, list[Judgement]] = defaultdict(list)
    for judgement in judgements:
        judged[judgement.comparison].append(judgement)
    p_correct = []
    for comparison, answer in answers.items():
        p_a = combine(judged[comparison])
        if p_a is not None:
            p_correct.append(p_a if answer == "a" else 1 - p_a)
    n, right = len(answers), sum(p > 0.5 for p in p_correct)
    asked = [judgement for comparison in answers for judgement in judged[comparison]]
    return LabelerAccuracy(
        n=n,
        right=right,
        unreadable=n - len(p_correct),
        accuracy=right / n if n else math.nan,
        interval=wilson(right, n),
        calibration_error=_calibration_error(p_correct) if p_correct else None,
        position_bias=position_bias(asked),
    )


def _calibration_error(p_correct: Sequence[float]) -> float:
    """Of the preferred response's probability, because which response is called a is arbitrary.

    At a half neither is preferred, and either is right half the time.
    """
    right = [0.5 if p == 0.5 else float(p > 0.5) for p in p_correct]
    return calibration_error([max(p, 1 - p) for p in p_correct], right)


def position_bias(judgements: Iterable[Judgement]) -> float | None:
    """The share of readings that prefer the response shown first, of those that prefer one."""
    first = total = 0
    for judgement in judgements:
        if len(judgement.readings) < len(ORDERS):
            continue  # asked without an order
        for reading in judgement.readings:
            if reading.p_a is not None and reading.p_a != 0.5:
                first += (reading.p_a > 0.5) == (reading.order == "a_first")
                total += 1
    return first / total if total else None


# 3. The stages.


def check(settings: Settings, context: StageContext) -> None:
    """Try the labeler on what is known, before anything is trained: the stage `labeler_check`.

    The constitution's own examples are judged in two ways; what is asked twice the journal answers.
    """
    engine = context.engine("labeler")
    accuracies = measure_labeler(context.constitution, engine, context.prompts, settings)
    context.write("labeler_accuracy", accuracies)
    trust = trusted(context.constitution, accuracies, settings)
    for warning in trust.warnings:
        print(f"warning: {warning}", file=sys.stderr)
    canary = check_canaries(trust.constitution, engine, context.prompts, settings)
    context.note("left_out_principles", trust.left_out)
    context.note("warnings", trust.warnings)
    context.note("canaries", canary._asdict())


def run(settings: Settings, context: StageContext) -> None:
    """Turn comparisons into judgements, by the principles that the labeler was found to understand."""
    trust = trusted(context.constitution, context.read("labeler_accuracy", PrincipleAccuracy), settings)
    comparisons = context.read("comparisons", Comparison)
    total = len(comparisons) * (1 if settings.principles == "one" else len(trust.constitution.principles))
    labelled = label(
        comparisons, trust.constitution, context.engine("labeler"), context.prompts, settings, context.seed
    )
    judgements = list(context.progress(labelled, total, "label"))
    context.write("judgements", judgements)
    context.note("comparisons", len(comparisons))
    context.note("judgements", len(judgements))
    context.note("unreadable", sum(judgement.p_a is None for judgement in judgements))
    context.note("too_long", sum(TOO_LONG in (judgement.problem or "") for judgement in judgements))
    context.note("conflicts", sum(judgement.conflict for judgement in judgements))
    context.note("ties", sum(judgement.p_a == 0.5 for judgement in judgements))
    context.note("position_bias", position_bias(judgements))
    context.note("left_out_principles", trust.left_out)
