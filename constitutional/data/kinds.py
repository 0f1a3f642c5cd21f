"""Which format a file is in, by its name and its first lines."""

import csv
import re
from contextlib import suppress
from pathlib import Path
from typing import Final

from constitutional.base.errors import InputError
from constitutional.base.jsonl import BadTextError, parse, reading

KINDS: Final = ("jsonl", "ndjson", "json", "csv", "tsv", "txt", "parquet", "arrow", "feather")
"""Endings of names, before `.gz` or `.zst`."""

_START: Final = 2**16
"""Bytes of a file of texts that are looked at to tell whether it holds something else."""
_COLUMN: Final = re.compile(r"[a-z][\w.-]{0,40}( [\w.-]{1,20})?")
_SPLIT: Final = re.compile(
    r"(?P<sharded>.+)-\d{5}-of-\d{5}"
    r"|(?P<named>(?:train|training|test|testing|valid|validation|val|dev|eval|evaluation)(?:_[a-z]+)*)(?![a-z])",
    re.IGNORECASE,
)
"""How the name of a Parquet file begins that says its split: `train_prefs-00000-of-00002`, or `test`."""
_HEADINGS: Final = frozenset(
    (
        "prompt instruction question input query messages conversation chosen rejected response completion answer "
        "response_a response_b text_a text_b preferred_text winner label preference output"
    ).split()
)
"""Columns of which one at least is in the heading of a table that is called .txt."""


def kind_of(path: Path, expected: str) -> str:
    """The format by the name's ending, or by the first bytes where the name says none."""
    if path.is_dir():
        return "parquet" if parquet_files(path) else "arrow"
    name = re.sub(r"\.(gz|zst|zstd)$", "", path.name.lower())
    ending = Path(name).suffix.removeprefix(".")
    if ending == "txt":
        return _kind_of_text(path, expected)
    if ending in KINDS and ending not in ("jsonl", "ndjson"):
        return "arrow" if ending == "feather" else ending
    with reading(path, expected, lambda: None) as stream:
        start = stream.read(64).removeprefix(b"\xef\xbb\xbf").lstrip()
    if ending in KINDS and not re.match(rb"\[|\{\s*\n", start):  # or objects over several lines
        return ending
    signs = {b"PAR1": "parquet", b"ARROW1": "arrow", b"\xff\xff\xff\xff": "arrow"} | dict.fromkeys(
        (b"{", b"[", b'"'),
        "json",  # a list of all rows, too, that is called .jsonl
    )
    if found := next((kind for sign, kind in signs.items() if start.startswith(sign)), None):
        return found
    names = ", ".join(f".{kind}" for kind in KINDS)
    raise InputError(path, f"is in no known format by its name; expected {expected}, in a file that ends in {names}")


def _kind_of_text(path: Path, expected: str) -> str:
    """`txt` where a file of that name holds texts, one a line; else the format that its first lines are in."""
    with reading(path, expected, lambda: None) as stream:
        start = stream.read(_START)
    lines = start.removeprefix(b"\xef\xbb\xbf").decode("utf-8", "replace").split("\n")
    lines = [line for line in lines if line.strip()]
    if not lines:
        return "txt"
    if re.match(r"\s*[\[{]\s*[\[{\"]|\s*[\[{]\s*$", lines[0]):
        try:
            return "jsonl" if isinstance(parse(lines[0]), dict) else "json"
        except BadTextError:
            return "json" if re.match(r"\s*[\[{]\s*$|\s*\[\s*\{", lines[0]) else "txt"
    for kind, delimiter in (("csv", ","), ("csv", ";"), ("tsv", "\t")):
        heading = [cell.strip().strip('"').lower() for cell in lines[0].split(delimiter)]
        are_names = len(set(heading)) == len(heading) > 1 and all(_COLUMN.fullmatch(cell) for cell in heading)
        if are_names and _HEADINGS & set(heading):
            with suppress(csv.Error):
                second = next(csv.reader(lines[1:], delimiter=delimiter), [])
                return kind if len(second) == len(heading) else "txt"
    return "txt"


def parquet_files(folder: Path) -> list[Path]:
    """The Parquet files of a folder as the hub has them, in it or in its `data`; of several splits those of `train`.

    Raises:
        InputError: there are several splits, and none is called `train`.
    """
    splits: dict[str, list[Path]] = {}
    for file in sorted(folder.glob("*.parquet")) or sorted((folder / "data").glob("*.parquet")):
        match = _SPLIT.match(file.name)
        splits.setdefault((match["sharded"] or match["named"]).lower() if match else "no split", []).append(file)
    if len(splits) > 1 and "train" not in splits:
        files = [files[0] for files in splits.values()]
        raise InputError(folder, f"holds the splits {', '.join(splits)}; name a file of one, such as {files[0]}")
    return splits.get("train") or [file for files in splits.values() for file in files]
