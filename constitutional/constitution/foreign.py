"""Constitutions in other people's formats: what a reader of one of them finds, before it is checked."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from constitutional.base.progress import counted
from constitutional.constitution.yaml import Node, Problem, described, shown

MOST_LISTED = 8
"""Lines that a note names of many entries with the same key that is not carried over."""


class Entry(NamedTuple):
    """A principle in another format."""

    line: int
    values: dict[str, Any]
    """Fields of a principle; without an `id` one is made."""
    name: str = ""
    """The words that an id is made of; empty for those of the text."""


class Foreign(NamedTuple):
    """What a file in another format says."""

    family: str
    """What the format is called."""
    entries: Sequence[Entry]
    left_out: Sequence[Problem] = ()
    """What our schema has no place for, each with its line."""
    problems: Sequence[Problem] = ()
    """What keeps the file from being read."""
    about: Mapping[str, Any] = {}
    """The constitution's `name`, `version`, `description` and `authors`, where the file has them."""


class Fields:
    """Takes the fields that are known out of a mapping, and remembers those that nobody asked for."""

    def __init__(self) -> None:
        self.problems: list[Problem] = []
        self._ignored: defaultdict[str, list[int]] = defaultdict(list)

    def text(self, node: Node | None, what: str) -> str:
        """A text; what is no text, or an empty one, becomes a problem."""
        if node is None or not isinstance(node.value, str) or not node.value.strip():
            line = 1 if node is None else node.line
            kind = "missing" if node is None else f"{described(node)}"
            self.problems.append(Problem(line, f"{what} must be a text, and is {kind}"))
            return ""
        return node.value.strip()

    def ignore(self, mapping: Mapping[str, Node], known: Sequence[str]) -> None:
        """Remember the keys that are not known."""
        for key, node in mapping.items():
            if key not in known and node.value not in (None, "", [], {}):
                self._ignored[key].append(node.line)

    def notes(self, reasons: Mapping[str, str] | None = None) -> list[Problem]:
        """For every key that was ignored, of how many principles it is, and why it is not carried over."""
        notes = []
        for key, lines in self._ignored.items():
            where = f"'{shown(key)}' of {counted(len(lines), 'principle')}"
            places = ", ".join(map(str, lines[:MOST_LISTED])) + (", …" if len(lines) > MOST_LISTED else "")
            lines_in_words = f" (lines {places})" if len(lines) > 1 else ""
            reason = (reasons or {}).get(key, "a principle has no such field")
            notes.append(Problem(lines[0], f"{where}{lines_in_words}: {reason}"))
        return notes
