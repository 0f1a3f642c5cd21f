"""The command `data`: what a file of data is recognised as, what it holds, and how to have it read otherwise."""

import argparse
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from constitutional.base.errors import UsageError
from constitutional.base.progress import Progress, counted
from constitutional.base.text import printable, table

if TYPE_CHECKING:
    from constitutional.data.reading import DataReading
    from constitutional.data.sources import DataFile

_LONGEST: Final = 300
"""Characters of a text that are shown."""
_SHORTER: Final = 60
"""Characters of a reply of a further pair of a row."""
_MOST_WARNINGS: Final = 40
"""Warnings that are printed."""
_SETTINGS: Final = ("columns", "strengths", "source")
_COUNTS: Final = (
    *("rows", "pairs", "preferences", "ties", "both_bad", "equal", "empty", "different_contexts", "unlabelled"),
    "calls",
    *("duplicates", "prompts", "items", "principles"),
)


def add_parser(commands: Any) -> None:  # noqa: ANN401 - argparse keeps the type of its sub-parsers to itself
    """Add the command to those of `constitutional`."""
    data = commands.add_parser(
        "data",
        help="what a file of data is recognised as, how its columns are read, and what it holds",
        description="Reads preferences, prompts and evaluation sets in JSON lines, JSON, CSV, Parquet or Arrow, plain, "
        ".gz or .zst, a folder that datasets saved to disk, or hf://ORGANISATION/NAME[@REVISION][/CONFIG][:SPLIT]; and "
        "constitutions in YAML, Markdown or any other format that constitutional import reads.",
    )
    data.add_argument("file", nargs="?", metavar="FILE", help="a file, a folder, or hf://…")
    data.add_argument(
        "overrides",
        nargs="*",
        metavar="KEY=VALUE",
        help="how to read it: columns.chosen=COLUMN columns.rejected=COLUMN, or strengths.1=0.7; source=ai "
        "where a model preferred",
    )
    data.add_argument("--json", action="store_true", help="print one JSON object instead of text")
    data.add_argument(
        "--to", type=Path, metavar="FILE", help="write the rows as our own JSON lines, a constitution as our YAML"
    )
    data.set_defaults(run=_data)


def _data(arguments: argparse.Namespace) -> None:
    if arguments.file is None:
        raise UsageError(
            "no file is named; type constitutional data FILE, such as constitutional data pairs.jsonl, a folder that "
            "datasets saved, or hf://ORGANISATION/NAME"
        )
    file = _file(arguments.file, arguments.overrides)
    if arguments.to is not None and arguments.to.resolve() == Path(arguments.file).resolve():
        raise UsageError(f"--to {arguments.to} is the file that is read; name another")
    with Progress().task(f"reading {file.name}", 0) as task:
        reading = _reading(file, arguments.to, task.update)
    reading = reading._replace(warnings=(*_unread(file), *reading.warnings))
    if arguments.json:
        print(json.dumps(reading.as_json(), ensure_ascii=False, indent=2, default=str))
        return
    for line in _lines(reading, file):
        print(printable(line))
    if arguments.to is not None:
        print(printable(_written(reading, arguments.to)))


def _split_files(folder: Path) -> list[Path]:
    """The Parquet files of all splits in a folder as the hub has them."""
    return sorted(folder.glob("*.parquet")) or sorted((folder / "data").glob("*.parquet"))


def _unread(file: "DataFile") -> Iterator[str]:
    """What is said of splits in a folder that are not read."""
    from constitutional.data.kinds import parquet_files

    if isinstance(file.path, Path) and file.path.is_dir():
        read = parquet_files(file.path)
        if others := [str(part) for part in _split_files(file.path) if part not in read]:
            yield f"of the folder {', '.join(part.name for part in read)} alone is read; others: {', '.join(others)}"


def _written(reading: "DataReading", to: Path) -> str:
    """How much was written, and which candidates were not."""
    if reading.written is None:
        return f"written to {to}"
    from constitutional.data.comparisons import CALLED

    left = {CALLED[name]: count for name, count in reading.classes.items() if name in CALLED}
    preferences = sum(reading.classes.get(name, 0) for name in ("preference", "tie"))
    if preferences > reading.written:
        left["without a prompt"] = preferences - reading.written
    if reading.kind == "prompts" and reading.duplicates:
        left = {"that stand there before": reading.duplicates}
    rest = f"; left out: {', '.join(f'{count:,} {name}' for name, count in left.items())}" if left else ""
    return f"written: {counted(reading.written, 'row')} to {to}{rest}"


def _reading(file: "DataFile", to: Path | None, progress: Callable[[int], object]) -> "DataReading":
    """What a file is; a constitution is looked for first."""
    from constitutional.cli.constitution_data import as_principles, constitution_reading, principles_in
    from constitutional.data.reading import read_data

    principles = principles_in(file)
    if principles is not None and principles.is_constitution:
        return constitution_reading(file, principles, to)
    reading = read_data(file, to, progress)
    if principles is None or reading.kind != "prompts":
        return reading
    return reading._replace(warnings=(*reading.warnings, as_principles(file, principles)))


