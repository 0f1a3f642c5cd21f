"""Sweeps: the jobs that each consists of, the names of the jobs, and what they have come to.

runs/leave.sweep/
├── sweep.json                   the jobs, written before the first begins
└── leave-whole.log              what a job printed, where a launcher runs several at once
"""

import hashlib
import itertools
import math
import os
import random
import re
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Sequence
from pathlib import Path
from statistics import mean
from typing import Final, Literal, NamedTuple
from unicodedata import normalize

from constitutional.base.errors import ConfigurationError, ConstitutionalError, RunError, UsageError
from constitutional.base.files import writing
from constitutional.base.frozen import Frozen
from constitutional.constitution.constitution import Constitution, nearest
from constitutional.constitution.principle_file import read_principles
from constitutional.engines.spending import Calls
from constitutional.judging.scores import plain
from constitutional.runs.collection import RunLine, line_of, policy_of
from constitutional.runs.compose import Job, compose, sweep, sweep_settings
from constitutional.runs.context import selected
from constitutional.runs.folder import RunStore
from constitutional.runs.manifest import ENTRY, MANIFEST, SWEEP_ENDING, read_checked, write_checked
from constitutional.runs.settings import ConstitutionSettings, RunConfig, SweepSettings
from constitutional.stages.summaries import EvaluateSummary

LONGEST_NAME: Final = 100
"""Bytes of the name of a sweep's run, short enough to be read in a table; a longer one ends in a digest."""
MOST_JOBS: Final = 1000
"""Of a sweep over subsets; a larger one is a mistake more often than a wish."""
ENDING: Final = SWEEP_ENDING
LOGS: Final = ".sweeps"
CONTROL: Final = "control_"
"""The beginning of a control's label."""


def jobs_of(overrides: Sequence[str], *, multirun: bool) -> list[Job]:
    """The runs that these overrides ask for, those included that depend on the constitution that is chosen.

    Raises:
        ConstitutionalError: an override is wrong, or the constitution or a file of wordings cannot be read.
    """
    settings, jobs = sweep_settings(overrides) if multirun or _has_preset(overrides) else SweepSettings(), list[Job]()
    needless = settings.model_fields_set & {"keep", "size", "whole", "control", "principle", "values", "file"}
    if needless and settings.over is None:
        presets = "sweep=principles, sweep=weights or sweep=wordings"
        raise UsageError(f"sweep.{min(needless)} says how a constitution is varied; type {presets} as well")
    if settings.trials is not None:
        raise UsageError(
            "a search has no job before it begins: each is chosen by what those before it came to, so there is none to "
            "show or to try; leave out sweep=optuna and type one value in place of each interval(LOW,HIGH)"
        )
    for job in sweep(overrides, multirun=multirun):
        if settings.over is None:
            jobs.append(job)
            continue
        config = compose(job.overrides)
        for label, overriding in _variations(settings, config, selected(config)):
            jobs.append(Job((*job.overrides, *overriding), (*job.swept, label)))
    return jobs


def _has_preset(overrides: Sequence[str]) -> bool:
    return any(re.match(r"\+*sweep=", word) for word in overrides)


def _variations(
    settings: SweepSettings, config: RunConfig, constitution: Constitution
) -> Iterator[tuple[str, list[str]]]:
    """What each job differs in, for its name, with the overrides that make it so."""
    ids = [principle.id for principle in constitution.principles]
    if settings.whole and settings.over != "weights":
        yield "whole", []
    if settings.over == "principles":
        yield from _selections(settings, config.constitution, ids)
        if settings.control:
            yield from _controls(constitution, config)
        return
    name = settings.principle
    if name is None:
        listed = f"{', '.join(ids[:20])}{', …' if len(ids) > 20 else ''}"
        raise ConfigurationError(f"sweep={settings.over} needs a principle; type sweep.principle=ID, one of {listed}")
    if name not in ids:
        raise ConfigurationError(f"sweep.principle={name}: there is no such principle; {nearest(name, ids)}")
    if settings.over == "weights":
        for value in settings.values:
            override = f"constitution.weights.{name}={value:g}"
            yield override, [override]
    elif settings.file is None:
        raise ConfigurationError("sweep=wordings needs texts; type sweep.file=FILE, with a text a line")
    else:
        for number, text in enumerate(read_principles(settings.file), start=1):
            yield f"{name}_{number}", [f"constitution.wordings.{name}={quoted(text)}"]


