"""Gathers what a run found into one page that opens anywhere, offline.

Shown are what papers show (Bai et al. 2022, arXiv 2212.08073, figures 2 to 8; Lee et al. 2023, arXiv 2309.00267, tables
1 to 4): behaviour by model, the labeler's and the reward model's accuracy and calibration. What differs: intervals on
everything, what got worse as prominent as what improved, and what was left out or not measured said as such.
"""

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence

from pydantic import BaseModel, ConfigDict, Field

from constitutional.base.files import atomic_write
from constitutional.base.records import (
    Comparison,
    GoldPoint,
    Judgement,
    Preference,
    Prompt,
    Reading,
    Revision,
    Rollout,
    Sample,
)
from constitutional.constitution.constitution import Constitution
from constitutional.judging.accuracy import PrincipleAccuracy
from constitutional.judging.scores import Score
from constitutional.stages.context import RunView, StageContext
from constitutional.stages.report.data import (
    Curve,
    LabelerQuality,
    LeftOut,
    PrincipleQuality,
    Provenance,
    ReportData,
    RolloutExample,
    RunReport,
)
from constitutional.stages.report.examples import (
    example_choices,
    reply_examples,
    revision_examples,
    rollout_examples,
)
from constitutional.stages.report.page import render
from constitutional.stages.report.verdicts import ALWAYS_WANTED, kind
from constitutional.stages.summaries import (
    Direction,
    DpoSummary,
    EvaluateSummary,
    Histogram,
    LabelerCheckSummary,
    MixSummary,
    OnlineSummary,
    ReportSummary,
    RewardSummary,
    SamplePairsSummary,
    SftSummary,
    Share,
)

METRICS = ("loss", "mean_token_accuracy", "accuracy", "rewards/accuracies", "rewards/margins")
"""What is drawn of a training log; not the learning rate and the like, which say nothing of what was learnt."""

ONLINE = ("reward", "kl", "length", "entropy", "truncated", "clip_fraction", "explained_variance")
"""The same of a training online, with each of its rewards if there are several."""

CONSTITUTION = "constitution_used"
"""The artifact that holds the principles and weights that the run had."""

KEPT = ("available", "used", "preferences held out", "preferences in", "overridden", "rated more than once")
"""Words of the stage mix's counts that are not about what it left out."""


class Settings(BaseModel):
    """What the report shows of what there is too much of."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)

    revision_examples: int = Field(default=6, ge=0, le=200)
    """Drafts shown with their critiques and revisions, principle by principle; 6 by default."""
    reply_examples: int = Field(default=8, ge=0, le=200)
    """Held-out prompts shown with the reply of each model; 8 by default."""
    rollout_examples: int = Field(default=8, ge=0, le=200)
    """Replies shown of a training online, each of another phase; 8 by default."""
    wanted: dict[str, Direction] = Field(default_factory=dict)
    """The direction in which a measure should go, `higher` or `lower`, by measure; goes before evaluation's."""


def wanted_directions(
    scores: Sequence[Score], noted: Mapping[str, Direction], settings: Settings
) -> dict[str, Direction]:
    """The direction in which each measure should go: the user's word, then evaluation's, then what always holds."""
    always = {
        score.measure: ALWAYS_WANTED[kind(score.measure)] for score in scores if kind(score.measure) in ALWAYS_WANTED
    }
    return {**always, **noted, **settings.wanted}


def labeler_quality(
    constitution: Constitution,
    accuracies: Iterable[PrincipleAccuracy],
    judgements: Sequence[Judgement],
    trial: LabelerCheckSummary,
) -> LabelerQuality:
    """What the labeler did by each principle, on its own examples and on the run's comparisons."""
    on_examples = {each.principle: Share.of(each.right, each.n - each.unreadable) for each in accuracies}
    judged: dict[str, list[Judgement]] = defaultdict(list)
    for judgement in judgements:
        judged[judgement.principle].append(judgement)
    return LabelerQuality(
        principles=tuple(
            PrincipleQuality(
                principle=each.id,
                text=each.text,
                weight=each.weight,
                accuracy=on_examples.get(each.id),
                judged=len(judged[each.id]),
                unreadable=sum(judgement.p_a is None for judgement in judged[each.id]),
                conflicts=sum(judgement.conflict for judgement in judged[each.id]),
                ties=sum(judgement.conflict and _torn(judgement.readings) for judgement in judged[each.id]),
                first=_first(reading for judgement in judged[each.id] for reading in _in_both_orders(judgement)),
            )
            for each in constitution.principles
        ),
        probabilities=histogram([each.p_a for each in judgements if each.p_a is not None], 0.0, 1.0),
        canaries=trial.canaries,
        canaries_failed=trial.canaries_failed,
    )


