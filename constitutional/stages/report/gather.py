"""Gathers what a run found into one page that opens anywhere, offline.

Shown are what papers show (Bai et al. 2022, arXiv 2212.08073, figures 2 to 8; Lee et al. 2023, arXiv 2309.00267, tables
1 to 4): behaviour by model, the labeler's and the reward model's accuracy and calibration. What differs: intervals on
everything, what got worse as prominent as what improved, and what was left out or not measured said as such.
"""

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from constitutional.base.files import atomic_write
from constitutional.base.records import (
    Comparison,
    GoldPoint,
    Judgement,
    Preference,
    Prompt,
    Reading,
    Record,
    Revision,
    Rollout,
)
from constitutional.constitution.constitution import Constitution
from constitutional.judging.scores import Score
from constitutional.stages.context import StageContext
from constitutional.stages.report.data import (
    CalibrationBin,
    Calls,
    Curve,
    Direction,
    Histogram,
    LabelerQuality,
    LeftOut,
    PrincipleQuality,
    Provenance,
    ReportData,
    RewardQuality,
    RunReport,
    Share,
)
from constitutional.stages.report.examples import (
    Sample,
    example_choices,
    reply_examples,
    revision_examples,
    rollout_examples,
)
from constitutional.stages.report.page import render
from constitutional.stages.report.verdicts import ALWAYS_WANTED, kind

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


class _Accuracy(Record):
    """How the labeler judged a principle's own examples, as the stage `labeler_check` wrote it."""

    principle: str
    n: int
    right: int
    unreadable: int
    conflicts: int
    mean_p_correct: float | None


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
    accuracies: Iterable[_Accuracy],
    judgements: Sequence[Judgement],
    canaries: Mapping[str, int],
) -> LabelerQuality:
    """What the labeler did by each principle, on its own examples and on the run's comparisons.

    `canaries` is what the stage `labeler_check` noted of them; empty if it noted nothing.
    """
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
        canaries=canaries.get("n", 0),
        canaries_failed=canaries.get("failed", 0),
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


def reward_quality(noted: Mapping[str, Any]) -> RewardQuality | None:
    """From what the stage `reward` noted; None if it noted nothing."""
    if not noted:
        return None
    return RewardQuality(
        accuracy={
            source: share
            for source, each in noted["accuracy"].items()
            if each["n"] and (share := Share.of(round(each["value"] * each["n"]), each["n"]))
        },
        calibration=tuple(CalibrationBin(**each) for each in noted["calibration"]),
        calibration_error=noted["calibration_error"],
        length_correlation=noted["length_correlation"],
        mean=noted["mean"],
        deviation=noted["deviation"],
        scores=noted["scores"] and Histogram(**noted["scores"]),
    )


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


def left_out(
    revisions: Sequence[Revision], judgements: Sequence[Judgement], notes: Mapping[str, Mapping[str, Any]]
) -> Iterator[LeftOut]:
    """What could not be used, stage by stage, and why; stages that noted nothing are not there."""
    problems = Counter(each.problem for each in revisions if each.problem)
    yield LeftOut(stage="critique_revise", what="drafts", total=len(revisions), reasons=dict(problems))
    if sampled := notes.get("sample_pairs"):
        without = {"no two different responses": sampled["prompts_without_pair"]}
        yield LeftOut(stage="sample_pairs", what="prompts", total=sampled["prompts"], reasons=_counted(without))
        unpaired = {why: sampled[f"{why}_responses"] for why in ("empty", "cut_off", "repeated")}
        yield LeftOut(stage="sample_pairs", what="responses", total=None, reasons=_counted(unpaired))
    if misjudged := notes.get("label", {}).get("left_out_principles"):
        why = {f"“{principle}”: the labeler misjudges its examples": 1 for principle in misjudged}
        yield LeftOut(stage="label", what="principles", total=None, reasons=why)
    undirected = Counter(each.problem for each in judgements if each.problem)
    undirected["tie, neither response is preferred"] = sum(each.p_a == 0.5 for each in judgements)
    yield LeftOut(stage="label", what="judgements", total=len(judgements), reasons=_counted(undirected))
    if mixed := notes.get("mix"):
        reasons = {why: count for why, count in mixed["counts"].items() if not any(word in why for word in KEPT)}
        yield LeftOut(stage="mix", what="comparisons, judgements and rows", total=None, reasons=_counted(reasons))
    for stage, noted in notes.items():
        if "dropped" in noted:
            what, used = next(each for each in _used(noted))
            total = used + sum(noted["dropped"].values())
            yield LeftOut(stage=stage, what=what, total=total, reasons=_counted(noted["dropped"]))
    if evaluated := notes.get("evaluate"):
        reasons = {why: count for why, count in evaluated["counts"].items() if why.startswith(("equal", "unreadable"))}
        yield LeftOut(stage="evaluate", what="comparisons and critiques", total=None, reasons=_counted(reasons))


