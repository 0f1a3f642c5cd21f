"""Reads files in which a person writes principles: plain lines, JSON, YAML or Markdown, by the file's ending.

Every error names the line, so nothing is read in a way that forgets lines. Of YAML only the plain part is read: text,
numbers, lists and mappings. Anchors, aliases and tags are refused, because they make a small file mean something large
or something else; so are duplicate keys, of which a reader sees only one.
"""

import hashlib
import json
import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from constitutional.errors import InputError

if TYPE_CHECKING:
    import yaml

MOST_BYTES = 32 * 2**20
"""A hundred thousand principles fit; reading takes time and memory in proportion."""
MOST_LEVELS = 20
"""Of lists and mappings within each other."""
YAML_ENDINGS = frozenset({".yaml", ".yml"})
MARKDOWN_ENDINGS = frozenset({".md", ".markdown"})

_BETWEEN_ITEMS = " \t\r\n,"
_ITEM = "a principle must be a non-empty text, or have a 'text' that is one"
_ID_WORDS = 6
_ID_LENGTH = 48


class Problem(NamedTuple):
    """Something in a file that is not as it should be, with its line (from 1; None for the file as a whole)."""

    line: int | None
    text: str


class _Line(NamedTuple):
    number: int
    found: object
    """What should be a principle's text."""


def read_principles(path: Path) -> list[str]:
    """The principles of a file, in its order.

    `.json`: a list of texts or of objects with a `text`. `.yaml` and `.yml`: a `principles:` list of the same. `.md`:
    headings and list items, as `read_markdown` has it. Any other ending: one principle a line, leaving out empty lines
    and those that start with `#`.
    """
    content = read_text(path)
    ending = path.suffix.lower()
    if ending == ".json":
        lines = _from_json(content, path)
    elif ending in YAML_ENDINGS:
        lines = _from_yaml(content, path)
    elif ending in MARKDOWN_ENDINGS:
        lines = (_Line(passage.line, passage.text) for passage in read_markdown(content).passages)
    else:
        lines = _from_lines(content)
    try:
        principles = [_checked(line, path) for line in lines]
    except RecursionError as error:
        raise InputError(path, "is nested too deeply to be a list of principles") from error
    if not principles:
        raise InputError(path, "holds no principle")
    return principles


def read_text(path: Path) -> str:
    """The text of a UTF-8 file of reasonable size, without a byte-order mark."""
    try:
        size = path.stat().st_size
        if size > MOST_BYTES:
            raise InputError(path, f"is {size / 2**20:.0f} MiB; at most {MOST_BYTES // 2**20} MiB are read")
        raw = path.read_bytes()
    except OSError as error:
        raise InputError(path, f"cannot be read: {error.strerror}") from error
    if raw.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise InputError(path, "is UTF-16 text; save it as UTF-8", 1)
    try:
        content = raw.decode("utf-8-sig")  # some editors begin a file with a byte-order mark
    except UnicodeDecodeError as error:
        raise InputError(path, "is not UTF-8 text", raw[: error.start].count(b"\n") + 1) from error
    if "\0" in content:
        line = content.count("\n", 0, content.index("\0")) + 1
        raise InputError(path, "holds a NUL character: it is no text, or not UTF-8; save it as UTF-8", line)
    return content


def slug(text: str) -> str:
    """An id made of a text's first words: `Don't flatter anybody.` gives `dont_flatter_anybody`.

    A text without Latin letters or digits gets a digest of itself.
    """
    ascii_text = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode().lower().replace("'", "")
    words = re.findall(r"[a-z0-9]+", ascii_text)[:_ID_WORDS]
    if not words:
        return "p_" + hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:8]
    made = "_".join(words)[:_ID_LENGTH].rstrip("_")
    return made if made[0].isalpha() else f"p_{made}"


