"""Files of rows that people bring: where they lie, in which format, and one row after the other in bounded memory.

JSON lines, JSON, CSV, TSV, text, Parquet and Arrow, plain or compressed; folders that `datasets` saved to disk; data
sets on the Hugging Face hub. Rows are plain values. No code of a data set is run: there are no loading scripts, no
pickles and no other format that could hold code.
"""

import json
import re
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import IO, Annotated, Any, Final, Literal, NamedTuple, cast
from urllib.parse import unquote

from pydantic import BeforeValidator, Field

from constitutional.base.errors import InputError
from constitutional.base.frozen import Frozen
from constitutional.base.jsonl import (
    BadTextError,
    as_json,
    check_strings,
    parse,
    read_jsonl,
    read_lines,
    reading,
)
from constitutional.data.cells import columns_of_lists, decoded_cell, is_container
from constitutional.data.documents import Document, csv_rows, rows_within
from constitutional.data.kinds import KINDS, kind_of, parquet_files

HUB: Final = re.compile(
    r"hf://(?:datasets/)?(?P<name>\w[\w.-]*/\w[\w.-]*)(?:@(?P<revision>[^/:]+))?(?:/(?P<config>[^/:@]+))?"
    r"(?::(?P<split>.+))?"
)
_NO_NAME: Final = "is no name on the hub; expected hf://ORGANISATION/NAME[@REVISION][/CONFIG][:SPLIT]"


def _named(value: object) -> object:
    """Refuse what is meant as a name on the hub and is none, before it is taken for a file."""
    if isinstance(value, str) and value.startswith("hf://") and not HUB.fullmatch(value):
        raise ValueError(f"{value} {_NO_NAME}")
    return value


HubName = Annotated[str, Field(pattern=rf"^{HUB.pattern}$")]
"""A data set on the Hugging Face hub, `hf://ORGANISATION/NAME[@REVISION][/CONFIG][:SPLIT]`."""
Source = Annotated[HubName | Path, BeforeValidator(_named)]
"""A data set on the hub, or a file or folder."""
_BATCH: Final = 1000
"""Rows of a table that are in memory at a time."""
_CHUNK: Final = 2**20
_ROWS: Final = re.compile(rf"\.({'|'.join(KINDS)})(\.(gz|zst|zstd))?$", re.IGNORECASE)
"""How files of rows end."""

_SPLITS: Final = re.compile(r"(train|training|test|valid|validation|val|dev|eval)(_\w+)?", re.IGNORECASE)
"""What splits are called in a JSON object of several."""

ReadAs = Literal[
    "prompt",
    "input",
    "system",
    "chosen",
    "rejected",
    "response_a",
    "response_b",
    "replies",
    "reply",
    "label",
    "score",
    "rank",
    "winner",
    "strength",
    "probability",
    "rater",
    "principle",
    "weight",
]
"""What a column may be read as. `input` goes on from the prompt. `label` is the truth that the one `reply` of a row is
good; of a `score` the highest is best, of a `rank` the lowest, for one `reply` a row or for the `replies` of a row
(`answers.answer` and `answers.rank` in a list of objects). `winner` says which of response_a and response_b is better,
`strength` how much, negative where it is response_a. `probability` is that of chosen, 0.5 to 1, or that response_a is
better, 0 to 1."""
_TEXTS: Final = (str, list, dict), "a text or messages"
_NUMBER: Final = (int, float, str), "a number"
_KINDS: Final[Mapping[ReadAs, tuple[tuple[type, ...], str]]] = {
    **dict.fromkeys(("prompt", "chosen", "rejected", "response_a", "response_b", "reply"), _TEXTS),
    **dict.fromkeys(("input", "system", "principle"), ((str,), "a text")),
    **dict.fromkeys(("strength", "probability", "weight"), _NUMBER),
    "rater": ((str, int, float), "a name, as text or as a number"),
}
"""The types of the columns that settings name; numbers stand as texts in tables."""


