"""Reads a long constitution in prose, as text from a PDF or in Markdown: the sentences that bind, each with its place.

Page headers, page numbers and hard wraps are taken out first, so that a sentence is whole wherever its page ends. Then
headings make sections, and a sentence is a principle where it says what the model should, must or never may do, or what
its authors want it to do. Everything else is left out, and counted by section.
"""

import bisect
import re
import sys
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from itertools import pairwise, zip_longest
from typing import Final, NamedTuple

from constitutional.base.progress import counted
from constitutional.constitution.constitution import MOST_CHARACTERS, MOST_PRINCIPLES
from constitutional.constitution.foreign import Entry, Foreign
from constitutional.constitution.yaml import Problem, shown

LEAST_WORDS: Final = 4
"""Of a sentence that can be a principle."""
MOST_HEADING_WORDS: Final = 14
MOST_WRAPPED: Final = 160
"""Characters of a line that an editor or a PDF has wrapped."""
LEAST_REPEATS: Final = 3
"""Pages on which a line stands that is a header or a footer."""

PAGE_NUMBER = re.compile(
    r"^\s*(?:page\s+)?[-–—|\s]*(?:\d{1,4}|x{0,3}(?:ix|iv|vi{0,3}|i{1,3}|x))[-–—|\s]*(?:(?:of|/)\s*\d{1,4})?\s*$",
    re.IGNORECASE,
)
_CONTENTS = re.compile(r"\S(?:\s{4,}|(?:\s?(?:\.|…|·)){3,}\s*)\d{1,4}\s*$")
"""A line of a table of contents, or a header with the page's number."""
_ATX = re.compile(r"^ {0,3}(#{1,6})[ \t]+(.+?)[ \t]*(?:\{[^{}]*\})?[ \t]*#*[ \t]*$")
_NUMBERED = re.compile(r"^(?:(?:section|part|chapter|article)\s+)?(\d{1,3}(?:\.\d{1,3})*)[.)]?\s+(?=\S)", re.IGNORECASE)
ITEM_MARK = re.compile(r"^\s*(?:[-*+•●▪◦–—]|\d{1,3}[.)]|\(?[a-z]\))\s+(?=\S)")
_MARKS = re.compile(r"(\*\*|__|(?<!\w)[*_](?=\S)|(?<=\S)[*_](?!\w)|`)|!?\[([^\]\n]*)\]\([^)\n]*\)|\[\^[^\]\n]{1,99}\]")
ENDS = re.compile(r"[.!?:;…][\"'”’)\]]*$")
SENTENCE_END = re.compile(r"(?<=[.!?…])[\"'”’)\]]*\s+(?=[\"'“‘(\[]*[A-Z0-9À-Þ])")  # noqa: RUF001 - quotation marks
_ABBREVIATION = re.compile(
    r"(?:\b(?:e\.g|i\.e|etc|vs|cf|al|mr|mrs|ms|dr|prof|st|no|nos|p|pp|fig|sec|ch|art|inc|u\.s|u\.k)|(?-i:\b[A-Z]))\.$",
    re.IGNORECASE,
)

