"""What stages made, each under the fingerprint of what it was made from, shared by all runs that need the same.

    runs/.stages/
    └── label-3f2a90c41b77d0e2/      a stage and the beginning of its fingerprint
        ├── judgements.jsonl
        ├── summary.json             what the stage says of its work
        └── stage.json               what it was made from and made: written last, so a stage that has one is finished

Nothing that is finished is ever changed or deleted without being asked for. A folder without `stage.json` is of a stage
that is going on or was stopped, and goes on from there.
"""

import fcntl
import hashlib
import json
import os
import re
import shutil
import socket
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any, Final, NamedTuple, Self

from constitutional.base.errors import RunError
from constitutional.base.files import atomic_write, digest_of, files_in, row_count, writing
from constitutional.base.shards import count_of, is_sharded
from constitutional.engines.spending import Calls
from constitutional.runs.manifest import (
    ENTRY,
    Artifact,
    Part,
    StageEntry,
    finite,
    json_text,
    read_checked,
    write_checked,
)
from constitutional.runs.process import peak_bytes, versions
from constitutional.stages.summaries import Summary

SHARED: Final = ".stages"
"""The folder beside the run folders."""
SUMMARY: Final = "summary.json"
LOCK: Final = ".lock"
"""In a run folder."""
TRIES: Final = 5
"""How often to try to take a lock, in a fifth of a second."""
LOCKS: Final = ".locks"
"""Beside the stages' outputs, by their names."""
CHECKPOINTS: Final = "checkpoints"
"""A folder that a stage may use while it trains; it goes once the stage is done."""
DIGITS: Final = 16
"""Of a fingerprint in a folder's name."""
WAIT_S: Final = 1.0
"""How often to look whether another process is done with a stage."""
_OUTPUT: Final = re.compile(rf"\w+-[0-9a-f]{{{DIGITS}}}(\.damaged-\d+)?")


class Begun(NamedTuple):
    """A stage that is running."""

    stage: str
    fingerprint: str
    needs: Mapping[str, str]
    """Digests of what it was given and of what earlier stages made."""
    files: Mapping[str, str]
    """Digests of the files that its settings name, by path."""
    folder: Path
    started: str
    started_s: float
    """On the monotonic clock."""

    @classmethod
    def now(
        cls, stage: str, fingerprint: str, needs: Mapping[str, str], files: Mapping[str, str], folder: Path
    ) -> Self:
        """A stage that begins at this moment, or goes on: what an earlier start left in its folder is the same work."""
        return cls(stage, fingerprint, needs, files, folder, now(), time.monotonic())


