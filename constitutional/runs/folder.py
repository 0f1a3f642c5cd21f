"""A run folder: which stages the run consists of, its configuration, and a lock, so that two processes never write it.

    runs/first/
    ├── config.json                  the resolved configuration
    ├── constitution.yaml            the principles and weights that the run has
    ├── manifest.json                which stages there are, and which of them failed
    ├── forecast.json                what a dry run expected them to ask, where there was one
    └── 02_critique_revise/          one folder a stage, in running order: a link to what `outputs.py` keeps
        ├── revisions.jsonl          a row a line; more than 100,000 rows are a folder of Parquet files, `revisions`
        └── summary.json             what the stage says of its work

Runs that need the same stage share what it made. A run whose settings have changed is linked to other outputs; the old
ones stay, and going back costs nothing.
"""

import difflib
import json
import os
import socket
from collections.abc import Mapping
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import IO, Final, Self, TypeVar

from pydantic import ValidationError

from constitutional.base.errors import RunError, UsageError
from constitutional.base.files import atomic_write, writing
from constitutional.base.records import Record
from constitutional.base.shards import RowStream, Shards, is_sharded, read_artifact
from constitutional.runs.manifest import (
    ENTRY,
    MANIFEST,
    SWEEP_ENDING,
    Artifact,
    Failure,
    Manifest,
    StageEntry,
    StageLink,
    read_checked,
    write_checked,
)
from constitutional.runs.outputs import LOCK, holder, now, take_lock
from constitutional.stages.context import StageForecast
from constitutional.stages.summaries import Summary

R = TypeVar("R", bound=Record)
S = TypeVar("S", bound=Summary)

CONFIG: Final = "config.json"
USED: Final = "constitution.yaml"
FORECAST: Final = "forecast.json"
"""What a dry run expected the stages to ask."""