def unused(name: str, taken: dict[str, int]) -> str:
    """The name, or with the first suffix `_2`, `_3`, ... that makes it a new one, which is then taken.

    `taken` maps each name in use to the last suffix tried with it (1 if none was), so that many equal names do not try
    each other's suffixes again.
    """
    made = name
    while made in taken:
        taken[name] += 1
        made = f"{name}_{taken[name]}"
    taken[made] = 1
    return made


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
    root, problems = read_yaml(content, path)
    if problems:
        raise InputError(path, problems[0].text, problems[0].line)
    principles = root.value.get("principles") if isinstance(root.value, dict) else None
    if principles is None or not isinstance(principles.value, list):
        wrong = principles or root
        raise InputError(path, "must have a list 'principles:'", wrong.line if content.strip() else None)
    for item in principles.value:
        node = item.value.get("text", item) if isinstance(item.value, dict) else item
        yield _Line(node.line, node.value)


# YAML


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
            self.problems.append(Problem(line, f"alias '*{event.anchor}': aliases are not read; write it out"))
            return
        if event.anchor is not None:
            self.problems.append(Problem(line, f"anchor '&{event.anchor}': anchors are not read; leave it out"))
        if (tag := getattr(event, "tag", None)) is not None:
            self.problems.append(Problem(line, f"tag '{tag}': tags are not read; leave it out"))

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
            twice = f"'{name}' stands twice (lines {parent[name].line} and {node.line}); leave one out"
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


# Markdown


class Passage(NamedTuple):
    """A principle in prose."""

    line: int
    name: str
    """What its id is made of: an id given as `{#id}`, a heading, bold first words, or the text."""
    text: str
    section: str
    """The heading above it; empty if there is none."""
    context: str
    """What the paragraphs below that heading say, where the principle is one of several items."""


class Prose(NamedTuple):
    """A constitution in prose."""

    title: str
    description: str
    passages: list[Passage]


class _Block(NamedTuple):
    kind: str
    """`heading`, `item` or `paragraph`."""
    level: int
    """Of a heading its depth, 1 to 6; of an item its indentation."""
    line: int
    lines: list[str]

    @property
    def raw(self) -> str:
        return " ".join(line.strip() for line in self.lines)


_HEADING = re.compile(r" {0,3}(#{1,6})\s+(.*?)\s*#*\s*$")
_ITEM_LINE = re.compile(r"(\s*)(?:[-*+•]|\d{1,4}[.)])\s+(?:\[[ xX]\]\s+)?(\S.*)$")
_RULE = re.compile(r"\s*(?:(?:-\s*){3,}|(?:\*\s*){3,}|(?:_\s*){3,})$")
_UNDERLINE = re.compile(r" {0,3}(?:=+|-+)\s*$")
_FOOTNOTE = re.compile(r"\[\^[^\]]+\]:")
_ATTRIBUTES = re.compile(r"\s*\{#([\w-]+)[^}]*\}\s*$")
_BOLD_START = re.compile(r"(?:\*\*|__)(.+?)(?:\*\*|__)")
_INLINE = (
    (re.compile(r"!?\[([^\]]*)\]\([^)]*\)"), r"\1"),
    (re.compile(r"\[\^[^\]]*\]"), ""),
    (re.compile(r"(\*\*|__)(?=\S)(.+?)(?<=\S)\1"), r"\2"),
    (re.compile(r"(?<!\w)([*_])(?=\S)(.+?)(?<=\S)\1(?!\w)"), r"\2"),
    (re.compile(r"`([^`]+)`"), r"\1"),
    (re.compile(r"\\([\\`*_{}\[\]()#+.!-])"), r"\1"),
)


