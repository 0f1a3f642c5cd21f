"""Votes as files: JSON lines that a run reads, and a table for spreadsheets."""

import csv
import io
import json
from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from constitutional.base.files import atomic_write
from constitutional.base.records import Comparison, Verdict
from constitutional.base.text import neutralised
from constitutional.review.store import CountedVote

COLUMNS: Final = (
    *"comparison rater choice strength principles ranks rationale rewritten seconds when constitution audit".split(),
    *("gold", "withdrawn"),
)


def verdicts_of(votes: Iterable[CountedVote]) -> Iterator[Verdict]:
    """What raters say of pairs, in all and by principle; a principle that does not apply is left out."""
    for vote in votes:
        told = {"comparison": vote.comparison, "rater": vote.rater, "gold": vote.gold}
        yield Verdict.model_validate(
            {
                **told,
                "choice": vote.choice,
                "strength": vote.strength,
                "rationale": vote.rationale,
                "seconds": vote.spent,
                "exposed": vote.exposed,
                "withdrawn": vote.withdrawn,
                "in_place_of": [row for row in verdicts_of(vote.in_place_of) if row.principle is None],
            }
        )
        for principle, choice in vote.principles.items():
            if choice != "not_applicable":
                yield Verdict.model_validate(told | {"choice": choice, "principle": principle})


def verdicts_of_ranks(votes: Iterable[CountedVote], comparisons: Iterable[Comparison]) -> Iterator[Verdict]:
    """What rankings say of the run's comparisons: the better rank, and by how many ranks it is better, up to 4.

    The time that a ranking took stands in the first of its verdicts, and 0 in the others.
    """
    by_prompt: dict[str, list[Comparison]] = {}
    for comparison in comparisons:
        by_prompt.setdefault(comparison.prompt.id, []).append(comparison)
    for vote in votes:
        ranks = dict(zip(vote.payload.replies, vote.ranks, strict=False))
        seconds, exposed = vote.spent, vote.exposed
        for comparison in by_prompt.get(vote.comparison, []):
            if comparison.a not in ranks or comparison.b not in ranks:
                continue
            ahead = ranks[comparison.b] - ranks[comparison.a]
            yield Verdict(
                comparison=comparison.id,
                rater=vote.rater,
                choice="a" if ahead > 0 else "b" if ahead else "tie",
                strength=min(max(abs(ahead), 1), 4),
                rationale=vote.rationale,
                seconds=seconds,
                exposed=exposed,
            )
            seconds, exposed = 0.0 if seconds is not None else None, False


def write_demonstrations(path: Path, votes: Iterable[CountedVote]) -> tuple[int, list[CountedVote]]:
    """Write rewritten replies as lines {"prompt": …, "response": …, "rater": …, …}, which `sft.helpful` reads.

    Returns:
        How many were written, and the votes that were left out: skips, those that do not count, and replies to
        conversations of several messages, for which that form has no place.
    """
    lines, left = list[str](), list[CountedVote]()
    for vote in votes:
        if vote.choice != "rewritten" or len(vote.payload.messages) != 1:
            left.append(vote)
            continue
        row = {"prompt": vote.payload.messages[0].content, "response": vote.rewritten, "rater": vote.rater}
        work = {"seconds": vote.spent, "exposed": vote.exposed} if vote.spent is not None else {"exposed": vote.exposed}
        lines.append(json.dumps(row | work, ensure_ascii=False) + "\n")
    atomic_write(path, "".join(lines).encode())
    return len(lines), left


def write_table(path: Path, votes: Sequence[CountedVote]) -> None:
    """Write the votes as CSV, in which no cell is a formula."""
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(COLUMNS)
    for vote in votes:
        when = datetime.fromtimestamp(vote.created, UTC).isoformat(timespec="seconds")
        principles = " ".join(f"{name}={choice}" for name, choice in vote.principles.items())
        ranks = " ".join(map(str, vote.ranks))
        row = (vote.comparison, vote.rater, vote.choice, vote.strength, principles, ranks, vote.rationale)
        rest = (vote.rewritten, f"{vote.seconds:.2f}", when, vote.constitution, "yes" if vote.audit else "no")
        flags = (vote.gold or "", "yes" if vote.withdrawn else "no")
        writer.writerow([neutralised(str(value)) for value in (*row, *rest, *flags)])
    atomic_write(path, text.getvalue().encode("utf-8-sig", "replace"))
