"""Constitutions that others keep as JSON, YAML or CSV, each recognised by what it holds.

Critique and revision pairs (Bai et al. 2022; llm-swarm and the alignment handbook), lists for comparison (Bai et al.,
EigenBench), Inverse Constitutional AI, AnnotatedPairs, Open Character Training, Constitutional-Evals, SALMON, Polis.
"""

import csv
import io
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any, Final

from constitutional.base.errors import InputError
from constitutional.base.text import restored
from constitutional.constitution.constitution import Constitution, Principle
from constitutional.constitution.foreign import Entry, Fields, Foreign
from constitutional.constitution.yaml import Node, Problem, described, shown

EXPECTED: Final = (
    "expected 'principles:', or a constitution as Constitutional AI, the alignment handbook, Inverse Constitutional "
    "AI, Open Character Training, EigenBench, Constitutional-Evals or SALMON keep theirs, or a list of texts"
)
COLUMNS_EXPECTED: Final = "expected a column 'comment-body' (Polis), or 'principle', 'text', 'statement' or the like"

_CRITIQUE: Final = ("critic", "critique", "critique_request", "critiqueRequest", "prompt")
_REVISION: Final = ("revision", "edit_request", "revision_request", "revisionRequest")
_TEXT: Final = (
    "text trait principle principle_text criterion statement comparative rule value constitution definition "
    "description content rule_text criterion_text guideline"
).split()
_ID: Final = ("id", "key", "name", "title", "principle_id", "rule_id", "rule_name", "comment-id", "dimension")
_WHY: Final = ("why", "reason", "reasoning", "rationale")
_OPPOSITE: Final = ("opposite", "negative_definition")
"""SALMON's negative definition asks for the contrary, as `opposite` does."""
_TAGS: Final = ("category", "theme", "topic", "tags")
_CELLS: Final = (
    ("why", _WHY),
    ("tags", _TAGS),
    ("opposite", _OPPOSITE),
    *((use, (use,)) for use in ("critique", "revision", "comparison")),
)
"""Fields that a table has in columns, and what those are called."""
_ABOUT: Final = {
    "name": ("name", "title"),
    "version": ("version",),
    "description": ("description", "summary", "overview"),
    "authors": ("authors",),
}
"""What our schema calls texts about the whole constitution, and others do."""
_LISTS: Final = "principles constitution rules criteria statements items traits data values".split()
"""Keys of a mapping under which the principles stand."""
_NUMBERED = re.compile(r"(?:\A|(?<=\n))[ \t]*\(?\d{1,9}[.):][ \t]+")
_OPTIONS = re.compile(r"\s*Options:\s*(?:\(A\).*)?\Z", re.DOTALL)
_CONVERSATION = re.compile(r"\A\s*Consider the following conversation[^\n]*\n\s*\[[^\]\n]*\]\s*", re.IGNORECASE)
"""What Bai et al. 2022 write around a principle for comparison."""
_EIGENBENCH = re.compile(r"\ACriterion\s+(\d+)\s+for\s+(.+?)\s*:\s*(.+)\Z", re.DOTALL | re.IGNORECASE)

_ONLY_OURS: Final = frozenset({"measure", "uses", "overrides", "as_written", "source", "given"})
"""Fields of a principle that no other format has."""
_NOT_READ: Final = dict.fromkeys(
    Principle.model_fields, "it is read only from principles in our own schema, without other keys"
)
NOT_ASKED: Final = _NOT_READ | {
    "questions": "prompts without replies, and an example needs two replies",
    "additional_questions": "prompts without replies, and an example needs two replies",
    "scenarios": "prompts without replies, and an example needs two replies",
}


def of_node(root: Node) -> Foreign | None:
    """The constitution that a JSON or YAML value holds; None where it is of no kind that is known."""
    match root.value:
        case str() as text:
            return _numbered(text, root.line)
        case list() as items:
            return _of_list(items)
        case dict() as mapping:
            return _of_mapping(mapping)
    return None


def is_ours(root: Node) -> bool:
    """Whether the value is a constitution in the project's own schema, if with mistakes."""
    if not isinstance(root.value, dict) or "principles" not in root.value:
        return False
    principles = root.value["principles"].value
    items = principles if isinstance(principles, list) else []
    mappings = [item.value for item in items if isinstance(item.value, dict)]
    others = {*_TEXT, *_CRITIQUE} - Principle.model_fields.keys()
    return not mappings or any("text" in keys or not others & keys.keys() for keys in mappings)


