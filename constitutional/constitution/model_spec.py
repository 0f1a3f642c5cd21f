"""Reads the OpenAI Model Spec's Markdown: sections with an authority, commentary, and comparisons as examples.

A section whose heading says `authority=…` is a principle; one without is a container. Sections of a higher authority
override those of the next lower one, and so all below. `!!! meta "Commentary"` blocks are no rules. `**Example**`,
followed by a fence with `<comparison>`, holds replies marked `<!-- GOOD -->` and `<!-- BAD: why -->`.
"""

import html
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from itertools import pairwise, product, zip_longest
from typing import Any, Final, NamedTuple

from constitutional.base.progress import counted
from constitutional.constitution.constitution import MOST_CHARACTERS
from constitutional.constitution.foreign import Entry, Foreign
from constitutional.constitution.markdown import plain_text
from constitutional.constitution.principle_file import as_id
from constitutional.constitution.yaml import Problem, shown

AUTHORITIES: Final = ("root", "platform", "system", "developer", "user", "guideline")
"""From the highest to the lowest; `platform` is what earlier versions call the highest."""
MOST_PRIORITIES: Final = 20_000
"""Ids that are written below `overrides` in all; sections grow faster than lines where levels are large."""

_HEADING = re.compile(r"^ {0,3}(#{1,6})[ \t]+(.*?)[ \t]*(?:\{([^{}]*)\})?[ \t]*#*[ \t]*$")
_FENCE = re.compile(r"^ {0,3}(`{3,}|~{3,})[ \t]*(.*)$")
_ADMONITION = re.compile(r"^!!![ \t]+(\S.*)$")
_EXAMPLE = re.compile(r"^\s*\*\*Example\b[^*]*\*\*\s*:?\s*(.*)$", re.IGNORECASE)
_FOOTNOTE = re.compile(r"^ {0,3}\[\^[^\]]{1,99}\]:")
_ATTRIBUTE = re.compile(r"#([\w.:-]+)|([\w-]+)=(\"[^\"]*\"|'[^']*'|[^\s\"']+)")
_REFERENCE = re.compile(r"\[\?\]\(#([\w.:-]+)\)")
_TAG = re.compile(r"^[ \t]*<(system|developer|user|assistant|tool|comparison)\b([^>\n]*)>", re.MULTILINE)
_MARK = re.compile(r"<!--\s*(GOOD|BAD)\b\s*(?:\[[^\]]*\])?\s*:?\s*(.*?)\s*-->", re.DOTALL | re.IGNORECASE)
_COMMENT = re.compile(r"<!--.*?-->", re.DOTALL)


class _Block(NamedTuple):
    """Part of a section: its own words, an example, or what is no rule."""

    kind: str
    """`text`, `fence`, `commentary`, `footnote`, or `lost`, an example without a fence."""
    line: int
    lines: list[str]
    title: str = ""
    """Of the example that a fence follows; empty where it follows none."""


class _Section(NamedTuple):
    line: int
    level: int
    title: str
    own_id: str
    authority: str
    blocks: list[_Block]


class _Turn(NamedTuple):
    """A message, or a reply with its mark."""

    role: str
    text: str
    mark: str = ""
    reason: str = ""


def is_model_spec(content: str) -> bool:
    """Whether headings have authorities: half of those without headings below them, or any beside blocks of its own."""
    lines = list(_outside_fences(content))
    headings = [match for line in lines if (match := _HEADING.match(line))]
    with_authority = sum("authority=" in (match[3] or "") for match in headings)
    ends = [
        match for match, below in zip_longest(headings, headings[1:]) if not below or len(below[1]) <= len(match[1])
    ]
    own_blocks = "<comparison>" in content or any(map(_ADMONITION.match, lines))
    return bool(with_authority) and (own_blocks or 2 * with_authority >= len(ends))


