"""What the numbers say: what improved, what got worse, what was not measured."""

import math
from collections.abc import Iterator, Mapping, Sequence
from statistics import NormalDist
from typing import Final, Literal, NamedTuple

from constitutional.base.records import GoldJudge, GoldPoint
from constitutional.judging.evaluation_scores import MEANINGS
from constitutional.judging.scores import Change, Score
from constitutional.stages import summaries
from constitutional.stages.report.data import FEW, MODELS, TOO_FEW, RunReport
from constitutional.stages.summaries import Direction

Outcome = Literal["improved", "worse", "changed", "no clear change", "too few to tell"]

HEADS: Final[Mapping[str, str]] = {
    "win_rate": "win rate against",
    "violation_rate": "violations of",
    "left_out_violation_rate": "violations of the left-out",
    "rule_broken": "replies that break the rule of",
    "rule_more": "count by the rule of",
    "rule_fewer": "count by the rule of",
    "left_out_rule_broken": "replies that break the rule of the left-out",
    "left_out_rule_more": "count by the rule of the left-out",
    "left_out_rule_fewer": "count by the rule of the left-out",
    "kl_from": "KL from",
    "log_ratio_to": "log-ratio to",
    "due_refusal": "refusal of harmful or private requests",
    "over_refusal": "over-refusal",
    "rewards": "implicit reward",
    "sft": "SFT",
    "dpo": "DPO",
    "ppo": "PPO",
    "grpo": "GRPO",
    "rloo": "RLOO",
    "adopted": "adopted policy",
    "kl": "KL",
    "ai": "AI",
    **{f"set_{name}": f"{meaning.words}, on" for name, meaning in MEANINGS.items()},
}
"""How the page writes a name, or the part before the `/`, where replacing underscores is not enough."""

JUDGES: Final[Mapping[GoldJudge, str]] = {
    "traits": "what the constitution’s tags ask for, found exactly",
    "labeler": "the labeler’s score from 1 to 10",
    "reward_model": "a held-out reward model",
}
"""Who gave a gold score."""

ALWAYS_WANTED: Final[Mapping[str, Direction]] = {
    "win_rate": "higher",
    "violation_rate": "lower",
    "rule_broken": "lower",
    "rule_fewer": "lower",
    "rule_more": "higher",
    "well_formed": "higher",
    "on_topic": "higher",
    "cut_off": "lower",
    "due_refusal": "higher",
    "over_refusal": "lower",
    **{f"set_{name}": meaning.wanted for name, meaning in MEANINGS.items() if meaning.wanted},
}
"""Directions that need no constitution, by what a measure's name begins with."""

AGAINST_SL: Final = "win_rate/sft_model"

COMPLETE: Final[Mapping[str, str]] = {
    "win_rate": "Win rates: the labeler compared no replies",
    "violation_rate": "Violations: the critic judged no reply",
    "kl_from": "KL from the models before: no reply was compared",
    "length": "Length of replies",
}
"""Kinds of measures that a complete evaluation has, and a sentence for an evaluation without them."""


class MeasureVerdict(NamedTuple):
    """What became of one measure."""

    measure: str
    outcome: Outcome
    wanted: Direction | None
    before: Score | None
    """None for a win rate, which is a comparison already."""
    after: Score
    change: Change | None
    """Over the same prompts; None where a number is not made prompt by prompt."""

    @property
    def n(self) -> int:
        """Observations that the verdict rests on."""
        if self.change:
            return self.change.n
        return min(score.n for score in (self.before, self.after) if score)


class Fall(NamedTuple):
    """How far the gold score of a training online fell after its peak."""

    peak: GoldPoint
    last: GoldPoint
    value: float
    low: float
    """Lower end of the 95% interval."""
    high: float

    @property
    def clear(self) -> bool:
        """Whether more than luck explains the fall."""
        return self.low > 0 and min(self.peak.n, self.last.n) >= FEW


class Verdicts(NamedTuple):
    """What became of every measure from the base to the last model; a measure stands in one of the first five lists."""

    improved: list[MeasureVerdict]
    worse: list[MeasureVerdict]
    changed: list[MeasureVerdict]
    """Measures without a wanted direction that clearly moved."""
    unclear: list[MeasureVerdict]
    few: list[MeasureVerdict]
    """Measures with fewer than `FEW` observations."""
    not_measured: list[str]
    undone: list[MeasureVerdict]
    """Measures that the RL stage made clearly worse than the SL model left them, whatever they are against the base."""
    against_sl: list[MeasureVerdict]
    """The win rate against the SL model, if there is one. It says nothing of the base, so it stands in no other list
    but `undone`."""


