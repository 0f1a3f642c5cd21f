"""Reads the runs of a page that compares many, and writes the page with its numbers as CSV and Parquet beside it."""

import csv
import io
import json
import re
import shlex
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

from constitutional.base.errors import ConstitutionalError, RunError, UsageError
from constitutional.base.files import atomic_write, writing
from constitutional.base.records import Comparison, Judgement, Preference
from constitutional.engines.spending import Calls
from constitutional.judging.reweighing import JudgementTable
from constitutional.judging.scores import Measurement, Score, plain
from constitutional.judging.understanding import PrincipleMeaning
from constitutional.runs.collection import line_of
from constitutional.runs.compose import compose, freeze, load
from constitutional.runs.folder import RunStore
from constitutional.runs.runner import labels, load_run, reported_constitution
from constitutional.runs.settings import RunConfig
from constitutional.runs.sweeps import Sweep, SweepJob, quoted, read, sweep_file
from constitutional.stages.report import gather
from constitutional.stages.report.sweep_data import ComparedRun, flat, pooled
from constitutional.stages.report.sweep_page import Unfinished, render
from constitutional.stages.summaries import EvaluateSummary

COLUMNS: Final = (
    "run constitution constitution_digest seed model measure unit value low high n "
    "change change_low change_high change_n"
).split()
"""One row a run and measure; a change is from the run's own base model."""


class Named(NamedTuple):
    """A run folder to compare, with the sweep's job that made it, if a sweep did."""

    folder: Path
    job: SweepJob | None = None


def named_runs(folders: Sequence[Path]) -> tuple[list[Named], Sweep | None]:
    """The runs that folders and sweeps stand for, begun or not, and the first sweep.

    Raises:
        UsageError: a folder holds no run.
    """
    named, sweeps = list[Named](), list[Sweep]()
    for folder in folders:
        if file := sweep_file(folder):
            sweeps.append(read(file))
            named += [Named(file.parent / job.folder, job) for job in sweeps[-1].jobs]
        else:
            named.append(Named(load_run(folder).folder))
    return named, next(iter(sweeps), None)


def compare_many(named: Sequence[Named], sweep: Sweep | None, out: Path) -> list[Path]:
    """Write the page and its numbers; returns the files.

    Runs that are not finished are listed with their state, and not compared.

    Raises:
        UsageError: the page would have the name of a file of numbers.
        RunError: fewer than two runs are finished, or one is damaged.
    """
    files = [out, out.with_suffix(".csv"), out.with_suffix(".parquet")]
    if out in files[1:]:
        raise UsageError(f"--out {out}: names the page, beside which the numbers stand; type --out {out.stem}.html")
    runs, unfinished = list[ComparedRun](), list[Unfinished]()
    stores, jobs = dict[str, RunStore](), dict[str, SweepJob | None]()
    by_folder = {row.folder.resolve(): row for row in named}
    for name, row in zip(labels(list(by_folder)), by_folder.values(), strict=True):
        try:
            store = RunStore.load(row.folder)
            state = line_of(name, store).state
        except ConstitutionalError:
            unfinished.append(Unfinished(name, "not begun, or unreadable", ""))
            continue
        if "report" in store.stages:
            try:
                runs.append(_compared(name, store))
            except RunError as error:
                unfinished.append(Unfinished(name, "damaged, or of another version", str(error)))
                continue
            stores[name], jobs[name] = store, row.job
        else:
            why = "; ".join(failure.message for failure in store.manifest.failures.values())
            unfinished.append(Unfinished(name, state, why))
    if len(runs) < 2:
        states = "; ".join(f"{row.name}: {row.state}" for row in unfinished)
        partly = any(row.state.startswith("until ") for row in unfinished)
        raise RunError(
            f"there are {len(runs)} finished runs to compare ({states}); type the commands that began them again"
            f"{', without until=' if partly else ''}"
        )
    rows = list(_numbers(runs))
    margin = max(float(run.settings.get("mix.margin", 0)) for run in runs)  # a preference in every run
    pulls = pooled(row for store in stores.values() for row in store.read("judgements", Judgement))
    if any(len(by_principle) > 1 for by_principle in pulls.p_a.values()):  # otherwise there are no examples to show
        for store in stores.values():
            pulls.comparisons.update((row.id, row) for row in store.read("comparisons", Comparison))
    page = render(
        runs,
        unfinished,
        (sweep.objective, sweep.over_refusal) if sweep else None,
        (pulls, margin),
        [file.name for file in files[1:]],
        lambda name: command(jobs[name], load(stores[name].folder)),
    )
    atomic_write(files[0], page.encode("utf-8", "backslashreplace"))
    atomic_write(files[1], _csv(rows))
    _write_parquet(files[2], rows)
    return files


def _compared(name: str, store: RunStore) -> ComparedRun:
    config = load(store.folder)
    scores = store.read("scores", Score)
    evaluated = store.summary("evaluate", EvaluateSummary)
    meanings = store.read("meanings", PrincipleMeaning) if "meanings" in store.artifacts() else []
    measured = store.read("measurements", Measurement)
    return ComparedRun(
        name=name,
        seed=config.seed,
        settings=flat(config.model_dump(mode="json")),
        constitution=reported_constitution(store),
        critiqued=evaluated.critiqued,
        scores=tuple(scores),
        # What runs without a principle measured of it is the same measure as that of the runs with it.
        values={(of.model, plain(of.measure)): of.by_prompt for of in measured},
        clusters={prompt: cluster for of in measured for prompt, cluster in of.clusters.items()},
        wanted=gather.wanted_directions(scores, evaluated.wanted or {}, meanings, config.report),
        decided=decided(
            store.read("preferences", Preference), store.read("judgements", Judgement), config.label.weights
        ),
        calls=needed([entry.calls for entry in store.stages.values()]),
    )