class RunStore:
    """A run folder, locked while this is open (`open`), or only to be read (`load`)."""

    def __init__(self, folder: Path, manifest: Manifest, lock: IO[bytes] | None) -> None:
        self.folder = folder
        self.manifest = manifest
        self.stages: dict[str, StageEntry] = {}
        """What is known of the finished stages, in running order."""
        self._lock = lock
        for stage, link in sorted(manifest.stages.items(), key=lambda pair: pair[1].number):
            entry = folder / link.folder(stage) / ENTRY
            if link.finished and entry.is_file():
                output = entry.parent.resolve()
                remedy = f"move its folder away (mv {output} {output}.old); the run's command makes the stage anew"
                # A run that goes on looks for itself what is finished: what it was linked to before may be damaged.
                with suppress(RunError) if lock else nullcontext():
                    self.stages[stage] = read_checked(entry, StageEntry, remedy)

    @classmethod
    def open(cls, folder: Path, config_json: str) -> Self:
        """Make the folder or go on with it, and lock it.

        Args:
            folder: the run folder.
            config_json: the resolved configuration, to be read by people and by later commands.

        Raises:
            RunError: the folder is in use, is damaged or cannot be written.
        """
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RunError(f"{folder}: cannot be made or written: {error.strerror}; choose another name=…") from error
        lock = take_lock(folder / LOCK)
        if lock is None:
            held = holder(folder / LOCK)
            advice = "wait until it has ended, or end it, or choose another name=…"
            raise RunError(f"{folder}: is in use by {held}; {advice}")
        try:
            store = cls(folder, read_manifest(folder) if (folder / MANIFEST).exists() else Manifest(), lock)
            atomic_write(folder / CONFIG, config_json.encode())
            store._save(store.manifest)
        except BaseException:
            lock.close()
            raise
        return store

    @classmethod
    def load(cls, folder: Path) -> Self:
        """A run folder for reading, whether a run holds it or not.

        Raises:
            UsageError: the folder holds no run.
            RunError: it is damaged.
        """
        if not (folder / MANIFEST).is_file():
            raise UsageError(f"{folder}: holds no run (there is no {MANIFEST} in it); {_instead(folder)}")
        return cls(folder, read_manifest(folder), None)

    def close(self) -> None:
        """Give the lock back."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # What a run does with its stages, in the order of a stage's life.

    def keep_only(self, names: Mapping[str, int]) -> None:
        """Forget stages that the run does not have any more, such as `dpo` where PPO trains; their outputs stay.

        Args:
            names: the stages that the run has, with their places in the running order.
        """
        for stage, link in list(self.manifest.stages.items()):
            if names.get(stage) != link.number:
                self._unlink(link.folder(stage))
                self.stages.pop(stage, None)
        kept = {stage: link for stage, link in self.manifest.stages.items() if names.get(stage) == link.number}
        failures = {stage: failure for stage, failure in self.manifest.failures.items() if stage in names}
        self._save(Manifest(stages=kept, failures=failures))

    def begin(self, number: int, stage: str, place: Path) -> Path:
        """Link a stage that is about to be made; returns its folder in the run's own, made if it is not there."""
        self.stages.pop(stage, None)
        with writing(place):
            place.mkdir(parents=True, exist_ok=True)
        return self._link(StageLink(number=number, output=place.name, finished=False), stage, place)

    def finish(self, number: int, stage: str, place: Path, entry: StageEntry) -> None:
        """Link a stage that is finished, just now or before."""
        self._link(StageLink(number=number, output=place.name, finished=True), stage, place)
        links = self.manifest.stages
        self.stages = dict(sorted({**self.stages, stage: entry}.items(), key=lambda pair: links[pair[0]].number))

    def fail(self, stage: str, message: str) -> None:
        """Keep why a stage ended without being done."""
        failure = Failure(message=message, when=now(), host=socket.gethostname())
        # Where nothing can be written, a full disk say, this must not hide the error that the stage ended with.
        with suppress(RunError):
            self._save(self.manifest.model_copy(update={"failures": {**self.manifest.failures, stage: failure}}))

    def _link(self, link: StageLink, stage: str, place: Path) -> Path:
        folder = self.folder / link.folder(stage)
        # The system reads a link from where the folder is, which may itself be linked to from here.
        target = os.path.relpath(place, self.folder.resolve())
        if not (folder.is_symlink() and str(folder.readlink()) == target):
            self._unlink(folder.name)
            with writing(folder):
                folder.symlink_to(target, target_is_directory=True)
        others = {name: failure for name, failure in self.manifest.failures.items() if name != stage}
        changed = Manifest(stages={**self.manifest.stages, stage: link}, failures=others)
        if changed != self.manifest:
            self._save(changed)
        return folder

    def _unlink(self, name: str) -> None:
        """Remove a link; a folder, such as that of a run that was copied with all it links to, is put aside."""
        path = self.folder / name
        with writing(path):
            if path.is_symlink():
                path.unlink()
            elif path.exists():
                path.rename(path.with_name(f"{name}.before-{now().replace(':', '')}"))

    # What later stages and readers want.

    def artifacts(self) -> dict[str, Artifact]:
        """What the finished stages made, by name; without their summaries."""
        entries = self.stages.values()
        return {name: made for entry in entries for name, made in entry.artifacts.items() if name != "summary"}

    def artifact(self, name: str) -> Path:
        """Where a finished stage's artifact is.

        Raises:
            RunError: no finished stage made one of that name.
        """
        for stage, entry in self.stages.items():
            if name in entry.artifacts and name != "summary":
                return self.stage_folder(stage) / entry.artifacts[name].file
        raise RunError(f"{self.folder}: has no '{name}' yet; the stage that makes it is not finished, so run it first")

    def digest(self, name: str) -> str:
        """SHA-256 of an artifact as the stage wrote it."""
        return self.artifacts()[name].sha256

    def summaries(self, but: str = "") -> dict[str, str]:
        """SHA-256 of every finished stage's summary, or of all but one, by the name for later stages: `sft summary`."""
        return {
            f"{stage} summary": entry.artifacts["summary"].sha256
            for stage, entry in self.stages.items()
            if stage != but
        }

    def read(self, name: str, kind: type[R]) -> list[R]:
        """The rows of an artifact."""
        return list(read_artifact(self.artifact(name), kind))

    def stream(self, name: str, kind: type[R]) -> RowStream[R]:
        """The rows of an artifact, which are read anew whenever they are iterated over where they are many."""
        path = self.artifact(name)
        return Shards(path, kind) if is_sharded(path) else self.read(name, kind)

    def summary(self, stage: str, kind: type[S]) -> S:
        """What a finished stage said of its work.

        Raises:
            RunError: the stage is not finished, or another version of the program wrote its summary.
        """
        if stage not in self.stages:
            raise RunError(f"{self.folder}: the stage '{stage}' is not finished, so it has no summary; run it first")
        entry = self.stages[stage]
        try:
            return kind.model_validate(entry.summary)
        except ValidationError as error:
            file = self.stage_folder(stage) / entry.artifacts["summary"].file
            expected = f"expected a {kind.__name__} of this version; the command that made the run makes it anew"
            raise RunError(f"{file}: cannot be read: {expected}") from error

    def training_logs(self, stage: str) -> dict[str, list[dict[str, float]]]:
        """The lines of a finished stage's training logs; of an ensemble one log for each member, in their order."""
        paths = self.stage_folder(stage).glob("training_log*.jsonl")
        by_number = {int(path.stem.removeprefix("training_log").lstrip("_") or 0): path for path in paths}
        return {
            f"member {number}" if len(by_number) > 1 else "training": [
                json.loads(line) for line in by_number[number].read_text(encoding="utf-8").splitlines()
            ]
            for number in sorted(by_number)
        }

    def given_digests(self) -> dict[str, str]:
        """Digests of what the run was given when it was last begun, by name."""
        try:
            given: dict[str, str] = json.loads((self.folder / CONFIG).read_bytes()).get("digests", {})
        except (OSError, ValueError, AttributeError):
            return {}  # whoever reads the configuration itself says what is wrong with it
        return given

    def stage_folder(self, stage: str) -> Path:
        """The folder of a stage of this run, finished or not."""
        return self.folder / self.manifest.stages[stage].folder(stage)

    def _save(self, manifest: Manifest) -> None:
        assert self._lock is not None, "only the process that holds the lock writes"
        write_checked(self.folder / MANIFEST, manifest)
        self.manifest = manifest