def _torn(readings: Iterable[Reading]) -> bool:
    return all(each.p_a is not None and abs(each.p_a - 0.5) < 0.1 for each in readings)


def _in_both_orders(judgement: Judgement) -> tuple[Reading, ...]:
    # A single reading is a score given to each response by itself: nothing was shown first.
    return judgement.readings if len(judgement.readings) > 1 else ()


def _first(readings: Iterable[Reading]) -> Share | None:
    # A reading prefers what it was shown first if it prefers a and saw a first, or prefers b and saw b first.
    shown_first = [
        (each.p_a > 0.5) == (each.order == "a_first") for each in readings if each.p_a is not None and each.p_a != 0.5
    ]
    return Share.of(sum(shown_first), len(shown_first))


def histogram(values: Sequence[float], low: float, high: float, bins: int = 10) -> Histogram | None:
    """How many values fall into each of equal bins; the last one holds its upper edge. None without values."""
    if not values:
        return None
    counts = Counter(min(int((value - low) / (high - low) * bins + 1e-9), bins - 1) for value in values)
    edges = tuple(low + (high - low) * index / bins for index in range(bins + 1))
    return Histogram(edges=edges, counts=tuple(counts[index] for index in range(bins)))


def curves_of(stage: str, logs: Mapping[str, Sequence[Mapping[str, float]]]) -> Iterator[Curve]:
    """What a training's logs say, a curve for each quantity with a line for each log, by name."""
    names = {name for rows in logs.values() for row in rows for name in row}
    online = {"reward", "kl"} <= names
    parts = sorted(name for name in names if name.startswith("rewards/"))
    for metric in (*ONLINE, *(parts if len(parts) > 1 else ())) if online else METRICS:
        lines = {
            name: tuple((row["step"], row[metric]) for row in rows if row.get(metric) is not None)
            for name, rows in logs.items()
        }
        if found := {name: line for name, line in lines.items() if line}:
            yield Curve(stage=stage, metric=metric, lines=found)


def left_out(view: RunView, revisions: Sequence[Revision], judgements: Sequence[Judgement]) -> Iterator[LeftOut]:
    """What could not be used, stage by stage, and why."""
    problems = Counter(revision.problem for revision in revisions if revision.problem)
    yield LeftOut(stage="critique_revise", what="drafts", total=len(revisions), reasons=dict(problems))
    if sampled := view.summary(SamplePairsSummary):
        without = {"no two different responses": sampled.prompts_without_pair}
        yield LeftOut(stage="sample_pairs", what="prompts", total=sampled.prompts, reasons=_counted(without))
        unpaired = {
            "empty": sampled.empty_responses,
            "cut off": sampled.cut_off_responses,
            "repeated": sampled.repeated_responses,
        }
        yield LeftOut(stage="sample_pairs", what="responses", total=None, reasons=_counted(unpaired))
    if (trial := view.summary(LabelerCheckSummary)) and trial.left_out_principles:
        why = {f"“{principle}”: the labeler misjudges its examples": 1 for principle in trial.left_out_principles}
        yield LeftOut(stage="label", what="principles", total=None, reasons=why)
    undirected = Counter(judgement.problem for judgement in judgements if judgement.problem)
    undirected["tie, neither response is preferred"] = sum(judgement.p_a == 0.5 for judgement in judgements)
    yield LeftOut(stage="label", what="judgements", total=len(judgements), reasons=_counted(undirected))
    if mixed := view.summary(MixSummary):
        reasons = {why: count for why, count in mixed.counts.items() if not any(word in why for word in KEPT)}
        yield LeftOut(stage="mix", what="comparisons, judgements and rows", total=None, reasons=_counted(reasons))
    for stage, record in view.records().items():
        match record.summary:
            case SftSummary(trained_on=used, dropped=dropped):
                what = "examples"
            case RewardSummary(pairs=used, dropped=dropped) | DpoSummary(pairs=used, dropped=dropped):
                what = "preferences"
            case OnlineSummary(prompts=used, dropped=dropped, examples=learnt, examples_left_out=too_long):
                what = "prompts"
                if too_long:
                    reasons = {"too long": too_long}
                    yield LeftOut(stage=stage, what="supervised examples", total=learnt + too_long, reasons=reasons)
            case _:
                continue
        yield LeftOut(stage=stage, what=what, total=used + sum(dropped.values()), reasons=_counted(dropped))
    if evaluated := view.summary(EvaluateSummary):
        reasons = {why: count for why, count in evaluated.counts.items() if why.startswith(("equal", "unreadable"))}
        yield LeftOut(stage="evaluate", what="comparisons and critiques", total=None, reasons=_counted(reasons))


