"""Rows of an artifact that is too large to hold in memory: a folder of Parquet files of 100,000 rows each.

    comparisons/
    ├── 00000.parquet            `id` and a column for each field of the row
    └── 00001.parquet

A text, a number and a truth value is a column of its own type; any other field is a column of JSON. A field that a row
leaves out is null. Smaller artifacts are JSON lines, `comparisons.jsonl`; `read_artifact` reads either.
"""

import json
import math
import os
import shutil
from collections.abc import Callable, Collection, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache, reduce
from itertools import chain, islice
from pathlib import Path
from types import NoneType
from typing import (
    TYPE_CHECKING,
    Any,
    Final,
    Generic,
    Literal,
    NamedTuple,
    Protocol,
    TypeAlias,
    TypeVar,
    get_args,
    get_origin,
)

from pydantic_core import from_json

from constitutional.base.errors import RunError
from constitutional.base.files import read_rows, sync_folder, write_rows, writing

if TYPE_CHECKING:
    from constitutional.base.records import Record

R = TypeVar("R", bound="Record")
R_co = TypeVar("R_co", covariant=True)

LARGE: Final = 100_000
"""Rows of the largest artifact that is JSON lines, and of a shard."""
AT_ONCE: Final = 5_000
"""Rows that are read and written at once: a row group of Parquet."""
_FIRST: Final = "00000.parquet"
_REMEDY: Final = "the run writes this file and nobody else should; delete it and start the run again"


class PlainRow(NamedTuple, Generic[R]):
    """A row as a shard has it, of which no object is made: it is written as the row itself would be."""

    kind: type[R]
    id: str
    columns: dict[str, Any]
    """By field a text, a number or a truth value, or its JSON; None, or nothing, where the field is left out."""

    def model_dump(self, *, mode: Literal["json"]) -> dict[str, Any]:  # noqa: ARG002 - a row has other modes
        """The fields as plain values, as a line of JSON lines has them."""
        names = [name for name in self.kind.model_fields if name in self.columns]
        return next(_values(self.kind, names, [tuple(self.columns[name] for name in names)]))

    def record(self) -> R:
        """The row itself."""
        return self.kind.model_validate(self.model_dump(mode="json"))


Columns: TypeAlias = dict[str, list[Any]]
"""Fields of some rows by name, or their ids, as a shard has them: what is JSON there is a text. All are as long."""


class PlainRows(NamedTuple, Generic[R]):
    """The same of some rows at once."""

    kind: type[R]
    columns: Columns
    """With the ids."""

    def rows(self) -> Iterator[PlainRow[R]]:
        """The rows one by one."""
        names = [name for name in self.columns if name != "id"]
        for name, *values in zip(self.columns["id"], *(self.columns[name] for name in names), strict=True):
            yield PlainRow(self.kind, name, dict(zip(names, values, strict=True)))


Row: TypeAlias = "Record | PlainRow[Any] | PlainRows[Any]"
"""What is written: a row, or some at once."""


def one_by_one(rows: Iterable[R | PlainRow[R] | PlainRows[R]]) -> Iterator[R | PlainRow[R]]:
    """The rows, those too that come some at once."""
    for some in rows:
        if isinstance(some, PlainRows):
            yield from some.rows()
        else:
            yield some


def write_artifact(folder: Path, name: str, rows: Iterable[Row]) -> tuple[Path, int]:
    """Write rows as `<name>.jsonl`, or as shards in the folder `<name>` where they are many; whole or not at all.

    Not many more than `LARGE` rows are held at once.

    Returns:
        Where they are, and how many.
    """
    iterator = iter(rows)
    try:
        first, count = list[Row](), 0
        while count <= LARGE and (some := next(iterator, None)) is not None:
            first.append(some)
            count += len(some.columns["id"]) if isinstance(some, PlainRows) else 1
        if count <= LARGE:
            path = folder / f"{name}.jsonl"
            return path, write_rows(path, one_by_one(first))
        path = folder / name
        kind = first[0].kind if isinstance(first[0], PlainRow | PlainRows) else type(first[0])
        return path, _write_shards(path, kind, chain(_drained(first), iterator))
    finally:
        if isinstance(iterator, Generator):  # where the writing is stopped, what asks for more rows ends here and now
            iterator.close()