def read_markdown(content: str) -> Prose:
    """The principles of a prose document.

    List items are principles. So is a heading with no list and no further headings below it, together with its
    paragraphs. In a document without either, the paragraphs are. Items within items belong to the outer one.
    """
    blocks = list(_blocks(content))
    headings = [block for block in blocks if block.kind == "heading"]
    top = [heading for heading in headings if heading.level == 1]
    title = top[0] if len(top) == 1 and headings[0] is top[0] else None
    passages: list[Passage] = []
    preamble: list[_Block] = []
    for heading, body, next_level in _sections(blocks):
        items = [block for block in body if block.kind == "item"]
        paragraphs = [block for block in body if block.kind == "paragraph"]
        context = " ".join(_plain(block.raw) for block in paragraphs)
        section = "" if heading is None or heading is title else _plain(_ATTRIBUTES.sub("", heading.raw))
        if heading is None or heading is title:
            preamble += paragraphs
        elif not items and next_level <= heading.level:
            passages.append(_heading_passage(heading, section, context))
        passages += [_item_passage(item, section, context if section else "") for item in items]
    if not passages:
        passages = [_item_passage(block, "", "") for block in preamble]
        preamble = []
    name = _plain(_ATTRIBUTES.sub("", top[0].raw)) if top else ""
    description = "\n\n".join(_plain(block.raw) for block in preamble)
    return Prose(name, description, [passage for passage in passages if passage.text])


def _sections(blocks: list[_Block]) -> Iterator[tuple[_Block | None, list[_Block], int]]:
    """Each heading (at first none) with the blocks up to the next one, and that one's level (0 at the end)."""
    heading: _Block | None = None
    body: list[_Block] = []
    for block in blocks:
        if block.kind == "heading":
            yield heading, body, block.level
            heading, body = block, []
        else:
            body.append(block)
    yield heading, body, 0


def _heading_passage(heading: _Block, section: str, context: str) -> Passage:
    given = _ATTRIBUTES.search(heading.raw)
    joint = " " if section.endswith((".", "!", "?", ":")) else ": "
    text = f"{section}{joint}{context}" if context and section else section or context
    return Passage(heading.line, given.group(1) if given else section, text, section, "")


def _item_passage(item: _Block, section: str, context: str) -> Passage:
    text = _plain(item.raw)
    bold = _BOLD_START.match(item.raw)
    return Passage(item.line, _plain(bold.group(1)) if bold else text, text, section, context)


def _plain(text: str) -> str:
    """The text without Markdown's marks."""
    for pattern, replacement in _INLINE:
        text = pattern.sub(replacement, text)
    return " ".join(text.split())


def _blocks(content: str) -> Iterator[_Block]:
    content = re.sub(r"<!--.*?-->", lambda found: "\n" * found.group().count("\n"), content, flags=re.DOTALL)
    content = re.sub(r"\A---\n.*?\n---\n", lambda found: "\n" * found.group().count("\n"), content, flags=re.DOTALL)
    block: _Block | None = None
    after_blank = fenced = False
    for number, written in enumerate(content.split("\n"), start=1):
        line = re.sub(r"^\s*>\s?", "", written.rstrip())
        if line.lstrip().startswith(("```", "~~~")):
            fenced = not fenced
        elif not line:
            after_blank = True
        elif fenced and block:
            block.lines.append(line)
        elif block and block.kind == "paragraph" and not after_blank and _UNDERLINE.match(line):
            yield block._replace(kind="heading", level=1 if "=" in line else 2)
            block = None
        elif _RULE.match(line) or _FOOTNOTE.match(line):
            after_blank = True
        elif block and not _starts_new(line, block, after_blank=after_blank):
            block.lines.append(line if not (item := _ITEM_LINE.match(line)) else item.group(2))
            after_blank = False
        else:
            if block:
                yield block
            block = _new_block(line, number)
            after_blank = False
    if block:
        yield block


def _starts_new(line: str, block: _Block, *, after_blank: bool) -> bool:
    """Whether a line begins a block of its own and does not continue this one."""
    if block.kind == "heading" or _HEADING.match(line):
        return True
    if found := _ITEM_LINE.match(line):
        return block.kind != "item" or len(found.group(1)) <= block.level
    if block.kind == "item":
        return after_blank and len(line) - len(line.lstrip()) <= block.level
    return after_blank


def _new_block(line: str, number: int) -> _Block:
    if heading := _HEADING.match(line):
        return _Block("heading", len(heading.group(1)), number, [heading.group(2)])
    if item := _ITEM_LINE.match(line):
        return _Block("item", len(item.group(1)), number, [item.group(2)])
    return _Block("paragraph", 0, number, [line])
