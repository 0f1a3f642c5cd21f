"""Reasons to trust a run's numbers less: what its labels, its reward model and its measurements rest on."""

from collections.abc import Iterator, Sequence

from constitutional.stages.report.charts import number
from constitutional.stages.report.data import PrincipleQuality, RunReport
from constitutional.stages.report.verdicts import HEADS, is_win_rate
from constitutional.stages.summaries import EvaluateSummary, Histogram, MixSummary, RewardQuality, SftSummary

NEAR_CHANCE = 0.6
"""A labeler or reward model that is right less often than this has hardly more to say than a coin."""
FEW = 10
"""With fewer examples than this, even an accuracy of 100% may have been luck."""
WEAK = 0.55
"""A preference with a lower target than this teaches next to nothing."""
BADLY_CALIBRATED = 0.1
"""A reward model whose expected calibration error is greater is surer, or less sure, than the labels by so much."""
WIDE = 0.2
"""An accuracy whose 95% interval is wider than this is hardly known."""


def cautions(run: RunReport) -> Iterator[str]:
    """Reasons to trust the numbers less, worst first within each stage."""
    if evaluated := run.summary(EvaluateSummary):
        for sentence in evaluated.misunderstood:
            yield f"The critic takes a principle for another than its author meant. {sentence}"
        if evaluated.guessed:
            yield (
                "What is wanted of a trait is a guess where a principle has no tags that say it, and it goes wrong "
                f"where the critic misreads it: {' '.join(evaluated.guessed)} Tags such as [flattery, avoid] settle it."
            )
    yield from _labeler_cautions(run.labeler.principles if run.labeler else ())
    yield from _undecided_cautions(run.summary(MixSummary))
    if run.targets and 2 * (weak := _below(run.targets, WEAK)) > (total := sum(run.targets.counts)):
        yield f"{weak} of {total} preferences are hardly more than a coin toss: their targets are below {WEAK:.0%}."
    if sft := run.summary(SftSummary):
        if sft.nothing_revised:
            yield "Supervised learning had nothing to learn, as no draft was revised: the SL model is the base model."
        elif sft.helpful_missing:
            wanted = sft.helpful_missing + sft.helpful
            yield f"Supervised learning had {sft.helpful} of the {wanted} helpful samples that its share asks for."
    yield from _reward_cautions(run.reward) if run.reward else ()
    win_rates = any(is_win_rate(score.measure) and score.n for score in run.scores)
    if win_rates and "ai, train" in run.sources:  # those held out taught nothing
        yield (
            "The judge of the win rates is the labeler whose labels the RL model was trained by: they say how well it "
            "learnt what the labeler prefers, its errors included, and not what people would prefer."
        )
    small = {score.n for score in run.scores if 0 < score.n < 50}
    if small:
        yield f"Some measures rest on as few as {min(small)} observations; their intervals are wide."


def _labeler_cautions(principles: Sequence[PrincipleQuality]) -> Iterator[str]:
    yield from _conflict_cautions(principles)
    for each in principles:
        yield from _principle_cautions(each)
    on_examples = {each.principle: each.accuracy.n for each in principles if each.accuracy}
    if few := [f"{n} by “{principle}”" for principle, n in on_examples.items() if n < FEW]:
        yield f"How often the labeler is right was measured on fewer than {FEW} examples: {', '.join(few)}."


def _conflict_cautions(principles: Sequence[PrincipleQuality]) -> Iterator[str]:
    readable = sum(each.judged - each.unreadable for each in principles)
    conflicts, ties = sum(each.conflicts for each in principles), sum(each.ties for each in principles)
    if 2 * conflicts > readable:
        said = f"In {conflicts} of {readable} judgements the labeler’s two orders prefer different responses"
        near = f"in {ties} of them both readings lie within 10 points of 50%"
        if 2 * ties > conflicts:
            yield f"{said}; {near}, so mostly it has hardly a preference."
        else:
            yield f"{said}, and only {near}: mostly it keeps to a position, not to an answer."


def _undecided_cautions(mixed: MixSummary | None) -> Iterator[str]:
    if mixed and 2 * (undecided := mixed.conflicts + mixed.near_a_half) > mixed.comparisons:
        yield (
            f"Of {mixed.comparisons} comparisons the labeler left {undecided} undecided, and nothing was learnt from "
            "those: either their replies are as good as each other by the principle, or mix.margin is too strict."
        )


def _below(values: Histogram, most: float) -> int:
    return sum(count for edge, count in zip(values.edges[1:], values.counts, strict=True) if edge <= most + 1e-9)


def _principle_cautions(judged: PrincipleQuality) -> Iterator[str]:
    name = f"The labeler, by “{judged.principle}”,"
    if judged.accuracy and judged.accuracy.value < NEAR_CHANCE:
        right = f"right on {judged.accuracy.right} of {judged.accuracy.n} examples"
        yield f"{name} is {right}: near chance, and training amplifies what it misjudges."
    if judged.first and not judged.first.low <= 0.5 <= judged.first.high and abs(judged.first.value - 0.5) > 0.1:
        often = f"in {judged.first.value:.0%} of its readings"
        yield f"{name} preferred the response shown first {often}: it favours a position."
    if judged.unreadable > 0.05 * max(judged.judged, 1):
        yield f"{name} gave no readable answer to {judged.unreadable} of {judged.judged} comparisons."


def _reward_cautions(reward: RewardQuality) -> Iterator[str]:
    # With one source, all preferences are those of the source.
    sources = {name: share for name, share in reward.accuracy.items() if name != "all" or len(reward.accuracy) != 2}
    for name, share in sources.items():
        source = HEADS.get(name, name)
        right = f"{share.right} of {share.n} right"
        if share.low <= 0.5:
            yield f"On held-out preferences ({source}), the reward model is not clearly above chance: {right}."
        elif share.high - share.low > WIDE:
            ends = f"{share.low:.0%} to {share.high:.0%}"
            yield f"The reward model’s accuracy on held-out preferences ({source}) is hardly known: {right}, {ends}."
    error, n = reward.calibration_error or 0.0, sum(each.n for each in reward.calibration)
    if error > BADLY_CALIBRATED:
        yield (
            f"The reward model is badly calibrated (expected calibration error {error:.0%}, from {n} held-out "
            "preferences): which of two replies scores higher says more than by how much."
        )
    if abs(reward.length_correlation or 0.0) > 0.5:
        yield f"The reward model’s score follows length (correlation {number(reward.length_correlation or 0.0)})."
