"""What to do next after a run, and reasons to trust the numbers less."""

from collections.abc import Iterator, Sequence
from typing import Final

from constitutional.base.progress import counted, percent
from constitutional.judging.accuracy import NEAR_CHANCE, TOO_FEW
from constitutional.stages import summaries
from constitutional.stages.report.charts import number
from constitutional.stages.report.data import FEW, MODELS, LabelerQuality, Panel, PrincipleQuality, RunReport
from constitutional.stages.report.verdicts import HEADS, Verdicts, final_model, is_win_rate, over_optimised
from constitutional.stages.summaries import Histogram, RewardQuality, Share
from constitutional.training import metrics

WEAK: Final = 0.55
"""A preference with a lower target than this teaches next to nothing."""
BADLY_CALIBRATED: Final = 0.1
"""The expected calibration error above which a reward model is badly calibrated."""
MUCH: Final = 0.25
"""The judges of a panel disagree much if they prefer different responses in more than this share of comparisons."""
WIDE: Final = 0.2
"""An accuracy whose 95% interval is wider than this is hardly known."""
FEW_PROMPTS: Final = 50
"""With fewer held-out prompts than this, only large changes of behaviour can be seen."""
OFTEN: Final = 0.05
"""A loss of more rows than this share is worth a change of settings."""


def actions(run: RunReport, verdicts: Verdicts) -> Iterator[str]:
    """What to change, and where: first what changes most in the next run."""
    yield from _unread_actions(run)
    yield from _meaning_actions(run)
    yield from _training_actions(run)
    yield from _few_labels_actions(run)
    yield from _labeler_actions(run)
    yield from _behaviour_actions(run, verdicts)
    yield from _cut_off_actions(run)
    few = {row.principle: row.accuracy.n if row.accuracy else 0 for row in _principles(run) if not row.by_rule}
    if few := {principle: n for principle, n in few.items() if n < FEW}:
        named = ", ".join(f"“{principle}” (n = {n})" for principle, n in few.items())
        yield (
            f"Add examples to {named} in the constitution file: with fewer than {FEW}, nobody can tell how often the "
            "labeler is right."
        )
    if guessed := _evaluated(run, "guessed"):
        yield (
            "Write tags under the principles, such as tags: [flattery, avoid]: without tags, the wanted direction of a "
            f"trait rests on what the critic takes a principle for ({' '.join(guessed)})."
        )
    evaluated = run.summary(summaries.EvaluateSummary)
    prompts = run.summary(summaries.PromptsSummary)
    if evaluated and evaluated.prompts < FEW_PROMPTS:
        limits = "evaluate.prompts" if prompts and prompts.held_out > evaluated.prompts else "prompts.held_out"
        yield (f"Raise {limits}: behaviour rests on {evaluated.prompts} prompts, and the intervals are wide.")


def _principles(run: RunReport) -> Sequence[PrincipleQuality]:
    return run.labeler.principles if run.labeler else ()


def _evaluated(run: RunReport, field: str) -> tuple[str, ...]:
    evaluated = run.summary(summaries.EvaluateSummary)
    return getattr(evaluated, field) if evaluated else ()


def _meaning_actions(run: RunReport) -> Iterator[str]:
    doubtful = {row.principle: row for row in reversed(run.understood) if row.doubtful}
    for principle, row in reversed(doubtful.items()):
        sure = "" if row.probability is None else f" ({percent(row.probability)})"
        by = f" by the {row.reader}" if row.reader else ""
        reasons = " ".join(f"{warning[0].upper()}{warning[1:].rstrip('.')}." for warning in row.warnings)
        yield (
            f"Reword the principle “{principle}” in the constitution file: it is understood{by} as "
            f"“{row.meaning}”{sure}. "
            f"{reasons}".strip()
        )
    for sentence in _evaluated(run, "misunderstood"):
        principle, _, why = sentence.partition(": ")
        if principle not in doubtful:
            yield f"Reword the principle “{principle}” in the constitution file: the critic misunderstands it. {why}"


def _unread_actions(run: RunReport) -> Iterator[str]:
    """The cause of all that is missing later, where most of the labeler's answers could not be read."""
    labels = run.summary(summaries.LabelSummary)
    if not labels or not labels.problem:
        return
    if labels.unrated > labels.rated:
        missing = f"{labels.unrated} of {labels.rated + labels.unrated} responses got no score, and were not compared"
    else:
        missing = f"{labels.unreadable} of {labels.judgements} judgements have no readable answer"
    yield f"Make the labeler readable: {missing}: {labels.problem}."