def decided(
    preferences: Iterable[Preference], judgements: Iterable[Judgement], judges: Mapping[str, float] | None = None
) -> Counter[str]:
    """The pairs to train on by the principle that pushed hardest towards the chosen response; people's under "".

    A principle's push is the part of its judgements in the mean, times how far their probability is from 0.5. Judges
    have the weights of `label.weights`.
    """
    rows = list(judgements)
    weights: dict[str, float] = {}
    for row in rows:
        of_principle = row.weight / (judges or {}).get(row.judge, 1.0)
        weights[row.principle] = max(weights.get(row.principle, 0.0), of_principle)
    table = JudgementTable.of(rows, judges)
    pushes = table.shares({name: weight for name, weight in weights.items() if name in table.principles}) * (
        table.p_a - 0.5
    )
    places = {name: at for at, name in enumerate(table.comparisons)}
    counts = Counter[str]()
    for preference in preferences:
        if preference.split != "train":
            continue
        if preference.source == "human":
            counts[""] += 1
        elif (at := places.get(preference.comparison)) is not None:
            # The chosen response is the one that the mean prefers.
            push = pushes[at] * (1 if pushes[at].sum() >= 0 else -1)
            counts[table.principles[int(push.argmax())]] += 1
    return counts


def needed(stages: Iterable[Calls]) -> Calls:
    """What a run costs that has nothing to reuse: reused answers of a stage count as its asked ones do on average.

    Where a stage reused all its answers, tokens and cost are not known, and are 0.
    """
    answered = [calls for calls in stages if calls.answers]
    answers = sum(calls.answers for calls in answered)
    if not all(calls.asked for calls in answered):
        return Calls(asked=answers)
    factors = [calls.answers / calls.asked for calls in answered]
    return Calls(
        asked=answers,
        prompt_tokens=round(sum(of.prompt_tokens * factor for of, factor in zip(answered, factors, strict=True))),
        completion_tokens=round(
            sum(of.completion_tokens * factor for of, factor in zip(answered, factors, strict=True))
        ),
        cost=sum(of.cost * factor for of, factor in zip(answered, factors, strict=True)),
    )


def command(job: SweepJob | None, config: RunConfig) -> str:
    """What makes a run again, with every setting as it was; empty where no such command is found.

    What was typed for a sweep comes first; what the sweep's preset set, or what means another thing here, follows.
    """
    typed = [word for word in job.overrides if not word.startswith(("sweep=", "sweep.", "name="))] if job else []
    wanted = flat(config.model_dump(mode="json"))
    words, wrong = [f"name={_typed(config.name)}", *typed], list[str]()
    for _ in range(4):
        try:
            composed = flat(freeze(compose(words)).model_dump(mode="json"))
        except ConstitutionalError:  # a preset that was added needs settings that have no default
            kinds = list[str]()
        else:
            wrong = [key for key in wanted if wanted[key] != composed.get(key)]
            if wanted.keys() == composed.keys() and not wrong:
                return shlex.join(["constitutional", "run", *words])
            kinds = [key for key in wrong if key.endswith(".kind")]  # presets have the names of kinds
        words = [word for word in words if word.partition("=")[0] not in wrong]
        words += [f"{key.removesuffix('.kind')}={wanted[key]}" for key in kinds]
        if not kinds:
            words += [f"{key}={_typed(wanted[key])}" for key in wrong if not key.endswith(".kind")]
    return ""


def _typed(value: object) -> str:
    """A setting's value as Hydra's grammar has it."""
    if isinstance(value, dict):
        return f"{{{', '.join(f'{key}: {_typed(part)}' for key, part in value.items())}}}"
    if isinstance(value, list):
        return f"[{', '.join(map(_typed, value))}]"
    plain = isinstance(value, str) and re.fullmatch(r"[\w./:-]+", value) and not re.fullmatch(r"[\d.-]+", value)
    return str(value) if plain else quoted(value) if isinstance(value, str) else json.dumps(value)


def _numbers(runs: Iterable[ComparedRun]) -> Iterator[dict[str, Any]]:
    for run in runs:
        for score in run.scores:
            if score.model == "policy" and score.n:
                change = score.changes.get("base")
                changes = (change.value, change.low, change.high, change.n) if change else (None,) * 4
                about = (run.name, run.constitution.name, run.constitution.digest, run.seed, score.model)
                numbers = (score.measure, score.unit, score.value, score.low, score.high, score.n)
                yield dict(zip(COLUMNS, (*about, *numbers, *changes), strict=True))


def _csv(rows: Sequence[dict[str, Any]]) -> bytes:
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, COLUMNS)
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()


def _write_parquet(file: Path, rows: Sequence[dict[str, Any]]) -> None:
    import pyarrow as pa  # type: ignore[import-untyped]
    import pyarrow.parquet as pq  # type: ignore[import-untyped]

    types = {"seed": pa.int64(), "n": pa.int64(), "change_n": pa.int64()}
    texts = {"run", "constitution", "constitution_digest", "model", "measure", "unit"}
    schema = pa.schema([(name, pa.string() if name in texts else types.get(name, pa.float64())) for name in COLUMNS])
    with writing(file):
        buffer = io.BytesIO()
        pq.write_table(pa.Table.from_pylist(list(rows), schema=schema), buffer)
        atomic_write(file, buffer.getvalue())
