"""Reads a constitution from a file, with the line of every principle and of all that is wrong.

Our own form is YAML; Markdown is read as its headings and bullets. What other people's files look like is recognised by
what they hold (`families.py`, `model_spec.py`, `prose.py`).
"""

import difflib
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from constitutional.base.errors import ConfigurationError, InputError, expect
from constitutional.base.shipped import shipped
from constitutional.constitution.constitution import (
    ID,
    MOST_CHARACTERS,
    MOST_PRINCIPLES,
    Constitution,
    Example,
    Principle,
    Source,
    circle_message,
    nearest,
)
from constitutional.constitution.families import EXPECTED, is_ours, of_node, table_of, whole_of_ours
from constitutional.constitution.foreign import Foreign
from constitutional.constitution.json_nodes import read_json
from constitutional.constitution.markdown import BULLETS, Prose, ProseBlock, read_markdown
from constitutional.constitution.model_spec import is_model_spec, read_model_spec
from constitutional.constitution.plain_text import is_prose, read_list
from constitutional.constitution.principle_file import (
    MARKDOWN_ENDINGS,
    YAML_ENDINGS,
    as_id,
    ids_of,
    read_text,
    unpacked,
)
from constitutional.constitution.priorities import circle_in
from constitutional.constitution.prose import read_prose
from constitutional.constitution.yaml import Node, Problem, described, read_yaml, shown

JSON_ENDINGS = frozenset({".json", ".jsonl", ".ndjson"})
TABLE_ENDINGS = frozenset({".csv", ".tsv"})
LONG_WORDS = 2_000
LONG_MEAN = 120
"""A Markdown file of more words, and of more words a principle, is read sentence by sentence: nobody weighs a page."""
_JSON_START = re.compile(r"\s*(?:[\[{]\s*[\[{\"\]}]|\"(?:[^\"\\\n]|\\.)*\"\s*\Z)")
_OURS_START = re.compile(r"^principles[ \t]*:[ \t]*(?:[\[#].*)?\r?$", re.MULTILINE)
"""Words behind the colon would be prose that is wrapped."""
_LIST_ITEM = re.compile(rf"^ {{0,3}}(?:[-*+{BULLETS}]|\d{{1,9}}[.)]|\(\d{{1,9}}\)|\(?[a-z]\))[ \t]+\S")


def load_constitution(name_or_path: str | Path) -> Constitution:
    """The constitution in a file, or the shipped one of that name."""
    expect(name_or_path, (str, Path), "load_constitution", "the name or the path of a constitution")
    path = find_constitution(name_or_path)
    read = read_constitution(path)
    if read.constitution is None:
        first, *others = read.problems
        more = f" (and {len(others)} more: constitutional lint {path})" if others else ""
        raise InputError(path, first.text + more, first.line)
    return read.constitution


def as_yaml(constitution: Constitution) -> str:
    """A constitution as a file that `load_constitution` reads."""
    import yaml

    written = constitution.model_dump(mode="json", exclude_defaults=True)
    return yaml.safe_dump(written, sort_keys=False, allow_unicode=True, width=100)


def find_constitution(name_or_path: str | Path) -> Path:
    """Where the file is: the path if there is one, else the shipped constitution of that name."""
    if not str(name_or_path):  # which a path would take for the folder it is typed in
        raise ConfigurationError("a constitution's name is empty; type the name of a file or of a shipped one")
    path = Path(name_or_path)
    if path.is_file():
        return path
    folder = shipped("constitutions")
    names = sorted(file.stem for file in folder.glob("*.yaml"))
    if str(name_or_path) in names:
        return folder / f"{name_or_path}.yaml"
    if path.is_dir():
        raise ConfigurationError(f"{path} is a folder; name a constitution file in it")
    advice = nearest(path.name, names)
    raise ConfigurationError(f"there is no file {path} and no shipped constitution of that name; {advice}")


def is_shipped(name_or_path: str | Path) -> bool:
    """Whether the file ships with the package.

    Raises:
        ConfigurationError: there is no such file.
    """
    return find_constitution(name_or_path).resolve().parent == shipped("constitutions").resolve()