def _controls(constitution: Constitution, config: RunConfig) -> Iterator[tuple[str, list[str]]]:
    """For each principle the whole constitution, with the words of that principle in a random order.

    Models are given them in that order: the sandbox's reader would see through it. A principle of one word has none.
    """
    for principle in constitution.principles:
        words = principle.text.split()
        random.Random(f"{config.seed} {principle.id}").shuffle(words)
        if words == principle.text.split():  # by chance, or because there is nothing to shuffle
            words.reverse()
        if words != principle.text.split():
            as_written = ",".join([*config.constitution.as_written, principle.id])
            wording = f"constitution.wordings.{principle.id}={quoted(' '.join(words))}"
            yield f"{CONTROL}{principle.id}", [wording, f"constitution.as_written=[{as_written}]"]


def _selections(
    settings: SweepSettings, chosen: ConstitutionSettings, ids: Sequence[str]
) -> Iterator[tuple[str, list[str]]]:
    if len(ids) < 2:
        raise ConfigurationError(
            f"sweep=principles needs two principles or more, and the constitution has only {ids[0]}"
        )
    if settings.keep == "others":
        for name in ids:
            left_out = ",".join([*chosen.without, name])
            yield f"constitution.without=[{name}]", [f"constitution.without=[{left_out}]"]
        return
    size = 1 if settings.keep == "alone" else settings.size
    count = math.comb(len(ids), size)
    if not 0 < count <= MOST_JOBS:
        sets = f"there are {count:,} sets of {size} of {len(ids)} principles"
        raise ConfigurationError(f"sweep.size={size}: {sets}, and a sweep has 1 to {MOST_JOBS:,} jobs")
    for names in itertools.combinations(ids, size):
        override = f"constitution.only=[{','.join(names)}]"
        yield override, [override]


def quoted(text: str) -> str:
    """A text as Hydra's grammar has it in quotes: it means itself, whatever characters it has."""
    inner = re.sub(r"(\\*)('|$)", lambda match: match[1] * 2 + ("\\'" if match[2] else ""), text)
    return "'" + inner.replace("${", "\\${") + "'"


def typed(text: str) -> str:
    """A text as it is typed behind `KEY=`: in quotes where Hydra's grammar would read something else."""
    return text if re.fullmatch(r"[A-Za-z0-9_./+-]+", text) else quoted(text)


def names(bases: Sequence[str], swept: Sequence[Sequence[str]]) -> list[str]:
    """The runs' names, in a sweep with what each differs in, such as `x-seed=1`: every run has a folder of its own.

    `constitution.without=[brief]` is shortened to `without_brief`. A digest is added where characters that no name may
    hold had to go, where the name is too long, and where file systems that know no case, or that compose accents, would
    take two names for one.
    """
    plain = [
        "-".join([base, *map(shortened, words)]).replace("'", "") for base, words in zip(bases, swept, strict=True)
    ]
    cleaned = [re.sub(r"[^\w.,=+-]+", "_", name) for name in plain]
    folded = [normalize("NFKC", name).casefold() for name in cleaned]
    for index, words in enumerate(swept):
        name = cleaned[index]
        lossy = name != plain[index] or folded.count(folded[index]) > 1
        if words and (lossy or len(name.encode()) > LONGEST_NAME):
            digest = hashlib.sha256("-".join(words).encode()).hexdigest()[:8]
            cleaned[index] = f"{name.encode()[: LONGEST_NAME - 9].decode(errors='ignore')}-{digest}"
    return cleaned


def named(configs: Sequence[RunConfig], swept: Sequence[Sequence[str]]) -> list[RunConfig]:
    """The configurations of a sweep's jobs, with the jobs' names."""
    unique = names([config.name for config in configs], swept)
    return [config.model_copy(update={"name": name}) for config, name in zip(configs, unique, strict=True)]


def shortened(override: str) -> str:
    """What stands for an override in a name."""
    listed = re.sub(r"^constitution\.(only|without)=\[([\w,-]+)\]$", r"\1_\2", override)
    return re.sub(r"^constitution\.(?=weights\.)", "", listed)