def outcome(low: float, high: float, reference: tuple[float, float], wanted: Direction | None) -> Outcome:
    """A change is clear only if the intervals do not touch; it is good or bad only if a direction is wanted."""
    rose, fell = low > reference[1], high < reference[0]
    if not (rose or fell):
        return "no clear change"
    if wanted is None:
        return "changed"
    return "improved" if rose == (wanted == "higher") else "worse"


def _verdict(before: Score | None, after: Score, wanted: Direction | None) -> MeasureVerdict:
    """By the change over the same prompts, which is the sharpest; without one, by the two models' intervals."""
    change = after.changes.get(before.model) if before else None
    if change:
        result = outcome(change.low, change.high, (0.0, 0.0), wanted)
    else:
        result = outcome(after.low, after.high, (before.low, before.high) if before else (0.5, 0.5), wanted)
    verdict = MeasureVerdict(after.measure, result, wanted, before, after, change)
    return verdict if verdict.n >= FEW else verdict._replace(outcome=TOO_FEW)


def fall(points: Sequence[GoldPoint]) -> Fall | None:
    """From the highest point of one judge's scores to the last one; None if the last one is the highest.

    The peak was chosen for its height, so a fall from it is due to luck more often than one in twenty. The interval is
    therefore wide enough for the falls from all points together (Bonferroni).
    """
    if not points or (peak := max(points, key=lambda point: point.gold)) == points[-1]:
        return None
    last = points[-1]
    normal = NormalDist()
    wider = normal.inv_cdf(1 - 0.025 / (len(points) - 1)) / normal.inv_cdf(0.975)
    half = wider * math.hypot(*((point.high - point.low) / 2 for point in (peak, last)))
    value = peak.gold - last.gold
    return Fall(peak, last, value, value - half, value + half)


def over_optimised(gold: Sequence[GoldPoint]) -> Iterator[str]:
    """A sentence for each judge by whom the proxy was clearly over-optimised."""
    for by, points in by_judge(gold).items():
        drop = fall(points)
        if drop and drop.clear:
            values = (drop.value, drop.low, drop.high)
            fell, low, high = (f"{100 * value:.1f}" if by == "traits" else f"{value:.2f}" for value in values)
            unit = " points" if by == "traits" else ""
            kl = "" if drop.peak.kl is None else f", KL {drop.peak.kl:.2g} nats"
            yield (
                f"The gold score ({JUDGES[by]}) peaked at {phases(drop.peak)}{kl}, and fell by {fell}{unit} since "
                f"({low} to {high}): the reward was over-optimised."
            )


def by_judge(points: Sequence[GoldPoint]) -> dict[GoldJudge, list[GoldPoint]]:
    """Each judge's points, in order."""
    judges = dict.fromkeys(point.by for point in points)
    return {by: [point for point in points if point.by == by] for by in judges}


def phases(point: GoldPoint) -> str:
    """`phase 3`, or `phases 3 to 4`."""
    first, last = point.first_phase, point.last_phase
    return f"phase {first}" if first == last else f"phases {first} to {last}"


def is_win_rate(measure: str) -> bool:
    """Whether a measure is already a comparison with another model, with 50% for no difference."""
    return kind(measure) == "win_rate"


def kind(measure: str) -> str:
    """What is measured, without of what: `trait_rate` of `trait_rate/flattery`."""
    return measure.partition("/")[0]


def table_of(scores: tuple[Score, ...]) -> dict[str, dict[str, Score]]:
    """By measure, then by model; scores without observations are left out."""
    table: dict[str, dict[str, Score]] = {}
    for score in scores:
        if score.n:
            table.setdefault(score.measure, {})[score.model] = score
    return table


def final_model(scores: tuple[Score, ...]) -> str:
    """The last model of the pipeline that was measured; the base if nothing else was."""
    return next((model for model in reversed(MODELS) if any(s.model == model and s.n for s in scores)), "base")