class ReadConstitution(NamedTuple):
    """What a file holds."""

    constitution: Constitution | None
    """None if there are problems."""
    problems: list[Problem]
    lines: dict[str, int]
    """The line of every principle, by its id."""
    asides: list[ProseBlock]
    """The blocks of a Markdown file that are no principles."""
    family: str = ""
    """What other people's format the file is in; empty for our YAML and for Markdown."""
    left_out: Sequence[Problem] = ()
    """What of another format our schema has no place for."""
    is_ours: bool = False
    """Whether it is in our own schema, with `principles:`."""


def read_constitution(path: Path) -> ReadConstitution:
    """The constitution in a file with its lines, or all that is wrong with it; only an unreadable file is raised."""
    content = read_text(path)
    ending = unpacked(path).suffix.lower()
    if ending in YAML_ENDINGS or (ending not in MARKDOWN_ENDINGS and _OURS_START.search(content)):
        return _from_nodes(*read_yaml(content, path), content, path)
    if ending in JSON_ENDINGS or (ending not in MARKDOWN_ENDINGS | TABLE_ENDINGS and _JSON_START.match(content)):
        if not content.strip():
            raise InputError(path, f"is empty; {EXPECTED}", 1)
        return _from_nodes(*read_json(content, path), content, path)
    if foreign := _foreign_text(content.replace("\r\n", "\n").replace("\r", "\n"), path):
        return foreign_constitution(foreign, path)
    return _from_markdown(read_markdown(content), path)


def _foreign_text(content: str, path: Path) -> Foreign | None:
    """What a text in another format says; None for Markdown whose headings or bullets are principles."""
    ending = unpacked(path).suffix.lower()
    if ending not in MARKDOWN_ENDINGS:
        if not content.strip():
            raise InputError(path, f"is empty; {EXPECTED}", 1)
        if table := table_of(content, path, certainly=ending in TABLE_ENDINGS):
            return table
    if is_model_spec(content):
        return read_model_spec(content)
    if ending in MARKDOWN_ENDINGS:
        return read_prose(content) if _is_long(read_markdown(content)) else None
    if _is_list(content):
        return None
    return read_prose(content) if is_prose(content) else read_list(content)


def _is_list(content: str) -> bool:
    """Whether most lines, or the first lines of all paragraphs, begin as items of a list do."""
    lines = [line for line in content.split("\n") if not line.startswith("#")]
    outer = [line for line in lines if line.strip() and not line[0].isspace()]
    firsts = [line for before, line in pairwise(["", *lines]) if line[:1].strip() and not before.strip()]
    return any(
        rows and 2 * sum(bool(_LIST_ITEM.match(line)) for line in rows) > least * len(rows)
        for rows, least in ((outer, 1), (firsts, 1.9))
    )


def _is_long(prose: Prose) -> bool:
    words = [len(principle.text.split()) for principle in prose.principles]
    return sum(words) > max(LONG_WORDS, LONG_MEAN * len(words))


def check_prose(path: Path) -> str:
    """The text of a file that a model can split into tenets.

    Raises:
        InputError: it is in a format whose principles stand by themselves.
    """
    content = read_text(path).replace("\r\n", "\n").replace("\r", "\n")
    structured = YAML_ENDINGS | JSON_ENDINGS | TABLE_ENDINGS
    if unpacked(path).suffix.lower() in structured or _JSON_START.match(content) or _OURS_START.search(content):
        raise InputError(path, "is no prose, so there is nothing for a model to split; leave --with-model out")
    if not content.strip():
        raise InputError(path, "is empty; expected prose that says how a model should behave", 1)
    return content