_MODEL = (
    r"(?:claude|the (?:assistant|model|ai|chatbot|agent|system)|(?:our|ai|these|such) (?:models?|assistants?|systems?)|"
    r"assistants?|models?|it|you|i)"
)
_MODAL = (
    r"(?:should(?:n['’]t)?|must(?:n['’]t)?|shall|ought(?:n['’]t)? to|needs? to|ha(?:s|ve) to|"
    r"(?:is|are) (?:required|expected|obliged|obligated|forbidden|prohibited) (?:to|from))"
)
_OTHERS = (
    r"(?:we|anthropic|openai|google|operators?|users?|developers?|people|humans?|humanity|society|companies|"
    r"governments?|readers?|they|one|others|everyone|document|guidelines?|constitution|employees?|staff|members?|board|"
    r"committee|council)"
)
_WANT = r"(?:wants?|expects?|hopes?|asks?|like|prefers?|intends?|needs?|requires?|aims?|wish(?:es)?|trains?)"
_NOT_THE_MODEL = (
    r"(?!(?:we|they|people|humans?|users?|operators?|developers?|readers?|everyone|anyone|somebody|society|others|this|"
    r"that|there|these|those|the (?:world|public|reader|user|document)|anthropic|openai|what|who)\b)"
)
_BINDS = re.compile(
    rf"\b{_MODAL}(?!\w)"
    rf"|\b(?:{_MODEL}|{_NOT_THE_MODEL}(?-i:[A-Z])\w+)(?:['’]ll| will| would)? (?:never|always)\b"
    r"|\b(?:we|anthropic|openai)(?:['’]d)?(?: \w+ly| also| therefore| do| don['’]t| not| would| will)*"
    rf" {_WANT} (?:for |that )?{_NOT_THE_MODEL}(?:{_MODEL}\b|(?:[\w'’-]+ ){{1,4}}?to\b)"
    r"|\A[^\w]*(?:never|always|do not|don['’]t|avoid|refrain|ensure|make sure|be sure|under no circumstances)\b",
    re.IGNORECASE,
)
_OF_OTHERS = re.compile(
    rf"\b{_OTHERS}(?: \w+ly)? {_MODAL}\b|\bit (?:should|must) be (?:noted|said|stressed|emphasi[sz]ed)\b|"
    rf"\bas (?:it|they) should\b|\b(?:how|why|what|whether|which|who) (?:[\w'’-]+ ){{1,4}}?{_MODAL}",
    re.IGNORECASE,
)
"""What binds others than the model, or only seems to bind."""
_REASON = re.compile(
    r"\A(?:this is (?:because|since)|that is because|the reason|because|otherwise|after all)\b", re.IGNORECASE
)


class TextLine(NamedTuple):
    """A line of the text, without page headers."""

    number: int
    text: str


class Paragraph(NamedTuple):
    """A paragraph, an item of a list, or a heading, with line breaks taken out."""

    kind: str
    """`paragraph`, `item` or `heading`."""
    text: str
    lines: tuple[tuple[int, int], ...]
    """(character at which it begins, its number) of every line of the file in it."""
    level: int = 0
    """The depth of a heading from 1; 0 where it is not known."""

    def line_at(self, character: int) -> int:
        """The line of the file in which a character of the text stands."""
        return self.lines[bisect.bisect_right(self.lines, (character, sys.maxsize)) - 1][1]


class Section(NamedTuple):
    """A heading with the paragraphs below it."""

    path: str
    """The headings that lead to it, joined by ` > `; empty before the first one."""
    line: int
    paragraphs: list[Paragraph]


# Lines and paragraphs


def _lines(content: str) -> list[TextLine]:
    """The lines without headers, footers, page numbers and tables of contents."""
    lines, pages = list[TextLine](), [0]
    for number, text in enumerate(content.split("\n"), start=1):
        for part_number, part in enumerate(text.split("\f")):
            if part_number:
                pages.append(len(lines))
            lines.append(TextLine(number, part.rstrip()))
    furniture = _furniture(lines, pages)
    return [row for index, row in enumerate(lines) if index not in furniture and not _CONTENTS.search(row.text)]


def _furniture(lines: Sequence[TextLine], pages: Sequence[int]) -> set[int]:
    """The places of lines that belong to the page and not to the text."""
    if len(pages) > 1:
        return _at_page_ends(lines, pages)
    # Without page breaks, a header is told by standing again and again, in the middle of sentences or beside numbers.
    filled = [index for index, line in enumerate(lines) if line.text.strip()]
    numbers = {index for index in filled if PAGE_NUMBER.match(lines[index].text)}
    numbers = numbers if len(numbers) >= LEAST_REPEATS else set()
    repeats: defaultdict[str, list[int]] = defaultdict(list)
    for place, index in enumerate(filled):
        text = lines[index].text.strip()
        if len(text) <= 120 and not ENDS.search(text) and not ITEM_MARK.match(text) and not _ATX.match(text):
            for key in _keys(text):
                repeats[key].append(place)
    furniture = set(numbers)
    for key, places in repeats.items():
        tells = sum(_cuts(lines, filled, place, numbers) for place in places)
        # A page's number changes, and cuts some sentence; chapters are numbered too, and cut none.
        least = 1 if "#" in key and len({lines[filled[place]].text for place in places}) > 1 else len(places) / 4
        if len(places) >= LEAST_REPEATS and tells >= least:
            furniture.update(filled[place] for place in places)
    title = {index for index in filled[:1] if not re.search(r"\d", lines[index].text)}
    return furniture - title