_INPUTS: Final = ("input", "context")
"""Columns that go on from an instruction or a question."""
_SYSTEMS: Final = ("system", "system_prompt", "system_message")


class DataFile(Frozen):
    """A file of rows, how its columns are read, and its weight in a mixture."""

    path: Source
    """A file, a folder that `datasets` saved to disk, or `hf://ORGANISATION/NAME[@REVISION][/CONFIG][:SPLIT]`."""
    weight: float | None = Field(default=None, gt=0)
    """Of a mixture: from each file as much as its weight says, and together as much as the scarcest file allows; pairs
    count by what they weigh. None takes all rows of all files; either all files have a weight or none has."""
    columns: dict[ReadAs, str] = Field(default_factory=dict)
    """The file's column by what it is read as, such as {chosen: good, rejected: bad}; others are recognised."""
    source: Literal["ai", "human"] | None = None
    """Who prefers where the rows do not say it: None is `human`; `ai` for a set that a model labelled, such as
    UltraFeedback."""
    strengths: dict[int, Annotated[float, Field(ge=0.5, le=1)]] = Field(default_factory=dict)
    """Probability that the preferred reply is the better one, by the strength that the file says (1, 2, 3, …); a
    strength that is not named counts 1."""

    def __hash__(self) -> int:
        """Of settings with mappings in them."""
        return hash(self.model_dump_json())

    def check_columns(self, row: Mapping[str, object]) -> str | None:
        """What is wrong with `columns` in the file that begins with this row; None if nothing is."""
        for role, column in self.columns.items():
            if column not in row and not isinstance(row.get(column.partition(".")[0]), list):
                return f"has no column '{column}', which 'columns' names; the columns are {', '.join(map(repr, row))}"
            types, expected = _KINDS.get(role, ((object,), ""))
            value = row.get(column)
            if value is not None and (not isinstance(value, types) or (isinstance(value, bool) and role in _KINDS)):
                found = as_json(value)
                return f"'{column}', which 'columns' names as {role}, is {found}; expected {expected}"
        return None

    def check_read(self, columns: Mapping[str, str], form: str, keys: Sequence[ReadAs]) -> str | None:
        """What `columns` names and a form does not read; None if it reads all.

        Args:
            columns: those that it reads, by what they are read as.
            form: its name.
            keys: what may be named in it.
        """
        for role, column in self.columns.items():
            read = columns.get(role, "")
            if read != column and not read.startswith(f"{column}.") and not read.endswith(f".{column}"):
                may = f"expected {', '.join(keys)}" if keys else "its columns have fixed names"
                return (
                    f"'columns' names '{column}' as {role}, which is not read in a file of this form ({form}: {may}); "
                    f"leave {role} out"
                )
        return None

    def beside(self, row: Mapping[str, object], column: str) -> dict[str, str]:
        """The columns of a row that go with the prompt in this one, by what they are read as."""
        given, columns = self.columns, dict[str, str]()
        inputs = (given["input"],) if "input" in given else _INPUTS if column in ("instruction", "question") else ()
        systems = (given["system"],) if "system" in given else _SYSTEMS
        for role, names in (("input", inputs), ("system", systems)):
            for name in names:
                if name in row and isinstance(row[name], str | None):
                    columns[role] = name
                    break
        if column == "instruction" and "history" in row and isinstance(row["history"], list | None):
            columns["history"] = "history"
        return columns

    @property
    def name(self) -> str:
        """What rows from here are known by: a file's name, or the data set's."""
        return self.path.name if isinstance(self.path, Path) else self.path


def as_files(value: object) -> object:
    """Settings of files from one path, from one file's settings, or from a list of either."""
    if value is None or isinstance(value, tuple) or value == ():
        return value
    entries = value if isinstance(value, list) else [value]
    return [{"path": entry} if isinstance(entry, str | Path) else entry for entry in entries]