def _file(name: str, words: list[str]) -> "DataFile":
    """The file with the settings of the command line."""
    import yaml
    from pydantic import ValidationError

    from constitutional.base.frozen import first_problem
    from constitutional.data.sources import DataFile

    folder, _, split = name.rpartition(":")
    if folder and split and not name.startswith("hf://") and not Path(name).exists() and Path(folder).is_dir():
        found = [file for file in _split_files(Path(folder)) if file.stem.partition("-")[0] == split]
        advice = f"type the file itself: {found[0]}" if found else f"{folder} has no such split"
        raise UsageError(f"{name}: only a data set of hf:// is followed by a split; {advice}")
    settings: dict[str, Any] = {"path": name}
    for word in words:
        key, equals, value = word.partition("=")
        setting, _, part = key.partition(".")
        if not equals or setting not in _SETTINGS or (setting == "source" and part):
            raise UsageError(f"{word}: expected columns.chosen=COLUMN, strengths.1=0.7 or source=ai")
        if setting == "source":
            settings["source"] = value
            continue
        try:
            parsed = value if part and setting == "columns" else yaml.safe_load(value)
        except (yaml.YAMLError, ValueError) as error:  # a ValueError of what looks like a date, and is none
            raise UsageError(f"{word}: the value cannot be read; expected {{chosen: COLUMN, …}}") from error
        place = settings.setdefault(setting, {})
        place |= {part: parsed} if part else parsed if isinstance(parsed, dict) else {"": parsed}
    try:
        return DataFile.model_validate(settings)
    except ValidationError as error:
        raise UsageError(f"{first_problem(error)}; see constitutional data --help") from error


def _lines(reading: "DataReading", file: "DataFile") -> Iterator[str]:
    from constitutional.data.comparisons import CALLED

    found = reading.as_json()
    yield f"{file.path}: {reading.kind}, read as: {reading.format}"
    if reading.columns:
        yield ""
        yield table([["read as", "column"], *([role, column] for role, column in reading.columns.items())])
    if reading.ignored_columns:
        yield f"ignored ({len(reading.ignored_columns)}): {', '.join(reading.ignored_columns)}"
    yield ""
    yield table([[CALLED.get(name, name), f"{found[name]:,}", ""] for name in _COUNTS if found[name]], numbers_from=1)
    for warning in reading.warnings[:_MOST_WARNINGS]:
        yield f"warning: {warning}"
    if len(reading.warnings) > _MOST_WARNINGS:
        yield f"… and {len(reading.warnings) - _MOST_WARNINGS} more warnings, which --json prints"
    what = "principle" if reading.kind == "constitution" else "row"
    for number, sample in enumerate(reading.samples, start=1):
        yield ""
        yield f"{what} {number} as it is read:"
        yield from _sample(sample)
    yield ""
    yield from _advice(reading, file)


def _sample(sample: Mapping[str, Any]) -> Iterator[str]:
    for message in sample.get("messages", []):
        more = ", ".join(f"{key}={value}" for key, value in message.items() if key not in ("role", "content"))
        yield f"  {message['role']}: {_short(message['content'])}{f' [{_short(more)}]' if more else ''}"
    for name, value in sample.items():
        if name not in ("messages", "more_pairs") and value != "":
            yield f"  {name}: {_short(value)}"
    others = sample.get("more_pairs", ())
    for number, pair in enumerate(others, start=2):
        about = [f"{name}: {_short(value)}" for name, value in pair.items() if name not in ("chosen", "rejected")]
        replies = " | ".join(f"{name}: {_short(pair[name], _SHORTER)}" for name in ("chosen", "rejected"))
        yield f"  pair {number} of {len(others) + 1}: {replies} | {', '.join(about)}"


def _short(value: object, longest: int = _LONGEST) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list) and all(isinstance(part, str) for part in value):
        value = ", ".join(value)
    text = " ".join(str(value).split())
    return text if len(text) <= longest else f"{text[:longest]}…"


def _advice(reading: "DataReading", file: "DataFile") -> Iterator[str]:
    """The settings that have the file read otherwise, and where they go."""
    if reading.kind == "constitution":
        yield f"To use it: constitutional run constitution.file={file.path}"
        return
    if reading.kind == "evaluation":
        yield f"To measure a model by it: constitutional eval {file.path} model.path=FOLDER"
        return
    if reading.kind == "prompts":
        if "the whole line" in reading.columns.values():
            yield f"To use them: constitutional run prompts.files=[{file.path}]"
            return
        yield from _columns_advice(reading, "prompts.files", file)
        return
    yield from _columns_advice(reading, "mix.human", file)
    if reading.strengths:
        shown = ", ".join(f"{strength}: {probability:g}" for strength, probability in sorted(file.strengths.items()))
        yield (
            f"Strengths as probabilities: {shown or 'none, the sign alone counts (every strength is 1.0)'}; to change: "
            f"mix.human=[{{path: {file.path}, strengths: {{1: 0.7, 2: 0.85, 3: 0.95}}}}]"
        )
    if reading.classes.get("tie"):
        yield "Ties are left out of training; to keep them with the probability 0.5: mix.ties=keep"


def _columns_advice(reading: "DataReading", setting: str, file: "DataFile") -> Iterator[str]:
    """How the file is read now, as the setting that has it read otherwise."""
    import yaml

    named = {role: column for role, column in reading.columns.items() if role in reading.keys}
    if not named:
        may = f"'columns' may name {', '.join(reading.keys)}" if reading.keys else "its columns have fixed names"
        yield f"To use them: {setting}=[{file.path}]; {may}"
        return
    others = [role for role in reading.keys if role not in named]
    columns = yaml.safe_dump(named, default_flow_style=True, sort_keys=False, allow_unicode=True, width=10**6).strip()
    more = f"; also: {', '.join(others)}" if others else ""
    yield f"To read other columns, change this: {setting}=[{{path: {file.path}, columns: {columns}}}]{more}"