class SweepJob(Frozen):
    """A job of a sweep."""

    folder: str
    """Its run folder, from the folder that holds the sweep's file."""
    swept: tuple[str, ...]
    """What it differs in from the others."""
    overrides: tuple[str, ...]


class Sweep(Frozen):
    """What a sweep consists of, and which of its jobs counts as the best."""

    objective: Literal["violations", "preferred"]
    over_refusal: float | None
    jobs: tuple[SweepJob, ...]


def write(file: Path, settings: SweepSettings, jobs: Sequence[Job], run_folders: Sequence[Path]) -> None:
    """Keep in a file, beside the run folders, which jobs a sweep consists of.

    Raises:
        RunError: it cannot be written.
    """
    with writing(file):
        file.parent.mkdir(parents=True, exist_ok=True)
    kept = tuple(
        SweepJob(folder=os.path.relpath(run_folder, file.parent), swept=job.swept, overrides=job.overrides)
        for job, run_folder in zip(jobs, run_folders, strict=True)
    )
    write_checked(file, Sweep(objective=settings.objective, over_refusal=settings.over_refusal, jobs=kept))


def check_kept(file: Path, run_folders: Sequence[Path], searched: Collection[str] = ()) -> None:
    """Refuse a sweep that would take the place of another one of the same name; one with more jobs goes on.

    Args:
        file: the sweep's.
        run_folders: those of its jobs.
        searched: what a search varies, whose later jobs nobody knows: any job that varies the same may be one of them.

    Raises:
        UsageError: the file holds jobs that are none of these, or another run has the sweep's name.
    """
    run = file.with_name(file.name.removesuffix(ENDING))
    if (run / MANIFEST).is_file() and run not in run_folders:
        raise UsageError(f"{run}: is a run, and commands could not tell a sweep of this name from it; type name=OTHER")
    try:
        jobs = [job for job in read(file).jobs if not searched or varied(job.swept) != set(searched)]
        others = {file.parent / job.folder for job in jobs} - set(run_folders)
    except ConstitutionalError:  # there is none, or it is damaged, so there is nothing to keep
        return
    if others:
        more = f" and {len(others) - 1} more jobs" if len(others) > 1 else ""
        raise UsageError(
            f"{file}: is of another sweep, whose {min(others).name}{more} this one has not; type name=OTHER for this "
            "one, or remove the file, which leaves the runs"
        )


def varied(swept: Iterable[str]) -> set[str]:
    """The settings that a job differs in from the others of its sweep."""
    return {word.partition("=")[0] for word in swept}


def read(file: Path) -> Sweep:
    """What `write` kept.

    Raises:
        RunError: it is damaged.
    """
    return read_checked(file, Sweep, "type the command that made the sweep again")


def sweep_file(path: Path) -> Path | None:
    """The file of the sweep that a path means, itself or by a name such as `runs/leave`; None where it means none."""
    if path.name.endswith(ENDING):
        return path if path.is_file() else None
    file = path.parent / f"{path.name}{ENDING}"
    return file if file.is_file() and not (path / MANIFEST).is_file() else None


class JobLine(NamedTuple):
    """What a job has come to, for a table that people read."""

    job: SweepJob
    run: RunLine
    calls: Calls
    """Of all its stages: those that were asked for this job first, and all others."""
    violations: float | None = None
    """Mean share of the policy's replies that violate a principle, over the principles that all measured jobs have."""


def job_lines(file: Path) -> list[JobLine]:
    """The jobs of a sweep in their order, with what each has come to."""
    lines, rates, counted = list[JobLine](), list[dict[tuple[str, str], float]](), set[Path]()
    for job in read(file).jobs:
        try:
            store = RunStore.load(file.parent / job.folder)
            line, of_job = JobLine(job, line_of(job.folder, store), calls_of(store, counted)), _violations(store)
        except ConstitutionalError:
            line, of_job = JobLine(job, RunLine(job.folder, "not begun"), Calls()), {}
        lines.append(line)
        rates.append({} if is_control(job) else of_job)  # which has other words
    shared = set.intersection(*(set(of_job) for of_job in rates if of_job)) if any(rates) else set()
    means = [mean(of_job[name] for name in shared) if of_job and shared else None for of_job in rates]
    return [line._replace(violations=value) for line, value in zip(lines, means, strict=True)]