def _at_page_ends(lines: Sequence[TextLine], pages: Sequence[int]) -> set[int]:
    """Lines that stand at the top or the bottom of several pages, and numbers of pages.

    The first line of the text stays where it is a title and not a header in several parts.
    """
    counts: Counter[str] = Counter()
    edges: list[int] = []
    for start, end in pairwise([*pages, len(lines)]):
        filled = [index for index in range(start, end) if lines[index].text.strip()]
        edge = list(dict.fromkeys([*filled[:2], *filled[-2:]]))
        counts.update({key for index in edge for key in _keys(lines[index].text)})
        edges += edge
    least = min(LEAST_REPEATS, max(2, len(pages) - 1))
    repeated = [index for index in edges if any(counts[key] >= least for key in _keys(lines[index].text))]
    titles = [index for index in repeated[:2] if len(_keys(lines[index].text)) == 1 and index < pages[1]]
    kept = {index for index in titles[:1] if not re.search(r"\d", lines[index].text)}
    return {index for index in edges if PAGE_NUMBER.match(lines[index].text)} | set(repeated) - kept


def _keys(text: str) -> list[str]:
    """What a header is known by on other pages: the line, or each part of one in several columns, without numbers."""
    parts = re.split(r"\s{3,}|\t", text.strip())
    return [re.sub(r"\d+", "#", " ".join(part.lower().split())) for part in parts]


def _cuts(lines: Sequence[TextLine], filled: Sequence[int], place: int, numbers: set[int]) -> bool:
    """Whether a line stands in the middle of a sentence, or beside a page's number."""
    before = filled[place - 1] if place else None
    after = filled[place + 1] if place + 1 < len(filled) else None
    if numbers & {before, after}:
        return True
    if before is None or after is None:
        return False
    return not ENDS.search(lines[before].text) and lines[after].text.strip()[:1].islower()