def foreign_constitution(foreign: Foreign, path: Path) -> ReadConstitution:
    """The constitution that a file in another format holds, checked as ours is."""
    rows = [(entry, entry.values.get("id")) for entry in foreign.entries]
    own_ids = [None if own is None else as_id(str(own)) for _, own in rows]
    texts = [str(entry.values.get("text", "")) for entry, _ in rows]
    names = [entry.name or text for (entry, _), text in zip(rows, texts, strict=True)]
    ids = ids_of(list(zip(own_ids, names, texts, strict=True)))
    lines = [entry.line for entry, _ in rows]
    problems = list(foreign.problems)
    problems += _repeated((own, line) for own, line in zip(own_ids, lines, strict=True) if own is not None)
    entries = [{**entry.values, "id": name} for (entry, _), name in zip(rows, ids, strict=True)]
    if not entries:
        return ReadConstitution(None, problems or [Problem(1, "holds no principle")], {}, [], foreign.family)
    known = list(problems)
    values = {"name": unpacked(path).stem, **foreign.about, "principles": entries}
    read = _checked(
        values, problems, lambda details: _line_problem(details, ids, lines), dict(zip(ids, lines, strict=True)), []
    )
    # What is no text is no principle either, which need not be said.
    told = {problem.line for problem in foreign.problems}
    return read._replace(
        problems=[problem for problem in read.problems if problem in known or problem.line not in told],
        family=foreign.family,
        left_out=sorted(foreign.left_out, key=lambda note: (note.line or 0, note.text)),
    )


def _from_markdown(prose: Prose, path: Path) -> ReadConstitution:
    passages = prose.principles
    if not passages:
        problem = "holds no principle; write them as a list ('- Be brief.') or as headings ('## Be brief')"
        return ReadConstitution(None, [Problem(1, problem)], {}, prose.asides)
    own_ids = [None if passage.own_id is None else as_id(passage.own_id) for passage in passages]
    ids = ids_of([(own, passage.name, passage.text) for own, passage in zip(own_ids, passages, strict=True)])
    problems = _repeated((own, passage.line) for own, passage in zip(own_ids, passages, strict=True) if own is not None)
    entries = [
        {
            "id": name,
            "text": passage.text,
            "critique": f"{passage.text}\n{passage.context}" if passage.context else None,
            "tags": [passage.section] if passage.section else [],
        }
        for name, passage in zip(ids, passages, strict=True)
    ]
    values = {"name": prose.title or unpacked(path).stem, "description": prose.description, "principles": entries}
    lines = dict(zip(ids, (passage.line for passage in passages), strict=True))
    return _checked(
        values, problems, lambda details: _line_problem(details, ids, list(lines.values())), lines, prose.asides
    )


def _checked(
    values: Mapping[str, Any],
    problems: list[Problem],
    problem_of: Callable[[ErrorDetails], Problem],
    lines: dict[str, int],
    asides: list[ProseBlock],
) -> ReadConstitution:
    """The constitution of these values; or the problems that are known and those that pydantic finds, by line."""
    constitution = None
    try:
        constitution = Constitution.model_validate(values)
    except ValidationError as error:
        # What concerns no place is the repeated ids again; principles that are all bad count as too few as well.
        known = {("principles",)} if values.get("principles") else set[tuple[str]]()
        problems += [
            problem_of(details)
            for details in error.errors()
            if details["loc"] and not (details["type"] == "too_short" and details["loc"] in known)
        ]
    if problems:
        return ReadConstitution(None, sorted(problems, key=lambda problem: problem.line or 0), {}, asides)
    return ReadConstitution(constitution, [], lines, asides)


def _line_problem(details: ErrorDetails, ids: Sequence[str], lines: Sequence[int]) -> Problem:
    match details["loc"]:
        case ("principles", int(number), *field):
            line, where = lines[number], f"principle '{ids[number]}':{f' {field[0]!r}' if field else ''}"
        case place:
            line, where = 1, f"'{place[0]}'"
    if details["type"] == "missing":
        return Problem(line, f"{where} has no '{details['loc'][-1]}'")
    problem = details["ctx"]["error"] if details["type"] == "value_error" else details["msg"]
    return Problem(line, f"{where} {_too_large(details) or problem}")