def _counted(reasons: Mapping[str, int]) -> dict[str, int]:
    return {why.replace("_", " "): count for why, count in reasons.items() if count}


def gather(settings: Settings, view: RunView) -> RunReport:
    """Everything that a run's artifacts and summaries say."""
    revisions, judgements = view.read("revisions", Revision), view.read("judgements", Judgement)
    preferences, scores = view.read("preferences", Preference), tuple(view.read("scores", Score))
    choices = example_choices(preferences, judgements)
    online = view.has("rollouts")
    records = view.records()
    evaluated, rewarded = view.summary(EvaluateSummary), view.summary(RewardSummary)
    trial = view.summary(LabelerCheckSummary)
    assert evaluated is not None and trial is not None, "the report comes after both"  # noqa: PT018
    accuracies = view.read("labeler_accuracy", PrincipleAccuracy)
    return RunReport(
        name=view.name,
        scores=scores,
        wanted=wanted_directions(scores, evaluated.wanted or {}, settings),
        labeler=labeler_quality(view.constitution, accuracies, judgements, trial),
        reward=rewarded.quality if rewarded else None,
        targets=histogram([row.probability for row in preferences if row.split == "train"], 0.5, 1.0),
        sources=dict(Counter(f"{row.source}, {row.split.replace('_', ' ')}" for row in preferences)),
        curves=tuple(curve for stage, record in records.items() for curve in curves_of(stage, record.logs)),
        gold=tuple(view.read("gold", GoldPoint)) if online else (),
        rollouts=tuple(_rollout_examples(view, settings.rollout_examples)) if online else (),
        revisions=tuple(revision_examples(revisions, choices, settings.revision_examples, view.seed)),
        replies=reply_examples(view.read("samples", Sample), settings.reply_examples, view.seed),
        left_out=tuple(left_out(view, revisions, judgements)),
        summaries={stage: record.summary for stage, record in records.items()},
        provenance=_provenance(view, view.read("comparisons", Comparison), judgements),
    )


def _rollout_examples(view: RunView, count: int) -> Iterator[RolloutExample]:
    return rollout_examples(view.read("rollouts", Rollout), view.read("prompts", Prompt), count)


def _provenance(view: RunView, comparisons: Sequence[Comparison], judgements: Sequence[Judgement]) -> Provenance:
    asked = {
        "sampled from": {comparison.model for comparison in comparisons},
        "labeler and method": {judgement.labeler for judgement in judgements},
    }
    constitution, records = view.constitution, view.records()
    return Provenance(
        constitution=constitution.name,
        version=constitution.version,
        digest=constitution.digest,
        principles={principle.id: principle.text for principle in constitution.principles},
        versions=_versions([record.versions for record in records.values()]),
        identities={
            # The constitution's stands there as it was when the run was last begun, which may be after this report.
            **{name: digest for name, digest in view.digests().items() if "constitution" not in name},
            **{name: ", ".join(sorted(values)) for name, values in asked.items() if values},
        },
        calls={stage: record.calls for stage, record in records.items() if record.calls},
        config=json.dumps(view.configuration(), indent=2, ensure_ascii=False),
    )


def _versions(by_stage: Sequence[Mapping[str, str]]) -> dict[str, str]:
    """Those that the stages ran on: after an upgrade in between, more than one of a package."""
    names = dict.fromkeys(name for versions in by_stage for name in versions)
    return {name: ", ".join(sorted({versions[name] for versions in by_stage if name in versions})) for name in names}


def run(settings: Settings, context: StageContext) -> None:
    """Read what all stages left, and write `report.html`."""
    report = gather(settings, context)
    page = render(ReportData(title=f"{report.name}: {report.provenance.constitution}", runs=(report,)))
    # For a page of several runs: what this one was made by, whatever becomes of the file.
    atomic_write(context.output(f"{CONSTITUTION}.json"), context.constitution.model_dump_json(indent=2).encode())
    # A model's text may hold half a surrogate pair, which no file can; it is shown by its number.
    atomic_write(context.output("report.html"), page.encode("utf-8", "backslashreplace"))
    context.summarise(ReportSummary())
