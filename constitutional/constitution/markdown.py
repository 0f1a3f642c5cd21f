"""Reads a constitution in prose, Markdown, as the principles that it holds, each with its line.

CommonMark (with tables) decides what a block is; this module decides which blocks are principles.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise, zip_longest
from typing import Final, Literal, NamedTuple

from markdown_it import MarkdownIt
from markdown_it.token import Token

MOST_LEVELS = 100
"""Levels of lists and quotations within each other that are read."""


class ProseBlock(NamedTuple):
    """A block of a document: a principle, or a block that is none."""

    kind: str
    """`heading`, `item`, `paragraph`, `code block`, …"""
    level: int
    """The depth of a heading, 1 to 6; 0 for other blocks."""
    line: int
    text: str
    """Without Markdown's marks, on one line."""
    own_id: str | None
    """The id that stands as `{#id}` at the end of a line."""
    name: str
    """What an id is made of if there is no `own_id`: a heading, bold first words, or the text."""
    section: str = ""
    """The heading above it."""
    context: str = ""
    """What the paragraphs below that heading say, where the principle is one of several items."""
    use: Literal["description", "context", "nothing"] = "nothing"
    """What a block that is no principle is read as: the constitution's description, the context of the items below its
    heading, or nothing."""


class Prose(NamedTuple):
    """A constitution in prose."""

    title: str
    description: str
    principles: list[ProseBlock]
    asides: list[ProseBlock]
    """The blocks that are no principles."""


_KINDS = {
    "heading_open": "heading",
    "list_item_open": "item",
    "paragraph_open": "paragraph",
    "fence": "code block",
    "code_block": "code block",
    "table_open": "table",
    "html_block": "block of HTML",
    "too_deep": f"part that is nested more than {MOST_LEVELS} levels deep",
}
_COMMENT = re.compile(r"<!--.*?-->", re.DOTALL)
# As kramdown and Pandoc have it: `{#id}`, `{#id key=value}`. A template's `{# remark #}` and `{#remark#}` are text.
_ATTRIBUTES = re.compile(r"\s*\{#([\w.:-]+)(?:\s[^{}]*)?\}\s*$")
_BLANKED = re.compile(
    r"\A---[ \t]*\n(?=\s*[\w-]+[ \t]*:)(?s:.*?)\n(?:---|\.\.\.)[ \t]*(?:\n|\Z)"
    r"|^ {0,3}\[\^[^\]\n]{1,99}\]:.*(?:\n[ \t]+\S.*)*|\[\^[^\]\n]{1,99}\]",
    re.MULTILINE,
)
"""Front matter and footnotes, which CommonMark does not know."""
_ENDS = tuple(".!?:;,。！？：；，")  # noqa: RUF001 - a Chinese heading ends as an English one does
_IN_BRACKETS = re.compile(r"^(\s*)\((\d{1,9})\)(?=[ \t])", re.MULTILINE)
_BINDING = re.compile(r"\b(?:never|always|not|must|should|shall|avoid|refrain|cannot)\b|n['’]t\b", re.IGNORECASE)
_FORBIDDING = re.compile(r"\b(?:never|not|avoid|refrain|cannot)\b|n['’]t\b", re.IGNORECASE)
_UNFINISHED = re.compile(
    r"(?:(?:things|what|topics)(?: [\w'’]+){0,4}? |(?:(?:the|an?|our) )?\w+ (?=must|should|shall|will|may|can))?"
    r"(?:(?:(?:must|should|shall|will|may|can|do|to) )?(?:never|not|avoid|refrain from)|cannot|\w+n['’]t|don['’]?ts)"
    r"(?: ever)?(?:(?: to)? do)?(?: (?:this|these|(?:any of )?the following)(?: things)?)?[ .:!…]*",
    re.IGNORECASE,
)
"""Words that forbid nothing by themselves: `Never`, `Things to avoid`, `The assistant must not do the following`."""
_COMMANDING = re.compile(r"\W*(?:never|always|do not|don['’]t)\b", re.IGNORECASE)
_LINKED = re.compile(r"[;,]\s*(?:and|or)?\s*\Z", re.IGNORECASE)
BULLETS: Final = "•●▪◦–"
"""What word processors begin items with, and Markdown does not know."""
_BULLET = re.compile(rf"^(\s*)(?:[{BULLETS}]|\(?[a-z]\))(?=\s)", re.MULTILINE)
_BOLD_START = re.compile(r"(?:\*\*|__)(.+?)(?:\*\*|__)", re.DOTALL)
_CHECKBOX = re.compile(r"^(\s*(?:[-*+]|\d{1,9}[.)])[ \t]+)\[[ xX]\][ \t]+", re.MULTILINE)