def read_model_spec(content: str) -> Foreign:
    """The sections that have an authority, as principles."""
    sections = list(_sections(content))
    titles = {section.own_id: section.title for section in sections if section.own_id}
    top = [section for section in sections if section.level == 1]
    about = {"name": top[0].title} if len(top) == 1 and not top[0].authority else {"name": "Model Spec"}
    entries, left_out = list[Entry](), list[Problem]()
    above: list[_Section] = []
    by_authority: defaultdict[str, list[str]] = defaultdict(list)
    for section in sections:
        above = [parent for parent in above if parent.level < section.level]
        path = " > ".join(parent.title for parent in [*above, section])
        above += [section] if section.title else []
        left_out += _not_carried(section)
        if not section.authority:
            left_out += _container(section)
            continue
        text = _text_of(section, titles)
        if len(text) > MOST_CHARACTERS:
            left_out.append(
                Problem(section.line, f"'{section.title}': what lies beyond {MOST_CHARACTERS:,} characters")
            )
            text = text[:MOST_CHARACTERS].rpartition(" ")[0]
        examples, lacking = _examples(section)
        left_out += lacking
        values: dict[str, Any] = {
            "text": text,
            "tags": [section.authority],
            "examples": examples,
            "source": {"section": path, "line": section.line},
        }
        if section.own_id:
            values["id"] = as_id(section.own_id)
            by_authority[section.authority].append(values["id"])
        entries.append(Entry(section.line, values, section.title))
    left_out += _ordered(entries, by_authority)
    return Foreign("OpenAI Model Spec", entries, sorted(left_out, key=lambda note: note.line or 0), about=about)


# Lines


def _outside_fences(content: str) -> Iterator[str]:
    fence = ""
    for line in content.split("\n"):
        match = _FENCE.match(line)
        if fence:
            if _closes(line, fence):
                fence = ""
        elif match:
            fence = match[1]
        else:
            yield line


def _closes(line: str, fence: str) -> bool:
    stripped = line.strip()
    return len(stripped) >= len(fence) and set(stripped) == {fence[0]} and len(line) - len(line.lstrip()) < 4


def _sections(content: str) -> Iterator[_Section]:
    section, lines = _Section(1, 0, "", "", "", []), content.split("\n")
    title, at = "", 0
    while at < len(lines):
        if heading := _HEADING.match(lines[at]):
            yield section
            section, title = _begun(heading, at + 1), ""
            at += 1
        else:
            block, at, title = _next_block(lines, at, title)
            section.blocks.append(block)
    yield section


def _next_block(lines: Sequence[str], at: int, title: str) -> tuple[_Block, int, str]:
    """The block that begins here, where the next one does, and the title of an example whose fence is still to come."""
    line, end = lines[at], at + 1
    if fence := _FENCE.match(line):
        while end < len(lines) and not _closes(lines[end], fence[1]):
            end += 1
        return _Block("fence", at + 1, list(lines[at + 1 : end]), title), end + 1, ""
    if _ADMONITION.match(line) or _FOOTNOTE.match(line):
        while end < len(lines) and _goes_on(lines, end):
            end += 1
        kind = "commentary" if _ADMONITION.match(line) else "footnote"
        return _Block(kind, at + 1, list(lines[at:end])), end, title
    if example := _EXAMPLE.match(line):
        while end < len(lines) and lines[end].strip() and not _FENCE.match(lines[end]):
            end += 1
        title = " ".join([example[1], *lines[at + 1 : end]]).strip() or "untitled"
        if _FENCE.match(_following(lines, end)):
            return _Block("text", at + 1, [""]), end, title
        return _Block("lost", at + 1, [title]), end, ""
    return _Block("text", at + 1, [line]), end, title


def _goes_on(lines: Sequence[str], at: int) -> bool:
    """Whether a line belongs to the indented block above it; a blank one does if what follows it does."""
    return _following(lines, at).startswith(("    ", "\t"))


