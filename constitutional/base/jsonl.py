"""Reads files that people write line by line: JSON lines and plain text, plain or compressed with gzip or Zstandard.

What no model and no later file can take is refused here, with its line, so that the callers only check shapes.
"""

import gzip
import io
import json
import math
import re
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any, Final, cast

from constitutional.base.errors import InputError

MOST_BYTES: Final = 8 * 2**20
"""Of one line: far above the longest conversation of any data set, far below what fills the memory."""

_GZIP: Final = b"\x1f\x8b"
_ZSTD: Final = b"\x28\xb5\x2f\xfd"
_BOM: Final = b"\xef\xbb\xbf"
_POINTER: Final = b"version https://git-lfs"
_UTF16: Final = (b"\xff\xfe", b"\xfe\xff")


class BadTextError(ValueError):
    """What is wrong with a value or a text."""


def read_jsonl(path: Path, expected: str) -> Iterator[tuple[int, Any]]:
    """The JSON value of each line that is not blank, with its number from 1.

    Args:
        path: the file; gzip is told by its first bytes, whatever the name.
        expected: what the file should hold, for error messages.

    Raises:
        InputError: the file cannot be read, or a line is no JSON value of whole characters.
    """
    for number, line in read_whole_lines(path, expected):
        if line.isspace():
            continue
        try:
            value = parse(line)
        except BadTextError as error:
            raise InputError(path, f"{error}; expected {expected}", number) from error
        yield number, value


def read_lines(path: Path, expected: str) -> Iterator[tuple[int, str]]:
    r"""Each line that is not blank, without the spaces around it, with its number from 1.

    Only `\n` and `\r\n` end a line: other characters that Python calls line ends occur within texts.

    Raises:
        InputError: the file cannot be read, or a line is no UTF-8 text.
    """
    for number, line in read_whole_lines(path, expected):
        if text := line.strip():
            yield number, text


def read_whole_lines(path: Path, expected: str) -> Iterator[tuple[int, str]]:
    """Each line as it stands, with its end and its number from 1; otherwise as `read_lines`."""
    number = 0
    with reading(path, expected, lambda: number + 1) as stream:
        # A bounded read: a file without line ends must not fill the memory.
        while line := stream.readline(MOST_BYTES + 1):
            if len(line) > MOST_BYTES:
                raise BadTextError(f"is longer than {MOST_BYTES // 2**20} MiB; shorten it or leave it out")
            yield number + 1, decoded(line, first=number == 0)
            number += 1


