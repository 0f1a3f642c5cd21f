"""Reads the plain part of YAML, text, numbers, lists and mappings, and remembers the line of each value.

Anchors, aliases and tags are refused, because they make a small file mean something large or something else; so are
duplicate keys, of which a reader sees only one.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from constitutional.base.errors import InputError

if TYPE_CHECKING:
    import yaml

MOST_LEVELS = 20
"""Of lists and mappings within each other."""
MOST_SHOWN = 60
"""Characters of what a file holds that a message repeats."""


class Problem(NamedTuple):
    """Something in a file that is not as it should be, with its line (from 1; None for the file as a whole)."""

    line: int | None
    text: str


def shown(written: str) -> str:
    """What a file holds, short enough for a message."""
    return written if len(written) <= MOST_SHOWN else f"{written[:MOST_SHOWN]}…"


@dataclass(slots=True)
class Node:
    """A value in a YAML file, and where it is."""

    line: int
    """Of its key if it has one, else its own; from 1."""
    value: "str | float | bool | list[Node] | dict[str, Node] | None"
    written: str = ""
    """A single value as it stands in the file: what a version `1.10` is, where the number is 1.1."""


def read_yaml(content: str, path: Path) -> tuple[Node, list[Problem]]:
    """The file's one value, and what must not be in it. Syntax errors and deep nesting are raised.

    PyYAML's events are read in one loop: they know their lines, no nesting can exhaust the stack, nothing is expanded.
    """
    import yaml

    builder = _Builder(path)
    if bad := yaml.reader.Reader.NON_PRINTABLE.search(content):
        line = content.count("\n", 0, bad.start()) + 1
        raise InputError(path, f"is not YAML: character U+{ord(bad.group()):04X} must not stand in it", line)
    try:
        for event in yaml.parse(content, Loader=yaml.CSafeLoader):
            builder.take(event)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        raise InputError(path, f"is not YAML: {error.problem or error}", mark.line + 1 if mark else None) from error
    return builder.root or Node(1, None), builder.problems


class _Builder:
    """Puts nodes together from events."""

    def __init__(self, path: Path) -> None:
        import yaml

        self._yaml = yaml
        self._path = path
        self._open: list[Node] = []
        self._keys: list[tuple[str, int] | None] = []  # for each open node the key that waits for its value
        self.root: Node | None = None
        self.problems: list[Problem] = []

    def take(self, event: "yaml.Event") -> None:
        """The next event of the file."""
        yaml = self._yaml
        if isinstance(event, yaml.CollectionEndEvent):
            self._open.pop()
            self._keys.pop()
        elif isinstance(event, yaml.NodeEvent):
            line = event.start_mark.line + 1
            self._refuse(event, line)
            if isinstance(event, yaml.ScalarEvent):
                self._scalar(event, line)
            elif isinstance(event, yaml.AliasEvent):
                self._scalar(yaml.ScalarEvent(None, None, (False, True), f"*{event.anchor}"), line)
            else:
                self._enter(Node(line, {} if isinstance(event, yaml.MappingStartEvent) else []))
        elif isinstance(event, yaml.DocumentStartEvent) and self.root is not None:
            raise InputError(self._path, "holds a second document ('---'); one file is one", event.start_mark.line + 1)

    def _refuse(self, event: "yaml.NodeEvent", line: int) -> None:
        if isinstance(event, self._yaml.AliasEvent):
            self.problems.append(
                Problem(line, f"alias '*{shown(event.anchor or '')}': aliases are not read; write it out")
            )
            return
        if event.anchor is not None:
            self.problems.append(Problem(line, f"anchor '&{shown(event.anchor)}': anchors are not read; leave it out"))
        if (tag := getattr(event, "tag", None)) is not None:
            self.problems.append(Problem(line, f"tag '{shown(tag)}': tags are not read; leave it out"))

    def _enter(self, node: Node) -> None:
        if len(self._open) == MOST_LEVELS:
            raise InputError(self._path, f"is nested too deeply: at most {MOST_LEVELS} levels are read", node.line)
        if self._awaits_key():
            raise InputError(self._path, "a key must be a word, not a list or a mapping", node.line)
        self._put(node)
        self._open.append(node)
        self._keys.append(None)

    def _scalar(self, event: "yaml.ScalarEvent", line: int) -> None:
        if self._awaits_key():
            self._keys[-1] = (event.value, line)
        else:
            self._put(Node(line, _resolved(event), event.value))

    def _awaits_key(self) -> bool:
        return bool(self._open) and isinstance(self._open[-1].value, dict) and self._keys[-1] is None

    def _put(self, node: Node) -> None:
        if not self._open:
            self.root = node
            return
        parent = self._open[-1].value
        if isinstance(parent, list):
            parent.append(node)
            return
        key = self._keys[-1]
        assert isinstance(parent, dict)
        assert key is not None
        name, node.line = key
        self._keys[-1] = None
        if name in parent:
            twice = f"'{shown(name)}' stands twice (lines {parent[name].line} and {node.line}); leave one out"
            self.problems.append(Problem(node.line, twice))
        parent[name] = node


def _resolved(event: "yaml.ScalarEvent") -> str | float | bool | None:
    """A value as YAML 1.1 takes it: unquoted, `no` is False and `12` a number. Dates stay text."""
    from yaml.resolver import Resolver

    text: str = event.value
    if not event.implicit[0]:
        return text
    for tag, pattern in Resolver.yaml_implicit_resolvers.get(text[:1], ()):
        if pattern.match(text):
            kind = tag.removeprefix("tag:yaml.org,2002:")
            if kind == "null":
                return None
            if kind == "bool":
                return text.lower() in {"yes", "true", "on"}
            if kind in {"int", "float"}:
                try:
                    return float(text)
                except ValueError:  # 0x1F, .inf and 1:30 are numbers to YAML, but hardly to who wrote them
                    return text
    return text