def _from_nodes(root: Node, problems: list[Problem], content: str, path: Path) -> ReadConstitution:
    """Our own schema, or what another one is recognised as."""
    if whole := whole_of_ours(root):
        read = _from_nodes(whole, problems, content, path)
        return read._replace(family="a list in our own schema", is_ours=False)
    a_text = isinstance(root.value, str) and unpacked(path).suffix.lower() in YAML_ENDINGS
    if not is_ours(root) and not a_text and (foreign := of_node(root)):
        return foreign_constitution(foreign._replace(problems=[*problems, *foreign.problems]), path)
    if unpacked(path).suffix.lower() not in YAML_ENDINGS and not is_ours(root):
        return ReadConstitution(
            None, [*problems, Problem(root.line, f"is of no kind that is known; {EXPECTED}")], {}, []
        )
    if not isinstance(root.value, dict):
        problem = "must be a mapping with 'name:' and 'principles:'"
        problem = problem if content.strip() else f"is empty; {problem}"
        return ReadConstitution(None, [*problems, Problem(root.line, problem)], {}, [])
    principles = root.value.get("principles")
    nodes = list(map(_with_colon, principles.value)) if principles and isinstance(principles.value, list) else []
    ids, duplicates = _ids(nodes)
    problems += duplicates
    problems += _priority_problems(nodes, ids)
    made = _as_dict(root.value)
    made.setdefault("name", unpacked(path).stem)
    if isinstance(made.get("version"), float | bool):
        made["version"] = root.value["version"].written
    if nodes:
        made["principles"] = [_entry(node, name) for node, name in zip(nodes, ids, strict=True)]
    lines = dict(zip(ids, (node.line for node in nodes), strict=True))
    return _checked(made, problems, lambda details: _problem(details, root), lines, [])._replace(is_ours=True)


def _ids(nodes: Sequence[Node]) -> tuple[list[str], list[Problem]]:
    """The id of every principle, made from its text where the file holds none, and the ids that stand twice."""
    sources = []
    written: list[tuple[str, int]] = []
    for node in nodes:
        parts = node.value if isinstance(node.value, dict) else {}
        own = parts.get("id")
        text = str(parts.get("text", node).value)
        sources.append((None if own is None or own.value is None else str(own.value), text, text))
        if own is not None and isinstance(own.value, str):
            written.append((own.value, own.line))
    return ids_of(sources), _repeated(written)


def _priority_problems(nodes: Sequence[Node], ids: Sequence[str]) -> list[Problem]:
    """Ids below `overrides` that no principle has, and a circle of priorities, at the lines where they stand."""
    problems = []
    overrides: dict[str, list[str]] = {}
    lines: dict[str, int] = {}
    known = dict.fromkeys(ids)
    for node, name in zip(nodes, ids, strict=True):
        written = node.value.get("overrides") if isinstance(node.value, dict) else None
        if written is None or not isinstance(written.value, list):
            continue
        lines.setdefault(name, written.line)
        for item in written.value:
            if isinstance(item.value, str) and item.value in known:
                overrides.setdefault(name, []).append(item.value)
            elif isinstance(item.value, str) and re.match(ID, item.value):
                unknown = f"'{shown(item.value)}' is no principle of this file; {nearest(item.value, known)}"
                problems.append(Problem(item.line, f"principle '{name}': overrides {unknown}"))
    if circle := circle_in(overrides):
        problems.append(Problem(lines[circle[0]], circle_message(circle)))
    return problems


def _repeated(ids: Iterable[tuple[str, int]]) -> list[Problem]:
    """A problem for every id that stood before; the ids come with their lines."""
    first: dict[str, int] = {}
    problems = []
    for name, line in ids:
        if name in first:
            twice = f"principle '{shown(name)}' appears twice (lines {first[name]} and {line}); rename one"
            problems.append(Problem(line, twice))
        first.setdefault(name, line)
    return problems


def _with_colon(node: Node) -> Node:
    """A principle whose text holds a colon, which YAML takes for a mapping: `- Be kind: to everyone`.

    A key that could be an id is one: `- honesty: Be honest.`
    """
    if not isinstance(node.value, dict) or len(node.value) != 1:
        return node
    ((key, value),) = node.value.items()
    fields = Principle.model_fields
    if key in fields or not isinstance(value.value, str) or difflib.get_close_matches(key, fields, n=1, cutoff=0.7):
        return node
    if re.match(ID, key):
        return Node(node.line, {"id": Node(node.line, key), "text": value})
    return Node(node.line, f"{key}: {value.value}")


def _entry(node: Node, name: str) -> object:
    """A principle as pydantic takes it; a text alone is a principle."""
    if isinstance(node.value, str):
        return {"id": name, "text": node.value}
    return {"id": name, **_as_dict(node.value)} if isinstance(node.value, dict) else node.value


