"""Adds an example to a principle in a YAML file, and leaves every other line of the file as it is.

Where a principle is written in braces, so that no line can be inserted, the file is written out again: comments and
order stay, line breaks within texts may not.
"""

import difflib
import hashlib
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from constitutional.base.errors import ConfigurationError, InputError
from constitutional.base.files import atomic_write
from constitutional.constitution.constitution import Constitution, Example
from constitutional.constitution.file import read_constitution
from constitutional.constitution.principle_file import YAML_ENDINGS
from constitutional.constitution.writing import with_example


class ExampleEdit(NamedTuple):
    """A file with one more example."""

    path: Path
    content: bytes
    """The whole new file."""
    diff: str
    """Unified, of the file's lines."""
    digest: str
    """SHA-256 of the file before and after."""


def edit_of(path: Path, principle: str, example: Example) -> ExampleEdit:
    """The file with the example at the end of those of the principle; nothing is written.

    Raises:
        InputError: the file is no sound YAML constitution, has no such principle, or has the example already; or the
            principle stands in a form into which no lines can be inserted.
    """
    if path.suffix.lower() not in YAML_ENDINGS:
        raise InputError(path, "examples can be added to YAML files alone; a Markdown file has no place for them")
    constitution, lines = _read(path)
    if principle not in lines:
        raise InputError(path, f"there is no principle '{principle}'; reload the page and choose another")
    (old,) = (part for part in constitution.principles if part.id == principle)
    if example in old.examples:
        raise InputError(path, f"the principle '{principle}' has this example already", lines[principle])
    raw = path.read_bytes()
    text = raw.decode("utf-8-sig")
    # The first byte-order mark belongs to no line.
    mark = raw[: len(raw) - len(text.encode())]
    place = [part.id for part in constitution.principles].index(principle)
    parts = tuple(
        part.model_copy(update={"examples": (*part.examples, example)}) if part.id == principle else part
        for part in constitution.principles
    )
    wanted = constitution.model_copy(update={"principles": parts})
    # Whatever way of writing YAML was not thought of: the file must come to mean the example more, and nothing else.
    for edited in (_inserted, _rewritten):
        inserted = edited(text, place, example)
        content = mark + inserted.encode()
        if _reread(content, path) == wanted:
            break
    else:
        problem = f"the principle '{principle}' is written in a form into which no example can be inserted"
        raise InputError(path, f"{problem}; add it by hand", lines[principle])
    before, after = (part.replace("\r\n", "\n").split("\n") for part in (text, inserted))
    diff = "\n".join(difflib.unified_diff(before, after, str(path), f"{path} (new)", lineterm=""))
    return ExampleEdit(path, content, diff, hashlib.sha256(raw + b"\0" + content).hexdigest())


def write_edit(edit: ExampleEdit) -> None:
    """Replace the file whole; its permissions stay."""
    path = edit.path.resolve()  # the file itself, not a link to it
    mode = path.stat().st_mode
    atomic_write(path, edit.content)
    path.chmod(mode)


def _read(path: Path) -> tuple[Constitution, dict[str, int]]:
    read = read_constitution(path)
    if read.constitution is None:
        raise InputError(path, f"{read.problems[0].text}; mend the file first", read.problems[0].line)
    if read.family:
        raise InputError(path, f"is no file of ours, but {read.family}: constitutional import {path} -o OURS.yaml", 1)
    return read.constitution, read.lines


def _reread(content: bytes, path: Path) -> Constitution | None:
    # Beside nothing else: a file without a name of its own is called by its path.
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / path.name
        copy.write_bytes(content)
        try:
            return read_constitution(copy).constitution
        except (InputError, ConfigurationError):
            return None


def _inserted(text: str, place: int, example: Example) -> str:
    """The text with the example's lines after the last line of the principle, or of its examples."""
    root = yaml.compose(text, Loader=yaml.SafeLoader)
    principle = _value(root, "principles").value[place]
    newline = "\r\n" if "\r\n" in text else "\n"
    if isinstance(principle, yaml.ScalarNode):  # `- Be brief.` becomes `- text: Be brief.`
        column = principle.start_mark.column
        text = f"{text[: principle.start_mark.index]}text: {text[principle.start_mark.index :]}"
        return _insert(text, _end(principle) + len("text: "), _examples(example, column, newline), newline)
    examples = _value(principle, "examples")
    if examples is None or not examples.value:
        return _insert(text, _end(principle), _examples(example, principle.start_mark.column, newline), newline)
    return _insert(text, _end(examples), _written(example, newline, examples.start_mark.column), newline)


def _rewritten(text: str, place: int, example: Example) -> str:
    """The whole text written out again with the example, with comments and in its order."""
    newline = "\r\n" if "\r\n" in text else "\n"
    return with_example(text, place, example).replace("\n", newline)


def _value(mapping: Any, key: str) -> Any:  # noqa: ANN401 - PyYAML has no types
    return next((value for name, value in mapping.value if name.value == key), None)


def _end(node: yaml.Node) -> int:
    """Where the last value within a node ends; what PyYAML takes for the end of a block lies after comments."""
    if isinstance(node, yaml.CollectionNode) and not node.flow_style and node.value:
        last = node.value[-1]
        return _end(last[1] if isinstance(last, tuple) else last)
    return int(node.end_mark.index)


def _insert(text: str, end: int, lines: str, newline: str) -> str:
    while end and text[end - 1].isspace():  # blank lines after a block of text
        end -= 1
    after = text.find("\n", end) + 1
    return text[:after] + lines + text[after:] if after else f"{text}{newline}{lines}"


def _examples(example: Example, column: int, newline: str) -> str:
    return f"{' ' * column}examples:{newline}{_written(example, newline, column + 2)}"


class _Dumper(yaml.SafeDumper):
    """Writes texts of several lines as blocks."""


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


_Dumper.add_representer(str, _text)


def _written(example: Example, newline: str, column: int = 0) -> str:
    lines = yaml.dump([example.model_dump()], Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=100)
    return "".join(f"{' ' * column}{line}{newline}" if line else newline for line in lines.split("\n")[:-1])
