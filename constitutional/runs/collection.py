"""All runs of a folder: what each has come to, and which stages' outputs no run uses any more."""

import shutil
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Literal, NamedTuple

from constitutional.base.errors import ConstitutionalError, InputError, UsageError
from constitutional.base.files import writing
from constitutional.constitution.principle_file import unpacked
from constitutional.judging.scores import Score
from constitutional.runs.compose import load
from constitutional.runs.folder import CONFIG, RunStore, read_manifest
from constitutional.runs.manifest import ENTRY, MANIFEST
from constitutional.runs.outputs import LOCK, SHARED, Outputs, is_locked
from constitutional.runs.pipeline import outline
from constitutional.runs.status import describe, outdated


class RunLine(NamedTuple):
    """A run, for a table that people read."""

    name: str
    """Its folder, from the folder that was asked about."""
    state: str
    """`done`, or how far it has come."""
    constitution: str = ""
    algorithm: str = ""
    violations: tuple[float, float] | None = None
    """Mean share of replies that violate a principle, over the principles: of the base model, and of the policy."""
    preferred: float | None = None
    """Share of comparisons in which the labeler prefers the policy's reply to the base model's."""
    over_refusal: float | None = None
    """Share of harmless requests that the policy refuses."""
    bytes: int = 0
    """Of all that its stages made; runs that share a stage share its size."""


class Unused(NamedTuple):
    """A stage's output that no run uses."""

    path: Path
    state: Literal["finished", "not finished", "damaged", "in use"]
    bytes: int


def run_folders(folder: Path) -> list[Path]:
    """The run folders in a folder, those in its folders included.

    Raises:
        UsageError: there is no such folder.
    """
    if not folder.is_dir():
        raise UsageError(f"{folder}: there is no such folder; name one that holds runs, such as runs")
    return sorted(path.parent for pattern in ("*", "*/*") for path in folder.glob(f"{pattern}/{MANIFEST}"))


def overview(folder: Path) -> Iterator[RunLine]:
    """Every run of a folder, in the order of their names."""
    for path in run_folders(folder):
        name = path.relative_to(folder).as_posix()
        try:
            yield line_of(name, RunStore.load(path))
        except ConstitutionalError:
            yield RunLine(name, "unreadable")


def line_of(name: str, store: RunStore) -> RunLine:
    """A run in a line, under this name."""
    state, constitution, algorithm = "of another version", "", ""
    with suppress(InputError):
        config = load(store.folder)
        constitution, algorithm = unpacked(Path(config.constitution.file)).stem, config.algorithm.kind
        state = _state(store, [stage.name for stage in outline(config)])
    scores = store.read("scores", Score) if "scores" in store.artifacts() else []
    policy = policy_of(store)
    figures = _violations(scores), policy.get("win_rate/base"), policy.get("over_refusal")
    size = sum(_size(store.stage_folder(stage).resolve()) for stage in store.stages)
    return RunLine(name, state, constitution, algorithm, *figures, size)


def policy_of(store: RunStore) -> dict[str, float]:
    """What was measured of the policy, by measure; nothing where the evaluation is not done."""
    scores = store.read("scores", Score) if "scores" in store.artifacts() else []
    return {row.measure: row.value for row in scores if row.model == "policy" and row.n}


def _state(store: RunStore, expected: Sequence[str]) -> str:
    lines, running = describe(store, expected), is_locked(store.folder / LOCK)
    for line in lines:
        if line.state == "waits for people" and not running:
            return line.state
        if line.state in ("failed", "not finished", "waits for people"):
            return f"{'running' if running else line.state.replace('not finished', 'stopped')} in {line.stage}"
    done = [line.stage for line in lines if line.state == "done"]
    if running:
        return "running"
    if len(done) == len(lines):
        return "out of date" if outdated(store) else "done"
    return f"until {done[-1]}" if done else "not begun"


def _violations(scores: Sequence[Score]) -> tuple[float, float] | None:
    means = []
    for model in ("base", "policy"):
        rates = [
            row.value for row in scores if row.model == model and row.measure.startswith("violation_rate/") and row.n
        ]
        if not rates:
            return None
        means.append(sum(rates) / len(rates))
    return means[0], means[1]


def unused(folder: Path) -> list[Unused]:
    """The stages' outputs in a folder that none of its runs uses, the largest first.

    Raises:
        RunError: a run's manifest cannot be read, so nobody knows what it uses.
    """
    outputs, used = Outputs(folder / SHARED), _used(folder)
    found = []
    for path in outputs.all():
        if not _is_used(path, used):
            state: Literal["finished", "not finished", "damaged", "in use"] = "not finished"
            if ".damaged-" in path.name:
                state = "damaged"
            elif (lock := outputs.lock(path)) is None:
                state = "in use"
            else:
                lock.close()
                state = "finished" if (path / ENTRY).is_file() else "not finished"
            found.append(Unused(path, state, _size(path)))
    return sorted(found, key=lambda output: -output.bytes)


def _used(folder: Path) -> str:
    """The manifests and configurations of all runs: an output is used if its name stands in one of them.

    A configuration may name the model that another run's stage made.
    """
    folders = run_folders(folder)
    for path in folders:
        read_manifest(path)
    files = (path / name for path in folders for name in (MANIFEST, CONFIG))
    return "\n".join(file.read_text(encoding="utf-8") for file in files if file.is_file())


def _is_used(output: Path, used: str) -> bool:
    return f'"{output.name}"' in used or f"/{output.name}/" in used or f'/{output.name}"' in used


def remove(folder: Path, found: Sequence[Unused]) -> None:
    """Remove unused outputs of a folder, but for those that a process is making, or that a run has come to use."""
    outputs = Outputs(folder / SHARED)
    for output in found:
        if (lock := outputs.lock(output.path)) is not None:
            with lock, writing(output.path):
                if not _is_used(output.path, _used(folder)):
                    shutil.rmtree(output.path)


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def size_in_words(size: int) -> str:
    """`1.6 GB`, `45 MB`, `3 kB`."""
    for unit, least in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if size >= least:
            return f"{size / least:.1f} {unit}" if size < 10 * least else f"{size / least:.0f} {unit}"
    return f"{size} B"
