"""Principles from a file that a person wrote: plain lines, JSON or YAML, by the file's ending.

Every error names the line, so nothing is read in a way that forgets lines.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from constitutional.errors import InputError

_BETWEEN_ITEMS = " \t\r\n,"
_ITEM = "a principle must be a non-empty text, or have a 'text' that is one"


class _Line(NamedTuple):
    number: int
    found: object
    """What should be a principle's text."""


def read_principles(path: Path) -> list[str]:
    """The principles of a file, in its order.

    `.json`: a list of texts or of objects with a `text`. `.yaml` and `.yml`: a `principles:` list of the same. Any
    other ending: one principle a line, leaving out empty lines and those that start with `#`.
    """
    content = _read(path)
    try:
        ending = path.suffix.lower()
        if ending == ".json":
            lines = list(_from_json(content, path))
        elif ending in {".yaml", ".yml"}:
            lines = list(_from_yaml(content, path))
        else:
            lines = list(_from_lines(content))
    except RecursionError as error:
        raise InputError(path, "is nested too deeply to be a list of principles") from error
    principles = [_checked(line, path) for line in lines]
    if not principles:
        raise InputError(path, "holds no principle")
    return principles


def _read(path: Path) -> str:
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise InputError(path, f"cannot be read: {error.strerror}") from error
    try:
        return raw.decode("utf-8-sig")  # some editors begin a file with a byte-order mark
    except UnicodeDecodeError as error:
        raise InputError(path, "is not UTF-8 text", raw[: error.start].count(b"\n") + 1) from error


def _checked(line: _Line, path: Path) -> str:
    if not isinstance(line.found, str) or not line.found.strip():
        raise InputError(path, _ITEM, line.number)
    return line.found.strip()


def _from_lines(content: str) -> Iterator[_Line]:
    for number, line in enumerate(content.split("\n"), start=1):
        if line.strip() and not line.lstrip().startswith("#"):
            yield _Line(number, line)


def _from_json(content: str, path: Path) -> Iterator[_Line]:
    decoder = json.JSONDecoder(parse_int=float)  # Python refuses integers of thousands of digits, floats it does not
    try:
        items = decoder.decode(content)
    except json.JSONDecodeError as error:
        raise InputError(path, f"is not JSON: {error.msg}", error.lineno) from error
    if not isinstance(items, list):
        raise InputError(path, 'must be a list of principles, such as ["Don\'t flatter."]', 1)
    # Read once more, item by item, because only the decoder's position tells the line. The syntax is known to be good.
    at = content.index("[") + 1
    for _ in items:
        while content[at] in _BETWEEN_ITEMS:
            at += 1
        number = content.count("\n", 0, at) + 1
        item, at = decoder.raw_decode(content, at)
        yield _Line(number, item.get("text") if isinstance(item, dict) else item)


def _from_yaml(content: str, path: Path) -> Iterator[_Line]:
    import yaml

    def key(mapping: yaml.Node | None, name: str) -> yaml.Node | None:
        pairs = mapping.value if isinstance(mapping, yaml.MappingNode) else []
        return next((value for found, value in pairs if found.value == name), None)

    try:
        # Nodes and not values: they know their lines, and aliases in them cost nothing.
        root = yaml.compose(content, Loader=yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else None
        raise InputError(path, f"is not YAML: {error.problem or error}", line) from error
    except yaml.reader.ReaderError as error:
        line = content.count("\n", 0, error.position) + 1
        raise InputError(path, f"is not YAML: {error.reason}", line) from error
    principles = key(root, "principles")
    if not isinstance(principles, yaml.SequenceNode):
        wrong = principles or root
        raise InputError(path, "must have a list 'principles:'", wrong.start_mark.line + 1 if wrong else None)
    for item in principles.value:
        node = (key(item, "text") if isinstance(item, yaml.MappingNode) else None) or item
        is_text = isinstance(node, yaml.ScalarNode) and node.tag == "tag:yaml.org,2002:str"
        yield _Line(node.start_mark.line + 1, node.value if is_text else None)
