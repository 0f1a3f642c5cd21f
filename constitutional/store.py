"""A run folder: what each stage made, what it was made from, and a lock, so that two processes never write to it.

    runs/first/
    ├── config.json                  the resolved configuration
    ├── manifest.json                what is finished: fingerprints, digests, times, calls
    └── 02_critique_revise/          one folder a stage, in running order
        ├── revisions.jsonl          a row a line
        └── summary.json             the stage's notes

What is the same for the same configuration and seed stands in the artifacts; what differs by nature (times, hosts, how
many calls were reused) in the manifest alone. A stage counts as done once its entry is in the manifest, which is
written last, and as long as every byte that it made is as it was.
"""

import fcntl
import hashlib
import json
import math
import os
import platform
import re
import resource
import shutil
import socket
import sys
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from functools import cache
from importlib import metadata
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Final, Literal, NamedTuple, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field

from constitutional.errors import RunError, UsageError
from constitutional.files import atomic_write, digest_of, read_rows, row_count
from constitutional.records import Record

R = TypeVar("R", bound=Record)

CONFIG: Final = "config.json"
MANIFEST: Final = "manifest.json"
SUMMARY: Final = "summary.json"
LOCK: Final = ".lock"
FINGERPRINT: Final = ".fingerprint"
_STAGE_FOLDER: Final = re.compile(r"\d\d_\w+")
PACKAGES: Final = (
    *("constitutional", "torch", "transformers", "trl", "accelerate", "datasets", "peft", "tokenizers", "numpy"),
)
"""Those on whose versions a run's numbers may depend."""


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class Artifact(_Part):
    """A file, or a folder with all that is in it."""

    file: str
    """Its path in the run folder."""
    rows: int | None
    """Lines of a JSONL file; None for anything else."""
    sha256: str
    """Of the bytes; of a folder, over the paths and bytes of its files."""


class Calls(_Part):
    """What a stage wanted of models."""

    asked: int = 0
    """Requests that a model answered."""
    reused: int = 0
    """Requests that the journal answered."""


class StageEntry(_Part):
    """A finished stage."""

    fingerprint: str
    """A digest of everything that the stage's artifacts depend on."""
    started: str
    """UTC, ISO 8601."""
    seconds: float
    """From the last start to the end; what was done before a kill is not in it."""
    peak_bytes: int | None = None
    """Of memory, the most that the process had held when the stage ended; what was trained before counts too."""
    host: str
    versions: dict[str, str] = Field(default_factory=dict)
    """Of the packages that made this stage; a run that was begun before an upgrade has stages of both."""
    artifacts: dict[str, Artifact]
    calls: Calls
    notes: dict[str, Any]
    """The numbers and small values that the stage keeps for people and the report."""


class Failure(_Part):
    """Why a stage ended without being done, the last time that it was tried."""

    message: str
    when: str
    """UTC, ISO 8601."""
    host: str


class Manifest(_Part):
    """What is known of a run."""

    format: Literal[1] = 1
    identity: dict[str, Any] = Field(default_factory=dict)
    """The parts of the configuration that may not change within one folder."""
    stages: dict[str, StageEntry] = Field(default_factory=dict)
    """The finished stages by name."""
    failures: dict[str, Failure] = Field(default_factory=dict)


class Begun(NamedTuple):
    """A stage that is running."""

    stage: str
    fingerprint: str
    folder: Path
    started: str
    started_s: float
    """On the monotonic clock."""


class StageLine(NamedTuple):
    """One stage, for a table that people read."""

    stage: str
    folder: str
    state: Literal["done", "failed", "not finished", "not begun"]
    started: str
    seconds: float
    rows: dict[str, int | None]
    """By artifact; None for what has no rows."""
    calls: Calls
    message: str
    """Why it failed; empty where it is done."""


