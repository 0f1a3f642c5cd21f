"""Reads a constitution in prose, Markdown, as the principles that it holds, each with its line."""

import re
from collections.abc import Iterator
from typing import Literal, NamedTuple


class Passage(NamedTuple):
    """A principle in prose."""

    line: int
    given: str | None
    """The id that the writer gave it, as `{#id}` at the end of a line."""
    name: str
    """What its id is made of if none is given: a heading, bold first words, or the text."""
    text: str
    section: str
    """The heading above it; empty if there is none."""
    context: str
    """What the paragraphs below that heading say, where the principle is one of several items."""


class Aside(NamedTuple):
    """A paragraph that is no principle."""

    line: int
    text: str
    section: str
    """The heading above it; empty if there is none."""
    use: Literal["description", "context", "nothing"]
    """What becomes of it: the constitution's description, the context of the items below its heading, or nothing."""


class Prose(NamedTuple):
    """A constitution in prose."""

    title: str
    description: str
    passages: list[Passage]
    asides: list[Aside]


class _Block(NamedTuple):
    kind: str
    """`heading`, `item` or `paragraph`."""
    level: int
    """Of a heading its depth, 1 to 6; of an item its indentation."""
    line: int
    lines: list[str]

    @property
    def raw(self) -> str:
        """Its lines as one, without the ids that end them."""
        return " ".join(_ATTRIBUTES.sub("", line).strip() for line in self.lines)

    @property
    def given(self) -> str | None:
        """The first id that ends one of its lines."""
        found = filter(None, map(_ATTRIBUTES.search, self.lines))
        return next((each.group(1) for each in found), None)


_HEADING = re.compile(r" {0,3}(#{1,6})\s+(.*?)\s*#*\s*$")
_ITEM_LINE = re.compile(r"(\s*)(?:[-*+•]|\d{1,4}[.)])\s+(?:\[[ xX]\]\s+)?(\S.*)$")
_RULE = re.compile(r"\s*(?:(?:-\s*){3,}|(?:\*\s*){3,}|(?:_\s*){3,})$")
_UNDERLINE = re.compile(r" {0,3}(?:=+|-+)\s*$")
_FOOTNOTE = re.compile(r"\[\^[^\]]+\]:")
# As kramdown and Pandoc have it: `{#id}`, `{#id key=value}`. A template's `{# remark #}` and `{#remark#}` are text.
_ATTRIBUTES = re.compile(r"\s*\{#([\w.:-]+)(?:\s[^{}]*)?\}\s*$")
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
    paragraphs. In a document without either, the paragraphs are. Items within items belong to the outer one. All other
    paragraphs are asides.
    """
    blocks = list(_blocks(content))
    headings = [block for block in blocks if block.kind == "heading"]
    top = [heading for heading in headings if heading.level == 1]
    title = top[0] if len(top) == 1 and headings[0] is top[0] else None
    passages: list[Passage] = []
    preamble: list[_Block] = []
    asides: list[Aside] = []
    for heading, body, next_level in _sections(blocks):
        items = [block for block in body if block.kind == "item"]
        paragraphs = [block for block in body if block.kind == "paragraph"]
        context = " ".join(_plain(block.raw) for block in paragraphs)
        section = "" if heading is None or heading is title else _plain(heading.raw)
        if heading is None or heading is title:
            preamble += paragraphs
        elif not items and next_level <= heading.level:
            passages.append(_heading_passage(heading, section, context))
        else:
            asides += _asides(paragraphs, section, "context" if items else "nothing")
        passages += [_item_passage(item, section, context if section else "") for item in items]
    if not passages:
        passages = [_item_passage(block, "", "") for block in preamble]
        preamble = []
    asides = _asides(preamble, "", "description") + asides
    name = _plain(top[0].raw) if top else ""
    description = "\n\n".join(_plain(block.raw) for block in preamble)
    return Prose(name, description, [passage for passage in passages if passage.text], asides)


def _asides(paragraphs: list[_Block], section: str, use: Literal["description", "context", "nothing"]) -> list[Aside]:
    return [Aside(block.line, _plain(block.raw), section, use) for block in paragraphs]


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
    joint = " " if section.endswith((".", "!", "?", ":")) else ": "
    text = f"{section}{joint}{context}" if context and section else section or context
    return Passage(heading.line, heading.given, section, text, section, "")


def _item_passage(item: _Block, section: str, context: str) -> Passage:
    text = _plain(item.raw)
    bold = _BOLD_START.match(item.raw)
    return Passage(item.line, item.given, _plain(bold.group(1)) if bold else text, text, section, context)


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
