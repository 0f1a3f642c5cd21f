"""The stage `report`: gathers a run's artifacts and summaries into one page that opens anywhere, offline.

The page shows what papers show (Bai et al. 2022, arXiv 2212.08073, figures 2 to 8; Lee et al. 2023, arXiv 2309.00267,
tables 1 to 4). Beyond the papers, every number has an interval, what got worse is as prominent as what improved, and
the page names what was left out or not measured.
"""

import json
import shlex
from array import array
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from constitutional.base.files import atomic_write
from constitutional.base.frozen import Frozen
from constitutional.base.records import (
    LABELER,
    Comparison,
    GoldPoint,
    Judgement,
    Preference,
    Prompt,
    Revision,
    Rollout,
    Sample,
)
from constitutional.base.shards import RowStream, column_of, columns_of, json_of
from constitutional.constitution.constitution import Constitution
from constitutional.data.verdicts import read_verdicts
from constitutional.judging.accuracy import PrincipleAccuracy
from constitutional.judging.agreement import agreements, choices_of
from constitutional.judging.evaluated import contests_of, read_answers, violation_items
from constitutional.judging.labeler import IN_WORDS
from constitutional.judging.scores import Measurement, Score
from constitutional.judging.simulated_people import simulated_answers
from constitutional.judging.understanding import PrincipleMeaning
from constitutional.stages import summaries
from constitutional.stages.context import RunView, StageContext
from constitutional.stages.report.data import (
    Curve,
    JudgesAgreement,
    LabelerQuality,
    LeftOut,
    Panel,
    PrincipleQuality,
    Provenance,
    RunReport,
    StageCost,
    WorkReport,
)
from constitutional.stages.report.examples import (
    reply_examples,
    revision_examples,
    rollout_examples,
)
from constitutional.stages.report.page import render
from constitutional.stages.report.people import PeoplesFiles, people_report, work_report
from constitutional.stages.report.verdicts import ALWAYS_WANTED, kind
from constitutional.stages.summaries import Direction, Histogram, Share
from constitutional.training import metrics

METRICS = (
    *("loss", "mean_token_accuracy", "accuracy", "margin"),
    *("rewards/accuracies", "rewards/margins", "logps/chosen", "logps/rejected"),
)
"""Quantities of a training log that are drawn; the learning rate and the like say nothing of what was learnt."""

ONLINE = (
    *("reward", metrics.KL, metrics.LENGTH, metrics.CUT_OFF, metrics.ALIKE, "entropy", "policy/entropy_avg"),
    *("policy/clipfrac_avg", "val/explained_variance"),
)
"""The same for an online training; where it has several rewards, they are drawn too."""

MISMATCH = f"{metrics.MISMATCH}/mean"
"""Drawn where another program draws the replies."""

CONSTITUTION = "constitution_used"
"""The artifact that holds the principles and weights that the run had."""

KEPT = (
    "available",
    "used",
    "comparisons decided",
    "preferences held out",
    "preferences in",
    "overridden",
    "rated more than once",
    "judged by several principles",
    "kept:",
)
"""Words in those counts of the stage `mix` that are not about rows left out."""


class Settings(Frozen):
    """How many examples the report shows, and directions of measures."""

    revision_examples: int = Field(default=6, ge=0, le=200)
    """Drafts shown with their critiques and revisions, principle by principle."""
    reply_examples: int = Field(default=8, ge=0, le=200)
    """Held-out prompts shown with the reply of each model."""
    rollout_examples: int = Field(default=8, ge=0, le=200)
    """Replies of an online training that are shown, each from another phase."""
    vote_examples: int = Field(default=6, ge=0, le=200)
    """Comparisons shown on which people and the labeler contradict each other."""
    verdicts: Path | None = None
    """People's votes on the last model's replies against the earlier models', which correct its win rates: a file that
    `constitutional review RUN freeze review.about=evaluation` wrote. Nothing is trained anew."""
    violations: Path | None = None
    """People's answers whether the last model's replies violate the principles, which correct its violation rates: the
    sheet (CSV) that `constitutional review RUN violations` wrote, filled in. Nothing is trained anew."""
    wanted: dict[str, Direction] = Field(default_factory=dict)
    """The direction in which a measure should go, `higher` or `lower`, by measure; it overrides evaluation's."""
    pay_per_hour: Annotated[float, Field(gt=0)] | None = None
    """What raters are paid for an hour; None says nothing of pay. The lead's page of `constitutional review` shows it
    too, unless `review.pay_per_hour` says otherwise."""
    currency: Annotated[str, Field(max_length=20)] = ""
    """The currency of that pay, such as EUR."""


