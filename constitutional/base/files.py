"""Files that are whole or not there: atomic replacement, rows as JSON lines, digests."""

import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Final, Literal, Protocol, TypeVar

from constitutional.base.errors import RunError

if TYPE_CHECKING:
    from constitutional.base.records import Record

R = TypeVar("R", bound="Record")

CARD: Final = "README.md"
"""Describes the files beside it, and decides nothing: no digest of a folder depends on it."""


class WrittenRow(Protocol):
    """What is written as a line: a `Record`, or what stands for one (`shards.PlainRow`)."""

    @property
    def id(self) -> str:
        """A digest of the row's content."""

    def model_dump(self, *, mode: Literal["json"]) -> dict[str, Any]:
        """The fields as JSON values."""


def write_rows(path: Path, rows: Iterable[WrittenRow]) -> int:
    """Write rows as JSON lines, whole or not at all; returns how many.

    The row's id comes first, then its fields in their declared order, text as itself, so that the file can be read and
    two can be compared.
    """
    count = 0
    with replacing(path) as file:
        for row in rows:
            line = json.dumps({"id": row.id, **row.model_dump(mode="json")}, ensure_ascii=False)
            file.write(line.encode() + b"\n")
            count += 1
    return count


def read_rows(path: Path, kind: type[R]) -> Iterator[R]:
    """The rows of a JSONL file that `write_rows` wrote, one by one.

    Raises:
        RunError: a line is no such row, or the file ends within one; the message begins `file:line`.
    """
    from pydantic import ValidationError

    from constitutional.base.frozen import first_problem

    remedy = "the run writes this file and nobody else should; delete it and start the run again"
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                if not line.endswith(b"\n"):
                    raise RunError(f"{path}:{number}: the file ends in the middle of a row; {remedy}")
                try:
                    row = kind.model_validate_json(line)
                except ValidationError as error:
                    problem = f"expected a {kind.__name__}: {first_problem(error)}"
                    raise RunError(f"{path}:{number}: {problem}; {remedy}") from error
                yield row
    except OSError as error:
        raise RunError(f"{path}: cannot be read: {error.strerror}") from error


def atomic_write(path: Path, content: bytes) -> None:
    """Replace a file so that whoever reads it, even after a crash, finds the old content or the new, and all of it."""
    with replacing(path) as file:
        file.write(content)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn what the system refuses, on a full disk say, into an error that tells what to do."""
    try:
        yield
    except OSError as error:
        advice = "make room or give access, and start again: what is finished is kept"
        if isinstance(error, FileNotFoundError):
            advice = f"is there a folder {path.parent}? Make it, and start again: what is finished is kept"
        raise RunError(f"{path}: cannot be written: {error.strerror}; {advice}") from error


@contextmanager
def replacing(path: Path) -> Iterator[IO[bytes]]:
    """A file to write that takes the place of another when it is whole, and of none if an error ends the block."""
    # One name, which the next attempt overwrites, and so leaves nothing behind; the lock keeps others from it.
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with writing(path):
            with temporary.open("wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
            sync_folder(path.parent)
    finally:
        # What goes wrong here must not hide what went wrong before: on a read-only disk nothing can be removed either.
        with suppress(OSError):
            temporary.unlink()


def sync_folder(folder: Path) -> None:
    """The new name itself must survive a loss of power, not only the bytes under it."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def digest_of(path: Path) -> str:
    """SHA-256 of a file's bytes; of a folder, over the path and digest of every file in it but cards, in order."""
    if path.is_dir():
        digest = hashlib.sha256()
        for file in files_in(path):
            digest.update(f"{file.relative_to(path).as_posix()}\0{digest_of(file)}\n".encode())
        return digest.hexdigest()
    with path.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def at_home(path: str | Path) -> Path:
    """The path with a `~` at its front replaced; as it was typed where no user has that name: no such file is there."""
    return Path(os.path.expanduser(path))  # noqa: PTH111 - Path's own raises an error there


def files_in(folder: Path) -> list[Path]:
    """The files in a folder and in the folders within, in order, without cards."""
    return sorted(file for file in folder.rglob("*") if file.is_file() and file.name != CARD)


def row_count(path: Path) -> int | None:
    """How many rows a JSONL file has; None for anything else."""
    if path.suffix != ".jsonl":
        return None
    with path.open("rb") as file:
        return sum(1 for _ in file)