class RunStore:
    """A run folder, locked while this is open (`open`), or only to be read (`load`)."""

    def __init__(self, folder: Path, manifest: Manifest, lock: IO[str] | None) -> None:
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
            fresh: remove what an earlier run made here (its stages, not a journal of answers) and begin anew.

        Raises:
            RunError: the folder is in use, holds another configuration, is damaged or cannot be written.
        """
        lock = _take_lock(folder)
        try:
            if fresh:
                _remove_run(folder)
            wanted: dict[str, Any] = json.loads(_json(dict(identity or {})))  # as it comes back from the file
            if (folder / MANIFEST).exists():
                manifest = read_manifest(folder)
                _check_identity(folder, manifest.identity, wanted)
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

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
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

    def is_done(self, stage: str, fingerprint: str) -> bool:
        """Whether the stage need not run."""
        return self.reason_to_run(stage, fingerprint) is None

    def begin(self, number: int, stage: str, fingerprint: str) -> Begun:
        """The stage's folder, empty unless this very work was begun in it before (checkpoints are resumed from).

        Args:
            number: the stage's place in the running order.
            stage: its name.
            fingerprint: of what it is about to do.
        """
        folder = self.folder / f"{number:02d}_{stage}"
        mark = folder / FINGERPRINT
        if stage in self.manifest.stages:
            mark.unlink(missing_ok=True)  # it was finished and yet must run: nothing that is left here can be trusted
        if stage in self.manifest.stages or stage in self.manifest.failures:
            self._save(self._without(stage))  # now, so that no entry ever speaks of files that are being replaced
        if folder.exists() and not (mark.is_file() and mark.read_bytes() == fingerprint.encode()):
            shutil.rmtree(folder)
        folder.mkdir(exist_ok=True)
        atomic_write(mark, fingerprint.encode())
        return Begun(stage, fingerprint, folder, _now(), time.monotonic())

    def finish(
        self,
        begun: Begun,
        artifacts: Mapping[str, Path],
        calls: Calls | None = None,
        notes: Mapping[str, Any] | None = None,
    ) -> StageEntry:
        """Write the notes as `summary.json`, then the manifest's entry, last: from here on the stage is done."""
        summary = begun.folder / SUMMARY
        kept: dict[str, Any] = _finite(dict(notes or {}))
        atomic_write(summary, (_json(kept, indent=2) + "\n").encode())
        made = {
            name: Artifact(file=path.relative_to(self.folder).as_posix(), rows=row_count(path), sha256=digest_of(path))
            for name, path in {**artifacts, "summary": summary}.items()
        }
        entry = StageEntry(
            fingerprint=begun.fingerprint,
            started=begun.started,
            seconds=round(time.monotonic() - begun.started_s, 3),
            peak_bytes=peak_bytes(),
            host=socket.gethostname(),
            versions=dict(versions()),
            artifacts=made,
            calls=calls or Calls(),
            notes=kept,
        )
        without = self._without(begun.stage)
        self._save(without.model_copy(update={"stages": {**without.stages, begun.stage: entry}}))
        return entry

    def fail(self, stage: str, message: str) -> None:
        """Keep why a stage ended without being done."""
        failure = Failure(message=message, when=_now(), host=socket.gethostname())
        self._save(self.manifest.model_copy(update={"failures": {**self.manifest.failures, stage: failure}}))

    # What later stages and readers want.

    def artifact(self, name: str) -> Path:
        """Where a finished stage's artifact is.

        Raises:
            RunError: no finished stage made one of that name.
        """
        return self.folder / self._entry(name).file

    def digest(self, name: str) -> str:
        """SHA-256 of an artifact as the stage wrote it, for the fingerprints of those that need it."""
        return self._entry(name).sha256

    def summaries(self, but: str) -> dict[str, str]:
        """SHA-256 of the notes of every finished stage but one."""
        return {
            f"{stage} summary": entry.artifacts["summary"].sha256
            for stage, entry in self.manifest.stages.items()
            if stage != but
        }

    def read(self, name: str, kind: type[R]) -> list[R]:
        """The rows of an artifact."""
        return list(read_rows(self.artifact(name), kind))

    def notes(self, stage: str) -> dict[str, Any]:
        """The notes of a finished stage; empty if it is not finished."""
        entry = self.manifest.stages.get(stage)
        return {} if entry is None else dict(entry.notes)

    def _entry(self, name: str) -> Artifact:
        for entry in self.manifest.stages.values():
            if name in entry.artifacts and name != "summary":
                return entry.artifacts[name]
        raise RunError(f"{self.folder}: has no '{name}' yet; the stage that makes it is not finished, so run it first")

    def _without(self, stage: str) -> Manifest:
        kept = {
            "stages": {name: entry for name, entry in self.manifest.stages.items() if name != stage},
            "failures": {name: failure for name, failure in self.manifest.failures.items() if name != stage},
        }
        return self.manifest.model_copy(update=kept)

    def _save(self, manifest: Manifest) -> None:
        assert self._lock is not None, "only the process that holds the lock writes"
        body = _finite(manifest.model_dump(mode="json"))
        atomic_write(self.folder / MANIFEST, (_json({"checksum": _checksum(body), **body}, indent=2) + "\n").encode())
        self.manifest = manifest


def peak_bytes() -> int:
    """The most memory that this process has held so far."""
    held = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return held if sys.platform == "darwin" else held * 1024  # Linux counts in KiB


