"""How good a labeler is, and by which principles it can be trusted.

What a labeler misjudges, training amplifies. So the labeler is first tried on the constitution's own examples, whose
better response is known, and on comparisons whose answer is plain. The decision which principles it labels by is made
once, and kept in the field `trusted` of each principle's row; every later reader takes it from there.
"""

import math
from collections import Counter, defaultdict
from collections.abc import Container, Iterable, Mapping, Sequence
from typing import Literal, NamedTuple

from pydantic import Field

from constitutional.base.errors import RunError
from constitutional.base.progress import enumerated
from constitutional.base.records import LABELER, Comparison, Judgement, Message, Prompt, Record
from constitutional.base.stats import calibration_error
from constitutional.base.templates import Prompts
from constitutional.constitution.constitution import Constitution, Example, Principle
from constitutional.engines.base import Engine
from constitutional.engines.stories import side_by_side
from constitutional.judging.contrast import calibrated
from constitutional.judging.labeler import ORDERS, JudgementTask, Labeler, method_for
from constitutional.judging.labelling import LabelSettings, probabilities_of, why_unread

NEAR_CHANCE = 0.6
"""By a principle where the labeler is right less often than this, its labels are little but noise."""

TOO_FEW = 3
"""Of so few readable examples, or fewer, nobody can tell whether the labeler is near chance."""

ROUNDING = 1e-9
"""What a product of a share and a count may be off by: 0.28 × 25 is 7.000000000000001."""

NULL_ANSWERS = (":", "Thought process:", ".")
"""Answers that say nothing but take some labelers in (Zhao et al. 2025, "One token to fool LLM-as-a-judge")."""


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
    """The mean probability of the better response, over the readable examples."""
    trusted: bool
    """Whether the labeler judges comparisons by this principle: its accuracy is at least `label.min_accuracy`.

    A principle without examples is trusted.
    """
    judge: str = Field(default=LABELER, exclude_if=lambda name: name == LABELER)
    """The labeler's name in the run."""
    sharpness: float = Field(default=1.0, exclude_if=lambda sharpness: sharpness == 1.0)
    """With `label.method=contrast`: what its log-odds by this principle are multiplied by, so that it is as sure as it
    is often right on the examples, those of other principles counting for a few; 0 if it is no surer where it is right
    than where it is wrong, so that none of its labels prefers a response."""
    problem: str | None = Field(default=None, exclude_if=lambda problem: problem is None)
    """Why most of the unreadable examples are so."""

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
    constitution: Constitution, engine: Engine, templates: Prompts, settings: LabelSettings, judge: str = LABELER
) -> list[PrincipleAccuracy]:
    """Judge each principle's own examples by that principle, whose better responses are known."""
    tasks = [
        JudgementTask(_example(example.prompt, example.better, example.worse), principle)
        for principle in constitution.principles
        for example in _telling(principle)
    ]
    judged: dict[str, list[Judgement]] = defaultdict(list)
    if contrasts := method_for(settings.method, engine.abilities) == "contrast":
        settings = settings.model_copy(update={"clamp": None})  # which would hide how sure it is
    labeler = Labeler(engine, templates, settings, seed=0)
    for judgement in side_by_side(map(labeler.judge, tasks)):
        judged[judgement.principle].append(judgement)
    rows = [_accuracy(principle.id, judged[principle.id], settings) for principle in constitution.principles]
    sharpness = dict[str, float]()
    if contrasts:
        by_model = [principle.id for principle in constitution.principles if principle.rule is None]
        own = {name: [row.p_a for row in judged[name] if row.p_a is not None] for name in by_model}
        for name in by_model:
            sharpness[name] = calibrated(own[name], [p for other in by_model if other != name for p in own[other]])
    return [row.model_copy(update={"judge": judge, "sharpness": sharpness.get(row.principle, 1.0)}) for row in rows]


def sharpness_of(accuracies: Iterable[PrincipleAccuracy], judge: str = LABELER) -> dict[str, float]:
    """By principle, what a judge's log-odds are multiplied by, with `label.method=contrast`."""
    return {row.principle: row.sharpness for row in accuracies if row.judge == judge}


def _telling(principle: Principle) -> list[Example]:
    """The examples that tell a better response from a worse one; the linter warns of the others."""
    return [example for example in principle.examples if example.better.strip() != example.worse.strip()]


def _example(prompt: str, better: str, worse: str) -> Comparison:
    """With the better response as a."""
    return Comparison(prompt=Prompt(messages=(Message("user", prompt),)), a=better, b=worse, model="example")


