"""A run folder: what each stage made, what it was made from, and a lock, so that two processes never write to it.

    runs/first/
    ├── config.json                  the resolved configuration
    ├── manifest.json                what is finished: fingerprints, digests, times, calls
    └── 02_critique_revise/          one folder a stage, in running order
        ├── revisions.jsonl          a row a line
        └── summary.json             what the stage says of its work

What is the same for the same configuration and seed stands in the artifacts; what differs by nature (times, hosts, how
many calls were reused) in the manifest alone. A stage counts as done once its entry is in the manifest, which is
written last, and as long as every byte that it made is as it was.
"""

import fcntl
import json
import os
import platform
import re
import resource
import shutil
import socket
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC, datetime
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import IO, Any, Final, NamedTuple, Self, TypeVar

from pydantic import ValidationError

from constitutional.base.errors import RunError, UsageError
from constitutional.base.files import atomic_write, digest_of, read_rows, row_count, writing
from constitutional.base.records import Record
from constitutional.runs.manifest import (
    MANIFEST,
    Artifact,
    Calls,
    Failure,
    Manifest,
    StageEntry,
    check_identity,
    finite,
    json_text,
    read_manifest,
    write_manifest,
)
from constitutional.stages.summaries import Summary

R = TypeVar("R", bound=Record)
S = TypeVar("S", bound=Summary)

CONFIG: Final = "config.json"
SUMMARY: Final = "summary.json"
LOCK: Final = ".lock"
FINGERPRINT: Final = ".fingerprint"
_STAGE_FOLDER: Final = re.compile(r"\d\d_\w+")
PACKAGES: Final = "constitutional torch transformers trl accelerate datasets peft tokenizers numpy".split()
"""Those on whose versions a run's numbers may depend."""


class Begun(NamedTuple):
    """A stage that is running."""

    stage: str
    fingerprint: str
    needs: Mapping[str, str]
    """Digests of what it was given and of what earlier stages made."""
    folder: Path
    started: str
    started_s: float
    """On the monotonic clock."""
    files: Mapping[str, str]
    """Digests of the files that its settings name, by path."""


