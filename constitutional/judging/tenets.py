"""Splits a constitution in prose into tenets with a model, each with its words in the text.

A model may write what the text does not say. So a tenet counts only with a quotation, and only if the quotation stands
in the text, word for word; where lines break makes no difference.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from typing import Final, NamedTuple

from constitutional.base.errors import ModelError
from constitutional.base.progress import counted
from constitutional.base.records import Message
from constitutional.base.templates import Prompts
from constitutional.base.text import without_thoughts, words
from constitutional.constitution.constitution import MOST_CHARACTERS
from constitutional.constitution.foreign import Entry, Foreign
from constitutional.constitution.prose import Paragraph, Section, sections
from constitutional.constitution.yaml import Problem, shown
from constitutional.engines.base import Completion, Engine, Request, Sampling, without_thinking
from constitutional.engines.stories import ask, side_by_side

PART_WORDS: Final = 700
"""Words of the text that a model is shown at once, unless a paragraph has more."""
MOST_TOKENS: Final = 2_048
"""Of a reply."""
LEAST_QUOTED: Final = 3
"""Words of a quotation: fewer stand in any text."""
SCHEMA: Final = json.dumps(
    {
        "type": "object",
        "properties": {
            "tenets": {
                "type": "array",
                "items": {
                    "type": "object",
                    "properties": {name: {"type": "string"} for name in ("text", "quote", "why")},
                    "required": ["text", "quote", "why"],
                    "additionalProperties": False,
                },
            }
        },
        "required": ["tenets"],
        "additionalProperties": False,
    }
)


class _Part(NamedTuple):
    """Paragraphs of one section that are shown together."""

    section: str
    line: int
    paragraphs: Sequence[Paragraph]

    @property
    def text(self) -> str:
        return "\n\n".join(paragraph.text for paragraph in self.paragraphs)


class _Place(NamedTuple):
    section: str
    line: int


def tenets_of(content: str, engine: Engine, templates: Prompts, ended: Callable[[int], None] | None = None) -> Foreign:
    """The tenets that a model finds in a text, and those that were refused, with their reasons.

    Args:
        content: the whole text.
        engine: the model, asked greedily, once for each part of the text.
        templates: of which `tenets` is used.
        ended: told how many parts have been read.

    Raises:
        ModelError: no reply can be read.
    """
    title, all_sections = sections(content)
    parts = [part for section in all_sections for part in _parts(section)]
    structured = engine.abilities.structured
    sampling = Sampling(temperature=0.0, max_tokens=MOST_TOKENS)
    requests = [
        Request(
            (Message("user", templates.render("tenets", section=part.section, text=part.text)),),
            sampling,
            schema=SCHEMA if structured else "",
        )
        for part in parts
    ]
    replies = side_by_side((ask(engine, request) for request in requests), ended=ended)
    entries, left_out = list[Entry](), list[Problem]()
    unread, first_line = 0, dict[str, int]()
    for part, reply in zip(parts, replies, strict=True):
        problem, items = _read(reply)
        where = f"'{shown(part.section)}'" if part.section else "what stands before the first heading"
        if problem:
            left_out.append(Problem(part.line, f"{where}: {problem}"))
            unread += items is None
        for item in items or ():
            entry = _entry(item, [part, *parts])
            text = str(item.get("text", ""))
            if isinstance(entry, str):
                left_out.append(Problem(part.line, f'the tenet "{shown(text)}" is refused: {entry}'))
            elif entry.values["text"] in first_line:
                left_out.append(Problem(entry.line, f'"{shown(text)}": the same as in line {first_line[text.strip()]}'))
            else:
                first_line[entry.values["text"]] = entry.line
                entries.append(entry)
    if parts and unread == len(parts):
        raise ModelError(f"none of the {counted(unread, 'answer')} by the model can be read: {left_out[0].text}")
    entries.sort(key=lambda entry: entry.line)
    problems = [] if entries else [Problem(1, "the model found no tenet in it that stands in the text")]
    about = {"name": title} if title else {}
    return Foreign(f"prose, split by {engine.weights}", entries, left_out, problems, about)


def _parts(section: Section) -> Iterator[_Part]:
    """The section in parts that a model reads at once, cut between paragraphs."""
    taken: list[Paragraph] = []
    count = 0
    for paragraph in section.paragraphs:
        length = len(words(paragraph.text))
        if taken and count + length > PART_WORDS:
            yield _Part(section.path, taken[0].lines[0][1], tuple(taken))
            taken, count = [], 0
        taken.append(paragraph)
        count += length
    if taken:
        yield _Part(section.path, taken[0].lines[0][1], tuple(taken))


def _read(reply: Completion) -> tuple[str, list[dict[str, object]] | None]:
    """What is wrong with a reply, and its tenets as they stand there; None where it cannot be read."""
    if reply.failed:
        return f"the model gives no answer: {reply.reason}", None
    if reply.unspoken:
        remedy = f"type {without_thinking('critic')}"
        return f"the reply was cut off at {MOST_TOKENS} tokens, while the model thought; {remedy}", None
    text = without_thoughts(reply.text)
    start = text.find('"tenets"')
    start = text.find("[", start) if start >= 0 else -1
    if start < 0:
        return "the reply is no JSON with 'tenets'", None
    decoder, at, items = json.JSONDecoder(), start + 1, list[dict[str, object]]()
    while True:
        while at < len(text) and text[at] in " \t\r\n,":
            at += 1
        if text[at : at + 1] == "]":
            return "", items
        try:
            item, at = decoder.raw_decode(text, at)
        except (ValueError, RecursionError):
            cut_off = f"was cut off at {MOST_TOKENS} tokens" if reply.finish == "length" else "breaks off"
            return f"the reply {cut_off} behind {len(items)} tenets", items or None
        items.append(item if isinstance(item, dict) else {})


def _entry(item: dict[str, object], parts: Sequence[_Part]) -> Entry | str:
    """A principle of a tenet, or why it is refused; the parts are looked through in this order."""
    text, quote, why = (item.get(name) for name in ("text", "quote", "why"))
    if not isinstance(text, str) or not text.strip():
        return "it has no text"
    if not isinstance(quote, str) or len(words(quote)) < LEAST_QUOTED:
        return f"its quotation has fewer than {LEAST_QUOTED} words"
    if max(len(text), len(quote)) > MOST_CHARACTERS:
        return f"it has more than {MOST_CHARACTERS:,} characters"
    place = next((place for part in parts if (place := _find(quote, part))), None)
    if place is None:
        return f'its quotation is not in the text: "{shown(quote)}"'
    values: dict[str, object] = {
        "text": text.strip(),
        "tags": [place.section.split(" > ")[0]] if place.section else [],
        "source": {"section": place.section, "line": place.line, "quote": " ".join(quote.split())},
    }
    if isinstance(why, str) and why.strip():
        values["why"] = why.strip()
    return Entry(place.line, values)


def _find(quote: str, part: _Part) -> _Place | None:
    """Where a quotation stands in a part, whatever its line breaks."""
    wanted = " ".join(quote.split())
    whole = " ".join(paragraph.text for paragraph in part.paragraphs)
    at = whole.find(wanted)
    if at < 0:
        return None
    for paragraph in part.paragraphs:
        if at < len(paragraph.text) + 1:
            return _Place(part.section, paragraph.line_at(at))
        at -= len(paragraph.text) + 1
    return None