class Outputs:
    """The folder of all stages' outputs."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def place(self, stage: str, fingerprint: str) -> Path:
        """Where a stage of this fingerprint is made."""
        return self.folder / f"{stage}-{fingerprint[:DIGITS]}"

    def finished(self, place: Path) -> StageEntry | None:
        """What is known of a finished stage; None where there is none.

        Raises:
            RunError: what is there was edited, or is of another version.
        """
        if not (place / ENTRY).is_file():
            return None
        remedy = f"move the folder away (mv {place} {place}.old) and start again: the stage runs anew"
        return read_checked(place / ENTRY, StageEntry, remedy)

    @contextmanager
    def claimed(self, place: Path, say: Callable[[str], None]) -> Iterator[None]:
        """A stage's place, for this process alone; waits where another process is making the same.

        Args:
            place: the stage's folder, whether it is there or not.
            say: told once what is waited for.

        Raises:
            RunError: it cannot be locked.
        """
        waited = False
        while (lock := self.lock(place)) is None:
            if not waited:
                say(f"waiting for {holder(self._lock_file(place))}, which makes the same for another run")
            waited = True
            time.sleep(WAIT_S)
        with lock:
            yield

    def lock(self, place: Path) -> IO[bytes] | None:
        """The right to make, use or remove what is in a place; None where another process has it.

        The lock lies outside of the place, which may be moved or removed.
        """
        file = self._lock_file(place)
        with writing(file):
            file.parent.mkdir(parents=True, exist_ok=True)
        return take_lock(file)

    def _lock_file(self, place: Path) -> Path:
        return self.folder / LOCKS / place.name

    def finish(
        self,
        begun: Begun,
        artifacts: Mapping[str, Path],
        calls: Calls,
        summary: Summary,
        warnings: Sequence[str] = (),
    ) -> StageEntry:
        """Write the summary, and then what is known of the stage: from here on it is done. Checkpoints go."""
        content: dict[str, Any] = finite(summary.model_dump(mode="json"))
        atomic_write(begun.folder / SUMMARY, (json_text(content, indent=2) + "\n").encode())
        everything = {**artifacts, "summary": begun.folder / SUMMARY}
        entry = StageEntry(
            stage=begun.stage,
            fingerprint=begun.fingerprint,
            needs=dict(begun.needs),
            files=dict(begun.files),
            started=begun.started,
            seconds=round(time.monotonic() - begun.started_s, 3),
            peak_bytes=peak_bytes(),
            host=socket.gethostname(),
            versions=dict(versions()),
            artifacts={name: _artifact(path, begun.folder) for name, path in everything.items()},
            calls=calls,
            summary=content,
            warnings=tuple(warnings),
        )
        write_checked(begun.folder / ENTRY, entry)
        drop_checkpoints(begun.folder)
        return entry

    def take_over(self, places: Mapping[str, Path]) -> None:
        """Have finished outputs of another folder here as well: the same files where the file system allows it.

        Args:
            places: where each is, by the name that it has among outputs; in a copy of a run it has another there.
        """
        for name, place in places.items():
            own = self.folder / name
            if own.exists() or not place.is_dir() or (lock := self.lock(own)) is None:
                continue  # it is here, it is gone there, or another process makes it
            made = own.with_name(f"{own.name}.{os.getpid()}")
            with lock, writing(own):
                if not own.exists():
                    shutil.copytree(place, made, copy_function=_linked, ignore=shutil.ignore_patterns(CHECKPOINTS))
                    made.rename(own)

    def put_aside(self, place: Path) -> Path:
        """Move a damaged output out of the way, so that the stage can be made anew; returns where to."""
        number = 1
        while (aside := place.with_name(f"{place.name}.damaged-{number}")).exists():
            number += 1
        with writing(place):
            place.rename(aside)
        return aside

    def all(self) -> list[Path]:
        """The folders of all stages, finished or not, and of those that were put aside."""
        if not self.folder.is_dir():
            return []
        return sorted(path for path in self.folder.iterdir() if path.is_dir() and _OUTPUT.fullmatch(path.name))


def _linked(source: str, target: str) -> None:
    """Nothing that is finished is ever changed, so two folders may have the same file."""
    try:
        os.link(source, target)
    except OSError:  # another file system
        shutil.copy2(source, target)


def drop_checkpoints(place: Path) -> None:
    """Remove what only a training that is going on needs."""
    shutil.rmtree(place / CHECKPOINTS, ignore_errors=True)


def damage(place: Path, entry: StageEntry) -> str | None:
    """What of a finished stage's artifacts is missing or not as it was made, in words; None if all is as it was.

    Files that the stage did not make, such as a note beside a model, make no difference.
    """
    for artifact in entry.artifacts.values():
        for name, part in artifact.parts.items():
            path = place / artifact.file / name if name else place / artifact.file
            try:
                state = path.stat()
            except OSError:
                return f"{path} is missing"
            if (state.st_size, state.st_mtime_ns) == (part.bytes, part.mtime_ns):
                continue
            if state.st_size != part.bytes or digest_of(path) != part.sha256:
                return f"{path} is damaged: it is not what this stage wrote"
    return None


def _artifact(path: Path, folder: Path) -> Artifact:
    files = files_in(path) if path.is_dir() else [path]
    parts = {}
    for file in files:
        state = file.stat()
        name = file.relative_to(path).as_posix() if path.is_dir() else ""
        parts[name] = Part(sha256=digest_of(file), bytes=state.st_size, mtime_ns=state.st_mtime_ns)
    sha256 = parts[""].sha256 if "" in parts else _over(parts)
    rows = count_of(path) if is_sharded(path) else row_count(path)
    return Artifact(file=path.relative_to(folder).as_posix(), rows=rows, sha256=sha256, parts=parts)


def _over(parts: Mapping[str, Part]) -> str:
    listed = json.dumps([(name, part.sha256) for name, part in sorted(parts.items())])
    return hashlib.sha256(listed.encode()).hexdigest()


def take_lock(path: Path) -> IO[bytes] | None:
    """The open lock file; None where another process has it. The system gives it back when the process ends.

    Raises:
        RunError: it cannot be written, or the file system has no locks.
    """
    try:
        file = path.open("ab+", buffering=0)  # without a buffer, closing it has nothing left to write
    except OSError as error:
        raise RunError(f"{path}: cannot be written: {error.strerror}; choose another name=…") from error
    try:
        for attempt in range(TRIES):
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if attempt + 1 == TRIES:
                    file.close()
                    return None
                time.sleep(0.05)  # a process that only looks whether it is locked holds it for a moment
    except OSError as error:
        file.close()
        raise RunError(f"{path}: cannot be locked: {error.strerror}; choose a folder on a local disk") from error
    try:
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}, since {now()}".encode())
    except OSError as error:
        file.close()
        advice = "make room or give access, and start again"
        raise RunError(f"{path}: cannot be written: {error.strerror}; {advice}") from error
    return file


@contextmanager
def locked_while(file: Path, content: bytes = b"") -> Iterator[IO[bytes]]:
    """Meanwhile the file has this content, and this process has its lock, which ends with the process or its machine.

    Others find the file with both, or not at all.
    """
    new = file.with_suffix(".new")
    with ExitStack() as stack:
        with writing(file):
            locked = stack.enter_context(new.open("wb"))
            fcntl.flock(locked, fcntl.LOCK_EX)
            locked.write(content)
            locked.flush()
            os.fsync(locked.fileno())  # other machines are to read it while it is open here
            new.rename(file)
        yield locked


def is_locked(path: Path) -> bool:
    """Whether a process has a lock now."""
    try:
        with path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:  # there is none
        return False
    return False


def holder(path: Path) -> str:
    """Who has a lock, in words."""
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip() or "another process"
    except OSError:
        return "another process"


def now() -> str:
    """The time in UTC, ISO 8601."""
    return datetime.now(UTC).isoformat(timespec="microseconds")