def wanted_directions(
    scores: Sequence[Score],
    evaluated: Mapping[str, Direction],
    understood: Iterable[PrincipleMeaning],
    settings: Settings,
) -> dict[str, Direction]:
    """The direction in which each measure should go: from the settings, from evaluation, or the same in every run.

    Violations of a principle whose reading is doubtful have none: a critic that reads it the wrong way round finds
    violations in the very replies that follow it.
    """
    doubtful = {f"violation_rate/{row.principle}" for row in understood if row.doubtful}
    always = {
        score.measure: ALWAYS_WANTED[kind(score.measure)]
        for score in scores
        if kind(score.measure) in ALWAYS_WANTED and score.measure not in doubtful
    }
    return {**always, **evaluated, **settings.wanted}


class _Outcomes:
    """Whether something is so, of many; those about one prompt are a cluster."""

    def __init__(self) -> None:
        self.prompts = array("q")
        self.so = bytearray()

    def add(self, prompt: int, so: Sequence[bool]) -> None:
        """Some more of a prompt."""
        self.prompts.extend([prompt] * len(so))
        self.so.extend(so)

    def share(self) -> Share | None:
        """The share that is so; None where there are none."""
        import numpy as np

        _, cluster, sizes = np.unique(np.array(self.prompts), return_inverse=True, return_counts=True)
        so = np.bincount(cluster, np.frombuffer(self.so, np.uint8)).astype(int)
        return Share.of_clusters(Counter(zip(so.tolist(), sizes.tolist(), strict=True)))


class _Judged:
    """What is counted of a judge's judgements by one principle."""

    def __init__(self) -> None:
        self.count = self.unreadable = self.ties = 0
        self.conflicts = _Outcomes()
        self.first = _Outcomes()


def labeler_quality(
    constitution: Constitution,
    accuracies: Iterable[PrincipleAccuracy],
    judgements: RowStream[Judgement],
    comparisons: RowStream[Comparison],
    judge: str = LABELER,
) -> LabelerQuality:
    """How a judge did by each principle, on the principle's own examples and on the run's comparisons."""
    on_examples = {
        row.principle: Share.of(row.right, row.n - row.unreadable) for row in accuracies if row.judge == judge
    }
    prompts = _prompts_of(comparisons)
    judged: defaultdict[str, _Judged] = defaultdict(_Judged)
    probabilities, labelers, bounded = array("d"), set[str](), 0
    columns = ("comparison", "principle", "labeler", "judge", "readings", "p_a", "conflict")
    for comparison, principle, labeler, by, as_json, p_a, conflict in columns_of(judgements, Judgement, columns):
        if (by or LABELER) != judge:
            continue
        readings, of_principle, prompt = json_of(as_json), judged[principle], prompts[comparison]
        of_principle.count += 1
        of_principle.ties += conflict and _torn(readings)
        of_principle.first.add(prompt, _first_shown(readings))
        if p_a is None:
            of_principle.unreadable += 1
        else:
            of_principle.conflicts.add(prompt, (conflict,))
            probabilities.append(p_a)
        labelers.add(labeler)
        bounded += _is_bounded(readings)
    methods = {labeler.rpartition(" ")[2] for labeler in labelers}
    return LabelerQuality(
        principles=tuple(
            PrincipleQuality(
                principle=principle.id,
                text=principle.text,
                weight=principle.weight,
                accuracy=on_examples.get(principle.id),
                judged=judged[principle.id].count,
                unreadable=judged[principle.id].unreadable,
                conflicts=judged[principle.id].conflicts.share(),
                ties=judged[principle.id].ties,
                first=judged[principle.id].first.share(),
                by_rule=principle.rule is not None,
            )
            for principle in constitution.principles
        ),
        probabilities=Histogram.of(probabilities, 0.0, 1.0),
        method=", ".join(f"{method}: {IN_WORDS[method]}" for method in IN_WORDS if method in methods),
        bounded=bounded,
    )


def _prompts_of(comparisons: RowStream[Comparison]) -> dict[str, int]:
    """A number for the prompt of each comparison, by the comparison's id."""
    numbers, last, number = dict[str, int](), "", 0
    for name, prompt in columns_of(comparisons, Comparison, ("id", "prompt")):
        if prompt != last:  # the comparisons of a prompt stand together
            last, number = prompt, hash(prompt)
        numbers[name] = number
    return numbers


