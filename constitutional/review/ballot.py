"""What a rater sends, read from a form, in terms of what the page showed."""

from collections.abc import Mapping
from typing import Final, Literal, NamedTuple, get_args

from constitutional.review.plan import Plan

Choice = Literal["first", "second", "tie", "both_bad", "skip", "rewritten", "ranked"]
PrincipleChoice = Literal["first", "second", "tie", "not_applicable"]
CHOICES: Final[Mapping[str, tuple[Choice, ...]]] = {
    "pair": ("first", "second", "tie", "both_bad", "skip"),
    "rewrite": ("rewritten", "skip"),
    "rank": ("ranked", "skip"),
}
STRENGTHS: Final = ("slightly", "clearly", "much", "far")
"""How much better a reply is, from 1 to 4."""
LONGEST_NOTE: Final = 5_000
LONGEST_REPLY: Final = 50_000
LONGEST_S: Final = 6 * 3600.0
"""A longer time at one item is no work."""


class BallotError(ValueError):
    """What is missing or wrong, for the rater."""


class Ballot(NamedTuple):
    """An answer to one item."""

    choice: Choice
    strength: int = 1
    principles: Mapping[str, PrincipleChoice] = {}
    """Answers by principle's id."""
    ranks: tuple[int, ...] = ()
    """Of the replies as they were shown; 1 is the best, and equal ranks are ties."""
    rewritten: str = ""
    rationale: str = ""
    seconds: float | None = None
    """Time for which the page was seen; None where the browser did not say."""
    opened: bool = False
    """The page showed texts that were hidden as harmful."""


def read_ballot(form: Mapping[str, str], plan: Plan, replies: tuple[str, ...]) -> Ballot:
    """The answer in a form.

    Raises:
        BallotError: something is missing, too long or no possible answer.
    """
    choice: Choice | None = next((name for name in CHOICES[plan.task] if name == form.get("choice")), None)
    if choice is None:
        raise BallotError("Choose one of the answers.")
    rationale = _text(form, "rationale", LONGEST_NOTE).strip()
    opened = form.get("opened") == "yes"
    ballot = Ballot(choice, rationale=rationale, seconds=_seconds(form.get("seconds", "")), opened=opened)
    if choice == "skip":
        if not rationale:
            raise BallotError("Say in the note why you skip this item.")
        return ballot
    if choice == "rewritten":
        rewritten = _text(form, "rewritten", LONGEST_REPLY)
        if not rewritten.strip():
            raise BallotError("Your reply is empty. Write one, or skip the item.")
        return ballot._replace(rewritten=rewritten)
    if choice == "ranked":
        return ballot._replace(ranks=_ranks(form, len(replies)))
    strength = _number(form.get("strength", "1"), 4) if choice in ("first", "second") else 1
    if strength is None:
        raise BallotError("Say how much better the reply is.")
    return ballot._replace(strength=strength, principles=_by_principle(form, plan))


def fields_of(ballot: Ballot, plan: Plan) -> dict[str, str]:
    """The fields of a form in which this answer is given."""
    fields = {"choice": ballot.choice, "strength": f"{ballot.strength}", "rationale": ballot.rationale}
    for place, principle in enumerate(plan.principles, start=1):
        if (said := ballot.principles.get(principle.id)) is not None:
            fields[f"principle_{place}"] = said
    fields |= {f"rank_{place}": f"{rank}" for place, rank in enumerate(ballot.ranks, start=1)}
    return fields | ({"rewritten": ballot.rewritten} if ballot.choice == "rewritten" else {})


def letter(place: int) -> str:
    """What a page calls a reply at this place, from 1 on."""
    return f"{place}" if place > 26 else chr(ord("A") + place - 1)


def in_words(ballot: Ballot) -> str:
    """An answer as the rater gave it, with the replies' names of that page."""
    if ballot.choice in ("first", "second"):
        return f"Reply {letter(1 + (ballot.choice == 'second'))}, {STRENGTHS[ballot.strength - 1]} better"
    if ballot.choice == "ranked":
        return "; ".join(f"Reply {letter(place)}: {rank}" for place, rank in enumerate(ballot.ranks, start=1))
    return {"tie": "Tie", "both_bad": "Both bad", "skip": "Skipped", "rewritten": "Rewritten"}[ballot.choice]


def _ranks(form: Mapping[str, str], count: int) -> tuple[int, ...]:
    ranks = [_number(form.get(f"rank_{place}", ""), count) for place in range(1, count + 1)]
    if None in ranks:
        raise BallotError("Give every reply a rank.")
    return tuple(rank for rank in ranks if rank is not None)


def _by_principle(form: Mapping[str, str], plan: Plan) -> dict[str, PrincipleChoice]:
    principles: dict[str, PrincipleChoice] = {}
    for place, principle in enumerate(plan.principles, start=1):
        answer: PrincipleChoice | None = next(
            (name for name in get_args(PrincipleChoice) if name == form.get(f"principle_{place}")), None
        )
        if answer is None:
            raise BallotError(f"Answer by each principle; number {place} is missing.")
        principles[principle.id] = answer
    return principles


def _text(form: Mapping[str, str], name: str, longest: int) -> str:
    # Browsers send line ends as \r\n; PostgreSQL keeps no NUL.
    text = form.get(name, "").replace("\r\n", "\n").replace("\0", "")
    if len(text) > longest:
        raise BallotError(f"The text has {len(text):,} characters; at most {longest:,} can be kept.")
    return text


def _number(text: str, most: int) -> int | None:
    return int(text) if text.isascii() and text.isdecimal() and len(text) < 5 and 1 <= int(text) <= most else None


def _seconds(text: str) -> float | None:
    try:
        seconds = float(text)
    except ValueError:
        return None
    return seconds if 0 <= seconds <= LONGEST_S else None
