"""Plain text without marks of lists: tells prose from a list of principles, one a line, and reads such a list."""

import re
from collections.abc import Sequence
from itertools import pairwise, zip_longest
from typing import Final

from constitutional.constitution.foreign import Entry, Foreign
from constitutional.constitution.markdown import behind, forbids_below
from constitutional.constitution.principle_file import is_comment
from constitutional.constitution.prose import ENDS, PAGE_NUMBER, SENTENCE_END, TextLine, binds
from constitutional.constitution.yaml import Problem, shown

MOST_TITLE_WORDS: Final = 6
"""Words above a list that can be its title."""
LEAST_PROSE_WORDS: Final = 60
"""Words of a text that can be prose."""
LONG_LINE_WORDS: Final = 60
"""Words of a line that is more than a principle."""

_PART: Final = re.compile(r"(?:article|section|chapter|part|annex|title)\s+(?:\d+|[ivxlc]+)\b", re.IGNORECASE)
_STATES: Final = re.compile(
    r"[\"'“(\[]*(?:(?:the|this|that|these|those|it|we|they|there|our|its|their|an?|in|on|at|as|for|when|where|while|if|"
    r"because|since|although|however|but|and|people|users?|nobody|everyone|you|i|all|every|each|no|some|most|many)\b"
    r"|\w+ (?:is|are|was|were|has|have|can|may|will|must|should|shall|ought)\b)",
    re.IGNORECASE,
)
"""How a sentence begins that says how things are, and does not command."""


