"""Candidates for preferences, and what is said of two replies in the columns of public sets and of tools."""

import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from typing import Any, Final, Literal, NamedTuple, get_args

from constitutional.base.jsonl import as_json, shortened
from constitutional.base.text import same_text
from constitutional.data.sources import ReadAs
from constitutional.data.turns import BadRowError, Conversation, is_blank

Row = Mapping[str, Any]
Class = Literal["preference", "tie", "both_bad", "equal", "empty", "different_contexts", "unlabelled", "calls"]
"""What a candidate is. `equal`: people read both replies as the same. `empty`: a reply or an earlier turn says nothing.
`different_contexts`: the replies do not answer the same conversation. `unlabelled`: nobody says which is better.
`calls`: without calls of tools, which are not read, it would be empty or equal."""
CLASSES: Final[tuple[Class, ...]] = get_args(Class)
Choice = Literal["a", "b", "tie", "both_bad"]
Source = Literal["ai", "human"]
SIDES: Final = re.compile(r"(?P<stem>.*?)[-_ ]?(?P<side>a|b|A|B|0|1|2|left|right)")
OPPOSITE: Final = {"a": "b", "A": "B", "0": "1", "1": "2", "left": "right"}
STEMS: Final = (
    *("response", "completion", "answer", "conversation", "text", "output", "reply", "generation", "candidate"),
    *("messages", "message", "option", "summary", "assistant", "human_ref", ""),
)
"""What columns of two replies are called, without the side."""
INVALID_STRENGTH: Final = -100
"""How HelpSteer2 marks a row on which the raters could not agree."""

SCORE_10: Final = "rows with the score 10, which UltraFeedback wrote for many replies whose score was 1; look at them"
"""What is noted of rows of UltraFeedback with that score."""


class Candidate(NamedTuple):
    """Two replies to a conversation, and what is said of them."""

    number: int
    """The row's number in the file."""
    messages: Conversation
    """The conversation; empty where the file holds none."""
    chosen: str
    """The better reply; where there is no preference, the first."""
    rejected: str
    label: Class
    probability: float = 1.0
    """That chosen is better, 0.5 to 1; a tie has 0.5."""
    weight: float = 1.0
    """Share of what one comparison counts, above 0, at most 1."""
    rater: str = ""
    """Who says so; empty where the file does not tell."""
    raters: tuple[float, ...] = ()
    """Strengths that single raters gave, where the label is their common one; positive where they prefer chosen."""
    principles: tuple[str, ...] = ()
    """What the verdict is by; none for a verdict in all."""
    source: Source = "human"
    """Who prefers: a model where the file says so, else people."""
    strength: int = 0
    """How much better chosen is, from 1, where the file says that and no probability; 0 elsewhere."""


class Opinion(NamedTuple):
    """What somebody says of two replies, a and b."""

    choice: Choice | None
    """None where nothing is said."""
    strength: int = 0
    """From 1; 0 where the file has no strengths."""
    rater: str = ""
    raters: tuple[float, ...] = ()
    """Of single raters, negative where they prefer a."""
    principles: tuple[str, ...] = ()
    probability: float | None = None
    """Of the choice, where the file says one."""
    weight: float = 1.0
    source: Source | None = None
    """None where the row does not say it."""


class Vote(NamedTuple):
    """A person's answer to a question of Argilla."""

    question: str
    user: object
    status: object
    value: object


def two_columns(row: Row, given: Mapping[ReadAs, str]) -> tuple[str, str] | None:
    """The columns of two replies: those that are given, or those whose names differ in the side alone."""
    if "response_a" in given or "response_b" in given:
        pair = given.get("response_a", "response_a"), given.get("response_b", "response_b")
        return pair if all(name in row for name in pair) else None
    stems: dict[str, tuple[str, str]] = {}
    for name in row:
        match = SIDES.fullmatch(name)
        end = OPPOSITE.get(match["side"]) if match else None
        if match and end:
            other = name[: len(name) - len(match["side"])] + end
            if other in row and all(isinstance(row[column], str | list | dict | None) for column in (name, other)):
                stems.setdefault(match["stem"].lower(), (name, other))
    return next((stems[stem] for stem in STEMS if stem in stems), None)