def panel_of(
    constitution: Constitution,
    accuracies: Sequence[PrincipleAccuracy],
    judgements: RowStream[Judgement],
    comparisons: RowStream[Comparison],
) -> Panel | None:
    """The judges beside the labeler, and how far all agree; None where there is none."""
    judged = (judge or LABELER for judge in column_of(judgements, "judge"))
    names = dict.fromkeys(chain((row.judge for row in accuracies), judged))
    if len(names) < 2:
        return None
    prompts = _prompts_of(comparisons)
    split: defaultdict[str, list[tuple[bool, int]]] = defaultdict(list)
    for (comparison, principle), choices in choices_of(judgements).items():
        if len(choices) > 1:
            split[principle].append((len(set(choices.values())) > 1, prompts[comparison]))
    return Panel(
        judges={
            name: labeler_quality(constitution, accuracies, judgements, comparisons, name)
            for name in names
            if name != LABELER
        },
        pairs=tuple(
            JudgesAgreement(judges=pair.judges, same=share, kappa=pair.kappa)
            for pair in agreements(judgements)
            if (share := Share.clustered([(same, prompts[comparison]) for same, comparison in pair.same]))
        ),
        split={name: share for name, outcomes in split.items() if (share := Share.clustered(outcomes))},
        split_in_all=Share.clustered([outcome for outcomes in split.values() for outcome in outcomes]),
    )


def _is_bounded(readings: Iterable[Mapping[str, Any]]) -> bool:
    return any(["bounded" in reading and reading["bounded"] for reading in readings])  # noqa: C419 - in half the time


def _torn(readings: Iterable[Mapping[str, Any]]) -> bool:
    return all(reading["p_a"] is not None and abs(reading["p_a"] - 0.5) < 0.1 for reading in readings)


def _first_shown(readings: Sequence[Mapping[str, Any]]) -> list[bool]:
    """Whether a reading prefers the response shown first, of the readings that prefer one."""
    if len(readings) < 2:  # a single reading is a score that a response got alone: none came first
        return []
    # Preferred is what was shown first if a is preferred and was first, or b is preferred and was first.
    return [
        (p_a > 0.5) == (reading["order"] == "a_first")
        for reading in readings
        if (p_a := reading["p_a"]) is not None and p_a != 0.5
    ]


def curves_of(
    stage: str, logs: Mapping[str, Sequence[Mapping[str, float]]], sampler: str = "transformers"
) -> Iterator[Curve]:
    """A curve for each quantity of a training's logs, with a line for each log, by name."""
    now = {name: [metrics.current(row) for row in rows] for name, rows in logs.items()}
    logged = {metric for rows in now.values() for row in rows for metric in row}
    parts = sorted(metric for metric in logged if metric.startswith("rewards/") and metric.endswith("/mean"))
    drawn = (*ONLINE, *([MISMATCH] if sampler == "vllm" else []), *(parts if len(parts) > 1 else []))
    for metric in drawn if "reward" in logged else METRICS:
        lines = {
            name: tuple((row["step"], row[metric]) for row in rows if row.get(metric) is not None)
            for name, rows in now.items()
        }
        if any(lines.values()):
            yield Curve(stage=stage, metric=metric, lines={name: line for name, line in lines.items() if line})