def whole_of_ours(root: Node) -> Node | None:
    """A constitution of principles in our own schema that stand alone, as a list or in one line; None for others."""
    items = root.value if isinstance(root.value, list) else [root]
    mappings = [item.value for item in items if isinstance(item.value, dict)]
    ours = Principle.model_fields.keys()
    if not all("text" in keys and keys.keys() <= ours for keys in mappings):
        return None
    return (
        Node(root.line, {"principles": Node(root.line, items)})
        if any(_ONLY_OURS & {*keys} for keys in mappings)
        else None
    )


# Lists


def _of_list(items: Sequence[Node]) -> Foreign | None:
    if not items:
        return None
    texts = [item.value for item in items if isinstance(item.value, str)]
    mappings = [item.value for item in items if isinstance(item.value, dict)]
    if len(texts) >= len(mappings) and texts:
        return _of_texts(items, texts)
    if not mappings:
        return None
    keys = Counter(key for mapping in mappings for key in _said(mapping))
    return _of_mappings(items, keys or Counter(key for mapping in mappings for key in mapping))


def _of_mappings(items: Sequence[Node], keys: Mapping[str, int]) -> Foreign | None:
    if "dimension" in keys and "definition" in keys:
        return _entries("SALMON", items, ("definition",), _salmon)
    if _first(_CRITIQUE, keys) and _first(_REVISION, keys) and "text" not in keys:
        return _pairs("critique and revision pairs", items)
    if "trait" in keys:
        return _entries("Open Character Training", items, ("trait",))
    field = _first(_TEXT, keys)
    return _entries("a list of mappings", items, (field,)) if field else None


def _of_texts(items: Sequence[Node], texts: Sequence[str]) -> Foreign:
    fields, entries = Fields(), list[Entry]()
    about: dict[str, str] = {}
    family = "a list of texts"
    options = sum(_OPTIONS.search(text) is not None for text in texts)
    matches = [match for text in texts if (match := _EIGENBENCH.match(text.strip()))]
    names = list(dict.fromkeys(match[2].strip(" *_") for match in matches))
    numbers = Counter(match[1] for match in matches)
    if 2 * len(matches) > len(texts):
        family, about = "EigenBench", {"name": " and ".join(names[:3])}
    elif 2 * options > len(texts):
        family = "Constitutional AI's list for comparison"
    for item in items:
        text = fields.text(item, "a principle")
        match = _EIGENBENCH.match(text)
        values: dict[str, Any] = {"text": _CONVERSATION.sub("", _OPTIONS.sub("", text))}
        if match:
            wish, name = match[3].strip(), match[2].strip(" *_")
            values = {"text": wish[:1].upper() + wish[1:], "tags": [name] if len(names) > 1 else []}
            if numbers[match[1]] == 1:
                values["id"] = f"criterion_{match[1]}"
        entries.append(Entry(item.line, values))
    left_out = []
    if family != "a list of texts":
        left_out.append(
            Problem(
                items[0].line,
                "words of their own for critique and revision: the file has none, so these serve for both",
            )
        )
    return Foreign(family, entries, left_out, fields.problems, about)


def _plain(values: dict[str, Any], _: Mapping[str, Node], __: Fields) -> None:
    """Add nothing: the fields that many formats share are all."""


def _salmon(values: dict[str, Any], mapping: Mapping[str, Node], _: Fields) -> None:
    name = mapping.get("dimension")
    if name is not None and isinstance(name.value, str):
        values["tags"] = [name.value]


def _entries(
    family: str,
    items: Sequence[Node],
    text_fields: Sequence[str],
    particular: Any = _plain,  # noqa: ANN401 - one of the functions above
) -> Foreign:
    fields, entries, left_out = Fields(), list[Entry](), list[Problem]()
    for item in items:
        if isinstance(item.value, str):
            entries.append(Entry(item.line, {"text": fields.text(item, "a principle")}))
            continue
        if not isinstance(item.value, dict):
            kind = f"is {described(item)}"
            fields.problems.append(
                Problem(item.line, f"a principle must be a mapping with '{text_fields[0]}', and {kind}")
            )
            continue
        entry = _entry(item, item.value, text_fields, fields)
        particular(entry.values, item.value, fields)
        entries.append(entry)
    drawn = list(_drawn(entries, left_out))
    return Foreign(family, drawn, [*left_out, *fields.notes(NOT_ASKED)], fields.problems)