def _accuracy(principle: str, judgements: Sequence[Judgement], settings: LabelSettings) -> PrincipleAccuracy:
    p_correct = [judgement.p_a for judgement in judgements if judgement.p_a is not None]
    problems = Counter(judgement.problem for judgement in judgements if judgement.p_a is None)
    right = sum(p > 0.5 for p in p_correct)
    return PrincipleAccuracy(
        principle=principle,
        n=len(judgements),
        right=right,
        unreadable=len(judgements) - len(p_correct),
        conflicts=sum(judgement.conflict for judgement in judgements),
        mean_p_correct=math.fsum(p_correct) / len(p_correct) if p_correct else None,
        trusted=not judgements or right >= settings.min_accuracy * max(len(p_correct), 1) - ROUNDING,
        problem=problems.most_common(1)[0][0] if problems else None,
    )


def rating_warning(
    constitution: Constitution, engine: Engine, templates: Prompts, settings: LabelSettings
) -> str | None:
    """What to type where the labeler cannot rate one example of most principles; None where it can."""
    labeler = Labeler(engine, templates, settings, seed=0)
    examples = [(principle, example) for principle in constitution.principles for example in _telling(principle)[:1]]
    ratings = side_by_side(
        labeler.rating((Message("user", example.prompt), Message("assistant", example.better)), principle)
        for principle, example in examples
    )
    problems = [rating.problem for rating in ratings if rating.problem]
    if 2 * len(problems) <= len(examples):
        return None
    why = why_unread(problems, labeler, "type label.principles=one, which needs no scores")
    return f"the labeler gave no score to {len(problems)} of {len(examples)} examples: {why}"


def untrusted(accuracies: Iterable[PrincipleAccuracy], judge: str) -> set[str]:
    """The principles that a judge cannot be trusted with."""
    return {row.principle for row in accuracies if row.judge == judge and not row.trusted}


def trusted_principles(
    constitution: Constitution, accuracies: Sequence[PrincipleAccuracy], judges: Iterable[str] = (LABELER,)
) -> Constitution:
    """The principles for comparison without those that none of these judges can be trusted with.

    Raises:
        RunError: no principle is left.
    """
    constitution = constitution.used_for("comparison")
    left_out = set.intersection(*(untrusted(accuracies, judge) for judge in judges))
    if len(left_out) == len(constitution.principles):
        raise RunError(
            "The labeler is right in less than label.min_accuracy of the examples of every principle, so no principle "
            "is left to label by; take another labeler or label.method, or lower label.min_accuracy"
        )
    return constitution.select(None, sorted(left_out), {}) if left_out else constitution


def labelled_by(
    settings: LabelSettings,
    constitution: Constitution,
    accuracies: Sequence[PrincipleAccuracy],
    judges: Iterable[str],
) -> Constitution:
    """The principles that comparisons are judged by: those that one of the judges is trusted with.

    With `principles: telling` the labeler is, as it scores the responses.
    """
    return trusted_principles(constitution, accuracies, [LABELER] if settings.principles == "telling" else judges)


def warnings_of(accuracies: Iterable[PrincipleAccuracy], by_rule: Container[str] = ()) -> list[str]:
    """What is known against the judges' labels: a line for all principles without examples, and one for each other.

    Principles that a rule decides need no examples.
    """
    warnings = []
    without = dict.fromkeys(f"'{row.principle}'" for row in accuracies if not row.n and row.principle not in by_rule)
    if without:
        them, have, is_judged = (
            ("principle", "has", "it is") if len(without) == 1 else ("principles", "have", "they are")
        )
        names = enumerated(without)
        warnings.append(f"{them} {names} {have} no examples, so nobody knows how well {is_judged} judged")
    for row in accuracies:
        if not row.n:
            continue
        readable = row.n - row.unreadable
        score = f"is right in {row.right} of {readable}" if readable else "cannot be read"
        if row.problem and 2 * row.unreadable > row.n:
            score = f"{score} ({row.problem})"
        judge = f"the {called(row.judge)}"
        if not row.trusted and row.judge == LABELER:
            warnings.append(f"principle '{row.principle}' is left out: {judge} {score} on its examples")
        elif not row.trusted:
            warnings.append(f"principle '{row.principle}' is left to others: {judge} {score} on its examples")
        elif row.near_chance:
            how = "too few to tell" if 0 < readable <= TOO_FEW else "near chance"
            warnings.append(f"principle '{row.principle}': {judge} {score} on its examples, {how}")
        elif not row.sharpness:
            warnings.append(
                f"principle '{row.principle}': {judge} {score} on its examples, and is surest where it is wrong, so no "
                "label by it will prefer a response; more examples, `opposite:` or `measure:` may tell more"
            )
    return list(dict.fromkeys(warnings))


def called(judge: str) -> str:
    """What people call a judge of a run."""
    return "labeler" if judge == LABELER else f"judge '{judge}'"