class RunStore:
    """A run folder, locked while this is open (`open`), or only to be read (`load`)."""

    def __init__(self, folder: Path, manifest: Manifest, lock: IO[bytes] | None) -> None:
        self.folder = folder
        self.manifest = manifest
        self._lock = lock

    @classmethod
    def open(
        cls, folder: Path, config_json: str, identity: Mapping[str, Any] | None = None, *, fresh: bool = False
    ) -> Self:
        """Make the folder or go on with it, and lock it.

        Args:
            folder: the run folder.
            config_json: the resolved configuration, to be read by people and by later commands.
            identity: the parts of it that may not change within one folder; nested mappings are compared key by key.
            fresh: remove the stages that an earlier run made here and begin anew; a journal of answers stays.

        Raises:
            RunError: the folder is in use, holds another configuration, is damaged or cannot be written.
        """
        lock = _take_lock(folder)
        try:
            if fresh:
                with writing(folder):
                    _remove_run(folder)
            wanted: dict[str, Any] = json.loads(json_text(dict(identity or {})))  # as it comes back from the file
            if (folder / MANIFEST).exists():
                manifest = read_manifest(folder)
                check_identity(folder, manifest.identity, wanted)
            else:
                manifest = Manifest(identity=wanted)
            store = cls(folder, manifest, lock)
            atomic_write(folder / CONFIG, config_json.encode())
            store._save(manifest)
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
            raise UsageError(
                f"{folder}: holds no run (there is no {MANIFEST} in it); expected a folder such as runs/NAME"
            )
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

    # In the order in which a stage's life goes: is there anything to do, begin, finish or fail.

    def reason_to_run(self, stage: str, fingerprint: str) -> str | None:
        """Why a stage must run, in words to be printed; None if it is done and every byte it made is as it was."""
        entry = self.manifest.stages.get(stage)
        if entry is None:
            return "it has not been finished before"
        if entry.fingerprint != fingerprint:
            return "its settings or inputs have changed"
        for artifact in entry.artifacts.values():
            path = self.folder / artifact.file
            if not path.exists():
                return f"{path} is missing"
            if digest_of(path) != artifact.sha256:
                return f"{path} is damaged: it is not what this stage wrote"
        return None

    def begin(
        self,
        number: int,
        stage: str,
        fingerprint: str,
        needs: Mapping[str, str] | None = None,
        files: Mapping[str, str] | None = None,
    ) -> Begun:
        """The stage's folder, empty unless this very work was begun in it before (checkpoints are resumed from).

        Args:
            number: the stage's place in the running order.
            stage: its name.
            fingerprint: of what it is about to do.
            needs: digests of what the stage is given and of what earlier stages made, by name; part of the fingerprint.
            files: digests of the files that its settings name, by path; part of the fingerprint.
        """
        folder = self.folder / f"{number:02d}_{stage}"
        mark = folder / FINGERPRINT
        if stage in self.manifest.stages:
            mark.unlink(missing_ok=True)  # it was finished and yet must run: nothing that is left here can be trusted
        if stage in self.manifest.stages or stage in self.manifest.failures:
            self._save(self._without(stage))  # now, so that no entry ever speaks of files that are being replaced
        with writing(folder):
            if folder.exists() and not (mark.is_file() and mark.read_bytes() == fingerprint.encode()):
                shutil.rmtree(folder)
            folder.mkdir(exist_ok=True)
        atomic_write(mark, fingerprint.encode())
        return Begun(stage, fingerprint, needs or {}, folder, _now(), time.monotonic(), files or {})

    def finish(self, begun: Begun, artifacts: Mapping[str, Path], calls: Calls, summary: Summary) -> StageEntry:
        """Write the summary as `summary.json`, then the manifest's entry, last: from here on the stage is done."""
        file = begun.folder / SUMMARY
        content: dict[str, Any] = finite(summary.model_dump(mode="json"))
        atomic_write(file, (json_text(content, indent=2) + "\n").encode())
        made = {
            name: Artifact(file=path.relative_to(self.folder).as_posix(), rows=row_count(path), sha256=digest_of(path))
            for name, path in {**artifacts, "summary": file}.items()
        }
        entry = StageEntry(
            fingerprint=begun.fingerprint,
            needs=dict(begun.needs),
            files=dict(begun.files),
            started=begun.started,
            seconds=round(time.monotonic() - begun.started_s, 3),
            peak_bytes=peak_bytes(),
            host=socket.gethostname(),
            versions=dict(versions()),
            artifacts=made,
            calls=calls,
            summary=content,
        )
        without = self._without(begun.stage)
        self._save(without.model_copy(update={"stages": {**without.stages, begun.stage: entry}}))
        return entry

    def fail(self, stage: str, message: str) -> None:
        """Keep why a stage ended without being done."""
        failure = Failure(message=message, when=_now(), host=socket.gethostname())
        # Where nothing can be written, a full disk say, this must not hide the error that the stage ended with.
        with suppress(RunError):
            self._save(self.manifest.model_copy(update={"failures": {**self.manifest.failures, stage: failure}}))

    # What later stages and readers want.

    def artifacts(self) -> dict[str, Artifact]:
        """What the finished stages made, by name; without their summaries."""
        entries = self.manifest.stages.values()
        return {name: made for entry in entries for name, made in entry.artifacts.items() if name != "summary"}

    def artifact(self, name: str) -> Path:
        """Where a finished stage's artifact is.

        Raises:
            RunError: no finished stage made one of that name.
        """
        return self.folder / self._entry(name).file

    def digest(self, name: str) -> str:
        """SHA-256 of an artifact as the stage wrote it, for the fingerprints of those that need it."""
        return self._entry(name).sha256

    def summaries(self, but: str = "") -> dict[str, str]:
        """SHA-256 of every finished stage's summary, or of all but one, by the name for later stages: `sft summary`."""
        return {
            f"{stage} summary": entry.artifacts["summary"].sha256
            for stage, entry in self.manifest.stages.items()
            if stage != but
        }

    def read(self, name: str, kind: type[R]) -> list[R]:
        """The rows of an artifact."""
        return list(read_rows(self.artifact(name), kind))

    def summary(self, stage: str, kind: type[S]) -> S:
        """What a finished stage said of its work.

        Raises:
            RunError: the stage is not finished, or another version of the program wrote its summary.
        """
        if stage not in self.manifest.stages:
            raise RunError(f"{self.folder}: the stage '{stage}' is not finished, so it has no summary; run it first")
        entry = self.manifest.stages[stage]
        try:
            return kind.model_validate(entry.summary)
        except ValidationError as error:
            file = self.folder / entry.artifacts["summary"].file
            expected = f"expected a {kind.__name__} of this version; the command that made the run makes it anew"
            raise RunError(f"{file}: cannot be read: {expected}") from error

    def in_running_order(self) -> list[str]:
        """The finished stages."""
        return sorted(self.manifest.stages, key=lambda stage: self._folder_of(stage).name)

    def training_logs(self, stage: str) -> dict[str, list[dict[str, float]]]:
        """The lines of a finished stage's training logs; of an ensemble one log for each member, in their order."""
        paths = self._folder_of(stage).glob("training_log*.jsonl")
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

    def _folder_of(self, stage: str) -> Path:
        return (self.folder / self.manifest.stages[stage].artifacts["summary"].file).parent

    def _entry(self, name: str) -> Artifact:
        if name in (artifacts := self.artifacts()):
            return artifacts[name]
        raise RunError(f"{self.folder}: has no '{name}' yet; the stage that makes it is not finished, so run it first")

    def _without(self, stage: str) -> Manifest:
        kept = {
            "stages": {name: entry for name, entry in self.manifest.stages.items() if name != stage},
            "failures": {name: failure for name, failure in self.manifest.failures.items() if name != stage},
        }
        return self.manifest.model_copy(update=kept)

    def _save(self, manifest: Manifest) -> None:
        assert self._lock is not None, "only the process that holds the lock writes"
        write_manifest(self.folder, manifest)
        self.manifest = manifest


