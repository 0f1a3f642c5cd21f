"""Rows of files of text: CSV, and JSON of one list, of values one after the other, or of one object."""

import csv
import json
import re
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any, Final

from constitutional.base.errors import InputError
from constitutional.base.jsonl import (
    MOST_BYTES,
    BadTextError,
    check_strings,
    decoded,
    read_whole_lines,
    reading,
    strict_decoder,
)

_CHUNK: Final = 2**20
_MOST_DOCUMENT: Final = 2**28
"""Characters of a JSON object that is the whole file."""


def csv_rows(path: Path, expected: str, delimiter: str) -> Iterator[tuple[int, dict[str, str]]]:
    """The rows of a table with the line that they begin in; without a delimiter the heading tells it."""
    csv.field_size_limit(MOST_BYTES)
    lines = read_whole_lines(path, expected)
    first = next(((number, text) for number, text in lines if text.strip()), None)
    if first is None:
        return
    delimiter = delimiter or max(",;\t", key=first[1].count)
    read = 0

    def numbered() -> Iterator[str]:
        nonlocal read
        for number, text in chain([first], lines):
            read = number
            yield text

    reader = csv.reader(numbered(), delimiter=delimiter, strict=True)
    heading: list[str] = []
    start = first[0]
    try:
        for cells in reader:
            if not heading:
                heading = [name.strip() for name in cells]
                if twice := next((name for name in heading if heading.count(name) > 1), None):
                    raise InputError(path, f"has the column '{twice}' twice; rename one of the two", start)
            elif cells:
                if len(cells) != len(heading):
                    problem = f"the row has {len(cells)} cells; expected {len(heading)}, as the heading has"
                    raise InputError(path, problem, start)
                yield start, dict(zip(heading, cells, strict=True))
            start = read + 1
    except csv.Error as error:
        problem = f"is no row of a table: {error}; expected {expected}, with texts that hold line ends in quotes"
        raise InputError(path, problem, start) from error


class Document:
    """The values in a JSON file: those of one list, or those that stand one after the other."""

    def __init__(self, path: Path, expected: str) -> None:
        self.path = path
        self.expected = expected
        self.is_one_object = False
        """The value that was yielded last is all that the file holds."""
        self._decoder = strict_decoder()
        self._text = ""
        self._at = 0
        self._line = 1
        self._start = True
        self._tail = b""
        self._whole = False

    def __iter__(self) -> Iterator[tuple[int, Any]]:
        with reading(self.path, self.expected, lambda: self._line) as self._stream:
            in_list = self._next() == "["
            if in_list:
                self._at += 1
            before = 0
            while (char := self._next()) and not (in_list and char == "]"):
                if in_list and before:
                    if char != ",":
                        raise BadTextError(f"holds {char!r} behind a row; expected a comma or the list's end")
                    self._at += 1
                    self._next()
                line = self._line
                value = self._value(in_list=in_list)
                before += 1
                self.is_one_object = before == 1 and not in_list and not self._next() and isinstance(value, dict)
                yield line, value
            if in_list and not self._next():
                raise BadTextError("ends within a list; is it whole?")
            self._at += in_list
            if in_list and self._next():
                raise BadTextError("holds more than one list")

    def _next(self) -> str:
        """The next character that is no space, or nothing at the end."""
        while True:
            match = re.compile(r"\s*").match(self._text, self._at)
            end = match.end() if match else self._at
            self._line += self._text.count("\n", self._at, end)
            self._at = end
            if self._at < len(self._text):
                return self._text[self._at]
            if not self._fill():
                return ""

    def _value(self, *, in_list: bool) -> Any:  # noqa: ANN401 - JSON may be anything
        most = MOST_BYTES if in_list else _MOST_DOCUMENT
        while True:
            try:
                value, end = self._decoder.raw_decode(self._text, self._at)
            except json.JSONDecodeError as error:
                if len(self._text) - self._at > most:
                    raise BadTextError(f"is longer than {most // 2**20} MiB; shorten it or leave it out") from error
                if self._fill():
                    continue
                self._line += self._text.count("\n", self._at, error.pos)
                raise BadTextError(f"is not JSON: {error.msg}") from error
            except RecursionError as error:
                raise BadTextError("is nested too deeply") from error
            except ValueError as error:
                raise error if isinstance(error, BadTextError) else BadTextError(f"is not JSON: {error}") from error
            if end == len(self._text) and self._fill():
                continue  # a number may go on
            if "\\u" in self._text[self._at : end]:
                check_strings(value)
            self._line += self._text.count("\n", self._at, end)
            self._at = end
            return value

    def _fill(self) -> bool:
        """Read more behind what is not parsed yet, as much again; tells whether there was more."""
        if self._whole:
            return False
        chunk = self._stream.read(max(_CHUNK, len(self._text) - self._at))
        self._whole = not chunk
        content = self._tail + chunk
        cut = len(content)
        if not self._whole:  # a character may go on in the next chunk
            while cut and len(content) - cut < 3 and content[cut - 1] & 0xC0 == 0x80:
                cut -= 1
            cut -= bool(cut and content[cut - 1] >= 0xC0)
        self._tail = content[cut:]
        text = decoded(content[:cut], first=self._start)
        self._start = False
        self._text, self._at = self._text[self._at :] + text, 0
        return bool(text) or not self._whole


def rows_within(value: dict[str, Any]) -> list[Any] | None:
    """The rows of an object that is a whole file: columns, rows under a name, or AnnotatedPairs; None if it has none.

    Rows of AnnotatedPairs get the file's annotators and metadata beside their own keys.
    """
    if isinstance(value.get("comparisons"), list) and isinstance(value.get("annotators"), dict):
        annotators, about = value["annotators"], value.get("metadata")
        return [
            {
                **row,
                "annotators": annotators,
                "metadata": {**_as_object(row.get("metadata")), **_as_object(about)},
            }
            if isinstance(row, dict)
            else row
            for row in value["comparisons"]
        ]
    lists = [part for part in value.values() if isinstance(part, list)]
    of_rows = [part for part in lists if part and all(isinstance(row, dict) for row in part)]
    are_columns = len(lists) == len(value) > 1 and len({len(part) for part in lists}) == 1
    if are_columns and not any(map(_is_conversation, lists)):
        return [dict(zip(value, cells, strict=True)) for cells in zip(*lists, strict=True)]
    if len(of_rows) == 1 and not {"role", "from"} & of_rows[0][0].keys():
        return of_rows[0]
    columns = [part for part in value.values() if isinstance(part, dict)]
    if columns and len(columns) == len(value) and all(part and all(map(str.isdigit, part)) for part in columns):
        # As pandas writes a table: by column and by row.
        return [{name: column.get(row) for name, column in value.items()} for row in columns[0]]
    return None


def _is_conversation(part: list[Any]) -> bool:
    """Whether a list holds the turns of one conversation; a column of single messages has one role."""
    roles = [row.get("role", row.get("from")) if isinstance(row, dict) else None for row in part]
    return None not in roles and len(set(map(str, roles))) > 1


def _as_object(value: object) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}