class RowPlace(NamedTuple):
    """Where a row stands."""

    path: Path | str
    number: int
    """From 1."""
    unit: str = "line"
    """What is counted: `line` or `row`."""

    def error(self, problem: str) -> InputError:
        """An error that begins with the place."""
        if self.unit == "line":
            return InputError(self.path, problem, self.number)
        return InputError(self.path, f"row {self.number}: {problem}")

    def __str__(self) -> str:
        name = self.path.name if isinstance(self.path, Path) else self.path
        return f"{name}:{self.number}"


class Rows:
    """The rows of a file with their numbers from 1, to be gone through once.

    Attributes:
        path: the file, or the data set's name.
        unit: what the numbers count, `line` or `row`.
        texts: every value is a text, as in a CSV file, also where it stands for a number.
        licence: the licence that the file, or what lies beside it, says; empty where it says none.
    """

    def __init__(self, path: Path | str, expected: str) -> None:
        """Open it.

        Args:
            path: a file, a folder that `datasets` saved, or a name on the hub.
            expected: what it should hold, for error messages.

        Raises:
            InputError: there is no such file, or it is in no format that is read.
        """
        self.path = path
        self.licence = ""
        self._expected = expected
        kind = "hub" if isinstance(path, str) else kind_of(path, expected)
        self.unit = "line" if kind in ("jsonl", "ndjson", "json", "csv", "tsv", "txt") else "row"
        self.texts = kind in ("csv", "tsv")
        self._rows = self._with_lists(self._opened(kind))

    def __iter__(self) -> Iterator[tuple[int, Any]]:
        return self._rows

    def peek(self) -> tuple[int, Any] | None:
        """The first row and its number, which stays the first; None where there is none."""
        first = next(self._rows, None)
        if first is not None:
            self._rows = chain([first], self._rows)
        return first

    def place(self, number: int) -> RowPlace:
        """The place of a row."""
        return RowPlace(self.path, number, self.unit)

    def _opened(self, kind: str) -> Iterator[tuple[int, Any]]:
        if isinstance(self.path, str):
            return self._whole(self._hub_rows(self.path))
        if kind in ("jsonl", "ndjson"):
            return read_jsonl(self.path, self._expected)
        if kind == "txt":
            return read_lines(self.path, self._expected)
        if kind in ("csv", "tsv"):
            return csv_rows(self.path, self._expected, "\t" if kind == "tsv" else "")
        if kind == "json":
            return self._json_rows(self.path)
        return self._whole(self._table_rows(self.path, kind))

    def _with_lists(self, rows: Iterator[tuple[int, Any]]) -> Iterator[tuple[int, Any]]:
        """Rows in which lists and objects stand as such, where the first row has them as texts."""
        first = next(rows, None)
        if first is None:
            return
        columns = columns_of_lists(first[1]) if isinstance(first[1], dict) else []
        yield first[0], self._as_lists(*first, columns) if columns else first[1]
        if not columns:
            yield from rows
        for number, row in rows:
            yield number, self._as_lists(number, row, columns)

    def _as_lists(self, number: int, row: Any, columns: Sequence[str]) -> Any:  # noqa: ANN401 - a row may be anything
        for name in columns if isinstance(row, dict) else ():
            if isinstance(text := row.get(name), str):
                try:
                    row[name] = decoded_cell(text)
                except BadTextError as error:
                    if is_container(name):
                        continue  # a form that reads it refuses a text
                    raise self.place(number).error(f"'{name}' is no list or object: it {error}") from error
        return row

    def _whole(self, rows: Iterable[Any]) -> Iterator[tuple[int, Any]]:
        """Rows with their numbers; what no model takes in a text is refused, as in JSON."""
        for number, row in enumerate(rows, start=1):
            try:
                check_strings(row)
            except BadTextError as error:
                raise self.place(number).error(f"{error}; expected {self._expected}") from error
            yield number, row

    def _json_rows(self, path: Path) -> Iterator[tuple[int, Any]]:
        """The rows of a JSON file; where they stand within an object, their numbers are those of rows."""
        document = Document(path, self._expected)
        for line, value in document:
            if document.is_one_object and all(map(_SPLITS.fullmatch, value)) and len(value) > 1:
                raise InputError(
                    path, f"holds the splits {', '.join(value)}; write the rows of one to a file of its own"
                )
            rows = rows_within(value) if document.is_one_object else None
            if rows is None:
                yield line, value
            else:
                self.unit = "row"
                yield from enumerate(rows, start=1)

    def _table_rows(self, path: Path, kind: str) -> Iterator[Any]:
        import pyarrow as pa  # type: ignore[import-untyped]

        if kind == "parquet" and path.is_dir():
            parts = parquet_files(path)
        elif path.is_dir():
            parts, about = _saved(path, self._expected)
            self.licence = str(about.get("license") or "")
        else:
            parts = [path]
        number = 0
        for part in parts:
            try:
                with _seekable(part, self._expected) as file:
                    schema, batches = _tables(file, kind)
                    self.licence = self.licence or _licence_in(schema)
                    for batch in batches:
                        for start in range(0, batch.num_rows, _BATCH):
                            for row in batch.slice(start, _BATCH).to_pylist():
                                number += 1
                                yield row
            except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
                problem = f"is no whole {kind.capitalize()} file: {' '.join(str(error).split())[:200]}"
                where = f" (after row {number})" if number else ""
                raise InputError(part, f"{problem}{where}; fetch it again, expected {self._expected}") from error

    def _hub_rows(self, name: str) -> Iterator[Any]:
        """The rows of a data set on the hub, streamed."""
        import datasets  # type: ignore[import-untyped]

        match = HUB.fullmatch(name)
        if match is None:
            raise InputError(name, _NO_NAME)
        if Path(match["name"]).exists():  # the library would read that in place of the hub
            raise InputError(name, f"would be the file or folder {match['name']} that is here; leave hf:// out")
        revision = unquote(match["revision"]) if match["revision"] else None
        split = match["split"] or "train"
        number = 0
        try:
            rows = datasets.load_dataset(match["name"], match["config"], split=split, revision=revision, streaming=True)
            if rows.features is not None:
                rows = rows.decode(False)  # images and sounds stay bytes
            self.licence = str(getattr(rows.info, "license", None) or "")
            for row in rows:
                number += 1
                yield row
        except Exception as error:  # the library raises dozens of kinds, of HTTP libraries too
            reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
            where = f" after row {number}" if number else ""
            advice = (
                "check the name, the config and the split, and that this machine reaches the hub (a gated data set "
                "needs HF_TOKEN); or download the files and name them instead"
            )
            raise InputError(name, f"cannot be read{where}: {reason}; {advice}") from error