@contextmanager
def reading(path: Path, expected: str, line: Callable[[], int | None]) -> Iterator[io.BufferedIOBase]:
    """A file's bytes, unpacked: gzip and Zstandard are told by the first bytes, whatever the name.

    Args:
        path: the file.
        expected: what the file should hold, for error messages.
        line: the line that is being read, for error messages; None where there are no lines.

    Raises:
        InputError: the file cannot be read, is damaged, or what is read raises BadTextError.
    """
    packed = "file"
    try:
        with path.open("rb") as file:
            start = file.peek(len(_POINTER))
            if start.startswith(_POINTER):
                raise InputError(path, "is a pointer of Git LFS, which stands for the file; fetch it with git lfs pull")
            stream: io.BufferedIOBase = file
            if start.startswith(_GZIP):
                packed, stream = "gzip file", gzip.GzipFile(fileobj=file)
            elif start.startswith(_ZSTD):
                import pyarrow as pa  # type: ignore[import-untyped]

                packed, raw = "Zstandard file", pa.CompressedInputStream(pa.PythonFile(file, mode="r"), "zstd")
                stream = io.BufferedReader(cast("io.RawIOBase", raw), MOST_BYTES // 8)
            yield stream
    except BadTextError as error:
        raise InputError(path, f"{error}; expected {expected}", line()) from error
    except (EOFError, zlib.error, OSError) as error:
        if isinstance(error, OSError) and error.strerror:
            reason = {FileNotFoundError: "there is no such file", IsADirectoryError: "is a folder"}.get(type(error))
            problem = reason or f"cannot be read: {error.strerror}"
            raise InputError(path, f"{problem}; expected {expected}") from error
        problem = f"is a damaged {packed}: {str(error).lower()}; fetch or compress it again"
        raise InputError(path, problem, line()) from error


def decoded(content: bytes, *, first: bool) -> str:
    """Bytes of a text file as text; a byte order mark at the file's beginning is no part of it.

    Raises:
        BadTextError: they are no UTF-8, or hold a NUL.
    """
    if first and content.startswith(_UTF16):
        raise BadTextError("is UTF-16 text; save the file as UTF-8")
    if b"\0" in content:
        raise BadTextError("holds a NUL character; save the file as UTF-8")
    try:
        return (content.removeprefix(_BOM) if first else content).decode("utf-8")
    except UnicodeDecodeError as error:
        raise BadTextError(f"is not UTF-8 text ({error.reason}); save the file as UTF-8") from error


def parse(text: str) -> Any:  # noqa: ANN401 - JSON may be anything
    """The JSON value of a text, strictly: no key twice, no number that JSON does not have, whole characters only.

    Raises:
        BadTextError: says what is wrong.
    """
    try:
        value = _scanned(text)
        if "\\u" in text:  # only escapes can spell what the file's own bytes cannot
            check_strings(value)
        return value
    except BadTextError:
        raise
    except json.JSONDecodeError as error:
        raise BadTextError(f"is not JSON: {error.msg.removesuffix(' at')} at character {error.pos + 1}") from error
    except RecursionError as error:
        raise BadTextError("is nested too deeply") from error
    except ValueError as error:  # a number of thousands of digits
        raise BadTextError(f"is not JSON: {error}") from error


def _scanned(text: str) -> Any:  # noqa: ANN401 - JSON may be anything
    """As the strict decoder, which takes longer to look for spaces around a value than to read a short one."""
    if text[:1] == "{":
        try:
            value, end = _STRICT.scan_once(text, 0)  # type: ignore[attr-defined]  # what its methods call
        except StopIteration:
            return _STRICT.decode(text)  # says what is wrong
        if end == len(text) or text[end:].isspace():
            return value
    return _STRICT.decode(text)


def strict_decoder(parse_int: Callable[[str], Any] | None = None) -> json.JSONDecoder:
    """A decoder that raises BadTextError for a key that stands twice, and for NaN and infinite numbers."""
    return json.JSONDecoder(
        object_pairs_hook=_object, parse_constant=_refuse_constant, parse_float=_finite, parse_int=parse_int
    )


def check_characters(text: str) -> None:
    """Refuse half a character and NUL: no tokenizer and no file can take the one, few the other.

    Raises:
        BadTextError: names it.
    """
    if half := re.search("[\ud800-\udfff]", text):
        lone = f"\\u{ord(half[0]):04x}"
        raise BadTextError(f"holds half of a surrogate pair ({lone}), which is no character; repair or remove it")
    if "\0" in text:
        raise BadTextError("holds a NUL character (\\u0000); remove it")


def check_strings(value: object) -> None:
    """`check_characters` of every text in a JSON value."""
    if isinstance(value, str):
        check_characters(value)
    elif isinstance(value, list | dict):
        for part in value if isinstance(value, list) else chain(value, value.values()):
            check_strings(part)


def _object(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise BadTextError(f"has the key {shortened(twice)} twice; keep one of the two")
    return made


def _refuse_constant(name: str) -> None:
    raise BadTextError(f"is not JSON: {name} is no JSON value; write a number or null")


def _finite(digits: str) -> float:
    number = float(digits)
    if not math.isfinite(number):
        raise BadTextError(f"holds the number {digits[:20]}, which is too large; write a smaller one")
    return number


_STRICT: Final = strict_decoder()


def shortened(value: object) -> str:
    """A value as it is shown in an error: in ASCII, at most 40 characters."""
    shown = ascii(value)
    return shown if len(shown) <= 40 else f"{shown[:37]}..."


def as_json(value: object) -> str:
    """A value as JSON, at most 40 characters; as a text what JSON lacks, such as a time in a table."""
    shown = json.dumps(value, default=str)
    return shown if len(shown) <= 40 else f"{shown[:37]}..."