def left_out(view: RunView, revisions: RowStream[Revision], judgements: RowStream[Judgement]) -> Iterator[LeftOut]:
    """Rows that could not be used, by stage, and why."""
    problems = Counter(problem for problem in column_of(revisions, "problem") if problem)
    yield LeftOut(stage="critique_revise", what="drafts", total=len(revisions), reasons=dict(problems))
    if sampled := view.summary(summaries.SamplePairsSummary):
        without = {"no two different responses": sampled.prompts_without_pair}
        yield LeftOut(stage="sample_pairs", what="prompts", total=sampled.prompts, reasons=_counted(without))
        unpaired = {
            "empty": sampled.empty_responses,
            "cut off": sampled.cut_off_responses,
            "repeated": sampled.repeated_responses,
        }
        yield LeftOut(stage="sample_pairs", what="responses", total=None, reasons=_counted(unpaired))
    if (trial := view.summary(summaries.LabelerCheckSummary)) and trial.left_out_principles:
        why = {f"“{principle}”: the labeler misjudges its examples": 1 for principle in trial.left_out_principles}
        yield LeftOut(stage="label", what="principles", total=None, reasons=why)
    yield LeftOut(stage="label", what="judgements", total=len(judgements), reasons=_counted(_undirected(judgements)))
    if mixed := view.summary(summaries.MixSummary):
        reasons = {why: count for why, count in mixed.counts.items() if not any(word in why for word in KEPT)}
        yield LeftOut(stage="mix", what="comparisons, judgements and rows", total=None, reasons=_counted(reasons))
    for stage, record in view.records().items():
        match record.summary:
            case summaries.SftSummary(trained_on=used, dropped=dropped):
                what = "examples"
            case (
                summaries.RewardSummary(pairs=used, dropped=dropped) | summaries.DpoSummary(pairs=used, dropped=dropped)
            ):
                what = "preferences"
            case summaries.OnlineSummary(prompts=used, dropped=dropped, examples=learnt, examples_left_out=too_long):
                what = "prompts"
                if too_long:
                    reasons = {"too long": too_long}
                    yield LeftOut(stage=stage, what="supervised examples", total=learnt + too_long, reasons=reasons)
            case _:
                continue
        yield LeftOut(stage=stage, what=what, total=used + sum(dropped.values()), reasons=_counted(dropped))
    if evaluated := view.summary(summaries.EvaluateSummary):
        reasons = {
            why: count
            for why, count in evaluated.counts.items()
            if why.startswith(("equal", "unreadable", "prompts that"))
        }
        yield LeftOut(stage="evaluate", what="comparisons and critiques", total=None, reasons=_counted(reasons))


def _undirected(judgements: RowStream[Judgement]) -> Counter[str]:
    """Why judgements prefer no response, and how often."""
    why, ties = Counter[str](), 0
    for p_a, readings in columns_of(judgements, Judgement, ("p_a", "readings")):
        ties += p_a == 0.5
        if p_a is None:  # so an order cannot be read
            why.update([reading["problem"] for reading in json_of(readings) if reading["problem"]][:1])
    why["tie, neither response is preferred"] = ties
    return why


def _counted(reasons: Mapping[str, int]) -> dict[str, int]:
    return {why.replace("_", " "): count for why, count in reasons.items() if count}


def gather(settings: Settings, view: RunView) -> RunReport:
    """All that the report shows of a run, from the artifacts and summaries."""
    revisions, judgements = view.stream("revisions", Revision), view.stream("judgements", Judgement)
    preferences, comparisons = view.stream("preferences", Preference), view.stream("comparisons", Comparison)
    scores, understood = tuple(view.read("scores", Score)), tuple(view.read("meanings", PrincipleMeaning))
    drawn = revision_examples(revisions, preferences, judgements, settings.revision_examples, view.seed)
    online = view.has("rollouts")
    kept = view.read("rollouts", Rollout) if online else []
    rollouts = rollout_examples(kept, view.stream("prompts", Prompt), settings.rollout_examples) if online else ()
    directed = columns_of(preferences, Preference, ("probability", "split"))
    sources = Counter(columns_of(preferences, Preference, ("source", "split")))
    records = view.records()
    sampler = view.configuration().get("algorithm", {}).get("sampler", "")
    evaluated, rewarded = view.summary(summaries.EvaluateSummary), view.summary(summaries.RewardSummary)
    assert evaluated is not None, "the report comes after evaluation"
    accuracies = view.read("labeler_accuracy", PrincipleAccuracy)
    measurements = tuple(view.read("measurements", Measurement))
    files = _peoples_files(settings, view)
    return RunReport(
        name=view.name,
        folder=shlex.quote(str(view.folder)),
        scores=scores,
        wanted=wanted_directions(scores, evaluated.wanted or {}, understood, settings),
        understood=understood,
        labeler=labeler_quality(view.constitution, accuracies, judgements, comparisons),
        panel=panel_of(view.constitution, accuracies, judgements, comparisons),
        people=people_report(view, comparisons, judgements, settings.vote_examples, files),
        reward=rewarded.quality if rewarded else None,
        targets=Histogram.of([probability for probability, split in directed if split == "train"], 0.5, 1.0),
        sources={f"{source}, {split.replace('_', ' ')}": count for (source, split), count in sources.items()},
        curves=tuple(curve for stage, record in records.items() for curve in curves_of(stage, record.logs, sampler)),
        gold=tuple(view.read("gold", GoldPoint)) if online else (),
        rollouts=tuple(rollouts),
        revisions=tuple(drawn),
        replies=reply_examples(view.read("samples", Sample), settings.reply_examples, view.seed),
        left_out=tuple(left_out(view, revisions, judgements)),
        summaries={stage: record.summary for stage, record in records.items()},
        costs=tuple(
            StageCost(stage=stage, calls=record.calls, seconds=record.seconds, forecast=record.forecast)
            for stage, record in records.items()
        ),
        provenance=_provenance(
            view,
            comparisons,
            judgements,
            work_report(view, preferences, settings.pay_per_hour, settings.currency, files),
        ),
        constitution=view.constitution,
        measurements=measurements,
    )


