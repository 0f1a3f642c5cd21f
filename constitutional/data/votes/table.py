"""A table (CSV) that people fill in with a spreadsheet: UTF-8 with a byte order mark, one row a vote.

A spreadsheet takes a cell that begins with `=`, `+`, `-`, `@` or a control character for a formula. Such cells get an
apostrophe in front, which is taken away again when they are read. A table of verdicts has further columns for what
they took (`work`).
"""

import csv
import io
from collections.abc import Collection, Iterable, Iterator, Mapping
from types import MappingProxyType
from typing import Final

from constitutional.base.records import Comparison, Verdict
from constitutional.base.text import neutralised, restored
from constitutional.data.votes.items import VoteItem, whole_characters
from constitutional.data.votes.reading import ForeignVote, ImportedVotes, NoVote, VoteFile, settled
from constitutional.data.votes.work import COLUMNS as WORK
from constitutional.data.votes.work import cells_of, work_beside

COLUMNS: Final = (
    "comparison conversation left right rater choice strength reason principle left_is principle_text".split()
)


def tasks(
    items: Iterable[VoteItem],
    verdicts: Iterable[Verdict] = (),
    principles: Mapping[str, str] = MappingProxyType({}),
) -> bytes:
    """The table, with a row for each verdict on an item, and rows to fill in for an item without one.

    Args:
        items: the comparisons.
        verdicts: what people said of them.
        principles: the texts of the principles by which raters answer, by id; each has a row of its own to fill in.
    """
    votes: dict[str, list[Verdict]] = {}
    for verdict in verdicts:
        votes.setdefault(verdict.comparison, []).append(verdict)
    stream = io.StringIO(newline="")
    writer = csv.writer(stream)
    writer.writerow((*COLUMNS, *WORK) if votes else COLUMNS)
    for item in items:
        own = votes.get(item.comparison, [])
        no_work = ("",) * len(WORK) if votes else ()
        to_fill_in = [(("", "", "", "", principle), no_work) for principle in ("", *principles)]
        done = [(_answers(item, verdict), cells_of(work_beside(item, verdict))) for verdict in own]
        for cells, work in done or to_fill_in:
            texts = (item.name, item.conversation, item.left, item.right, *cells, item.left_is)
            texts = (*texts, principles.get(cells[-1], ""), *work)
            writer.writerow([neutralised(whole_characters(text)) for text in texts])
    return stream.getvalue().encode("utf-8-sig")


def _answers(item: VoteItem, verdict: Verdict) -> tuple[str, ...]:
    choice = item.side_of(verdict.choice)
    return verdict.rater, choice, str(verdict.strength), verdict.rationale, verdict.principle or ""


def recognises(file: VoteFile) -> bool:
    """Whether the file is such a table."""
    return file.columns is not None and {"comparison", "choice"} <= set(file.columns)


def verdicts(file: VoteFile, comparisons: Mapping[str, Comparison], principles: Collection[str]) -> ImportedVotes:
    """The verdicts in a table; rows without a choice are tasks that nobody did."""
    return settled(file, _votes(file), comparisons, principles)


def _votes(file: VoteFile) -> Iterator[ForeignVote | NoVote | str]:
    for place, row in file.rows():
        if file.columns is None or not isinstance(row, dict):
            yield f"{place}: is no row of a table; expected CSV with the columns {', '.join(COLUMNS)}"
            continue
        cells = {name: restored(row[name]) for name in (*COLUMNS, *WORK) if name in row}
        if not cells.get("choice", "-").strip():
            yield NoVote("rows without a choice")
            continue
        yield ForeignVote(
            place,
            cells.get("comparison"),
            cells.get("conversation"),
            cells.get("left"),
            cells.get("right"),
            cells.get("rater"),
            cells.get("choice"),
            cells.get("strength"),
            cells.get("reason"),
            principle=cells.get("principle"),
            left_is=cells.get("left_is"),
            **{name: cells.get(name) for name in WORK},
        )
