"""Writes a constitution that was read from another format as our YAML, and changes YAML without losing its comments."""

import io
from collections.abc import Sequence
from typing import Any

import yaml
from ruamel.yaml import YAML
from ruamel.yaml.scalarstring import DoubleQuotedScalarString

from constitutional.base.text import printable
from constitutional.constitution.constitution import Constitution, Example
from constitutional.constitution.yaml import Problem


class _ImportDumper(yaml.CSafeDumper):
    """Writes texts of several lines as blocks, and ids beside each other."""


class _Beside(list[str]):
    """A list that is written on one line."""


def _text(dumper: yaml.CSafeDumper, text: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


def _beside(dumper: yaml.CSafeDumper, texts: _Beside) -> yaml.SequenceNode:
    return dumper.represent_sequence("tag:yaml.org,2002:seq", texts, flow_style=True)


_ImportDumper.add_representer(str, _text)
_ImportDumper.add_representer(_Beside, _beside)


def imported_yaml(constitution: Constitution, remarks: Sequence[str]) -> str:
    """The constitution as a file in our form, below the remarks as comments."""
    written: dict[str, Any] = constitution.model_dump(mode="json", exclude_defaults=True)
    for principle in written["principles"]:
        for field in ("tags", "overrides", "uses"):
            if field in principle:
                principle[field] = _Beside(principle[field])
    body = yaml.dump(written, Dumper=_ImportDumper, sort_keys=False, allow_unicode=True, width=100)
    return "".join(f"# {' '.join(printable(remark).split())}\n" for remark in remarks) + body


def remarks_of(name: str, what: str, count: str, left_out: Sequence[Problem]) -> list[str]:
    """What is said of an import: what the file was read as, and what was not carried over, with its lines.

    Args:
        name: the file's name.
        what: what it was read as.
        count: such as `12 principles`.
        left_out: what our schema has no place for.
    """
    remarks = [f"{name}, read as {what}: {count}"]
    if left_out:
        remarks.append("not carried over:")
    return remarks + [f"  {name}:{note.line}: {note.text}" for note in left_out]


def with_example(text: str, place: int, example: Example) -> str:
    """A YAML constitution with one more example of the principle at a place; comments and order stay.

    Raises:
        ruamel.yaml.error.YAMLError: it is no YAML.
    """
    editor = YAML()
    editor.preserve_quotes = True
    editor.width = 100
    editor.indent(mapping=2, sequence=4, offset=2)
    root = editor.load(text)
    principle = root["principles"][place]
    if isinstance(principle, str):
        principle = root["principles"][place] = {"text": principle}
    # In quotes, as the editor writes YAML 1.2, in which `yes` needs none, and readers of 1.1 take it for a truth value.
    written = {key: DoubleQuotedScalarString(text) for key, text in example.model_dump(mode="json").items()}
    if principle.get("examples"):
        principle["examples"].append(written)
    else:
        principle["examples"] = [written]  # an empty list stands in brackets
    file = io.StringIO()
    editor.dump(root, file)
    return file.getvalue()