def read_markdown(content: str) -> Prose:
    """The principles of a prose document.

    List items are principles. So is a heading with no list and no further headings below it, together with its
    paragraphs. In a document without either, the paragraphs are. Items within items belong to the outer one. All other
    blocks are asides; so are code, tables and HTML that stand outside an item.

    What would ask for the contrary without the heading above it, such as an item below `Never`, is read behind it.
    """
    blocks = list(_blocks(content))
    headings = [number for number, block in enumerate(blocks) if block.kind == "heading"]
    top = [blocks[number] for number in headings if blocks[number].level == 1]
    title = top[0] if len(top) == 1 and blocks[headings[0]] is top[0] else None
    principles: list[ProseBlock] = []
    preamble: list[ProseBlock] = []
    asides: list[ProseBlock] = []
    forbidding: list[ProseBlock] = []
    for start, end in pairwise([-1, *headings, len(blocks)]):
        heading = None if start < 0 or blocks[start] is title else blocks[start]
        section = heading.text if heading else ""
        body = [block._replace(section=section) for block in blocks[start + 1 : end]]
        outer = above = ""
        if start >= 0:
            forbidding = [block for block in forbidding if block.level < blocks[start].level]
            outer = forbidding[-1].text if forbidding else ""
            forbidding += [blocks[start]] if forbids_below(blocks[start].text) else []
            above = forbidding[-1].text if forbidding else ""
        if _BINDING.search(section) and not section.endswith("?"):
            above = section
        body = list(_with_lead_ins(body, above))
        items = [block for block in body if block.kind == "item"]
        paragraphs = [block for block in body if block.kind == "paragraph"]
        context = " ".join(block.text for block in paragraphs)
        if not heading:
            preamble += paragraphs
        elif not items and (end == len(blocks) or blocks[end].level <= heading.level):
            text = behind(outer, _joined([section, context], ": "))
            principles.append(heading._replace(text=text, section=section))
        else:
            asides += [block._replace(use="context" if items else "nothing") for block in paragraphs]
        principles += [item._replace(context=context if heading else "") for item in items]
        asides += [block for block in body if block.kind not in ("item", "paragraph")]
    if not principles:
        above = title.text if title and forbids_below(title.text) else ""
        principles, preamble = [block._replace(text=behind(above, block.text)) for block in preamble], []
    asides = [block._replace(use="description") for block in preamble] + asides
    description = "\n\n".join(block.text for block in preamble)
    principles = [principle for principle in principles if principle.text]
    return Prose(top[0].text if top else "", description, principles, asides)


def forbids_below(text: str) -> bool:
    """Whether words such as `Never`, `Don'ts` or `It must not help with:` forbid what is said below them."""
    return bool(_UNFINISHED.fullmatch(text)) or (text.endswith(":") and bool(_FORBIDDING.search(text)))


def behind(heading: str, text: str) -> str:
    """The text behind the words of a heading, if there are any and it is no command such as `Never lie`."""
    return _finished(heading, text) if heading and not _COMMANDING.match(text) else text


def _finished(words: str, text: str) -> str:
    words = words if words.endswith(":") else f"{words.rstrip(' .!…')}:"
    return f"{words} {_LINKED.sub('', text)}"


