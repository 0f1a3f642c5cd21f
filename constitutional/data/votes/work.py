"""What a vote took, and the votes that it replaces, as they are written beside the vote; `reading` reads them again."""

import json
from collections.abc import Mapping
from typing import Any, Final

from constitutional.base.records import Verdict
from constitutional.data.votes.items import VoteItem, whole_characters

COLUMNS: Final = ("seconds", "exposed", "withdrawn", "in_place_of")
"""`seconds`; whether the rater saw a harmful text; whether the vote is a skip that stands for work that does not count;
the raters' votes that a lead's decision replaces. See `Verdict`."""


def work_beside(item: VoteItem, verdict: Verdict) -> dict[str, Any]:
    """What is known of a verdict's work, as JSON values by the names of `COLUMNS`."""
    known: dict[str, Any] = {}
    if verdict.seconds is not None:
        known["seconds"] = verdict.seconds
    if verdict.exposed is not None:
        known["exposed"] = verdict.exposed
    if verdict.withdrawn:
        known["withdrawn"] = True
    if verdict.in_place_of:
        known["in_place_of"] = [
            {
                "rater": whole_characters(row.rater),
                "choice": item.side_of(row.choice),
                "strength": row.strength,
                "reason": whole_characters(row.rationale),
                **work_beside(item, row),
            }
            for row in verdict.in_place_of
        ]
    return known


def cells_of(known: Mapping[str, Any]) -> tuple[str, ...]:
    """What `work_beside` gives, as cells of a table: yes or no, and the replaced votes as JSON."""
    flags = {None: "", True: "yes", False: "no"}
    replaced = known.get("in_place_of")
    return (
        str(known.get("seconds", "")),
        flags[known.get("exposed")],
        flags[known.get("withdrawn")],
        json.dumps(replaced, ensure_ascii=False) if replaced else "",
    )