def is_prose(content: str) -> bool:
    """Whether a plain text is prose, and no list of principles, one a line.

    Prose has pages, very long lines, or lines that are cut within a sentence. Or most words stand in paragraphs of
    several sentences, most of which are no commands, and headings or paragraphs that bind nothing stand among them.
    """
    if "\f" in content:
        return True
    lines = [line.strip() for line in content.split("\n")]
    texts = [line for line in lines if line]
    words = _words(texts)
    if words < LEAST_PROSE_WORDS:
        return False
    if 2 * _words([line for line in texts if len(line.split()) > LONG_LINE_WORDS]) > words:
        return True
    width = _width(texts)
    # A line that is full, ends within a sentence and goes on in small letters was wrapped.
    pairs = [(first, second) for first, second in pairwise(lines) if first and second]
    wrapped = sum(_goes_on(first, second, width) for first, second in pairs)
    if width > 40 and wrapped >= max(3, len(texts) // 10, len(pairs) // 3):
        return True
    whole = [line.text for line in _unwrapped(content)]
    split = [SENTENCE_END.split(text) for text in whole if text]
    paragraphs = [sentences for sentences in split if len(sentences) > 1]
    in_paragraphs = [sentence for sentences in paragraphs for sentence in sentences]
    stating = sum(bool(_STATES.match(sentence)) for sentence in in_paragraphs)
    if 2 * _words(in_paragraphs) <= words or 2 * stating <= len(in_paragraphs):
        return False
    telling = sum(not any(map(binds, sentences)) and bool(_STATES.match(sentences[0])) for sentences in paragraphs)
    headings = sum(not ENDS.search(sentences[0]) and sentences[0][:1].isupper() for sentences in split if sentences[0])
    return headings > 1 or 4 * telling > len(paragraphs)


def read_list(content: str) -> Foreign:
    """A list of principles, one a line, without the headings and the numbers of pages that stand among them.

    The lines directly below one such as `Never:` are read behind its words, as they would ask for the contrary alone.
    """
    rows = [row for row in _unwrapped(content) if not is_comment(row.text)]
    filled = [row for row in rows if row.text]
    about = {}
    if _is_title([row.text for row in filled]):
        about = {"name": filled[0].text.rstrip(" :")}
        rows.remove(filled.pop(0))
    headings = _headings(rows)
    numbers = [row for row in filled if PAGE_NUMBER.match(row.text)]
    entries, left_out, problems = list[Entry](), list[Problem](), list[Problem]()
    forbidding = ""
    for row, below in zip_longest(rows, rows[1:]):
        if row in headings or not row.text:
            forbidding = ""
            left_out += [Problem(row.number, f'"{shown(row.text)}": a heading')] if row.text else []
        elif row in numbers and len(numbers) < len(filled):
            left_out.append(Problem(row.number, f'"{shown(row.text)}": a number alone'))
        elif forbids_below(row.text):
            forbidding = row.text
            if below is None or not below.text or below in headings or forbids_below(below.text):
                advice = "write the lines that it is about directly below it, or its words in each of them"
                problems.append(Problem(row.number, f'"{shown(row.text)}" forbids nothing by itself; {advice}'))
        else:
            entries.append(Entry(row.number, {"text": behind(forbidding, row.text)}, row.text))
    return Foreign("a list, one principle a line", entries, left_out, problems, about)


def _words(texts: Sequence[str]) -> int:
    return sum(len(text.split()) for text in texts)


def _width(texts: Sequence[str]) -> int:
    """Characters of a full line."""
    return sorted(map(len, texts))[len(texts) * 9 // 10]


def _goes_on(first: str, second: str, width: int) -> bool:
    return second[:1].islower() and 5 * len(first) > 3 * width and not ENDS.search(first)


def _unwrapped(content: str) -> list[TextLine]:
    """The lines, with one that was cut within a sentence whole again; empty lines stay.

    Only where a quarter of the lines end as sentences do, and most begin with no small letter, is one without an end,
    which small letters follow, a part of a sentence.
    """
    lines = [TextLine(number, line.strip()) for number, line in enumerate(content.split("\n"), start=1)]
    texts = [line.text for line in lines if line.text]
    ending = 4 * sum(bool(ENDS.search(text)) for text in texts) >= len(texts)
    ending = ending and 2 * sum(text[0].islower() for text in texts) < len(texts)
    width = _width(texts) if texts else 0
    whole = list[TextLine]()
    full = ""
    for line in lines:
        # Whether a line was full is told by the last part of a sentence and not by all of it.
        if full.endswith("-") and line.text[:1].islower():
            whole[-1] = whole[-1]._replace(text=whole[-1].text[:-1] + line.text)
        elif full and ending and width > 40 and _goes_on(full, line.text, width):
            whole[-1] = whole[-1]._replace(text=f"{whole[-1].text} {line.text}")
        else:
            whole.append(line)
        full = line.text
    return whole


def _is_title(lines: Sequence[str]) -> bool:
    """Whether the first of some lines is a title: some words without an end, above whole sentences alone."""
    title, *others = lines or [""]
    if title.startswith("#") or forbids_below(title):
        return False
    whole = all(line.endswith((".", "!", "?")) for line in others)
    return len(others) > 1 and whole and len(title.split()) <= MOST_TITLE_WORDS and not title.endswith((".", "!", "?"))


def _headings(rows: Sequence[TextLine]) -> list[TextLine]:
    """Short lines without an end among lines of whole sentences, each with an empty line or nothing above it.

    A line without an end may also be a principle whose full stop was forgotten. So a heading counts a part (`Article
    3`), ends with a colon, has a capital letter in every word, or is the only one of its group that has no end.
    """
    filled = [row for row in rows if row.text]
    open_ended = [row for row in filled if not row.text.endswith((".", "!", "?"))]
    if 2 * len(open_ended) > len(filled):
        return []
    found = []
    for before, row, after in zip([TextLine(0, ""), *rows], rows, [*rows[1:], TextLine(0, "")], strict=False):
        if row not in open_ended or before.text or len(row.text.split()) > MOST_TITLE_WORDS:
            continue
        if binds(row.text) or row.text.startswith("#") or forbids_below(row.text):
            continue
        capital = all(word[0].isupper() for word in re.findall(r"[^\W\d_]{4,}", row.text)) and row.text[0].isupper()
        if _PART.match(row.text) or row.text.endswith(":") or capital or (after.text and after not in open_ended):
            found.append(row)
    return found