# --- Tables ---


@contextmanager
def _seekable(path: Path, expected: str) -> Iterator[IO[bytes]]:
    """A file that can be read at any place; a compressed one is unpacked beside the others that are temporary."""
    with reading(path, expected, lambda: None) as stream:
        if type(stream).__name__ == "BufferedReader" and getattr(stream, "name", None):
            yield cast("IO[bytes]", stream)  # the file itself
            return
        with tempfile.TemporaryFile() as unpacked:
            while chunk := stream.read(_CHUNK):
                unpacked.write(chunk)
            unpacked.seek(0)
            yield unpacked


def _tables(file: IO[bytes], kind: str) -> tuple[Any, Iterator[Any]]:
    """The schema, and the batches of rows, of a Parquet file or of an Arrow stream or file."""
    import pyarrow as pa

    if kind == "parquet":
        from pyarrow import parquet

        table = parquet.ParquetFile(file)
        return table.schema_arrow, table.iter_batches(batch_size=_BATCH)
    if file.read(6) == b"ARROW1":
        file.seek(0)
        whole = pa.ipc.open_file(file)
        return whole.schema, (whole.get_batch(index) for index in range(whole.num_record_batches))
    file.seek(0)
    stream = pa.ipc.open_stream(file)
    return stream.schema, iter(stream)


