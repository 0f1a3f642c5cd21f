"""Sweeps: the jobs that each consists of, the names of the jobs, and what they have come to.

    runs/leave.sweep/
    ├── sweep.json                   the jobs, written before the first begins
    └── leave-whole.log              what a job printed, where a launcher runs several at once
"""

import hashlib
import itertools
import json
import math
import random
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final, NamedTuple
from unicodedata import normalize

from constitutional.base.errors import ConfigurationError, ConstitutionalError
from constitutional.base.files import atomic_write, writing
from constitutional.base.frozen import Frozen
from constitutional.constitution.constitution import Constitution, nearest
from constitutional.constitution.principle_file import read_principles
from constitutional.runs.collection import RunLine, line_of
from constitutional.runs.compose import Job, compose, sweep, sweep_settings
from constitutional.runs.context import selected
from constitutional.runs.folder import RunStore
from constitutional.runs.manifest import ENTRY, Calls, read_checked
from constitutional.runs.settings import ConstitutionSettings, RunConfig, SweepSettings

LONGEST_NAME: Final = 100
"""Bytes of the name of a sweep's run, short enough to be read in a table; a longer one ends in a digest."""
MOST_JOBS: Final = 1000
"""Of a sweep over subsets; a larger one is a mistake more often than a wish."""
ENDING: Final = ".sweep"
SWEEP: Final = "sweep.json"


def jobs_of(overrides: Sequence[str], *, multirun: bool) -> list[Job]:
    """The runs that these overrides ask for, those included that depend on the constitution that is chosen.

    Raises:
        ConstitutionalError: an override is wrong, or the constitution or a file of wordings cannot be read.
    """
    settings, jobs = sweep_settings(overrides) if multirun or _has_preset(overrides) else SweepSettings(), []
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
            for principle in constitution.principles:
                words = principle.text.split()
                random.Random(f"{config.seed} {principle.id}").shuffle(words)
                yield f"control_{principle.id}", [f"constitution.wordings.{principle.id}={quoted(' '.join(words))}"]
        return
    name = settings.principle
    if name is None:
        raise ConfigurationError(f"sweep={settings.over} needs a principle; type sweep.principle=ID, {_one_of(ids)}")
    if name not in ids:
        raise ConfigurationError(f"sweep.principle={name}: there is no such principle; {nearest(name, ids)}")
    if settings.over == "weights":
        for value in settings.values:
            override = f"constitution.weights.{name}={value:g}"
            yield override, [override]
        return
    if settings.file is None:
        raise ConfigurationError("sweep=wordings needs texts; type sweep.file=FILE, with a text a line")
    for number, text in enumerate(read_principles(settings.file), start=1):
        yield f"{name}_{number}", [f"constitution.wordings.{name}={quoted(text)}"]


def _selections(
    settings: SweepSettings, chosen: ConstitutionSettings, ids: Sequence[str]
) -> Iterator[tuple[str, list[str]]]:
    if len(ids) < 2:
        raise ConfigurationError(f"sweep=principles needs two principles or more, and the constitution has only {ids[0]}")
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


def _one_of(ids: Sequence[str]) -> str:
    return f"one of {', '.join(ids[:20])}{', …' if len(ids) > 20 else ''}"


def quoted(text: str) -> str:
    """A text as Hydra's grammar has it in quotes: it means itself, whatever characters it has."""
    inner = re.sub(r"(\\*)('|$)", lambda match: match[1] * 2 + ("\\'" if match[2] else ""), text)
    return "'" + inner.replace("${", "\\${") + "'"