def _training_actions(run: RunReport) -> Iterator[str]:
    if (sft := run.summary(summaries.SftSummary)) and sft.nothing_revised:
        yield "Take another critic (critic.path), or reword the principles: the critic left every draft as it was."
    for curve in run.curves:
        shares = [share for line in curve.lines.values() for _, share in line]
        if curve.metric == metrics.ALIKE and metrics.stays_high(shares, ended=True):
            yield (
                f"{metrics.TO_DIFFER}: up to the end, {shares[-1]:.0%} of the prompts had replies that were all "
                f"rewarded alike ({metrics.ALIKE}), and nothing was learned from them."
            )
    mixed = run.summary(summaries.MixSummary)
    if (labels := run.summary(summaries.LabelSummary)) and labels.problem:
        return  # more prompts would not be read either
    if mixed and 2 * mixed.decided < mixed.judged:
        held_out = f", and {mixed.held_out} are held out to test the reward model" if mixed.held_out < FEW else ""
        yield (
            f"Give more prompts (a longer file, or prompts.train in the sandbox) or samples (sample_pairs.samples): "
            f"{mixed.decided} of {mixed.judged} comparisons gave a preference{held_out}."
        )
    elif mixed and mixed.held_out < FEW:
        yield (
            f"Raise mix.held_out_share or give more prompts: n = {mixed.held_out} preferences are held out, too few to "
            "measure the reward model."
        )


def _few_labels_actions(run: RunReport) -> Iterator[str]:
    """Principles by which hardly anything was labelled, though the labeler is trusted with them."""
    trial, labels = run.summary(summaries.LabelerCheckSummary), run.summary(summaries.LabelSummary)
    if labels is None or labels.problem:
        return  # why nothing was labelled is said already
    untrusted = trial.left_out_principles if trial else ()
    chosen = run.constitution.principles if run.constitution else ()
    others = {*untrusted, *(principle.id for principle in chosen if "comparison" not in principle.uses)}
    labelled = {
        row.principle: row.judged - row.unreadable - (row.conflicts.right if row.conflicts else 0)
        for row in _principles(run)
        if row.principle not in others
    }
    if few := {principle: n for principle, n in labelled.items() if n < FEW}:
        named = ", ".join(f"“{principle}” ({n})" for principle, n in few.items())
        yield (
            f"Give more prompts to which {named} matters, or a higher weight (constitution.weights.{next(iter(few))}): "
            f"of {counted(sum(labelled.values()), 'label')}, so few are by it that hardly anything of it was learned."
        )


def _labeler_actions(run: RunReport) -> Iterator[str]:
    trial = run.summary(summaries.LabelerCheckSummary)
    if trial and trial.left_out_principles:
        named = ", ".join(f"“{principle}”" for principle in trial.left_out_principles)
        yield (
            f"Reword {named} or take another labeler (labeler.path): it misjudges the examples, so nothing was "
            "labelled by these principles."
        )
    if near := [f"“{row.principle}” ({_counts(row.accuracy)})" for row in _principles(run) if _near_chance(row)]:
        yield (
            f"Take another labeler (labeler.path) or label.method: it is near chance by {', '.join(near)}, and "
            "training amplifies what it misjudges."
        )
    conflicts = [row.conflicts for row in _principles(run) if row.conflicts]
    in_conflict, readable = sum(share.right for share in conflicts), sum(share.n for share in conflicts)
    if readable >= FEW and 2 * in_conflict > readable:
        ties = sum(row.ties for row in _principles(run))
        mostly = (
            "mostly it hardly has a preference"
            if 2 * ties > in_conflict
            else "mostly it prefers a place, not a response"
        )
        yield (
            f"Take another labeler (labeler.path) or label.method: in {in_conflict} of {readable} judgements the two "
            f"orders prefer different responses. In {ties} of these both readings lie within 10 points of 50%, so "
            f"{mostly}."
        )


def _near_chance(row: PrincipleQuality) -> bool:
    return row.accuracy is not None and row.accuracy.n > TOO_FEW and row.accuracy.value < NEAR_CHANCE


def _counts(share: Share | None) -> str:
    return f"{share.right} of {share.n} right" if share else "not measured"


def _behaviour_actions(run: RunReport, verdicts: Verdicts) -> Iterator[str]:
    worse = {verdict.measure for verdict in verdicts.worse}
    last = MODELS[final_model(run.scores)]
    kl_weight = "algorithm.kl_coef" if "ppo" in run.summaries else "algorithm.beta"
    lower = f"Raise {kl_weight}, or lower algorithm.learning_rate"
    if "adopted" in run.summaries:
        lower = "Where the policy was trained, raise the penalty for KL, or lower the learning rate"
    if any(over_optimised(run.gold)):
        yield f"Raise {kl_weight}, or train for fewer steps: the reward was over-optimised."
    if "over_refusal" in worse:
        yield (
            f"Look at over-refusal under “Replies”: {last} refuses more requests that harm nobody. A principle in the "
            "constitution file that asks for help with harmless requests works against it."
        )
    if "well_formed" in worse:
        yield f"{lower}: fewer replies of {last} are well formed."