def _drawn(entries: Iterable[Entry], left_out: list[Problem]) -> Iterator[Entry]:
    """The entries that have no weight of 0; the others are said to be left out."""
    for entry in entries:
        if entry.values.get("weight") == 0:
            text = shown(entry.values["text"])
            left_out.append(Problem(entry.line, f'"{text}": its weight is 0, so nothing draws it'))
        else:
            yield entry


def _entry(item: Node, mapping: Mapping[str, Node], text_fields: Sequence[str], fields: Fields) -> Entry:
    """A principle of the fields that many formats call alike."""
    mapping = _said(mapping)
    field = _first(text_fields, mapping) or text_fields[0]
    text = fields.text(mapping.get(field, Node(item.line, None)), f"'{field}'")
    values: dict[str, Any] = {"text": text}
    known = [field, "weight", "examples"]
    if (why := _first(_WHY, mapping)) and mapping[why].value not in (None, ""):
        values["why"] = fields.text(mapping[why], f"'{why}'")
        known.append(why)
    if tags := _first(_TAGS, mapping):
        values["tags"] = list(_texts(mapping[tags]))
        known.append(tags)
    for use in ("critique", "revision", "comparison"):
        if use in mapping:
            values[use] = fields.text(mapping[use], f"'{use}'")
            known.append(use)
    if (opposite := _first(_OPPOSITE, mapping)) and mapping[opposite].value not in (None, ""):
        values["opposite"] = fields.text(mapping[opposite], f"'{opposite}'")
        known.append(opposite)
    for name in ("weight", "examples"):
        if name in mapping:
            values[name] = _python(mapping[name])
    name_key = _first(_ID, mapping)
    name = _as_written(mapping[name_key]) if name_key and name_key != field else ""
    if name_key in ("id", "key", "principle_id") and name:
        values["id"] = name
    fields.ignore(mapping, [*known, *([name_key] if name_key else [])])
    return Entry(item.line, values, name)


def _first(names: Sequence[str], keys: Any) -> str:  # noqa: ANN401 - whatever holds keys
    return next((name for name in names if name in keys), "")


def _said(mapping: Mapping[str, Node]) -> dict[str, Node]:
    """The keys that have a value."""
    return {key: node for key, node in mapping.items() if node.value is not None}


def _as_written(node: Node) -> str:
    """A single value as it stands in the file: the id `1` is no `1.0`."""
    return node.value.strip() if isinstance(node.value, str) else node.written


def _texts(node: Node) -> Iterator[str]:
    if isinstance(node.value, str) and node.value.strip():
        yield node.value.strip()
    elif isinstance(node.value, list):
        for item in node.value:
            yield from _texts(item)


def _python(node: Node) -> object:
    if isinstance(node.value, dict):
        return {key: _python(value) for key, value in node.value.items()}
    return [_python(item) for item in node.value] if isinstance(node.value, list) else node.value


def _numbered(text: str, line: int) -> Foreign | None:
    r"""A text such as "1. Be brief.\n2. Be kind."; each principle goes on until the next number."""
    starts = list(_NUMBERED.finditer(text))
    if not starts:
        parts = [part for part in text.split("\n") if part.strip()]
    else:
        ends = [match.start() for match in starts[1:]] + [len(text)]
        parts = [text[match.end() : end] for match, end in zip(starts, ends, strict=True)]
    entries = [Entry(line, {"text": " ".join(part.split())}) for part in parts if part.strip()]
    left_out = []
    if starts and (before := text[: starts[0].start()].strip()):
        left_out.append(Problem(line, f'"{shown(before)}": it stands before the first number'))
    return Foreign("Inverse Constitutional AI's text", entries, left_out) if entries else None


# Mappings


def _of_mapping(mapping: Mapping[str, Node]) -> Foreign | None:
    for name, kind, family, read in (
        ("constitutions", list, "the alignment handbook", _handbook),
        ("annotators", dict, "AnnotatedPairs", _annotators),
    ):
        if name in mapping and not isinstance(mapping[name].value, kind):
            expected = f"'{name}' must be a {'list' if kind is list else 'mapping'}, not {described(mapping[name])}"
            return Foreign(family, [], problems=[Problem(mapping[name].line, expected)])
        if name in mapping:
            return read(mapping)
    if "criteria" in mapping or "schema_version" in mapping:
        return _constitutional_evals(mapping)
    known = {*Principle.model_fields, *_ID, *_WHY, *_TAGS, *_OPPOSITE}
    if "trait" in mapping or ("text" in mapping and mapping.keys() <= known):  # a file of one line
        return _of_list([Node(next(iter(mapping.values())).line, dict(mapping))])
    if key := next((key for key in _LISTS if key in mapping), None):
        return _below(key, mapping)
    return _by_id(mapping)