def _saved(folder: Path, expected: str) -> tuple[list[Path], dict[str, Any]]:
    """The Arrow files of a folder that `datasets` saved, and what the folder says of the data set."""
    splits = folder / "dataset_dict.json"
    if splits.is_file():
        names = _json_file(splits).get("splits")
        named = [name for name in names if isinstance(name, str)] if isinstance(names, list) else []
        if len(named) != 1 and "train" not in named:
            first = Path(named[0]).name if named else "SPLIT"
            raise InputError(folder, f"holds the splits {', '.join(named)}; name one of them, such as {folder / first}")
        return _saved(folder / Path("train" if "train" in named else named[0]).name, expected)
    state = folder / "state.json"
    if not state.is_file():
        inside = next((file for file in sorted(folder.iterdir()) if _ROWS.search(file.name)), None)
        advice = f"; name a file in it, such as {inside}" if inside else ""
        raise InputError(
            folder,
            f"is a folder; expected {expected}, in a file, or a folder that datasets' save_to_disk wrote{advice}",
        )
    about = folder / "dataset_info.json"
    content = _json_file(state)
    if content.get("_indices_data_files") or content.get("_indices_files"):
        raise InputError(folder, "is saved with indices; save it again after flatten_indices()")
    files = content.get("_data_files")
    names = [part.get("filename") for part in files if isinstance(part, dict)] if isinstance(files, list) else []
    if not names:
        raise InputError(state, "names no file of data; save the data set again")
    return [folder / Path(str(name)).name for name in names], _json_file(about) if about.is_file() else {}


def _json_file(path: Path) -> dict[str, Any]:
    try:
        value = parse("\n".join(text for _, text in read_lines(path, "a JSON object")))
    except BadTextError as error:
        raise InputError(path, str(error)) from error
    return value if isinstance(value, dict) else {}


def _licence_in(schema: Any) -> str:  # noqa: ANN401 - the library has no types
    """The licence that `datasets` wrote into a table's metadata."""
    about = (schema.metadata or {}).get(b"huggingface", b"{}")
    try:
        info = json.loads(about).get("info", {})
    except ValueError:
        return ""
    return str(info.get("license") or "")


def licence_beside(path: Path | str) -> str:
    """The licence in the heading of a data set's card that lies beside the file; empty where there is none."""
    if isinstance(path, str):
        return ""
    card = (path if path.is_dir() else path.parent) / "README.md"
    try:
        heading = card.read_text(encoding="utf-8", errors="replace")[:20_000] if card.is_file() else ""
    except OSError:
        return ""
    if not heading.startswith("---"):
        return ""
    found = re.search(r"^licen[sc]e:\s*(.+)$", heading.split("\n---", 1)[0], re.MULTILINE)
    return found[1].strip() if found else ""


def mixture(amounts: Sequence[float], weights: Sequence[float | None]) -> list[float]:
    """How much to take of each file, of as much as there is.

    Without weights all of it. With weights as much as the scarcest file allows, in the proportion of the weights.

    Raises:
        ValueError: some files have a weight and others have none.
    """
    given = [weight for weight in weights if weight is not None]
    if not given:
        return list(amounts)
    if len(given) < len(weights):
        raise ValueError("some files have a weight and others have none; give each of them one, or none")
    unit = min(amount / weight for amount, weight in zip(amounts, given, strict=True))
    return [min(amount, unit * weight) for amount, weight in zip(amounts, given, strict=True)]


def check_weights(files: Iterable[DataFile]) -> None:
    """Refuse files of which only some have a weight.

    Raises:
        ValueError: says so.
    """
    weights = [file.weight for file in files]
    mixture([0] * len(weights), weights)