def _cut_off_actions(run: RunReport) -> Iterator[str]:
    sampled, critiqued = run.summary(summaries.SamplePairsSummary), run.summary(summaries.CritiqueReviseSummary)
    online = run.summary(summaries.OnlineSummary)
    if sampled and sampled.cut_off_responses > OFTEN * sampled.prompts:
        yield (
            f"Raise sample_pairs.max_tokens: {sampled.cut_off_responses} responses to {sampled.prompts} prompts were "
            "cut off, and no comparison was made of them."
        )
    if critiqued and critiqued.cut_off_drafts > OFTEN * critiqued.prompts:
        yield (
            f"Raise critique_revise.draft_max_tokens: {critiqued.cut_off_drafts} of {critiqued.prompts} drafts were "
            "cut off."
        )
    if online and online.last and (cut_off := online.last.get(metrics.CUT_OFF) or 0) > OFTEN:
        yield f"Raise algorithm.max_tokens: {cut_off:.0%} of the last replies in training were cut off."


def cautions(run: RunReport) -> Iterator[str]:
    """Reasons to trust the numbers less, in the order of the stages."""
    if run.labeler:
        yield from _labeler_cautions("labeler", run.labeler)
    if run.panel:
        yield from _panel_cautions(run.panel)
    if run.targets and 2 * (weak := _below(run.targets, WEAK)) > (total := sum(run.targets.counts)) >= FEW:
        yield f"{weak} of {total} preferences are hardly more than a coin toss: their targets are below {WEAK:.0%}."
    if (sft := run.summary(summaries.SftSummary)) and sft.helpful_missing:
        asked = sft.helpful_missing + sft.helpful
        yield f"Supervised learning had {sft.helpful} of the {asked} helpful samples that sft.helpful_share asks for."
    if run.reward:
        yield from _reward_cautions(run.reward)
    win_rates = any(is_win_rate(score.measure) and score.n for score in run.scores)
    if win_rates and "ai, train" in run.sources:  # preferences that are held out taught nothing
        trained = "may have trained" if "adopted" in run.summaries else "trained"
        yield (
            f"The labeler judges the win rates, and its labels {trained} the RL model. So win rates say how well the "
            "model learnt what the labeler prefers, errors included, and not what people would prefer."
        )


def _labeler_cautions(name: str, labeler: LabelerQuality) -> Iterator[str]:
    for row in labeler.principles:
        first = row.first
        if first and first.n >= FEW and not first.low <= 0.5 <= first.high and abs(first.value - 0.5) > 0.1:
            yield (
                f"By “{row.principle}”, the {name} favours a position: {first.value:.0%} of its readings prefer the "
                f"response shown first (n = {first.n})."
            )
        if row.judged >= FEW and row.unreadable > OFTEN * row.judged:
            unreadable = f"{row.unreadable} of {row.judged} comparisons"
            yield f"By “{row.principle}”, the {name} gives no readable answer to {unreadable}."


def _panel_cautions(panel: Panel) -> Iterator[str]:
    for name, quality in panel.judges.items():
        yield from _labeler_cautions(f"judge “{name}”", quality)
    split = panel.split_in_all
    if split and split.n >= FEW and split.value > MUCH:
        yield (
            f"The judges prefer different responses in {split.right} of {split.n} comparisons: the labels depend "
            "much on who judges."
        )


def _below(values: Histogram, most: float) -> int:
    return sum(count for edge, count in zip(values.edges[1:], values.counts, strict=True) if edge <= most + 1e-9)


def _reward_cautions(reward: RewardQuality) -> Iterator[str]:
    # With one source, the source's preferences are all preferences.
    sources = {name: share for name, share in reward.accuracy.items() if name != "all" or len(reward.accuracy) != 2}
    for name, share in sources.items():
        held_out = f"held-out preferences ({HEADS.get(name, name)})"
        if share.n < FEW:
            continue
        if share.low <= 0.5:
            yield f"The reward model is not clearly better than chance on {held_out}: {_counts(share)}."
        elif share.high - share.low > WIDE:
            ends = f"{share.low:.0%} to {share.high:.0%}"
            yield f"The reward model’s accuracy on {held_out} is hardly known: {_counts(share)}, {ends}."
    error, n = reward.calibration_error or 0.0, reward.measured
    if n < FEW:
        return
    if error > BADLY_CALIBRATED:
        yield (
            f"The reward model is badly calibrated (expected calibration error {error:.0%}, from {n} held-out "
            "preferences). Which reply scores higher says more than by how much."
        )
    if abs(reward.length_correlation or 0.0) > 0.5:
        yield f"The reward model’s score follows length (correlation {number(reward.length_correlation or 0.0)})."