def names(bases: Sequence[str], swept: Sequence[Sequence[str]]) -> list[str]:
    """The runs' names, in a sweep with what each differs in, such as `x-seed=1`: every run has a folder of its own.

    `constitution.without=[brief]` is shortened to `without_brief`. A digest is added where characters that no name may
    hold had to go, where the name is too long, and where file systems that know no case, or that compose accents, would
    take two names for one.
    """
    plain = ["-".join([base, *map(_shortened, words)]).replace("'", "") for base, words in zip(bases, swept, strict=True)]
    cleaned = [re.sub(r"[^\w.,=+-]+", "_", name) for name in plain]
    folded = [normalize("NFKC", name).casefold() for name in cleaned]
    for index, words in enumerate(swept):
        name = cleaned[index]
        lossy = name != plain[index] or folded.count(folded[index]) > 1
        if words and (lossy or len(name.encode()) > LONGEST_NAME):
            digest = hashlib.sha256("-".join(words).encode()).hexdigest()[:8]
            cleaned[index] = f"{name.encode()[: LONGEST_NAME - 9].decode(errors='ignore')}-{digest}"
    return cleaned


def _shortened(override: str) -> str:
    return re.sub(r"^constitution\.(only|without)=\[([\w,-]+)\]$", r"\1_\2", override)


class SweepJob(Frozen):
    """A job of a sweep."""

    name: str
    """Its run folder."""
    swept: tuple[str, ...]
    overrides: tuple[str, ...]


class Sweep(Frozen):
    """What a sweep consists of, and which of its jobs counts as the best."""

    name: str
    objective: str
    over_refusal: float | None
    jobs: tuple[SweepJob, ...]

    def write(self, runs: Path) -> Path:
        """Keep this beside the run folders; returns the sweep's own folder."""
        folder = runs / f"{self.name}{ENDING}"
        with writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
        atomic_write(folder / SWEEP, (self.model_dump_json(indent=2) + "\n").encode())
        return folder


def find_sweep(path: Path) -> tuple[Path, Sweep] | None:
    """The sweep that a folder or a name means, with the folder of its runs; None where it means none.

    Raises:
        RunError: its file is damaged.
    """
    for folder in (path, path.with_name(f"{path.name}{ENDING}")):
        if path.name and (folder / SWEEP).is_file():
            remedy = "type the command that made the sweep again"
            return folder.parent, read_checked(folder / SWEEP, Sweep, remedy)
    return None


class JobLine(NamedTuple):
    """What a job has come to, for a table that people read."""

    job: SweepJob
    run: RunLine
    calls: Calls
    """Of all its stages: those that were asked for this job first, and all others."""


def job_lines(runs: Path, sweep: Sweep) -> list[JobLine]:
    """The jobs in their order, with what each has come to."""
    lines, counted = [], set[Path]()
    for job in sweep.jobs:
        try:
            store = RunStore.load(runs / job.name)
        except ConstitutionalError:
            lines.append(JobLine(job, RunLine(job.name, "not begun"), Calls()))
            continue
        lines.append(JobLine(job, line_of(job.name, store), calls_of(store, counted)))
    return lines


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


def made_before(outputs: Path) -> set[Path]:
    """The stages' outputs that are finished now."""
    return {entry.parent.resolve() for entry in outputs.glob(f"*/{ENTRY}")}


def best(lines: Iterable[JobLine], sweep: Sweep) -> JobLine | None:
    """The job with the best objective among those within the bound; None where none was measured."""
    measured = [line for line in lines if objective(line.run, sweep) is not None and within(line.run, sweep)]
    return min(measured, key=lambda line: objective(line.run, sweep) or 0.0, default=None)


def objective(run: RunLine, sweep: Sweep) -> float | None:
    """What is minimised: violations as a share, or the win rate with a minus; None where it was not measured."""
    if sweep.objective == "preferred":
        return None if run.preferred is None else -run.preferred
    return None if run.violations is None else run.violations[1]


def within(run: RunLine, sweep: Sweep) -> bool:
    """Whether the run refuses no more harmless requests than the sweep allows."""
    return sweep.over_refusal is None or (run.over_refusal is not None and run.over_refusal <= sweep.over_refusal)