def _paragraphs(content: str) -> list[Paragraph]:
    """The headings, paragraphs and items of a text, in order."""
    lines = _lines(content)
    known = Counter(word.lower() for line in lines for word in re.findall(r"\w+(?:-\w+)*", line.text))
    wrapped = sorted(len(line.text) for line in lines if len(line.text) > 40)
    width = wrapped[len(wrapped) * 9 // 10] if wrapped else 0
    found = [[line] for group in _groups(lines) for line in group] if _is_unwrapped(lines) else _groups(lines)
    groups = [part for group in found for part in _headed(group, width)]
    blocks: list[tuple[str, int, list[TextLine]]] = []
    for place, group in enumerate(groups):
        kind, level = _kind_of(group, groups[place + 1] if place + 1 < len(groups) else None)
        if blocks and kind == "paragraph" and blocks[-1][0] != "heading" and _goes_on(blocks[-1][2][-1], group[0]):
            blocks[-1][2].extend(group)
        else:
            blocks.append((kind, level, list(group)))
    return [_joined(group, kind, level, known) for kind, level, group in blocks]


def _is_unwrapped(lines: Sequence[TextLine]) -> bool:
    """Whether a line is a paragraph: some are longer than a page is wide, and none is cut within a sentence."""
    wide = any(len(line.text) > MOST_WRAPPED for line in lines)
    return wide and not any(first.text and _goes_on(first, second) for first, second in pairwise(lines))


def _headed(group: Sequence[TextLine], width: int) -> Iterator[Sequence[TextLine]]:
    """A group in two where its first line, far shorter than the others may be, is a heading above them."""
    first = group[0].text.strip()
    heading = (
        len(group) > 1
        and 5 * len(first) < 3 * width
        and len(first.split()) <= MOST_HEADING_WORDS
        and first[:1].isupper()
        and not ENDS.search(first)
        and not first.endswith(",")
        and group[1].text.strip()[:1].isupper()
    )
    yield from (group[:1], group[1:]) if heading else (group,)


def _goes_on(before: TextLine, after: TextLine) -> bool:
    """Whether a paragraph goes on behind a page's end, where blank lines or a header stood between its parts."""
    return not ENDS.search(before.text) and after.text.strip()[:1].islower()


def _groups(lines: Sequence[TextLine]) -> Iterator[list[TextLine]]:
    """Lines that belong together: blank lines, items and headings begin a new group; fences are left out."""
    group: list[TextLine] = []
    fence = ""
    for line in lines:
        text = line.text.strip()
        if fence or text.startswith(("```", "~~~")):
            fence = "" if fence and text.startswith(fence) and not text.strip(fence[0]) else fence or text[:3]
            text = ""
        begins = bool(ITEM_MARK.match(text) or _ATX.match(text))
        ends = bool(group and _ATX.match(group[0].text))
        if group and (not text or begins or ends):
            yield group
            group = []
        if text and re.fullmatch(r"[=_*-]{3,}", text) is None:
            group.append(line)
    if group:
        yield group


def _kind_of(group: Sequence[TextLine], following: Sequence[TextLine] | None) -> tuple[str, int]:
    """`heading`, `item` or `paragraph`, and a heading's depth where it is known."""
    text = group[0].text.strip()
    if match := _ATX.match(text):
        return "heading", len(match[1])
    whole = " ".join(line.text.strip() for line in group[:3])
    short = len(group) <= 2 and len(whole.split()) <= MOST_HEADING_WORDS
    names = whole[:1].isupper() or whole[:1].isdigit()
    if short and names and following and not whole.endswith(",") and not ENDS.search(whole):
        numbered = _NUMBERED.match(text)
        if numbered and not (ITEM_MARK.match(text) and ITEM_MARK.match(following[0].text)):
            return "heading", numbered[1].count(".") + 1
        if not ITEM_MARK.match(text):
            return "heading", 0
    return ("item", 0) if ITEM_MARK.match(text) else ("paragraph", 0)


def _clean(text: str, kind: str) -> str:
    """A line without the marks of Markdown and of lists."""
    text = text.strip()
    if kind == "heading" and (match := _ATX.match(text)):
        text = match[2]
    if kind == "item":
        text = ITEM_MARK.sub("", text)
    text = _MARKS.sub(lambda match: match[2] or "", text)
    return re.sub(r"[\x00-\x08\x0b-\x1f\x7f]", "", " ".join(text.split()))


def _joined(group: Sequence[TextLine], kind: str, level: int, known: Counter[str]) -> Paragraph:
    """The lines as one text; a word that was divided at the end of a line is whole again."""
    parts, places, length = list[str](), list[tuple[int, int]](), 0
    for number, line in enumerate(group):
        part = _clean(line.text, kind if number == 0 or kind == "heading" else "paragraph")
        if not part:
            continue
        if parts and parts[-1].endswith("-") and part[:1].islower():
            if not _is_hyphenated(parts[-1], part, known):
                parts[-1] = parts[-1][:-1]
                length -= 1
        elif parts:
            parts.append(" ")
            length += 1
        places.append((length, line.number))
        parts.append(part)
        length += len(part)
    return Paragraph(kind, "".join(parts), tuple(places), level)


def _is_hyphenated(before: str, after: str, known: Counter[str]) -> bool:
    """Whether a hyphen at the end of a line belongs to the word, by how the text writes the word elsewhere."""
    head, tail = re.search(r"(\w*)-$", before), re.match(r"\w*", after)
    if head is None or tail is None or not head[1]:
        return True
    return known[f"{head[1]}-{tail[0]}".lower()] > known[f"{head[1]}{tail[0]}".lower()]


# Sections and sentences


def sections(content: str) -> tuple[str, list[Section]]:
    """The title, if the text begins with one, and the sections in their order."""
    paragraphs = [paragraph for paragraph in _paragraphs(content) if paragraph.text]
    headings = [paragraph for paragraph in paragraphs if paragraph.kind == "heading"]
    title = paragraphs[0] if headings and paragraphs[0] is headings[0] else None
    if title and title.level > 1:
        title = None
    tops = sum(heading.level == 1 for heading in headings)
    if title and title.level == 1 and (tops > 1 or _NUMBERED.match(title.text)):
        title = None
    # Where most headings say their depth, one that does not stands below them.
    unknown = 7 if 2 * sum(heading.level > 0 for heading in headings) > len(headings) else 1
    above: list[tuple[int, str]] = []
    made = [Section("", 1, [])]
    for paragraph in paragraphs:
        if paragraph is title:
            continue
        if paragraph.kind != "heading":
            made[-1].paragraphs.append(paragraph)
            continue
        level = paragraph.level or unknown
        above = [(depth, name) for depth, name in above if depth < level]
        above.append((level, paragraph.text))
        made.append(Section(" > ".join(name for _, name in above), paragraph.lines[0][1], []))
    return (title.text if title else ""), [section for section in made if section.paragraphs]


def sentences_of(paragraph: Paragraph) -> Iterator[tuple[int, str]]:
    """The sentences of a paragraph, each with the line that it begins in."""
    start = 0
    for match in [*SENTENCE_END.finditer(paragraph.text), None]:
        end = len(paragraph.text) if match is None else match.end()
        piece = paragraph.text[start:end]
        if match and _ABBREVIATION.search(paragraph.text[max(start, match.start() - 12) : match.start()]):
            continue
        if piece.strip():
            yield paragraph.line_at(start), piece.strip()
        start = end


def binds(sentence: str) -> bool:
    """Whether a sentence says what the model is to do or to leave."""
    short = len(sentence.split()) < LEAST_WORDS and not sentence.endswith(":")
    if short or sentence.rstrip("\"'”’)").endswith("?"):
        return False
    return bool(_BINDS.search(_OF_OTHERS.sub(" ", sentence)))


def read_prose(content: str) -> Foreign:
    """The sentences that bind, as principles."""
    title, parts = sections(content)
    entries, left_out = list[Entry](), list[Problem]()
    first_line: dict[str, int] = {}
    for section in parts:
        kept, others = _bound(section)
        for entry in kept:
            text = entry.values["text"]
            if len(text) > MOST_CHARACTERS:
                left_out.append(
                    Problem(entry.line, f'"{shown(text)}": it has more than {MOST_CHARACTERS:,} characters')
                )
            elif text in first_line:
                left_out.append(Problem(entry.line, f'"{shown(text)}": the same as in line {first_line[text]}'))
            elif len(entries) >= MOST_PRINCIPLES:
                left_out.append(Problem(entry.line, f'"{shown(text)}": a file holds at most {MOST_PRINCIPLES:,}'))
            else:
                first_line[text] = entry.line
                entries.append(entry)
        if others:
            where = f"'{shown(section.path)}'" if section.path else "what stands before the first heading"
            line, sentence = others[0]
            total = counted(len(others), "sentence")
            left_out.append(
                Problem(
                    line,
                    f'{where}: {total} that bind{"s" if len(others) == 1 else ""} nothing, from "{shown(sentence)}" on',
                )
            )
    problems = []
    if not entries:
        problems.append(
            Problem(1, "holds no sentence that binds (should, must, never, we want … to); write a list of principles")
        )
    return Foreign("prose", entries, left_out, problems, {"name": title} if title else {})


def _bound(section: Section) -> tuple[list[Entry], list[tuple[int, str]]]:
    """The sentences of a section that bind, and the others with their lines.

    A sentence that ends with a colon binds with each item of the list behind it, and a sentence behind one that binds
    may give its reason.
    """
    entries, others = list[Entry](), list[tuple[int, str]]()
    lead: tuple[int, str] | None = None
    for paragraph in section.paragraphs:
        if paragraph.kind == "item" and lead:
            entries.append(_entry(f"{lead[1]} {paragraph.text}", section, paragraph.lines[0][1]))
            continue
        lead = None
        explains = False
        for line, sentence in sentences_of(paragraph):
            if explains and _REASON.match(sentence) and not binds(sentence):
                entries[-1].values["why"] = sentence
                explains = False
            elif explains := binds(sentence):
                entries.append(_entry(sentence, section, line))
            else:
                others.append((line, sentence))
        if explains and paragraph.text.endswith(":"):
            lead = line, sentence
    return _without_leads(entries), others


def _without_leads(entries: Sequence[Entry]) -> list[Entry]:
    """The entries without a sentence that only leads to the items of a list, as each of them repeats it."""
    return [
        entry
        for entry, following in zip_longest(entries, entries[1:])
        if following is None
        or not entry.values["text"].endswith(":")
        or not following.values["text"].startswith(f"{entry.values['text']} ")
    ]


def _entry(text: str, section: Section, line: int) -> Entry:
    tags = [section.path.split(" > ")[0]] if section.path else []
    return Entry(line, {"text": text, "tags": tags, "source": {"section": section.path, "line": line}})