def _by_id(mapping: Mapping[str, Node]) -> Foreign | None:
    values = [node.value for node in mapping.values()]
    if values and all(isinstance(value, dict) and _first(_REVISION, value) for value in values):
        family = "Constitutional AI's critique and revision requests"
        return _pairs(family, list(mapping.values()), list(mapping))
    if values and not mapping.keys() & Constitution.model_fields.keys() and all(isinstance(row, str) for row in values):
        entries = [Entry(node.line, {"id": key, "text": str(node.value)}) for key, node in mapping.items()]
        return Foreign("Inverse Constitutional AI's texts by id", entries)
    return None


def _below(key: str, mapping: Mapping[str, Node]) -> Foreign | None:
    """The principles under one key; the mapping's other keys are said to be left out."""
    inner = of_node(mapping[key])
    if inner is None:
        return None
    about, keys = _about(mapping)
    notes = _other_keys(mapping, [key, *keys])
    return inner._replace(left_out=[*inner.left_out, *notes], about={**inner.about, **about})


def _about(mapping: Mapping[str, Node]) -> tuple[dict[str, Any], list[str]]:
    """What is said of the whole constitution, by what our schema calls it, and the keys that say it."""
    about, keys = dict[str, Any](), list[str]()
    for ours, theirs in _ABOUT.items():
        key = _first(theirs, mapping)
        node = mapping.get(key, Node(1, None))
        if ours == "authors":
            value: object = list(_texts(node))
        else:
            value = node.value if isinstance(node.value, str) else node.written if ours == "version" else ""
        if key and value:
            about[ours] = value
            keys.append(key)
    return about, keys


def _other_keys(mapping: Mapping[str, Node], known: Sequence[str]) -> list[Problem]:
    fields = Constitution.model_fields
    return [
        Problem(node.line, f"'{shown(key)}': {'it holds no text' if key in fields else 'the schema has no such field'}")
        for key, node in mapping.items()
        if key not in known and node.value not in (None, "", [], {})
    ]


def _pairs(family: str, items: Sequence[Node], ids: Sequence[str] = ()) -> Foreign:
    """Principles of a request to criticise and a request to revise, with their ids if they stand outside of them."""
    fields, entries, left_out = Fields(), list[Entry](), list[Problem]()
    for number, (item, outer) in enumerate(zip_longest(items, ids), start=1):
        if not isinstance(item.value, dict):
            kind = described(item)
            fields.problems.append(Problem(item.line, f"a principle must hold a critique and a revision, not {kind}"))
            continue
        mapping = _said(item.value)
        critique, revision = _first(_CRITIQUE, mapping), _first(_REVISION, mapping)
        asked = [
            _request(" ".join(_texts(mapping[key])) if key else "", ending)
            for key, ending in ((critique, "Critique"), (revision, "Revision"))
        ]
        name_key = _first(_ID, mapping)
        name = _as_written(mapping[name_key]) if name_key else ""
        called = f"principle '{shown(outer or name)}'" if outer or name else f"principle {number}"
        if not any(asked):
            left_out.append(Problem(item.line, f"{called}: it is empty"))
            continue
        for words, what in zip(asked, ("critique", "revision"), strict=True):
            if not words:
                fields.problems.append(Problem(item.line, f"{called} has no request for {what}, which must be a text"))
        own = outer or (name if name_key in ("id", "key") else "")
        rest = {key: node for key, node in mapping.items() if key not in (critique, revision, name_key)}
        entry = _entry(item, {"text": Node(item.line, asked[1] or asked[0]), **rest}, ("text",), fields)
        entry.values.update(critique=asked[0], revision=asked[1])
        if own:
            entry.values["id"] = own
        entries.append(entry._replace(name=name))
    note = "words of their own for comparison: the file has none, so the request for a revision stands as the text"
    if any(entry.values["text"] == entry.values["revision"] and "comparison" not in entry.values for entry in entries):
        left_out.append(Problem(items[0].line, note))
    drawn = list(_drawn(entries, left_out))
    return Foreign(family, drawn, [*left_out, *fields.notes(NOT_ASKED)], fields.problems)


