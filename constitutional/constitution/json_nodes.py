"""Reads JSON and JSON lines as the nodes that YAML is read as, so that every value has its line."""

import bisect
import json
import re
from collections.abc import Callable
from pathlib import Path

from constitutional.base.errors import InputError
from constitutional.base.jsonl import BadTextError, check_characters
from constitutional.constitution.yaml import MOST_LEVELS, Node, Problem, shown

_SPACE = re.compile(r"[ \t\n\r]*")


def read_json(content: str, path: Path) -> tuple[Node, list[Problem]]:
    """The file's one value, or the list of its lines' values; and keys that stand twice and broken characters.

    Raises:
        InputError: it is not JSON, or has more than `MOST_LEVELS` levels.
    """
    try:
        json.loads(content, parse_int=float)
    except json.JSONDecodeError as error:
        if error.msg != "Extra data":
            raise InputError(path, f"is not JSON: {error.msg}", error.lineno) from error
        return _read_lines(content, path)
    except RecursionError as error:
        raise InputError(path, f"is nested too deeply: at most {MOST_LEVELS} levels are read", 1) from error
    reader = _Reader(content, path)
    return reader.value(reader.after_space(0), 0)[0], reader.problems


def _read_lines(content: str, path: Path) -> tuple[Node, list[Problem]]:
    nodes, problems = [], []
    for number, line in enumerate(content.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            json.loads(line, parse_int=float)
        except json.JSONDecodeError as error:
            raise InputError(path, f"is not JSON: {error.msg}; expected one JSON value a line", number) from error
        except RecursionError as error:
            raise InputError(path, f"is nested too deeply: at most {MOST_LEVELS} levels are read", number) from error
        reader = _Reader(line, path, number)
        nodes.append(reader.value(reader.after_space(0), 1)[0])
        problems += reader.problems
    return Node(1, list(nodes)), problems


class _Reader:
    """Walks through a text that is known to be JSON."""

    def __init__(self, content: str, path: Path, first_line: int = 1) -> None:
        self.content = content
        self.path = path
        self.problems: list[Problem] = []
        self._ends = [match.start() for match in re.finditer("\n", content)]
        self._first_line = first_line
        self._scalar: Callable[[str, int], tuple[object, int]] = json.JSONDecoder(parse_int=float).scan_once  # type: ignore[attr-defined]

    def after_space(self, at: int) -> int:
        match = _SPACE.match(self.content, at)
        return match.end() if match else at

    def value(self, at: int, level: int) -> tuple[Node, int]:
        """The value that begins here, and where it ends."""
        line = self._first_line + bisect.bisect_left(self._ends, at)
        if level >= MOST_LEVELS:
            raise InputError(self.path, f"is nested too deeply: at most {MOST_LEVELS} levels are read", line)
        if self.content[at] == "{":
            return self._object(at, line, level)
        if self.content[at] == "[":
            return self._array(at, line, level)
        scalar, end = self._scalar(self.content, at)
        if isinstance(scalar, str):
            try:
                check_characters(scalar)
            except BadTextError as error:
                self.problems.append(Problem(line, str(error)))
        assert scalar is None or isinstance(scalar, str | float | bool)
        return Node(line, scalar, self.content[at:end]), end

    def _array(self, at: int, line: int, level: int) -> tuple[Node, int]:
        items: list[Node] = []
        at = self.after_space(at + 1)
        while self.content[at] != "]":
            item, at = self.value(at, level + 1)
            items.append(item)
            at = self._after_comma(at)
        return Node(line, items), at + 1

    def _object(self, at: int, line: int, level: int) -> tuple[Node, int]:
        values: dict[str, Node] = {}
        at = self.after_space(at + 1)
        while self.content[at] != "}":
            key, at = self.value(at, level + 1)
            at = self.after_space(self.after_space(at) + 1)
            value, at = self.value(at, level + 1)
            name = str(key.value)
            if before := values.get(name):
                twice = f"'{shown(name)}' stands twice (lines {before.line} and {key.line}); leave one out"
                self.problems.append(Problem(key.line, twice))
            value.line = key.line
            values[name] = value
            at = self._after_comma(at)
        return Node(line, values), at + 1

    def _after_comma(self, at: int) -> int:
        at = self.after_space(at)
        return self.after_space(at + 1) if self.content[at] == "," else at