def _peoples_files(settings: Settings, view: RunView) -> PeoplesFiles:
    """What people said of the evaluated replies; simulated people say it where the run's votes are simulated.

    Raises:
        InputError: a file is about other replies than this run's.
    """
    spotchecks = view.summary(summaries.SpotCheckSummary)
    simulated = spotchecks is not None and spotchecks.simulated
    if settings.verdicts is None and settings.violations is None and not simulated:
        return PeoplesFiles()
    samples, measurements = view.read("samples", Sample), view.read("measurements", Measurement)
    if settings.verdicts is None and settings.violations is None:
        made_up = view.configuration().get("spotcheck", {}).get("simulate") or {}
        error, raters = made_up.get("error", 0.0), made_up.get("raters", 2)
        return PeoplesFiles(*simulated_answers(samples, measurements, view.constitution, error, raters, view.seed))
    contests = {row.comparison.id for row in contests_of(samples, measurements)}
    items = {row.name for row in violation_items(samples, measurements, view.constitution, view.seed)}
    return PeoplesFiles(
        read_verdicts(settings.verdicts, contests) if settings.verdicts else (),
        read_answers(settings.violations, items) if settings.violations else (),
    )


def _provenance(
    view: RunView, comparisons: RowStream[Comparison], judgements: RowStream[Judgement], people: WorkReport
) -> Provenance:
    asked = {
        "sampled from": set(column_of(comparisons, "model")),
        "labeler and method": set(column_of(judgements, "labeler")),
    }
    constitution, records = view.constitution, view.records()
    if adopted := view.summary(summaries.AdoptedSummary):
        asked[f"policy, adopted from a folder {adopted.folder}"] = {adopted.digest}
    return Provenance(
        constitution=constitution.name,
        version=constitution.version,
        digest=constitution.digest,
        principles={principle.id: principle.text for principle in constitution.principles},
        reasons={row.id: row.why for row in constitution.principles if row.why},
        overrides={row.id: row.overrides for row in constitution.principles if row.overrides},
        versions=_versions([record.versions for record in records.values()]),
        identities={
            # The digests hold the constitution as it was when the run was last begun, maybe after this report.
            **{name: digest for name, digest in view.digests().items() if "constitution" not in name},
            **{name: ", ".join(sorted(values)) for name, values in asked.items() if values},
        },
        people=people,
        config=json.dumps(view.configuration(), indent=2, ensure_ascii=False),
    )


def _versions(by_stage: Sequence[Mapping[str, str]]) -> dict[str, str]:
    """Versions that the stages ran on, by package: more than one after an upgrade in between."""
    names = dict.fromkeys(name for versions in by_stage for name in versions)
    return {name: ", ".join(sorted({versions[name] for versions in by_stage if name in versions})) for name in names}


def run(settings: Settings, context: StageContext) -> None:
    """Write `report.html`, the constitution that the run had, and as JSON what people's votes say and who gave them."""
    report = gather(settings, context)
    page = render((report,))
    # A page of several runs reads this, whatever becomes of the constitution's file.
    atomic_write(context.output(f"{CONSTITUTION}.json"), context.constitution.model_dump_json(indent=2).encode())
    # A model's text may hold half a surrogate pair, which no file can; it is shown by its number.
    atomic_write(context.output("report.html"), page.encode("utf-8", "backslashreplace"))
    people = {
        "estimates": report.people.model_dump(mode="json", exclude={"wrong"}) if report.people else None,
        "work": report.provenance.people.model_dump(mode="json") if report.provenance.people else None,
    }
    atomic_write(context.output("people.json"), json.dumps(people, indent=2).encode())
    context.summarise(summaries.ReportSummary())
