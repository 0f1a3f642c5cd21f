"""What a reader should take from the numbers: what improved, what got worse, what was not measured."""

import math
from collections.abc import Iterator, Mapping, Sequence
from statistics import NormalDist
from typing import Final, Literal, NamedTuple

from constitutional.base.records import GoldJudge, GoldPoint
from constitutional.judging.scores import Change, Score
from constitutional.stages.report.data import MODELS, RunReport
from constitutional.stages.summaries import Direction, EvaluateSummary

Outcome = Literal["improved", "worse", "changed", "no clear change"]

HEADS: Final[Mapping[str, str]] = {
    "win_rate": "win rate against",
    "violation_rate": "violations of",
    "kl_from": "KL from",
    "log_ratio_to": "log-ratio to",
    "due_refusal": "refusal of harmful or private requests",
    "over_refusal": "over-refusal of all other requests",
    "rewards": "implicit reward",
    "sft": "SFT",
    "dpo": "DPO",
    "ppo": "PPO",
    "grpo": "GRPO",
    "rloo": "RLOO",
    "kl": "KL",
    "ai": "AI",
}
"""How the page words a name, or what stands before its `/`, where the name itself would read badly."""

JUDGES: Final[Mapping[GoldJudge, str]] = {
    "traits": "what the constitution’s tags ask for, found exactly",
    "labeler": "the labeler’s score from 1 to 10",
    "reward_model": "a held-out reward model",
}
"""Who gave a gold score."""

ALWAYS_WANTED: Final[Mapping[str, Direction]] = {
    "win_rate": "higher",
    "violation_rate": "lower",
    "well_formed": "higher",
    "on_topic": "higher",
    "cut_off": "lower",
    "due_refusal": "higher",
    "over_refusal": "lower",
}
"""Directions that need no constitution, by what a measure's name begins with."""

AGAINST_SL: Final = "win_rate/sft_model"

COMPLETE: Final[Mapping[str, str]] = {
    "win_rate": "Win rates: the labeler compared no replies",
    "violation_rate": "Violations: the critic judged no reply",
    "kl_from": "KL from the models before: no reply was compared",
    "length": "Length of replies",
}
"""Kinds of measures that a complete evaluation has, and what to say where one was switched off."""


class Verdict(NamedTuple):
    """What became of one measure."""

    measure: str
    outcome: Outcome
    wanted: Direction | None
    before: Score | None
    """None for a win rate, which holds its comparison in itself."""
    after: Score
    change: Change | None
    """Over the same prompts; None where a number is not made prompt by prompt."""


class Fall(NamedTuple):
    """How far the gold score of a training online fell after its peak."""

    peak: GoldPoint
    last: GoldPoint
    value: float
    low: float
    """Lower end of the 95% interval; the fall is clear if it is above 0."""
    high: float


class Verdicts(NamedTuple):
    """The verdict strip: each measure stands in exactly one of the first four, or is not measured.

    They are about the last model against the base.
    """

    improved: list[Verdict]
    worse: list[Verdict]
    changed: list[Verdict]
    unclear: list[Verdict]
    not_measured: list[str]
    undone: list[Verdict]
    """Measures that the RL stage made clearly worse than the SL model left them, whatever they are against the base."""
    against_sl: list[Verdict]
    """The win rate against the SL model, if there is one: it says nothing of the base, and stands in no other list, or
    in the one before where it is lost."""


def outcome(low: float, high: float, reference: tuple[float, float], wanted: Direction | None) -> Outcome:
    """A change is clear only if the intervals do not touch; it is good or bad only if a direction is wanted."""
    rose, fell = low > reference[1], high < reference[0]
    if not (rose or fell):
        return "no clear change"
    if wanted is None:
        return "changed"
    return "improved" if rose == (wanted == "higher") else "worse"


def _verdict(before: Score | None, after: Score, wanted: Direction | None) -> Verdict:
    """By the change over the same prompts, which is the sharpest; without one, by the two models' intervals.

    A model's own interval says how it would do on other prompts. Two of these may overlap where it is clear which model
    does better on the same ones.
    """
    change = after.changes.get(before.model) if before else None
    if change:
        found = outcome(change.low, change.high, (0.0, 0.0), wanted)
    else:
        found = outcome(after.low, after.high, (before.low, before.high) if before else (0.5, 0.5), wanted)
    return Verdict(after.measure, found, wanted, before, after, change)


def fall(points: Sequence[GoldPoint]) -> Fall | None:
    """From the highest point of one judge's scores to the last one; None if the last one is the highest.

    The peak was chosen for its height, so a fall from it is due to luck more often than one in twenty. The interval is
    therefore wide enough for the falls from all points together (Bonferroni).
    """
    if not points or (peak := max(points, key=lambda each: each.gold)) == points[-1]:
        return None
    last = points[-1]
    normal = NormalDist()
    wider = normal.inv_cdf(1 - 0.025 / (len(points) - 1)) / normal.inv_cdf(0.975)
    half = wider * math.hypot(*((each.high - each.low) / 2 for each in (peak, last)))
    value = peak.gold - last.gold
    return Fall(peak, last, value, value - half, value + half)