def _with_lead_ins(body: Iterable[ProseBlock], heading: str) -> Iterator[ProseBlock]:
    """The blocks below a heading; items that finish a sentence above their list, such as `Never:`, have it whole.

    The other items are behind the words of the heading, if it has any that they need.
    """
    lead_in = before = ""
    held: ProseBlock | None = None
    for block in body:
        if block.kind == "item" and lead_in:
            if held and before:
                yield held._replace(text=before, name=before)
            held, before = None, ""  # the lead-in stands in every item
            yield block._replace(text=_finished(lead_in, block.text))
            continue
        if held:
            yield held
        held, lead_in = None, ""
        *sentences, last = re.split(r"(?<=[.!?])\s+", block.text)
        binding = forbids_below(last) or (last.endswith(":") and _BINDING.search(last))
        if block.kind == "paragraph" and binding:
            held, before, lead_in = block, " ".join(sentences), last
        else:
            yield block._replace(text=behind(heading, block.text)) if block.kind == "item" else block
    if held:
        yield held


def plain_text(content: str) -> str:
    """Prose in Markdown on one line, without marks, fences and tables."""
    kinds = ("heading", "item", "paragraph")
    return _joined(block.text for block in _blocks(content) if block.kind in kinds)


def _blocks(content: str) -> Iterator[ProseBlock]:
    content = _BLANKED.sub(lambda match: "\n" * match[0].count("\n"), re.sub(r"\r\n?", "\n", content))
    content = _CHECKBOX.sub(r"\1", _BULLET.sub(r"\1-", _IN_BRACKETS.sub(r"\1\2.", content)))
    parser = MarkdownIt("commonmark", {"maxNesting": MOST_LEVELS}).enable(["table", "strikethrough"])
    parser.disable("text_join")  # so that an escaped `\{#id}` stays apart from text
    for tokens in _groups(parser.parse(content)):
        kind = _KINDS.get(tokens[0].type)
        parts = [_part(token) for token in tokens]
        text = _joined(words for words, _ in parts)
        if kind and (text or kind == "heading"):  # the others are thematic breaks, comments and empty items
            own_id = next((name for _, name in parts if name), None)
            bold = _BOLD_START.match(next((token.content for token in tokens if token.type == "inline"), ""))
            level = int(tokens[0].tag[1:]) if kind == "heading" else 0
            line = tokens[0].map[0] + 1 if tokens[0].map else 1
            yield ProseBlock(kind, level, line, text, own_id, bold[1] if bold and kind == "item" else text)


def _joined(texts: Iterable[str], joint: str = "; ") -> str:
    """The texts on one line, with the joint behind those that do not end a sentence."""
    made = ""
    for text in filter(None, (" ".join(text.split()) for text in texts)):
        made += f"{'' if not made else ' ' if made.endswith(_ENDS) else joint}{text}"
    return made


def _groups(tokens: Sequence[Token]) -> Iterator[list[Token]]:
    """The tokens of each block. Lists and quotations are no blocks of their own, but what stands in them is."""
    group: list[Token] = []
    depth = 0
    for token in tokens:
        if token.level == MOST_LEVELS - 1 and token.type in ("list_item_open", "blockquote_open"):
            yield [Token("too_deep", "", 0, map=token.map, content="…")]
        if depth or not token.type.startswith(("bullet_list", "ordered_list", "blockquote")):
            group.append(token)
            depth += token.nesting
            if not depth:
                yield group
                group = []


def _part(token: Token) -> tuple[str, str | None]:
    """The text of a token, without marks and without the ids that end its lines, and the first of those ids."""
    if token.type != "inline":
        return _COMMENT.sub("", token.content) if token.type == "html_block" else token.content, None
    text = ""
    own_id: str | None = None
    children = token.children or []
    struck = 0
    for child, following in zip_longest(children, children[1:]):
        struck += child.nesting if child.type in ("s_open", "s_close") else 0
        if struck:
            continue  # who strikes a rule out means it no more
        words = " " if child.type.endswith("break") else child.content
        if child.type == "html_inline":
            words = _COMMENT.sub("", words)
        ends_line = following is None or following.type.endswith("break")
        if child.type == "text" and ends_line and (attributes := _ATTRIBUTES.search(words)):
            own_id = own_id or attributes[1]
            words = words[: attributes.start()]
        text += words
    return text, own_id