_NAMED: Final[Mapping[str, Choice | None]] = {
    **dict.fromkeys(("left", "first", "a>b", "a>>b"), "a"),
    **dict.fromkeys(("right", "second", "b>a", "b>>a"), "b"),
    **dict.fromkeys(("tie", "both", "equal", "same", "draw", "c", "a=b", "both_good", "both good"), "tie"),
    **dict.fromkeys(("both_bad", "both bad", "bothbad", "tie (bothbad)", "tie (both bad)", "neither"), "both_bad"),
    **dict.fromkeys(("", "none", "null", "nan", "skip", "invalid", "n/a", "unknown", "not_applicable"), None),
}
_WORDS: Final = ("model", "response", "text", "completion", "answer", "conversation", "option", "assistant", "output")


def choice_of(value: object, sides: tuple[str, str], name: str) -> Choice | None:
    """The better side by its name: of a column, of a model, or its letter or number.

    Raises:
        BadRowError: it is neither a side nor a tie.
    """
    text = "" if value is None else str(value).strip().lower().removesuffix(".0")
    for choice, column, letter in (("a", sides[0], "a"), ("b", sides[1], "b")):
        match = SIDES.fullmatch(column)
        ends = {letter, match["side"].lower() if match else letter}
        if text == column.lower() or text in ends or any(text == f"{word}_{end}" for word in _WORDS for end in ends):
            return choice  # type: ignore[return-value]
    if text in _NAMED:
        return _NAMED[text]
    raise BadRowError(f"'{name}' is {as_json(value)}; expected {sides[0]}, {sides[1]}, tie or both_bad")


def signed_opinion(strength: float | None, name: str, most: int) -> Opinion:
    """An opinion from a strength of so much at most that is negative where the first reply is better.

    Raises:
        BadRowError: it is no strength.
    """
    if strength is None or strength == INVALID_STRENGTH:
        return Opinion(None)
    if abs(strength) > most:
        raise BadRowError(f"'{name}' is {strength:g}; expected a strength from -{most} to {most}")
    if strength == 0:
        return Opinion("tie")
    return Opinion("a" if strength < 0 else "b", max(1, round(abs(strength))))


def ranked_choice(value: object, sides: tuple[str, str]) -> Choice | None:
    """The better side by a label, or by a ranking of both sides."""
    if isinstance(value, list) and value and all(isinstance(item, dict) for item in value):
        ranks = {
            choice_of(item.get("value"), sides, "value"): item.get("rank", place) for place, item in enumerate(value)
        }
        a, b = ranks.get("a"), ranks.get("b")
        if not isinstance(a, int | float) or not isinstance(b, int | float):
            raise BadRowError("a ranking does not rank both sides")
        return "a" if a < b else "b" if b < a else "tie"
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    if isinstance(value, list) and len(value) == 2:
        # A ranking by names, the best first.
        best, other = (choice_of(name, sides, "response") for name in value)
        if {best, other} == {"a", "b"}:
            return best
        raise BadRowError("a ranking does not rank both sides")
    return choice_of(value, sides, "response")


def votes_flat(record: Row, questions: Iterable[str]) -> Iterator[Vote]:
    """The answers in a record of Argilla that was exported flat."""
    for question in questions:
        key = f"{question}.responses"
        values = record.get(key) or []
        users = record.get(f"{key}.users") or [None] * len(values)
        statuses = record.get(f"{key}.status") or [None] * len(values)
        if not len(values) == len(users) == len(statuses):
            raise BadRowError(f"'{key}' has {len(values)} values of {len(users)} users; expected one of each user")
        for user, status, value in zip(users, statuses, values, strict=True):
            yield Vote(question, user, status, value)


