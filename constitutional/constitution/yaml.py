"""Reads the plain part of YAML, text, numbers, lists and mappings, and remembers the line of every value.

Anchors, aliases and tags are refused, because they make a small file mean something large or something else; so are
duplicate keys, because a reader sees only the last value.
"""

from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import yaml

from constitutional.base.errors import InputError

MOST_LEVELS = 20
"""Of lists and mappings within each other that are read."""
MOST_SHOWN = 60
"""Characters of a text that a message repeats."""


class Problem(NamedTuple):
    """Something in a file that is not as it should be, with its line (from 1; None for the file as a whole)."""

    line: int | None
    text: str


def shown(text: str) -> str:
    """The beginning of a text that a file or a model wrote, on one line, without what would steer a terminal."""
    line = "".join(character if character.isprintable() else "�" for character in " ".join(text.split()))
    return line if len(line) <= MOST_SHOWN else f"{line[:MOST_SHOWN]}…"


def described(node: "Node") -> str:
    """What a value is, for a message that says what it should be."""
    if isinstance(node.value, dict):
        return "a mapping"
    if isinstance(node.value, list):
        return "a list" if node.value else "an empty list"
    if isinstance(node.value, float | bool):
        return f"the {'yes/no value' if isinstance(node.value, bool) else 'number'} {shown(node.written)}"
    text = (node.value or "").strip()
    return f"'{shown(text)}'" if text else "empty"


@dataclass(slots=True)
class Node:
    """A value in a YAML file, and where it is."""

    line: int
    """The line of the key if there is one, else of the value; from 1."""
    value: "str | float | bool | list[Node] | dict[str, Node] | None"
    written: str = ""
    """A single value as it stands in the file: what a version `1.10` is, where the number is 1.1."""


def read_yaml(content: str, path: Path) -> tuple[Node, list[Problem]]:
    """The file's one value, and what must not be in it.

    Raises:
        InputError: a syntax error, more than `MOST_LEVELS` levels, an alias, a second document, or a key that is a list
            or a mapping.
    """
    if bad := yaml.reader.Reader.NON_PRINTABLE.search(content):
        line = content.count("\n", 0, bad.start()) + 1
        raise InputError(path, f"is not YAML: character U+{ord(bad.group()):04X} must not stand in it", line)
    try:
        # The composer calls itself for every level and follows aliases, so the events are looked at first.
        problems = _refused(yaml.parse(content, Loader=yaml.CSafeLoader), path)
        composed = yaml.compose(content, Loader=yaml.CSafeLoader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        raise InputError(path, f"is not YAML: {error.problem or error}", mark.line + 1 if mark else None) from error
    return (_node(composed, path, problems) if composed else Node(1, None)), problems


def _refused(events: Iterable[yaml.Event], path: Path) -> list[Problem]:
    """Anchors and tags. What composing must not meet is raised: aliases, deep nesting and a second document."""
    problems: list[Problem] = []
    levels = documents = 0
    aliases = False
    for event in events:
        line = event.start_mark.line + 1 if event.start_mark else 1
        levels += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        documents += isinstance(event, yaml.DocumentStartEvent)
        if levels > MOST_LEVELS:
            raise InputError(path, f"is nested too deeply: at most {MOST_LEVELS} levels are read", line)
        if documents > 1:
            raise InputError(path, "holds a second document ('---'); one file is one", line)
        if isinstance(event, yaml.AliasEvent):
            aliases = True
            problems.append(Problem(line, f"alias '*{shown(str(event.anchor))}': aliases are not read; write it out"))
        elif isinstance(event, yaml.NodeEvent) and event.anchor is not None:
            problems.append(Problem(line, f"anchor '&{shown(event.anchor)}': anchors are not read; leave it out"))
        if tag := getattr(event, "tag", None):
            problems.append(Problem(line, f"tag '{shown(tag)}': tags are not read; leave it out"))
    if aliases:
        raise InputError(path, problems[0].text, problems[0].line)
    return problems


def _node(composed: yaml.Node, path: Path, problems: list[Problem]) -> Node:
    """The node with its line; keys that stand twice join the problems."""
    line = composed.start_mark.line + 1
    if isinstance(composed, yaml.SequenceNode):
        return Node(line, [_node(child, path, problems) for child in composed.value])
    if not isinstance(composed, yaml.MappingNode):
        return Node(line, _scalar(composed.tag, composed.value), composed.value)
    values: dict[str, Node] = {}
    for key, value in composed.value:
        key_line = key.start_mark.line + 1
        if not isinstance(key, yaml.ScalarNode):
            raise InputError(path, "a key must be a word, not a list or a mapping", key_line)
        if before := values.get(key.value):
            twice = f"'{shown(key.value)}' stands twice (lines {before.line} and {key_line}); leave one out"
            problems.append(Problem(key_line, twice))
        values[key.value] = _node(value, path, problems)
        values[key.value].line = key_line
    return Node(line, values)


def _scalar(tag: str, text: str) -> str | float | bool | None:
    """A value as YAML 1.1 takes it: unquoted, `no` is False and `12` a number. Dates stay text."""
    match tag.rpartition(":")[2]:
        case "null":
            return None
        case "bool":
            return text.lower() in {"yes", "true", "on"}
        case "int" | "float":
            with suppress(ValueError):  # 0x1F, .inf and 1:30 are numbers to YAML, but hardly to who wrote them
                return float(text)
    return text