def _drained(rows: list[Row]) -> Iterator[Row]:
    """The rows, which are let go of one by one."""
    rows.reverse()
    while rows:
        yield rows.pop()


def _write_shards(path: Path, kind: "type[Record]", rows: Iterable[Row]) -> int:
    temporary, count = path.with_name(f".{path.name}.tmp"), 0
    shutil.rmtree(temporary, ignore_errors=True)  # of a process that was killed
    try:
        with writing(path):
            temporary.mkdir()
            row_groups = _row_groups(kind, rows)
            for number, group in enumerate(row_groups):
                others = islice(row_groups, math.ceil(LARGE / AT_ONCE) - 1)
                count += _write_shard(temporary / f"{number:05d}.parquet", kind, chain([group], others))
            sync_folder(temporary)
            shutil.rmtree(path, ignore_errors=True)
            temporary.replace(path)
            sync_folder(path.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return count


def _row_groups(kind: "type[Record]", rows: Iterable[Row]) -> Iterator[Columns]:
    """The columns of all row groups: of `AT_ONCE` rows, of fewer at the end of a shard."""
    types = _columns(kind)
    held: Columns = {name: [] for name in ("id", *types)}
    room = LARGE  # in the shard
    for some in rows:
        if isinstance(some, PlainRows):
            for name, column in held.items():
                column.extend(some.columns[name])
        else:
            plain = some.columns if isinstance(some, PlainRow) else _plain(types, some.model_dump(mode="json"))
            for name, column in held.items():
                column.append(some.id if name == "id" else plain.get(name))
        while len(held["id"]) >= (size := min(AT_ONCE, room)):
            yield {name: column[:size] for name, column in held.items()}
            held = {name: column[size:] for name, column in held.items()}
            room = room - size or LARGE
    if held["id"]:
        yield held


def _write_shard(path: Path, kind: "type[Record]", row_groups: Iterable[Columns]) -> int:
    import pyarrow as pa  # type: ignore[import-untyped]
    from pyarrow import parquet

    count = 0
    with path.open("wb") as file:
        with parquet.ParquetWriter(file, _schema(kind), compression="zstd") as writer:
            for columns in row_groups:
                writer.write_table(pa.table(columns, schema=_schema(kind)))
                count += len(columns["id"])
        file.flush()
        os.fsync(file.fileno())
    return count


def is_sharded(path: Path) -> bool:
    """Whether an artifact is a folder of shards."""
    return (path / _FIRST).is_file()


def read_artifact(path: Path, kind: type[R]) -> Iterator[R]:
    """The rows of an artifact that `write_artifact` wrote, one by one.

    Raises:
        RunError: a file cannot be read, or is damaged.
    """
    return iter(Shards(path, kind)) if is_sharded(path) else read_rows(path, kind)


class RowStream(Protocol[R_co]):
    """Rows that can be iterated over again and again: a list, or what is read anew from files."""

    def __iter__(self) -> Iterator[R_co]:
        """The rows, in order."""

    def __len__(self) -> int:
        """How many there are."""


class Shards(Generic[R]):
    """The rows of a folder of shards, in order, of which `AT_ONCE` are held at once.

    Args:
        path: the folder.
        kind: what the rows are.
    """

    def __init__(self, path: Path, kind: type[R]) -> None:
        self.path = path
        self.kind = kind

    def __iter__(self) -> Iterator[R]:
        from pydantic import ValidationError

        from constitutional.base.frozen import first_problem

        for group in groups(self.path):
            ids = group.table["id"].to_pylist()
            for number, (name, values) in enumerate(zip(ids, group.values(self.kind), strict=True), start=group.first):
                try:
                    row = self.kind.model_validate(values)
                except ValidationError as error:
                    problem = f"expected a {self.kind.__name__}: {first_problem(error)}"
                    raise RunError(f"{group.file}:{number}: {problem}; {_REMEDY}") from error
                # A run that goes on has made sure that the file is as it was written, so the digest need not be made.
                row.__dict__["id"] = name
                yield row

    def __len__(self) -> int:
        return count_of(self.path)


def column_of(rows: RowStream[R], field: str) -> Iterator[Any]:
    """A field of all rows, or their ids; of shards nothing else is read, and what is JSON there comes as JSON."""
    if isinstance(rows, Shards):
        return (value for group in groups(rows.path, [field]) for value in group.table[field].to_pylist())
    return (getattr(row, field) for row in rows)


def columns_of(rows: RowStream[R], kind: type[R], fields: Sequence[str]) -> Iterator[tuple[Any, ...]]:
    """Some fields of every row, or their ids, as a shard has them: what is JSON there is a text. No others are read.

    What a row leaves out is None, and so is all of a column that a shard lacks.
    """
    return (row for columns in batches_of(rows, kind, fields) for row in zip(*columns.values(), strict=True))


def batches_of(rows: RowStream[R], kind: type[R], fields: Sequence[str]) -> Iterator[Columns]:
    """The same in columns, of `AT_ONCE` rows at a time."""
    if isinstance(rows, Shards):
        for group in groups(rows.path, fields):
            lacking = [None] * group.table.num_rows
            there = group.table.column_names
            yield {name: group.table[name].to_pylist() if name in there else lacking for name in fields}
        return
    types, iterator = _columns(kind), iter(rows)
    while some := list(islice(iterator, AT_ONCE)):
        plain = [_plain(types, row.model_dump(mode="json", include=set(fields))) for row in some]
        yield {name: [row.id for row in some] if name == "id" else [row.get(name) for row in plain] for name in fields}


def count_of(path: Path) -> int:
    """How many rows a folder of shards has, from what its files say of themselves."""
    from pyarrow import parquet

    total = 0
    for file in files_of(path):
        with _readable(file):
            total += parquet.read_metadata(file).num_rows
    return total


def files_of(path: Path) -> list[Path]:
    """The shards of an artifact, in order."""
    return sorted(path.glob("*.parquet"))


class Group(NamedTuple):
    """Rows of a shard that are read at once."""

    file: Path
    number: int
    """Of the row group in the file, from 0."""
    first: int
    """The number of the first row in the file, from 1."""
    table: Any
    """Of pyarrow, with the columns that were asked for."""

    def values(self, kind: "type[Record]") -> "Iterator[dict[str, Any]]":
        """The fields of the rows as plain values, without their ids, as a line of JSON lines has them."""
        names = [name for name in self.table.column_names if name != "id"]
        return _values(kind, names, zip(*(self.table[name].to_pylist() for name in names), strict=True))


def _values(kind: "type[Record]", names: Sequence[str], rows: Iterable[tuple[Any, ...]]) -> Iterator[dict[str, Any]]:
    """The fields of rows as plain values, from the columns of these names."""
    fields = _columns(kind)
    is_json = [fields.get(name) == "json" for name in names]
    # What is null was not written, where a field may be left out, and is null itself elsewhere.
    left_out = {name for name, field in kind.model_fields.items() if field.exclude_if is not None}
    may_lack = [name in left_out or fields.get(name) == "json" for name in names]
    for row in rows:
        yield {
            name: json.loads(value) if decode and value is not None else value
            for name, value, decode, lacks in zip(names, row, is_json, may_lack, strict=True)
            if value is not None or not lacks
        }


def groups(path: Path, columns: Collection[str] | None = None) -> Iterator[Group]:
    """The rows of a folder of shards, some thousands at a time.

    Args:
        path: the folder.
        columns: those to read, of which there must be one; an artifact may lack others. None reads all of them.

    Raises:
        RunError: a file cannot be read, or is damaged.
    """
    from pyarrow import parquet

    for file in files_of(path):
        first = 1
        with _readable(file), parquet.ParquetFile(file) as opened:
            names = [name for name in opened.schema_arrow.names if columns is None or name in columns]
            for number in range(opened.num_row_groups):
                table = opened.read_row_group(number, names, use_threads=False)
                yield Group(file, number, first, table)
                first += table.num_rows


def find(
    path: Path, kind: "type[Record]", columns: Collection[str], matches: Callable[[Any], Any] | None
) -> Iterator[tuple[Path, int, dict[str, Any]]]:
    """The rows of which a column matches. Only the columns that decide are read of rows that do not.

    Args:
        path: the folder.
        kind: what the rows are.
        columns: any of these decides.
        matches: of a column of texts, pyarrow's, a column of truth values, where null is no match; None takes all rows.

    Returns:
        The file, the row's number in it from 1, and its id and fields as a line of JSON lines has them.
    """
    from pyarrow import compute, parquet

    for group in groups(path, columns):
        found = [compute.fill_null((matches or compute.is_valid)(column), False) for column in group.table.columns]
        places = compute.indices_nonzero(reduce(compute.or_, found)).to_pylist() if found else []
        if places:
            with _readable(group.file), parquet.ParquetFile(group.file) as opened:
                table = opened.read_row_group(group.number, use_threads=False).take(places)
            values = group._replace(table=table).values(kind)
            for place, name, row in zip(places, table["id"].to_pylist(), values, strict=True):
                yield group.file, group.first + place, {"id": name, **row}


def rows_with(rows: RowStream[R], kind: type[R], field: str, texts: Collection[str]) -> Iterator[R]:
    """The rows of which a field, or the id, is one of these texts as a shard has it; no objects are made of others."""
    if not texts:
        return
    if isinstance(rows, Shards):
        import pyarrow as pa
        from pyarrow import compute

        wanted = pa.array(list(texts), pa.string())
        for _, _, values in find(rows.path, kind, [field], lambda column: compute.is_in(column, value_set=wanted)):
            yield kind.model_validate(values)
        return
    for row, (text,) in zip(rows, columns_of(rows, kind, [field]), strict=True):
        if text in texts:
            yield row


Type = Literal["text", "float", "int", "bool", "json"]
_TYPES: Final[Mapping[object, Type]] = {str: "text", float: "float", int: "int", bool: "bool"}


@cache
def _columns(kind: "type[Record]") -> dict[str, Type]:
    """The type of the column of each field."""
    return {name: _type(field.annotation) for name, field in kind.model_fields.items()}


def _type(annotation: object) -> Type:
    some = [part for part in get_args(annotation) if part is not NoneType]
    if get_origin(annotation) is Literal:
        return "text" if all(isinstance(value, str) for value in some) else "json"
    if NoneType in get_args(annotation) and len(some) == 1:
        return _type(some[0])
    return _TYPES.get(annotation, "json")


@cache
def _schema(kind: "type[Record]") -> Any:  # noqa: ANN401 - pyarrow has no types
    import pyarrow as pa

    types = {"text": pa.string(), "float": pa.float64(), "int": pa.int64(), "bool": pa.bool_(), "json": pa.string()}
    return pa.schema([("id", pa.string()), *((name, types[of]) for name, of in _columns(kind).items())])


def _plain(types: Mapping[str, Type], dumped: Mapping[str, Any]) -> dict[str, Any]:
    """Fields as a shard has them, from plain values."""
    return {name: json_text(value) if types[name] == "json" else value for name, value in dumped.items()}


def json_of(text: str) -> Any:  # noqa: ANN401 - whatever it says
    """What a text of JSON says, for a third of the time that `json` takes."""
    try:
        return from_json(text)
    except TypeError:  # half a surrogate pair is no text to it
        return json.loads(text)


json_text: Final = json.JSONEncoder(ensure_ascii=False).encode
"""JSON as rows have it."""


@contextmanager
def _readable(file: Path) -> Iterator[None]:
    """Turn what Parquet says of a damaged file into an error that tells what to do."""
    import pyarrow as pa

    try:
        yield
    except (OSError, pa.ArrowException) as error:
        raise RunError(f"{file}: cannot be read: {' '.join(str(error).split())}; {_REMEDY}") from error