def canaries(constitution: Constitution) -> list[JudgementTask]:
    """Comparisons whose answer is plain: a, by the task's principle.

    Each example of a principle stands twice: its better response against the worse one, and against an empty phrase.
    What a rule judges says nothing of the labeler, and is left out.
    """
    return [
        JudgementTask(_example(example.prompt, example.better, worse), principle)
        for principle in constitution.principles
        if principle.rule is None
        for index, example in enumerate(_telling(principle))
        for worse in (example.worse, NULL_ANSWERS[index % len(NULL_ANSWERS)])
    ]


def check_canaries(
    constitution: Constitution, engine: Engine, templates: Prompts, settings: LabelSettings, judge: str = LABELER
) -> tuple[int, int]:
    """Judge the canaries: how many there are, and at how many the labeler fails; without examples there are none.

    A canary fails if it cannot be read or if the wrong response is preferred whatever the order. To waver between the
    orders is no failure: such a judgement is near a half and moves little.

    Raises:
        RunError: more of them fail than `max_canary_failures` allows.
    """
    labeler = Labeler(engine, templates, settings, 0, judge)
    judgements = list(side_by_side(map(labeler.judge, canaries(constitution))))
    failed = [row.principle for row in judgements if row.p_a is None or (row.p_a < 0.5 and not row.conflict)]
    if len(failed) > settings.max_canary_failures * len(judgements) + ROUNDING:
        principles = ", ".join(f"'{name}'" for name in dict.fromkeys(failed))
        share = math.ceil(100 * len(failed) / len(judgements)) / 100
        ways = _other_ways(settings, engine)
        problems = [row.problem or "no probabilities" for row in judgements if row.p_a is None]
        if 2 * len(problems) > len(failed):
            ways = f"Most of them could not be read: {why_unread(problems, labeler, ways[0].lower() + ways[1:])}"
        raise RunError(
            f"The {called(judge)} fails at {len(failed)} of {len(judgements)} comparisons whose answer is plain, by "
            f"the principles {principles}; such labels would train the opposite of what is asked. "
            f"{ways}; `constitutional check` shows how it judges. To label with it as it is, "
            f"type label.max_canary_failures={share:g}"
        )
    return len(judgements), len(failed)


def _other_ways(settings: LabelSettings, engine: Engine) -> str:
    """What to type for better labels."""
    if settings.method != "contrast" and engine.abilities.choices:
        return (
            "Type label.method=contrast, which needs no verdict to be read (but no labeler with endpoint=chat), or "
            "labeler=… for a larger model"
        )
    return (
        "Write `measure:` under principles that something countable tells apart, `opposite:` under the others, or type "
        "labeler=… for a larger model"
    )


class LabelerAccuracy(NamedTuple):
    """A labeler against given answers."""

    n: int
    """Comparisons with an answer."""
    right: int
    """Those whose answer got a probability over a half."""
    unreadable: int
    """Those that got no probability; they count as not right."""
    accuracy: float
    calibration_error: float | None
    """Expected calibration error of the preferred response's probability; None from too few that are readable."""
    position_bias: float | None
    """Share of readings that prefer the response shown first; 0.5 is none, None if no reading prefers either."""


def accuracy_against(judgements: Iterable[Judgement], answers: Mapping[str, Literal["a", "b"]]) -> LabelerAccuracy:
    """How often the labeler finds the answer, by comparison id; over all principles of a comparison."""
    judged = [judgement for judgement in judgements if judgement.comparison in answers]
    p_a = {comparison: p for comparison, p in probabilities_of(judged).items() if p is not None}
    p_correct = [p if answers[comparison] == "a" else 1 - p for comparison, p in p_a.items()]
    n, right = len(answers), sum(p > 0.5 for p in p_correct)
    # Which response is called a is arbitrary, so the calibration is that of the preferred response's probability. At a
    # half neither is preferred, and either is right half the time.
    outcomes = [0.5 if p == 0.5 else float(p > 0.5) for p in p_correct]
    return LabelerAccuracy(
        n=n,
        right=right,
        unreadable=n - len(p_correct),
        accuracy=right / n if n else math.nan,
        calibration_error=calibration_error([max(p, 1 - p) for p in p_correct], outcomes),
        position_bias=position_bias(judged),
    )


def position_bias(judgements: Iterable[Judgement]) -> float | None:
    """The share of readings that prefer the response shown first, of those that prefer one."""
    first, total = shown_first(judgements)
    return first / total if total else None


def shown_first(judgements: Iterable[Judgement]) -> tuple[int, int]:
    """How many readings prefer the response shown first, and how many prefer one."""
    first = total = 0
    for judgement in judgements:
        if len(judgement.readings) < len(ORDERS):
            continue  # asked without an order
        for reading in judgement.readings:
            if reading.p_a is not None and reading.p_a != 0.5:
                first += (reading.p_a > 0.5) == (reading.order == "a_first")
                total += 1
    return first, total