def read_manifest(folder: Path) -> Manifest:
    """Which stages a run has.

    Raises:
        RunError: the file is damaged.
    """
    path = folder / MANIFEST
    remedy = f"move it away (mv {path} {path}.old) and start the run again: finished stages are found again"
    return read_checked(path, Manifest, remedy)


def _instead(folder: Path) -> str:
    """What whoever names a folder that is no run may have meant."""
    if folder.with_name(f"{folder.name}{SWEEP_ENDING}").is_file():
        jobs = sorted(path.parent for path in folder.parent.glob(f"{folder.name}-*/{MANIFEST}"))
        return f"it is a sweep, whose jobs are runs, such as {jobs[0] if jobs else f'{folder}-…'}"
    found = (path for place in (folder.parent, Path("runs")) for path in place.glob(f"*/{MANIFEST}"))
    beside = {path.parent.name: path.parent for path in found}
    if near := difflib.get_close_matches(folder.name, beside, n=1):
        return f"did you mean {beside[near[0]]}?"
    return "expected a folder such as runs/NAME"


def read_forecast(folder: Path) -> dict[str, StageForecast]:
    """What a dry run expected, by stage; empty where there was none, or where its file cannot be read."""
    with suppress(OSError, ValueError, AttributeError):
        rows = json.loads((folder / FORECAST).read_bytes())
        return {name: StageForecast.model_validate(row) for name, row in rows.items()}
    return {}


def write_forecast(folder: Path, stages: Mapping[str, StageForecast]) -> None:
    """Keep what a dry run expects. Of stages that are done by now, what was expected before stays."""
    kept = {name: row for name, row in read_forecast(folder).items() if stages.get(name, row).done}
    rows = {name: kept.get(name, row).model_dump() for name, row in stages.items()}
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    atomic_write(folder / FORECAST, (json.dumps(rows, indent=2) + "\n").encode())