def _request(words: str, ending: str) -> str:
    """The request itself: what stands between `CritiqueRequest:` and `Critique:`, the last one of several."""
    *_, last = re.split(rf"{ending}Request:", words)
    return " ".join(re.sub(rf"\s*{ending}:\s*\Z", "", last).split())


def _handbook(mapping: Mapping[str, Node]) -> Foreign:
    items = mapping["constitutions"].value
    assert isinstance(items, list)
    if not items:
        return Foreign(
            "the alignment handbook", [], problems=[Problem(mapping["constitutions"].line, "holds no principle")]
        )
    read = _pairs("the alignment handbook", items)
    left_out = list(read.left_out)
    if "system_chat" in mapping:
        chats = mapping["system_chat"].value
        count = len(chats) if isinstance(chats, list) else 1
        where = "few-shot conversations go into critique_revise.few_shot_file"
        left_out.append(Problem(mapping["system_chat"].line, f"'system_chat' ({count}): {where}"))
    left_out += _other_keys(mapping, ["constitutions", "system_chat"])
    return read._replace(left_out=left_out)


def _constitutional_evals(mapping: Mapping[str, Node]) -> Foreign:
    entries, left_out, problems = list[Entry](), list[Problem](), list[Problem]()
    for key, tag in (("criteria", "criterion"), ("guidelines", "guideline")):
        node = mapping.get(key)
        if node is None or node.value in (None, []):
            continue
        if not isinstance(node.value, list):
            problems.append(Problem(node.line, f"'{key}' must be a list, not {described(node)}"))
            continue
        read = _entries("", node.value, ("comparative", *_TEXT))
        for entry in read.entries:
            entry.values["tags"] = [tag, *entry.values.get("tags", [])]
        entries += read.entries
        left_out += read.left_out
        problems += read.problems
    about, keys = _about(mapping)
    left_out += _other_keys(mapping, ["criteria", "guidelines", *keys])
    return Foreign("Constitutional-Evals", entries, left_out, problems, about)


def _annotators(mapping: Mapping[str, Node]) -> Foreign:
    """AnnotatedPairs: the annotators that are principles."""
    annotators = mapping["annotators"].value
    assert isinstance(annotators, dict)
    fields, entries, left_out = Fields(), list[Entry](), list[Problem]()
    for key, node in annotators.items():
        own = node.value if isinstance(node.value, dict) else {}
        kind = own["type"].value if "type" in own else ""
        if kind != "principle":
            left_out.append(
                Problem(node.line, f"annotator '{shown(key)}' of type '{shown(str(kind))}': it is no principle")
            )
            continue
        text = fields.text(own.get("description", Node(node.line, None)), "a principle's 'description'")
        entries.append(Entry(node.line, {"text": text}, _as_written(own["name"]) if "name" in own else ""))
    left_out += _other_keys(mapping, ["annotators", "metadata"])
    return Foreign("AnnotatedPairs", entries, left_out, fields.problems)


# Tables


def table_of(content: str, path: Path, *, certainly: bool) -> Foreign | None:
    """The principles of a table with a header; None where the first line is none of ours.

    Args:
        content: the whole file.
        path: for error messages.
        certainly: the file's name says that it is a table.

    Raises:
        InputError: it is certainly a table, and has no column of principles or is broken.
    """
    first = next((line for line in content.split("\n") if line.strip()), "")
    delimiter = max(",\t;", key=first.count)
    header = [cell.strip().strip('"').lower() for cell in first.rstrip("\r").split(delimiter)]
    text_column = _first(("comment-body", *_TEXT), header)
    if not text_column or (len(header) < 2 and not certainly) or (not certainly and not _is_header(header)):
        if certainly:
            raise InputError(path, f"has the columns {', '.join(map(shown, header))}; {COLUMNS_EXPECTED}", 1)
        return None
    rows, problems = _rows(content, path, delimiter)
    names = [cell.strip().lower() for cell in rows.pop(0)[1]]
    if text_column not in names:  # within quotation marks, the header has other columns than it seemed to
        raise InputError(path, f"has the columns {', '.join(map(shown, names))}; {COLUMNS_EXPECTED}", 1)
    entries, left_out = list[Entry](), list[Problem]()
    for line, cells in rows:
        if len(cells) != len(names):
            problems.append(Problem(line, f"has {len(cells)} cells, and the header {len(names)} columns"))
            continue
        row = {name: restored(cell).strip() for name, cell in zip(names, cells, strict=True)}
        if not row[text_column] and text_column == "comment-body":
            left_out.append(Problem(line, "a comment without a text"))
        elif not row[text_column]:
            problems.append(Problem(line, f"column '{text_column}' is empty, and must be a text"))
        elif why_not := _rejected(row, line, problems):
            left_out.append(Problem(line, f'"{shown(row[text_column])}": {why_not}'))
        else:
            entries.append(_row_entry(row, line, text_column, problems))
            if row[text_column][0] in "=+@" or cells[names.index(text_column)][:1] == "'":
                left_out.append(
                    Problem(line, f'"{shown(row[text_column])}": looks like a formula, and is read as text')
                )
    left_out += _columns_left_out(names, text_column)
    family = "Polis (Collective Constitutional AI)" if text_column == "comment-body" else "a table"
    return Foreign(family, entries, left_out, problems)