@cache
def versions() -> Mapping[str, str]:
    """What this process runs on, by package."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:  # an installation without the training extras, say
            found[package] = "not installed"
    return found


def describe(store: RunStore, expected: Sequence[str] = ()) -> list[StageLine]:
    """The stages in running order, with how far each has come.

    Args:
        store: the run.
        expected: the names of all stages, in order: those that were never begun are told of too.
    """
    lines = []
    for name, entry in store.manifest.stages.items():
        rows = {artifact: each.rows for artifact, each in entry.artifacts.items() if artifact != "summary"}
        folder = Path(entry.artifacts["summary"].file).parent.name
        lines.append(StageLine(name, folder, "done", entry.started, entry.seconds, rows, entry.calls, ""))
    for name, failure in store.manifest.failures.items():
        folder = next((path.name for path in sorted(store.folder.glob(f"[0-9][0-9]_{name}"))), name)
        lines.append(StageLine(name, folder, "failed", failure.when, 0.0, {}, Calls(), failure.message))
    known = {line.stage for line in lines}
    begun = {path.parent.name[3:]: path.parent.name for path in store.folder.glob(f"[0-9][0-9]_*/{FINGERPRINT}")}
    for name, folder in begun.items():
        if name not in known:
            lines.append(StageLine(name, folder, "not finished", "", 0.0, {}, Calls(), ""))
    for number, name in enumerate(expected):
        if name not in known | begun.keys():
            lines.append(StageLine(name, f"{number:02d}_{name}", "not begun", "", 0.0, {}, Calls(), ""))
    return sorted(lines, key=lambda line: line.folder)


def outdated(store: RunStore) -> str:
    """A line that names finished stages which are older than one before them; empty where there is none.

    Such are left where a run was stopped, or told to stop, after a stage that was made anew.
    """
    older, newest = list[str](), ("", "")
    for line in describe(store):
        if line.state != "done":
            continue
        if line.started < newest[0]:
            older.append(line.folder)
        newest = max(newest, (line.started, line.folder))
    if not older:
        return ""
    what = f"{', '.join(older)}: made before {newest[1]}, which was made anew since"
    return f"{what}; the run's command without until= brings up to date what depends on it"


def read_manifest(folder: Path) -> Manifest:
    """A run's manifest, checked against its own checksum."""
    path = folder / MANIFEST
    remedy = (
        f"delete it (rm {path}) and start the run again: its stages run anew, with the answers that the journal keeps"
    )
    try:
        body = json.loads(path.read_bytes())
        checksum = body.pop("checksum")
        if checksum != _checksum(body):
            raise RunError(f"{path}: is damaged or was edited: it does not match its checksum; {remedy}")
        return Manifest.model_validate(body)
    except OSError as error:
        raise RunError(f"{path}: cannot be read: {error.strerror}") from error
    except (ValueError, KeyError, AttributeError, TypeError, RecursionError) as error:
        raise RunError(
            f"{path}: is damaged, or from another version: {' '.join(str(error).split())}; {remedy}"
        ) from error


def _take_lock(folder: Path) -> IO[str]:
    """The open lock file; the system gives the lock back when the process ends, however it ends."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = (folder / LOCK).open("a+", encoding="utf-8")
    except OSError as error:
        raise RunError(f"{folder}: cannot be made or written: {error.strerror}; choose another name=…") from error
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.seek(0)
        holder = file.read().strip() or "another process"
        file.close()
        raise RunError(
            f"{folder}: is in use by {holder}; wait until it has ended, or end it, or choose another name=…"
        ) from None
    except OSError as error:
        file.close()
        raise RunError(f"{folder}: cannot be locked: {error.strerror}; choose a folder on a local disk") from error
    file.truncate(0)
    file.write(f"process {os.getpid()} on {socket.gethostname()}, since {_now()}")
    file.flush()
    return file


def _remove_run(folder: Path) -> None:
    """Remove what a run has made, and nothing that may be somebody else's; the manifest first."""
    if not (folder / MANIFEST).exists():
        return
    (folder / MANIFEST).unlink()
    for path in folder.iterdir():
        if _STAGE_FOLDER.fullmatch(path.name) and (path / FINGERPRINT).is_file():
            shutil.rmtree(path)


def _check_identity(folder: Path, held: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    before, now = _flat(held), _flat(wanted)
    differing = [
        f"{key} is {_shown(before, key)} there, {_shown(now, key)} here"
        for key in sorted(before.keys() | now.keys())
        if key not in before or key not in now or before[key] != now[key]
    ]
    if differing:
        raise RunError(
            f"{folder}: holds a run with another configuration: {'; '.join(differing)}. Choose another name=…, which "
            "asks for nothing again that the journal has an answer to, or say fresh=true to replace what is in the "
            f"folder, or delete it (rm -r {folder})"
        )


def _flat(nested: Mapping[str, Any], above: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in nested.items():
        # An empty mapping is a value of its own: it must not look like no key at all.
        flat |= _flat(value, f"{above}{key}.") if isinstance(value, dict) and value else {f"{above}{key}": value}
    return flat


def _shown(flat: Mapping[str, Any], key: str) -> str:
    return json.dumps(flat[key], ensure_ascii=False) if key in flat else "not set"


def _checksum(body: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def _json(value: object, indent: int | None = None) -> str:
    return json.dumps(value, indent=indent, ensure_ascii=False, allow_nan=False)


def _finite(value: object) -> Any:  # noqa: ANN401 # JSON of any shape, as it came
    """The same with null for numbers that JSON does not have: a loss that diverged must not lose the stage."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {str(key): _finite(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(each) for each in value]
    return value


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="microseconds")
