"""What is known of a stage and of a run: what a stage was made from and made, and which stages a run consists of.

The files carry a checksum over themselves, so that one that was cut off or edited is found before it is believed.
"""

import hashlib
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, Literal, TypeVar

from pydantic import BaseModel, Field

from constitutional.base.errors import RunError
from constitutional.base.files import atomic_write
from constitutional.base.frozen import Frozen
from constitutional.engines.spending import Calls

M = TypeVar("M", bound=BaseModel)

MANIFEST: Final = "manifest.json"
"""What a run consists of, in the run's folder."""
ENTRY: Final = "stage.json"
"""What a finished stage was made from and made, in the stage's folder."""
SWEEP_ENDING: Final = ".sweep.json"
"""Ends the name of a file that holds a sweep's jobs, beside their folders."""


class Part(Frozen):
    """A file, as it was when its stage was finished."""

    sha256: str
    bytes: int
    mtime_ns: int
    """When it was written; where size and time are as they were, the bytes are not read again."""


class Artifact(Frozen):
    """A file that a stage made, or a folder with all that was in it."""

    file: str
    """Its path in the stage's folder."""
    rows: int | None
    """Of a JSONL file, or a folder of shards; None for anything else."""
    sha256: str
    """Of the bytes; of a folder, over the paths and digests of its files."""
    parts: dict[str, Part]
    """The files of a folder, by their path in it; of a file, itself, by an empty path."""


class StageEntry(Frozen):
    """A finished stage."""

    format: Literal[3] = 3
    stage: str
    fingerprint: str
    """A digest of everything that the stage's artifacts depend on."""
    needs: dict[str, str] = Field(default_factory=dict)
    """SHA-256 of what it was given and of what earlier stages had made, by name, as it was when the stage began."""
    files: dict[str, str] = Field(default_factory=dict)
    """SHA-256 of the files and folders that its settings name, by path."""
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
    summary: dict[str, Any]
    """What the stage says of its work, as `stages.summaries` declares it."""
    warnings: tuple[str, ...] = ()
    """What it warned of, which is said again to whoever uses it again."""


class Failure(Frozen):
    """Why a stage ended without being done, the last time that it was tried."""

    message: str
    when: str
    """UTC, ISO 8601."""
    host: str


class StageLink(Frozen):
    """A stage of a run."""

    number: int
    """Its place in the running order."""
    output: str
    """The name of the folder, shared by all runs that need the same, in which it was made."""
    finished: bool
    """Whether it was finished when the run had come so far."""

    def folder(self, stage: str) -> str:
        """What the stage's folder is called in the run's own."""
        return f"{self.number:02d}_{stage}"


class Manifest(Frozen):
    """What a run consists of."""

    format: Literal[3] = 3
    stages: dict[str, StageLink] = Field(default_factory=dict)
    """By name."""
    failures: dict[str, Failure] = Field(default_factory=dict)


def read_checked(path: Path, kind: type[M], remedy: str) -> M:
    """What `write_checked` wrote.

    Raises:
        RunError: the file cannot be read, was edited, is cut off or is of another version; `remedy` says what to do.
    """
    try:
        body = json.loads(path.read_bytes())
        checksum = body.pop("checksum")
        if checksum != _checksum(body):
            raise RunError(f"{path}: is damaged or was edited: it does not match its checksum; {remedy}")
        return kind.model_validate(body)
    except OSError as error:
        raise RunError(f"{path}: cannot be read: {error.strerror}") from error
    except (ValueError, KeyError, AttributeError, TypeError, RecursionError) as error:
        problem = " ".join(str(error).split())
        raise RunError(f"{path}: is damaged, or from another version: {problem}; {remedy}") from error


def write_checked(path: Path, content: BaseModel) -> None:
    """Replace a file by the JSON of a model, with a checksum."""
    body = finite(content.model_dump(mode="json"))
    atomic_write(path, (json_text({"checksum": _checksum(body), **body}, indent=2) + "\n").encode())


def _checksum(body: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def json_text(value: object, indent: int | None = None) -> str:
    """JSON in which text stays itself; a number that JSON does not have is an error (`finite` takes them out)."""
    return json.dumps(value, indent=indent, ensure_ascii=False, allow_nan=False)


def finite(value: object) -> Any:  # noqa: ANN401 # JSON of any shape, as it came
    """The same with null for numbers that JSON does not have: a loss that diverged must not lose the stage."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {str(key): finite(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [finite(part) for part in value]
    return value