def peak_bytes() -> int:
    """The most memory that this process has held so far."""
    held = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return held if sys.platform == "darwin" else held * 1024  # Linux counts in KiB


@cache
def versions() -> Mapping[str, str]:
    """What this process runs on, by package."""
    packages = {"python": platform.python_version()} | dict.fromkeys(PACKAGES, "not installed")
    for package in PACKAGES:
        with suppress(metadata.PackageNotFoundError):  # an installation without the training extras, say
            packages[package] = metadata.version(package)
    return packages


def _take_lock(folder: Path) -> IO[bytes]:
    """The open lock file; the system gives the lock back when the process ends, however it ends."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = (folder / LOCK).open("ab+", buffering=0)  # without a buffer, closing it has nothing left to write
    except OSError as error:
        raise RunError(f"{folder}: cannot be made or written: {error.strerror}; choose another name=…") from error
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.seek(0)
        holder = file.read().decode(errors="replace").strip() or "another process"
        problem = f"is in use by {holder}; wait until it has ended, or end it, or choose another name=…"
    except OSError as error:
        problem = f"cannot be locked: {error.strerror}; choose a folder on a local disk"
    else:
        try:
            file.truncate(0)
            file.write(f"process {os.getpid()} on {socket.gethostname()}, since {_now()}".encode())
            return file
        except OSError as error:
            problem = f"{LOCK} cannot be written: {error.strerror}; make room or give access, and start again"
    file.close()
    raise RunError(f"{folder}: {problem}")


def _remove_run(folder: Path) -> None:
    """Remove what a run has made, and nothing that may be somebody else's; the manifest first.

    Where an earlier removal was cut off, the manifest is gone and stage folders are left.
    """
    (folder / MANIFEST).unlink(missing_ok=True)
    for path in folder.iterdir():
        if _STAGE_FOLDER.fullmatch(path.name) and (path / FINGERPRINT).is_file():
            shutil.rmtree(path)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="microseconds")
