"""What is known of a run: its manifest, which stages are finished, what each was made from and made, and when.

The file carries a checksum over itself, so that a manifest that was cut off or edited is found before it is believed.
"""

import hashlib
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, Literal

from pydantic import Field

from constitutional.base.errors import RunError
from constitutional.base.files import atomic_write
from constitutional.base.frozen import Frozen

MANIFEST: Final = "manifest.json"


class Artifact(Frozen):
    """A file, or a folder with all that is in it."""

    file: str
    """Its path in the run folder."""
    rows: int | None
    """Lines of a JSONL file; None for anything else."""
    sha256: str
    """Of the bytes; of a folder, over the paths and bytes of its files."""


class Calls(Frozen):
    """What a stage wanted of models."""

    asked: int = 0
    """Requests that a model answered."""
    reused: int = 0
    """Requests that the journal answered."""


class StageEntry(Frozen):
    """A finished stage."""

    fingerprint: str
    """A digest of everything that the stage's artifacts depend on."""
    needs: dict[str, str] = Field(default_factory=dict)
    """SHA-256 of what it was given and of what earlier stages had made, by name, as it was when the stage began."""
    files: dict[str, str] = Field(default_factory=dict)
    """SHA-256 of the files and folders that its settings name, by path; runs of older versions have none of them."""
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


class Failure(Frozen):
    """Why a stage ended without being done, the last time that it was tried."""

    message: str
    when: str
    """UTC, ISO 8601."""
    host: str


class Manifest(Frozen):
    """What is known of a run."""

    format: Literal[2] = 2
    identity: dict[str, Any] = Field(default_factory=dict)
    """The parts of the configuration that may not change within one folder."""
    stages: dict[str, StageEntry] = Field(default_factory=dict)
    """The finished stages by name."""
    failures: dict[str, Failure] = Field(default_factory=dict)


def read_manifest(folder: Path) -> Manifest:
    """A run's manifest, checked against its own checksum."""
    path = folder / MANIFEST
    remedy = f"delete it (rm {path}) and start the run again: stages run anew, with the answers of the journal"
    try:
        body = json.loads(path.read_bytes())
        checksum = body.pop("checksum")
        if checksum != _checksum(body):
            raise RunError(f"{path}: is damaged or was edited: it does not match its checksum; {remedy}")
        return Manifest.model_validate(body)
    except OSError as error:
        raise RunError(f"{path}: cannot be read: {error.strerror}") from error
    except (ValueError, KeyError, AttributeError, TypeError, RecursionError) as error:
        problem = " ".join(str(error).split())
        raise RunError(f"{path}: is damaged, or from another version: {problem}; {remedy}") from error


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Replace a run's manifest, with its checksum."""
    body = finite(manifest.model_dump(mode="json"))
    atomic_write(folder / MANIFEST, (json_text({"checksum": _checksum(body), **body}, indent=2) + "\n").encode())


def check_identity(folder: Path, held: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    """Compare what a run folder is bound to with a configuration; nested mappings key by key.

    Raises:
        RunError: they differ; it names every key that does.
    """
    before, now = (
        {key: json.dumps(value, ensure_ascii=False, sort_keys=True) for key, value in flat(values).items()}
        for values in (held, wanted)
    )
    differing = [
        f"{key} is {before.get(key, 'not set')} there, {now.get(key, 'not set')} here"
        for key in sorted(before.keys() | now.keys())
        if before.get(key) != now.get(key)
    ]
    if differing:
        raise RunError(
            f"{folder}: holds a run with another configuration: {'; '.join(differing)}. Choose another name=…, which "
            "asks for nothing again that the journal has an answer to, or say fresh=true to replace what is in the "
            f"folder, or delete it (rm -r {folder})"
        )


def flat(nested: Mapping[str, Any], above: str = "") -> dict[str, Any]:
    """The values by their dotted keys. An empty mapping is a value of its own: it must not look like no key at all."""
    values: dict[str, Any] = {}
    for key, value in nested.items():
        values |= flat(value, f"{above}{key}.") if isinstance(value, dict) and value else {f"{above}{key}": value}
    return values


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