def _as_dict(mapping: dict[str, Node]) -> dict[str, Any]:
    """The values without their lines. Keys with nothing after them are left out, as if they were not there."""
    return {key: _as_python(node) for key, node in mapping.items() if node.value is not None}


def _as_python(node: Node) -> object:
    if isinstance(node.value, dict):
        return _as_dict(node.value)
    return [_as_python(child) for child in node.value] if isinstance(node.value, list) else node.value


_EXPECTED = {
    "weight": "a positive number, such as 2 or 0.5",
    "as_written": "true or false",
    "measure": "a text such as 'fewer words'",
    "id": "letters, digits, '_' and '-' (at most 64, a letter first)",
    "authors": "a list of texts",
    "tags": "a list of texts",
    "overrides": "a list of principles' ids",
    "source": "a mapping with 'line', and 'section' and 'quote' if you like",
    "line": "the number of a line, from 1",
    "uses": "a list of 'revision', 'comparison' or both",
    "examples": "a list, each with 'prompt', 'better' and 'worse'",
    "principles": f"a list of 1 to {MOST_PRINCIPLES:,} principles",
}
_EXPECTED_ITEM = {
    "principles": "a text, or a mapping with a 'text'",
    "examples": "a mapping with 'prompt', 'better' and 'worse'",
    "uses": "'revision' or 'comparison'",
    "overrides": "a principle's id",
}
_PARTS: Mapping[str, type[BaseModel]] = {
    "": Constitution,
    "principles": Principle,
    "examples": Example,
    "source": Source,
}


def _problem(details: ErrorDetails, root: Node) -> Problem:
    """What pydantic found, in the words of the person who wrote the file, with its line."""
    *place, last = details["loc"]
    node = _deepest(details["loc"], root)
    owner = next((key for key in reversed(place) if isinstance(key, str)), "")
    where = _where(place, root)
    if details["type"] == "missing":
        return Problem(node.line, f"{where}'{last}' is missing")
    if details["type"] == "extra_forbidden":
        advice = nearest(str(last), _PARTS[owner].model_fields)
        return Problem(node.line, f"{where}unknown key '{shown(str(last))}'; {advice}")
    if isinstance(last, int):
        label, expected = f"{owner.removesuffix('s')} {last + 1}", _EXPECTED_ITEM.get(owner, "a text")
    else:
        label, expected = f"'{last}'", _EXPECTED.get(last, "a text")
    if problem := details["ctx"]["error"] if details["type"] == "value_error" else _too_large(details):
        return Problem(node.line, f"{where}{label} {problem}")
    unquoted = isinstance(node.value, float | bool) and expected == "a text"
    advice = f'; write "{shown(node.written)}", in quotes' if unquoted else ""
    return Problem(node.line, f"{where}{label} must be {expected}, not {described(node)}{advice}")


def _too_large(details: ErrorDetails) -> str | None:
    """What is wrong with a list or a text that is beyond its limit; None for any other problem."""
    if details["type"] == "too_long":
        return f"must be {_EXPECTED['principles']}, not of {len(details['input']):,}"
    if details["type"] == "string_too_long" and details["ctx"]["max_length"] == MOST_CHARACTERS:
        return f"must be a text of at most {MOST_CHARACTERS:,} characters, not of {len(details['input'].strip()):,}"
    return None


def _deepest(place: Iterable[str | int], root: Node) -> Node:
    """The node at a place, or the one around it if there is none."""
    node = root
    for key in place:
        if isinstance(node.value, dict) and str(key) in node.value:
            node = node.value[str(key)]
        elif isinstance(node.value, list) and isinstance(key, int) and key < len(node.value):
            node = node.value[key]
    return node


def _where(place: Sequence[str | int], root: Node) -> str:
    """Which principle, and which of its examples, a problem is in."""
    made = ""
    for depth in range(1, len(place), 2):
        node = _deepest(place[: depth + 1], root)
        own = node.value.get("id") if isinstance(node.value, dict) else None
        name = f"'{shown(own.value)}'" if own and isinstance(own.value, str) else int(place[depth]) + 1
        made += f"{str(place[depth - 1]).removesuffix('s')} {name}: "
    return made