def votes_nested(record: Row) -> Iterator[Vote]:
    """The answers in a nested record of Argilla."""
    responses = record.get("responses")
    if isinstance(responses, list):  # as Argilla's API and its older exports give them: one response for each user
        for response in responses:
            for question, value in (response.get("values") or {}).items():
                answer = value.get("value") if isinstance(value, dict) else value
                yield Vote(question, response.get("user_id"), response.get("status"), answer)
        return
    for question, answers in (responses or {}).items():
        for answer in answers or []:
            yield Vote(question, answer.get("user_id"), answer.get("status"), answer.get("value"))


def votes_of_column(record: Row, questions: Iterable[str]) -> Iterator[Vote]:
    """The answers in a record of Argilla 1, whose questions are columns of votes."""
    for question in questions:
        for vote in record.get(question) or []:
            if not isinstance(vote, dict):
                raise BadRowError(f"'{question}' has the vote {shortened(vote)}; expected an object with 'value'")
            yield Vote(question, vote.get("user_id"), vote.get("status"), vote.get("value"))


def selected(annotation: object, sides: tuple[str, str]) -> Opinion:
    """What one person says of a task of Label Studio: a side by its place, or a choice by the name of its column."""
    if not isinstance(annotation, dict):
        raise BadRowError(f"an annotation is {shortened(annotation)}; expected an object with 'result'")
    who = annotation.get("completed_by")
    rater = str(who.get("email", who.get("id", ""))) if isinstance(who, dict) else "" if who is None else str(who)
    if annotation.get("was_cancelled") or annotation.get("skipped"):
        return Opinion(None, rater=rater)
    results = [result for result in annotation.get("result") or [] if isinstance(result, dict)]
    values = [value for result in results if isinstance(value := result.get("value"), dict)]
    selected = [value["selected"] for value in values if "selected" in value]
    choices = [choice for value in values for choice in value.get("choices") or []]
    for value in selected:
        return Opinion(choice_of(value, ("left", "right"), "selected"), rater=rater)
    for value in choices:
        with suppress(BadRowError):  # another question
            return Opinion(choice_of(value, sides, "choices"), rater=rater)
    return Opinion(None, rater=rater)


def preferred(annotation: Row) -> Choice | None:
    """What an annotation of AnnotatedPairs prefers."""
    pref = annotation.get("pref")
    reason = annotation.get("no_pref_reason") if pref is None else pref
    return choice_of("tie" if reason == "both" else reason, ("text_a", "text_b"), "pref")


def response_of(row: Row, side: str) -> object:
    """A reply of AnnotatedPairs, 1.0 or 2.0."""
    response = row.get(f"response_{side}", row.get(f"text_{side}"))
    return response.get("text") if isinstance(response, dict) else response


def alike(first: Conversation, second: Conversation) -> bool:
    """Whether people read two conversations as the same."""
    return first == second or (
        len(first) == len(second)
        and all(
            a.role == b.role and a.extra == b.extra and same_text(a.content, b.content)
            for a, b in zip(first, second, strict=True)
        )
    )


def has_silent_turn(context: Conversation) -> bool:
    """Whether a turn of a conversation says nothing."""
    for turn in context:  # noqa: SIM110 - a generator would take a tenth of the time of a row
        if is_blank(turn.content) and not turn.extra:
            return True
    return False


def plainly_different(first: str, second: str) -> bool:
    """Whether their beginnings already tell that two texts differ, without a look at the rest."""
    if first[:1] != second[:1] and "!" <= first[:1] <= "~" and "!" <= second[:1] <= "~":
        return True
    for one, other in zip(first.split(None, 4)[:4], second.split(None, 4)[:4], strict=False):
        if not (one.isascii() and other.isascii()):
            return False
        if one != other:
            return True
    return False


def duplicate_key(candidate: Candidate) -> tuple[int, int]:
    """Digests of what two candidates share that say the same of the same texts, and of the conversation alone."""
    turns = hash(tuple([turn.content + turn.extra for turn in candidate.messages]))
    return hash(
        (turns, candidate.chosen, candidate.rejected, candidate.label, candidate.rater, candidate.principles)
    ), turns