def is_control(job: SweepJob) -> bool:
    """Whether a job's constitution is nobody's: it has a principle with shuffled words."""
    return any(label.startswith(CONTROL) for label in job.swept)


def _violations(store: RunStore) -> dict[tuple[str, str], float]:
    """The policy's rate of violations by principle and its words, of a principle that the run leaves out too."""
    measured = {plain(name): rate for name, rate in policy_of(store).items()}
    try:
        words = store.summary("evaluate", EvaluateSummary).critiqued
    except RunError:  # it is not finished, or of another version
        return {}
    rates = {name: measured.get(f"violation_rate/{name}") for name in words}
    return {(name, words[name]): rate for name, rate in rates.items() if rate is not None}


def by_seed(lines: Iterable[JobLine]) -> dict[str, list[JobLine]]:
    """The jobs that differ by their seed alone, by their common name; only where seeds are swept."""
    groups = defaultdict[tuple[str, ...], list[JobLine]](list)
    for line in lines:
        swept = tuple(word for word in line.job.swept if not word.startswith("seed="))
        if len(swept) < len(line.job.swept):
            groups[swept].append(line)
    # The label of a job, such as control_brief, stands for words that a seed may have shuffled.
    return {"-".join(map(shortened, swept)) or "all": group for swept, group in groups.items() if len(group) > 1}


def calls_of(store: RunStore, counted: set[Path]) -> Calls:
    """The calls that a run's finished stages needed: asked for them, or saved by the journal or by another run.

    Args:
        store: the run.
        counted: the stages' outputs whose calls were counted before, which this adds to.
    """
    asked = needed = 0
    for stage, entry in store.stages.items():
        place = store.stage_folder(stage).resolve()
        needed += entry.calls.asked + entry.calls.reused
        asked += 0 if place in counted else entry.calls.asked
        counted.add(place)
    return Calls(asked=asked, reused=needed - asked)


def made(outputs: Path) -> set[Path]:
    """The stages' outputs that are finished now."""
    return {entry.parent.resolve() for entry in outputs.glob(f"*/{ENTRY}")}


def best(lines: Iterable[JobLine], sweep: Sweep) -> JobLine | None:
    """The job with the best objective among those within the bound; None where none was measured.

    A control is nobody's constitution, and is never the best.
    """
    meant = [line for line in lines if not is_control(line.job)]
    measured = [line for line in meant if objective(line, sweep) is not None and excess(line, sweep) <= 0]
    return min(measured, key=lambda line: objective(line, sweep) or 0.0, default=None)


def best_of_seeds(lines: Iterable[JobLine], sweep: Sweep) -> str | None:
    """Of jobs that differ by their seeds alone the common name with the best mean objective within the bound.

    None where seeds were not swept, or none was measured.
    """
    means: dict[str, float] = {}
    for name, group in by_seed(lines).items():
        values = [value for line in group if (value := objective(line, sweep)) is not None]
        within = mean(excess(line, sweep) for line in group) <= 0
        if len(values) == len(group) and within and not any(is_control(line.job) for line in group):
            means[name] = mean(values)
    return min(means, key=lambda name: means[name], default=None)


def objective(line: JobLine, sweep: Sweep) -> float | None:
    """What is minimised: violations as a share, or the win rate with a minus; None where it was not measured."""
    if sweep.objective == "preferred":
        return None if line.run.preferred is None else -line.run.preferred
    return line.violations


def excess(line: JobLine, sweep: Sweep) -> float:
    """How far the share of harmless requests that the run refuses is above the sweep's bound; not above 0 is within."""
    if sweep.over_refusal is None:
        return 0.0
    return 1.0 if line.run.over_refusal is None else line.run.over_refusal - sweep.over_refusal


def outcomes(file: Path, last: int) -> list[tuple[float | None, float]]:
    """What the last jobs came to: for each what is minimised, and how far it is above the bound."""
    sweep = read(file)
    return [(objective(line, sweep), excess(line, sweep)) for line in job_lines(file)[-last:]]
