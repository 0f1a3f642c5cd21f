"""Writes rows one by one, as JSON lines, as one JSON list or as Parquet; a file is whole or not there."""

import json
from collections.abc import Iterable, Mapping
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from constitutional.base.files import replacing
from constitutional.data.export.rows import Row

if TYPE_CHECKING:
    import pyarrow as pa  # type: ignore[import-untyped]

_AT_ONCE: Final = 1000
"""Rows that are in memory at the same time, and stand in one row group of Parquet."""


def write_lines(path: Path, rows: Iterable[Row]) -> None:
    """One JSON object a line, in UTF-8."""
    with replacing(path) as file:
        for row in rows:
            file.write(_json(row) + b"\n")


def write_list(path: Path, rows: Iterable[Row]) -> None:
    """One JSON list, an element a line."""
    with replacing(path) as file:
        before = b"[\n"
        for row in rows:
            file.write(before + _json(row))
            before = b",\n"
        file.write((b"[" if before == b"[\n" else b"\n") + b"]\n")


def write_parquet(path: Path, rows: Iterable[Row], metadata: Mapping[str, str]) -> None:
    """Parquet with the columns of the first row.

    Args:
        path: the file.
        rows: with the same columns, whose values are texts, numbers, messages, or lists of either.
        metadata: stands in the file's own metadata.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq  # type: ignore[import-untyped]

    remaining = iter(rows)
    batch = list(islice(remaining, _AT_ONCE))
    columns = [(name, _type(value)) for name, value in batch[0].items()] if batch else []
    schema = pa.schema(columns, metadata=dict(metadata))
    with replacing(path) as file, pq.ParquetWriter(file, schema) as writer:
        while batch:
            writer.write_table(pa.Table.from_pylist(batch, schema=schema))
            batch = list(islice(remaining, _AT_ONCE))


def _type(value: Any) -> "pa.DataType":  # noqa: ANN401 - whatever a row holds
    """The type of a column; a list that may be empty is one of texts."""
    import pyarrow as pa

    if isinstance(value, list):
        return pa.list_(_type(value[0]) if value else pa.string())
    if isinstance(value, dict):
        return pa.struct([(key, _type(part)) for key, part in value.items()])
    return pa.float64() if isinstance(value, float) else pa.string()


def _json(row: Row) -> bytes:
    return json.dumps(row, ensure_ascii=False, allow_nan=False).encode()