def verdicts(run: RunReport) -> Verdicts:
    """Each measure's verdict: the run's last model against the base, a win rate against 50%."""
    strip = Verdicts([], [], [], [], [], [], [], [])
    places = {"improved": strip.improved, "worse": strip.worse, "changed": strip.changed, TOO_FEW: strip.few}
    last = final_model(run.scores)
    for measure, by_model in table_of(run.scores).items():
        wanted = run.wanted.get(measure)
        base, sft, after = (by_model.get(model) for model in ("base", "sft_model", last))
        if after is None or last == "base" or (base is None and not is_win_rate(measure)):
            continue
        verdict = _verdict(None if is_win_rate(measure) else base, after, wanted)
        lost = _verdict(sft, after, wanted) if sft and last == "policy" and not is_win_rate(measure) else None
        if measure == AGAINST_SL:
            strip.against_sl.append(verdict)
            lost = verdict
        else:
            places.get(verdict.outcome, strip.unclear).append(verdict)
        if lost and lost.outcome == "worse":
            strip.undone.append(lost)
    strip.not_measured.extend(_missing(run, last))
    return strip


def untrained(run: RunReport) -> Iterator[str]:
    """A sentence for each training that had nothing to learn from."""
    sft, mixed = run.summary(summaries.SftSummary), run.summary(summaries.MixSummary)
    if sft and sft.nothing_revised:
        yield "No draft was revised: supervised learning had nothing to learn, and the SL model is the base model."
    dpo, online = run.summary(summaries.DpoSummary), run.summary(summaries.OnlineSummary)
    if (dpo and not dpo.pairs) or (online and not online.prompts):
        why = "Reinforcement learning had nothing to train on" if mixed and mixed.train else "No preference was decided"
        yield f"{why}: the RL model is the SL model."


def trained_elsewhere(run: RunReport) -> str:
    """A sentence on a policy that this run did not train; empty where it did."""
    adopted = run.summary(summaries.AdoptedSummary)
    if adopted is None:
        return ""
    if adopted.same_as_sft:
        return "The RL model was adopted from a folder that holds the SL model, so nothing was trained elsewhere."
    return (
        "The RL model was not trained by this run. It was adopted from a folder, and what it was trained on, and how, "
        "is not recorded here."
    )


def _missing(run: RunReport, last: str) -> Iterator[str]:
    """In words, what a complete run measures and this one does not."""
    table = table_of(run.scores)
    if not table:
        yield "Behaviour: no model was evaluated"
    elif last == "base":
        yield "Change: only the base model was evaluated"
    for measure in dict.fromkeys([*(score.measure for score in run.scores), *run.wanted]):
        needed = {last} if is_win_rate(measure) else {"base", last}
        empty = {score.model for score in run.scores if score.measure == measure and not score.n}
        # Some measures concern one model alone, such as the distance from the base. So a measure is missed only where
        # it is empty, or where the constitution asks for it.
        missed = empty | (needed - table.get(measure, {}).keys() if measure in run.wanted else set())
        if table and missed:
            yield f"{words(measure)}: nothing was counted for {' and '.join(MODELS.get(m, m) for m in sorted(missed))}"
    yield from _missing_kinds(run) if table else ()
    if run.labeler is None or not any(principle.judged for principle in run.labeler.principles):
        yield "Labels: no comparison was judged"
    elif unchecked := [row.principle for row in run.labeler.principles if not (row.accuracy or row.by_rule)]:
        yield f"Accuracy of the labeler: the constitution has no examples of {', '.join(unchecked)}"
    if run.reward is None:
        yield "Reward model"
    if not run.curves:
        yield "Training curves"


def _missing_kinds(run: RunReport) -> Iterator[str]:
    # Where scores are there but empty, the measures have been named already.
    kinds = {kind(score.measure) for score in run.scores}
    yield from (sentence for measured, sentence in COMPLETE.items() if measured not in kinds)
    evaluated = run.summary(summaries.EvaluateSummary)
    if evaluated and evaluated.wanted is not None and "trait_rate" not in kinds:
        yield "Traits of the sandbox"
    if "violation_rate" in kinds:
        yield "Accuracy of the critic, which finds the violations"


def words(name: str) -> str:
    """A name as people read it: `violation_rate/be-brief` is `Violations of be-brief`."""
    head, slash, tail = name.partition("/")
    tail = MODELS.get(tail, tail.replace("_", " "))
    beginning = "" if head == "trait_rate" else HEADS.get(head, head.replace("_", " ")) + (" " if slash else "")
    text = beginning + tail
    return text[:1].upper() + text[1:]