def _following(lines: Sequence[str], at: int) -> str:
    """The first line from here on that is not blank."""
    while at < len(lines) and not lines[at].strip():
        at += 1
    return lines[at] if at < len(lines) else ""


def _begun(heading: re.Match[str], line: int) -> _Section:
    attributes = {match[2]: match[3].strip("\"'") for match in _ATTRIBUTE.finditer(heading[3] or "") if match[2]}
    own_id = next((match[1] for match in _ATTRIBUTE.finditer(heading[3] or "") if match[1]), "")
    title = plain_text(heading[2]) or f"section in line {line}"
    return _Section(line, len(heading[1]), title, own_id, attributes.get("authority", "").lower(), [])


# Sections


def _text_of(section: _Section, titles: dict[str, str]) -> str:
    """The heading and what stands below it, without Markdown's marks, with titles for references to sections."""
    written = "\n".join(line for block in section.blocks if block.kind == "text" for line in block.lines)
    written = re.sub(r"\[\^[^\]\n]{1,99}\]", "", _COMMENT.sub("", written))
    written = _REFERENCE.sub(lambda match: f"“{titles.get(match[1], match[1])}”", written)
    written = re.sub(r"(?<=\s)---(?=\s)", "—", written)
    body = plain_text(written)
    joint = " " if section.title.endswith((".", "!", "?", ":")) else ": "
    return f"{section.title}{joint}{body}" if body else section.title


def _container(section: _Section) -> Iterator[Problem]:
    words = sum(len(line.split()) for block in section.blocks if block.kind == "text" for line in block.lines)
    what = f"'{shown(section.title)}'" if section.title else "what stands before the first heading"
    if words:
        why_not = "it has no authority, so it only holds other sections"
        yield Problem(section.line, f"{what} ({counted(words, 'word')}): {why_not}")


def _not_carried(section: _Section) -> Iterator[Problem]:
    for block in section.blocks:
        if block.kind == "commentary":
            text = " ".join(" ".join(block.lines[1:]).split())
            yield Problem(block.line, f'the commentary "{shown(text)}": it is no rule')
        elif block.kind == "footnote":
            yield Problem(block.line, f'the footnote "{shown(block.lines[0])}": it is no rule')
        elif block.kind == "lost":
            yield Problem(block.line, f"the example '{shown(block.lines[0])}': no fence with a comparison follows it")
        elif block.kind == "fence" and not section.authority:
            yield Problem(
                block.line, f"'{shown(section.title)}': the example or code of a section that is no principle"
            )


def _ordered(entries: Sequence[Entry], by_authority: dict[str, list[str]]) -> Iterator[Problem]:
    """Let each authority override the next lower one that there is; says what has no place in the order."""
    for entry in entries:
        (authority,) = entry.values["tags"]
        if authority not in AUTHORITIES:
            yield Problem(entry.line, f"authority '{shown(authority)}' is kept as a tag, and has no place in the order")
        elif "id" not in entry.values:
            yield Problem(entry.line, f"'{shown(entry.name)}' has no id, so no authority overrides it")
    levels = [authority for authority in AUTHORITIES if authority in by_authority]
    next_lower = dict(pairwise(levels))
    count = sum(len(by_authority[upper]) * len(by_authority[lower]) for upper, lower in next_lower.items())
    if count > MOST_PRIORITIES:
        yield Problem(1, f"the order of priority: {count:,} pairs are more than a file can hold ({MOST_PRIORITIES:,})")
        return
    for entry in entries:
        (authority,) = entry.values["tags"]
        if "id" in entry.values and authority in next_lower:
            entry.values["overrides"] = by_authority[next_lower[authority]]


# Examples


