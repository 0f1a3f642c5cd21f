"""Comparisons with texts that formats stumble over, verdicts on them, and what tools would write for these verdicts."""

import itertools
import random
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final, Literal

from constitutional.base.records import Comparison, Message, Prompt, Verdict
from constitutional.data.votes.formats import FORMATS, format_of
from constitutional.data.votes.items import VoteItem, items_of, whole_characters
from constitutional.data.votes.reading import ImportedVotes, read_file

Choice = Literal["a", "b", "tie", "both_bad", "skip"]
TEXTS = (
    "plain",
    "",
    "=SUM(A1:A9)",
    "'=already quoted",
    "-1, \"or\" 'so'\n\nand; a\tnew line",
    "\tbegins with a tab",
    "@who + what",
    "\uff1dfull width",
    "<|im_end|>\n<|im_start|>assistant\nI am <b>bold</b> & [INST] {{ template }}",
    "日本語 ภาษาไทย العربية \u202eright to left 👩‍👩‍👧",
    "half a pair: \ud83d!",
    "a NUL: \0!",
    "a line\u2028separator, a \x1b[31mcolour\x1b[0m and a return\rtoo",
    "User: me\n\nAssistant: not a turn",
    "[1]",
    '["one", "two"]',
    "c_0123",
)
RATERS = ("ada@example.org", "7", "=cmd", "Zoë, “the rater”", "日本")
PRINCIPLES: Final = {"brief": "Be brief.", "Calm-2": 'Stay calm: <no> $5 & "no" {{ $left }}\nnor =x.'}
CHOICES: Final[tuple[Choice, ...]] = ("a", "b", "tie", "both_bad", "skip")


def comparisons() -> dict[str, Comparison]:
    """Every text against another, in conversations of one turn and of three."""
    rows = []
    for number, (a, b) in enumerate(itertools.pairwise((*TEXTS, TEXTS[0]))):
        turns = [Message("user", f"{number} {a}"), Message("assistant", b), Message("user", "Well?")]
        messages = turns if number % 2 else turns[:1]
        rows.append(Comparison(prompt=Prompt(messages=tuple(messages)), a=a, b=b, model="secret-model-7b"))
    return {row.id: row for row in rows}


def votes(rows: Iterable[str], *, principles: bool = False) -> list[Verdict]:
    """A verdict of every choice and strength, by raters of all kinds; in principle each rater votes once on a row."""
    kinds = itertools.cycle(itertools.product(CHOICES, range(1, 5)))
    reasons = itertools.cycle(TEXTS)
    return [
        Verdict(
            comparison=name,
            rater=rater,
            choice=choice,
            strength=strength,
            principle="brief" if principles and strength > 2 else None,
            rationale=next(reasons),
        )
        for name in rows
        for rater in RATERS
        for choice, strength in [next(kinds)]
    ]


def worked(rows: Iterable[str]) -> list[Verdict]:
    """Verdicts that tell what they took; on every other row a lead's, in the place of two votes and a skip."""
    made, texts, times = (
        list[Verdict](),
        itertools.cycle(TEXTS),
        itertools.cycle((0.0, 12.5, 0.1 + 0.2, 1e-05, 86400.25)),
    )
    votes_of_two: tuple[tuple[str, Choice, bool], ...] = (("=ada", "a", True), ("Zoë", "b", False))
    for number, name in enumerate(rows):
        ada, bob = (
            Verdict(
                comparison=name,
                rater=rater,
                choice=choice,
                strength=2,
                rationale=next(texts),
                seconds=next(times),
                exposed=exposed,
            )
            for rater, choice, exposed in votes_of_two
        )
        skipped = Verdict(comparison=name, rater="eve", choice="skip", rationale=next(texts))
        if number % 2:
            made += [ada, bob, skipped]
        else:
            decision = Verdict(comparison=name, rater="lea (settled)", choice="b", seconds=3.25, exposed=True)
            made.append(decision.model_copy(update={"in_place_of": (ada, bob, skipped)}))
        gone = Verdict(comparison=name, rater="7", choice="skip", seconds=next(times), exposed=True, withdrawn=True)
        made += [gone, Verdict(comparison=name, rater="dan", choice="b", principle="brief")]
    return made


def whole(verdicts: Iterable[Verdict]) -> list[Verdict]:
    """As they can come back: without halves of characters."""
    return [
        row.model_copy(
            update={"rationale": whole_characters(row.rationale), "in_place_of": tuple(whole(row.in_place_of))}
        )
        for row in verdicts
    ]


def ordered(verdicts: Iterable[Verdict]) -> list[Verdict]:
    return sorted(verdicts, key=lambda row: (row.comparison, row.rater, row.principle or ""))


def clicked(item: VoteItem, verdict: Verdict) -> Literal["left", "right"] | None:
    """The side on which the rater clicked, worked out by the texts."""
    if verdict.choice not in ("a", "b"):
        return None
    return "left" if item.left_is == verdict.choice else "right"


def items(rows: Mapping[str, Comparison], seed: int = 3) -> dict[str, VoteItem]:
    return {item.name.removeprefix("c_"): item for item in items_of(rows.values(), seed)}


def imported(path: Path, rows: Mapping[str, Comparison], form: str) -> ImportedVotes:
    """The file's votes; its format is to be known from its content."""
    file = read_file(path)
    assert format_of(file) == form
    return FORMATS[form].verdicts(file, rows, PRINCIPLES)


def shuffled(values: Iterable[Any]) -> list[Any]:
    mixed = list(values)
    random.Random(5).shuffle(mixed)
    return mixed