def _used(noted: Mapping[str, Any]) -> Iterator[tuple[str, int]]:
    """What a stage trained on, and how many."""
    if "examples" in noted:
        yield "examples", noted["examples"]["trained_on"]
    if "pairs" in noted:
        yield "preferences", noted["pairs"]
    if "prompts" in noted:
        yield "prompts", noted["prompts"]


def _counted(reasons: Mapping[str, int]) -> dict[str, int]:
    return {why.replace("_", " "): count for why, count in reasons.items() if count}


def gather(settings: Settings, context: StageContext, *, online: bool = False) -> RunReport:
    """Everything that a run's artifacts and notes say; `online` if its policy was trained on replies of its own."""
    revisions, judgements = context.read("revisions", Revision), context.read("judgements", Judgement)
    preferences, scores = context.read("preferences", Preference), tuple(context.read("scores", Score))
    choices = example_choices(preferences, judgements)
    own = context.output("report.html").parent
    folder = own.parent
    # In running order, as the numbers of their folders say.
    stages = {each.name[3:]: each for each in sorted(folder.glob("[0-9][0-9]_*")) if each != own}
    notes = {stage: dict(found) for stage in stages if (found := context.read_notes(stage))}
    config, manifest = _json(folder / "config.json"), _json(folder / "manifest.json")
    return RunReport(
        name=folder.name,
        scores=scores,
        wanted=wanted_directions(scores, notes.get("evaluate", {}).get("wanted", {}), settings),
        labeler=labeler_quality(
            context.constitution,
            context.read("labeler_accuracy", _Accuracy),
            judgements,
            notes.get("labeler_check", {}).get("canaries", {}),
        ),
        reward=reward_quality(notes.get("reward", {}).get("quality", {})),
        targets=histogram([each.probability for each in preferences if each.split == "train"], 0.5, 1.0),
        sources=dict(Counter(f"{each.source}, {each.split.replace('_', ' ')}" for each in preferences)),
        curves=tuple(curve for stage, where in stages.items() for curve in curves_of(stage, _logs(where))),
        gold=tuple(context.read("gold", GoldPoint)) if online else (),
        rollouts=tuple(
            rollout_examples(
                context.read("rollouts", Rollout), context.read("prompts", Prompt), settings.rollout_examples
            )
        )
        if online
        else (),
        revisions=tuple(revision_examples(revisions, choices, settings.revision_examples, context.seed)),
        replies=reply_examples(context.read("samples", Sample), settings.reply_examples, context.seed),
        left_out=tuple(left_out(revisions, judgements, notes)),
        notes=notes,
        provenance=_provenance(
            context.constitution, config, manifest, context.read("comparisons", Comparison), judgements
        ),
    )


def _provenance(
    constitution: Constitution,
    config: Mapping[str, Any],
    manifest: Mapping[str, Any],
    comparisons: Sequence[Comparison],
    judgements: Sequence[Judgement],
) -> Provenance:
    asked = {
        "sampled from": {each.model for each in comparisons},
        "labeler and method": {each.labeler for each in judgements},
    }
    return Provenance(
        constitution=constitution.name,
        version=constitution.version,
        digest=constitution.digest,
        principles={each.id: each.text for each in constitution.principles},
        versions=_versions(config, manifest),
        identities={
            # The constitution's stands there as it was when the run was last begun, which may be after this report.
            **{name: each for name, each in config.get("digests", {}).items() if name != "constitution"},
            **{name: ", ".join(sorted(found)) for name, found in asked.items() if found},
        },
        calls=tuple(
            Calls(stage=stage, answers=answers)
            for stage, entry in manifest.get("stages", {}).items()
            if (answers := entry["calls"]["asked"] + entry["calls"]["reused"])
        ),
        config=json.dumps(config["config"], indent=2, ensure_ascii=False) if config else None,
    )


def _versions(config: Mapping[str, Any], manifest: Mapping[str, Any]) -> dict[str, str]:
    """Those that the stages ran on: after an upgrade in between, more than one of a package."""
    by_stage = [entry.get("versions") or config.get("versions", {}) for entry in manifest.get("stages", {}).values()]
    names = dict.fromkeys(name for versions in by_stage for name in versions)
    return {name: ", ".join(sorted({each[name] for each in by_stage if name in each})) for name in names}


def _json(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    return found


def _logs(folder: Path) -> dict[str, list[dict[str, float]]]:
    paths = sorted(folder.glob("training_log*.jsonl"))
    names = ["training"] if len(paths) == 1 else [f"member {number}" for number in range(len(paths))]
    return {
        name: [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        for name, path in zip(names, paths, strict=True)
    }


def run(settings: Settings, context: StageContext, *, online: bool = False) -> None:
    """Read what all stages left, and write `report.html`."""
    found = gather(settings, context, online=online)
    page = render(ReportData(title=f"{found.name}: {found.provenance.constitution}", runs=(found,)))
    # For a page of several runs: what this one was made by, whatever becomes of the file.
    atomic_write(context.output(f"{CONSTITUTION}.json"), context.constitution.model_dump_json(indent=2).encode())
    # A model's text may hold half a surrogate pair, which no file can; it is shown by its number.
    atomic_write(context.output("report.html"), page.encode("utf-8", "backslashreplace"))