def _examples(section: _Section) -> tuple[list[dict[str, str]], list[Problem]]:
    """The section's comparisons of a good with a bad reply, and what is no such comparison."""
    examples, lacking = list[dict[str, str]](), list[Problem]()
    for block in section.blocks:
        if block.kind != "fence":
            continue
        where = f"the example '{shown(block.title)}'" if block.title else "a block of code"
        pairs, lacks = _compared("\n".join(block.lines))
        examples += pairs
        if lacks or not pairs:
            lacking.append(Problem(block.line, f"{where}: {lacks or 'it compares nothing'}"))
    return examples, lacking


def _compared(text: str) -> tuple[list[dict[str, str]], str]:
    """The pairs of a good and a bad reply in an example's text, and what else there was."""
    examples: list[dict[str, str]] = []
    lacks: list[str] = []
    before: list[_Turn] = []
    for tag, replies in _turns(text):
        if replies is None:
            before.append(tag)
            continue
        good, bad = ([reply for reply in replies if reply.mark == mark] for mark in ("GOOD", "BAD"))
        if unmarked := [reply for reply in replies if not reply.mark]:
            lacks.append(f"{counted(len(unmarked), 'reply')} without a mark" if good or bad else "it compares nothing")
        if not good or not bad:
            if good or bad:
                lacks.append(f"it has a {'GOOD' if good else 'BAD'} reply only, and an example needs both")
        elif prompt := _prompt(before):
            examples += [_example(prompt, better, worse) for better, worse in product(good, bad)]
        else:
            lacks.append("it has no message that is replied to")
        before += [reply._replace(mark="") for reply in good[:1]]
    return examples, "; ".join(dict.fromkeys(lacks))


def _turns(text: str) -> Iterator[tuple[_Turn, list[_Turn] | None]]:
    """Messages, each with None; and comparisons, an empty message with the replies that are compared.

    Replies with a mark that stand in no comparison are one.
    """
    loose: list[_Turn] = []
    for name, content, start in _elements(text):
        if name == "comparison":
            replies = [_turn(role, part, content[:at]) for role, part, at in _elements(content)]
            yield _Turn("", ""), [reply for reply in replies if reply.role == "assistant"]
            continue
        turn = _turn(name, content, text[:start])
        if turn.mark:
            loose.append(turn)
        else:
            yield turn, None
    if loose:
        yield _Turn("", ""), loose


def _elements(text: str) -> Iterator[tuple[str, str, int]]:
    """The outermost messages: tag, content and where it begins; a tag that never ends holds the rest."""
    at = 0
    while tag := _TAG.search(text, at):
        closing = re.compile(rf"^[ \t]*</{tag[1]}>|</{tag[1]}>[ \t]*$", re.MULTILINE).search(text, tag.end())
        end = closing.start() if closing else len(text)
        yield tag[1].lower(), text[tag.end() : end], tag.start()
        at = closing.end() if closing else len(text)


def _turn(role: str, content: str, before: str) -> _Turn:
    """A message; its mark stands in it, or directly before it."""
    mark = _MARK.search(content)
    if mark is None and (last := list(_MARK.finditer(before))) and not before[last[-1].end() :].strip():
        mark = last[-1]
    text = html.unescape(_COMMENT.sub("", content)).strip("\n").strip()
    reason = " ".join(html.unescape(mark[2]).split()) if mark else ""
    return _Turn(role, text, mark[1].upper() if mark else "", reason)


def _prompt(turns: Sequence[_Turn]) -> str:
    """The message that is replied to; several are written out with who says what."""
    turns = [turn for turn in turns if turn.text]
    if [turn.role for turn in turns] == ["user"]:
        return turns[0].text
    return "\n\n".join(f"{turn.role.capitalize()}: {turn.text}" for turn in turns)


def _example(prompt: str, better: _Turn, worse: _Turn) -> dict[str, str]:
    reasons = [f"{turn.mark}: {turn.reason}" for turn in (better, worse) if turn.reason]
    example = {"prompt": prompt, "better": better.text, "worse": worse.text}
    return example | ({"why": "; ".join(reasons)} if reasons else {})