def over_optimised(gold: Sequence[GoldPoint]) -> Iterator[str]:
    """A sentence for each judge by whom the proxy was clearly over-optimised."""
    for by, points in by_judge(gold).items():
        found = fall(points)
        if found and found.low > 0:
            numbers = (found.value, found.low, found.high)
            fell, low, high = (f"{100 * each:.1f}" if by == "traits" else f"{each:.2f}" for each in numbers)
            unit = " points" if by == "traits" else ""
            kl = "" if found.peak.kl is None else f", KL {found.peak.kl:.2g} nats"
            yield (
                f"The gold score ({JUDGES[by]}) peaked at {_phases(found.peak)}{kl}, and fell by {fell}{unit} since "
                f"({low} to {high}): the reward was over-optimised."
            )


def by_judge(points: Sequence[GoldPoint]) -> dict[GoldJudge, list[GoldPoint]]:
    """Each judge's points, in order."""
    return {by: [each for each in points if each.by == by] for by in dict.fromkeys(each.by for each in points)}


def _phases(point: GoldPoint) -> str:
    first, last = point.first_phase, point.last_phase
    return f"phase {first}" if first == last else f"phases {first} to {last}"


def is_win_rate(measure: str) -> bool:
    """Whether a measure is already a comparison with another model, with 50% for no difference."""
    return kind(measure) == "win_rate"


def kind(measure: str) -> str:
    """What is measured, without of what: `trait_rate` of `trait_rate/flattery`."""
    return measure.partition("/")[0]


def table_of(scores: tuple[Score, ...]) -> dict[str, dict[str, Score]]:
    """By measure, then by model; only what rests on observations."""
    found: dict[str, dict[str, Score]] = {}
    for score in scores:
        if score.n:
            found.setdefault(score.measure, {})[score.model] = score
    return found


def final_model(scores: tuple[Score, ...]) -> str:
    """The last model of the pipeline that was measured; the base if nothing else was."""
    return next((model for model in reversed(MODELS) if any(s.model == model and s.n for s in scores)), "base")


def verdicts(run: RunReport) -> Verdicts:
    """Each measure's verdict: the run's last model against the base, a win rate against 50%."""
    found = Verdicts([], [], [], [], [], [], [])
    places = {"improved": found.improved, "worse": found.worse, "changed": found.changed}
    last = final_model(run.scores)
    for measure, by_model in table_of(run.scores).items():
        wanted = run.wanted.get(measure)
        base, sft, after = (by_model.get(model) for model in ("base", "sft_model", last))
        if after is None or last == "base" or (base is None and not is_win_rate(measure)):
            continue
        verdict = _verdict(None if is_win_rate(measure) else base, after, wanted)
        if measure == AGAINST_SL:
            found.against_sl.append(verdict)
            found.undone.extend([verdict] if verdict.outcome == "worse" else [])
            continue
        places.get(verdict.outcome, found.unclear).append(verdict)
        if sft and last == "policy" and not is_win_rate(measure):
            lost = _verdict(sft, after, wanted)
            found.undone.extend([lost] if lost.outcome == "worse" else [])
    found.not_measured.extend(_missing(run, last))
    return found


def _missing(run: RunReport, last: str) -> Iterator[str]:
    """What a complete run has and this one lacks, in words."""
    table = table_of(run.scores)
    if not table:
        yield "Behaviour: no model was evaluated"
    elif last == "base":
        yield "Change: only the base model was evaluated"
    for measure in dict.fromkeys([*(score.measure for score in run.scores), *run.wanted]):
        needed = {last} if is_win_rate(measure) else {"base", last}
        empty = {score.model for score in run.scores if score.measure == measure and not score.n}
        # Some measures are of one model only (the distance from the base, say); only an empty one, or one that the
        # constitution asks about, is missed.
        missed = empty | (needed - table.get(measure, {}).keys() if measure in run.wanted else set())
        if table and missed:
            yield f"{words(measure)}: nothing was counted for {' and '.join(MODELS.get(m, m) for m in sorted(missed))}"
    yield from _missing_kinds(run) if table else ()
    if run.labeler is None or not any(each.judged for each in run.labeler.principles):
        yield "Labels: no comparison was judged"
    elif unchecked := [each.principle for each in run.labeler.principles if each.accuracy is None]:
        yield f"Labeler's accuracy, for want of examples in the constitution, by {', '.join(unchecked)}"
    if run.reward is None:
        yield "Reward model"
    if not run.curves:
        yield "Training curves"


def _missing_kinds(run: RunReport) -> Iterator[str]:
    # A kind whose scores are there but empty has been named by its measures.
    kinds = {kind(score.measure) for score in run.scores}
    yield from (sentence for each, sentence in COMPLETE.items() if each not in kinds)
    evaluated = run.summary(EvaluateSummary)
    if evaluated and evaluated.wanted is not None and "trait_rate" not in kinds:
        yield "Traits of the sandbox"
    if "violation_rate" in kinds:
        yield "The critic, on whose judgement the violations rest: how often it is right"


def words(name: str) -> str:
    """A name as people read it: `violation_rate/be-brief` is `Violations of be-brief`."""
    head, slash, tail = name.partition("/")
    tail = MODELS.get(tail, tail.replace("_", " "))
    beginning = "" if head == "trait_rate" else HEADS.get(head, head.replace("_", " ")) + (" " if slash else "")
    text = beginning + tail
    return text[:1].upper() + text[1:]