def _columns_left_out(names: Sequence[str], text_column: str) -> Iterator[Problem]:
    taken = {text_column, *_ID, "weight", *(name for _, names in _CELLS for name in names)}
    others = [name for name in names if name and name not in taken]
    ours = Principle.model_fields
    if text_column == "comment-body":
        reasons = {"votes decide what is carried over, and are not kept": others}
    else:
        reasons = {
            "they are read only from our own schema, as YAML or JSON": [name for name in others if name in ours],
            "no such field": [name for name in others if name not in ours],
        }
    for reason, columns in reasons.items():
        if columns:
            yield Problem(1, f"the columns {', '.join(map(shown, columns))}: {reason}")


def _is_header(header: Sequence[str]) -> bool:
    """Whether a line reads as the names of columns and not as prose with commas."""
    return all(re.fullmatch(r"[\w .:/-]{0,40}", cell) and len(cell.split()) <= 3 for cell in header)


def _rows(content: str, path: Path, delimiter: str) -> tuple[list[tuple[int, list[str]]], list[Problem]]:
    """The rows that are not empty, each with the line that it begins in."""
    csv.field_size_limit(max(csv.field_size_limit(), len(content)))
    reader = csv.reader(io.StringIO(content, newline=""), delimiter=delimiter, skipinitialspace=True, strict=True)
    rows, line = list[tuple[int, list[str]]](), 1
    try:
        for cells in reader:
            if any(cell.strip() for cell in cells):
                rows.append((line, cells))
            line = reader.line_num + 1
    except csv.Error as error:
        raise InputError(path, f"is no table: {error}; a cell with quotation marks in it doubles them", line) from error
    return rows, []


def _rejected(row: Mapping[str, str], line: int, problems: list[Problem]) -> str:
    """Why those who voted did not want a statement; empty where they did, or nobody was asked."""
    numbers = {}
    for name in ("agrees", "disagrees", "moderated"):
        if row.get(name):
            try:
                numbers[name] = int(float(row[name]))
            except (ValueError, OverflowError):
                problems.append(Problem(line, f"column '{name}' must be a number, not '{shown(row[name])}'"))
    if numbers.get("moderated", 0) < 0:
        return "the moderators rejected it"
    agrees, disagrees = numbers.get("agrees"), numbers.get("disagrees")
    if agrees is not None and disagrees is not None and agrees <= disagrees and disagrees:
        return f"{disagrees} people disagree and {agrees} agree"
    return ""


def _row_entry(row: Mapping[str, str], line: int, text_column: str, problems: list[Problem]) -> Entry:
    values: dict[str, Any] = {"text": row[text_column]}
    for field, names in _CELLS:
        if value := row.get(_first(names, row), ""):
            values[field] = [value] if field == "tags" else value
    if weight := row.get("weight"):
        try:
            values["weight"] = float(weight)
        except ValueError:
            problems.append(Problem(line, f"column 'weight' must be a number, not '{shown(weight)}'"))
    name_column = _first([name for name in _ID if name != text_column], row)
    name = row.get(name_column, "")
    if name and name_column in ("id", "key", "principle_id", "rule_id", "comment-id"):
        values["id"] = f"comment_{name}" if name_column == "comment-id" else name
    return Entry(line, values, name)
