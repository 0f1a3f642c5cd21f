"""Reads files of votes that another tool or a person wrote, and tells the votes that count from those that do not.

A row that is wrong is listed with its place and what was expected, and so are all others that are.
"""

import csv
import gzip
import io
import json
import math
import re
import zlib
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, NamedTuple

from constitutional.base.errors import InputError
from constitutional.base.jsonl import shortened
from constitutional.base.records import Comparison, Verdict
from constitutional.base.text import same_text
from constitutional.data.votes.items import ID_MARK, item_of, whole_characters

CHOICES: Final = ("left", "right", "tie", "both_bad", "skip")
NOT_APPLICABLE: Final = "not_applicable"
"""A rater's answer by a principle that has no bearing; such an answer is no verdict."""
BY: Final = "by_"
"""Begins the name of a question by a principle; the rest is the principle's id."""
_EXPECTED: Final = (
    "expected JSON, JSON lines or CSV as Label Studio, Argilla, AnnotatedPairs or this program write them"
)
_STRENGTH: Final = re.compile(r"\s*([1-4])(\.0+)?(\s+[^\W\d].*)?\s*", re.DOTALL)
"""`3`, `3.0` as a spreadsheet makes of it, or `3 much`."""
_FLAGS: Final = {"yes": True, "true": True, "no": False, "false": False}
"""A spreadsheet writes TRUE for what it takes for a truth value."""
_NAME: Final = re.compile(r"[\w.:-]{1,64}", re.ASCII)


class VoteFile(NamedTuple):
    """The content of a file of votes."""

    path: Path
    content: Any
    """A JSON value; of JSON lines and CSV a list with a value for each row."""
    lines: list[int] | None
    """The line of each row; None where the file is one JSON value."""
    columns: list[str] | None
    """The names in the first line of a CSV file; None for anything else."""
    broken: list[str]
    """Lines that cannot be read, with what is wrong with them."""

    def rows(self, content: object = None) -> Iterator[tuple[str, Any]]:
        """Each row with its place: `file:line`, or `file: row 3`."""
        rows = self.content if content is None else content
        for number, row in enumerate(rows if isinstance(rows, list) else [rows]):
            yield (f"{self.path}:{self.lines[number]}" if self.lines else f"{self.path}: row {number + 1}"), row

    def tasks(self, content: object = None) -> Iterator[tuple[str, dict[str, Any]]]:
        """Each row that is an object with its place, which is `file: task ID` where there is no line to name."""
        for place, row in self.rows(content):
            if isinstance(row, dict):
                name = row.get("id")
                by_name = self.lines is None and isinstance(name, str | int)
                shown = str(name) if _NAME.fullmatch(str(name)) else shortened(name)
                yield (f"{self.path}: task {shown}" if by_name else place), row
            else:
                self.broken.append(f"{place}: is {type(row).__name__}; expected a task, which is an object")


class ForeignVote(NamedTuple):
    """A vote as another tool gives it; nothing of it is checked yet."""

    place: str
    comparison: object
    conversation: object
    left: object
    right: object
    rater: object
    choice: object
    """One of `CHOICES`, or `NOT_APPLICABLE` by a principle."""
    strength: object = None
    reason: object = None
    when: object = None
    """ISO 8601, as text."""
    principle: object = None
    left_is: object = None
    seconds: object = None
    """Of all answers to the comparison, by the rater; a vote by a principle has none."""
    exposed: object = None
    withdrawn: object = None
    in_place_of: object = None
    """The votes that a lead's decision replaces, as `work` writes them."""


class NoVote(NamedTuple):
    """Something in a file that is rightly no vote, such as a draft."""

    kind: str


class BadVoteError(Exception):
    """What is wrong with a vote, and what was expected."""


class ImportedVotes(NamedTuple):
    """What a file of votes comes to."""

    verdicts: list[Verdict]
    refused: list[str]
    """A line for each row that is wrong: its place, what is wrong, what was expected."""
    left_out: Counter[str]
    """How many rows are no votes, by kind."""
    replaced: int
    """Votes in whose place a later one of the same rater counts."""


def read_file(path: Path) -> VoteFile:
    """The content of a file of votes, plain or .gz, with or without a byte order mark.

    Raises:
        InputError: the file cannot be read, or is neither JSON nor CSV.
    """
    text = _text(path)
    start = text.lstrip()[:1]
    if not start:
        raise InputError(path, f"is empty; {_EXPECTED}")
    if start not in "[{":
        return _csv(path, text)
    try:
        return VoteFile(path, json.loads(text), None, None, [])
    except (ValueError, RecursionError) as error:
        if "\n" not in text.strip() or start == "[":
            raise InputError(path, f"is not JSON: {error}; {_EXPECTED}") from error
        return _json_lines(path, text, error)


def _text(path: Path) -> str:
    try:
        content = path.read_bytes()
        if content.startswith(b"\x1f\x8b"):
            content = gzip.decompress(content)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise InputError(path, f"is a damaged gzip file: {str(error).lower()}; fetch it again") from error
    except OSError as error:
        raise InputError(path, f"cannot be read: {error.strerror}; {_EXPECTED}") from error
    if content.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise InputError(path, "is UTF-16 text; save the file as UTF-8 (in Excel: `CSV UTF-8`)")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        problem = f"is not UTF-8 text ({error.reason}); save the file as UTF-8 (in Excel: `CSV UTF-8`)"
        raise InputError(path, problem, line) from error


def _json_lines(path: Path, text: str, error_as_a_whole: Exception) -> VoteFile:
    rows, lines, broken = [], [], []
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            rows.append(json.loads(line))
            lines.append(number)
        except (ValueError, RecursionError) as error:
            broken.append(f"{path}:{number}: is not JSON: {error}; {_EXPECTED}")
    if not rows:
        raise InputError(path, f"is not JSON: {error_as_a_whole}; {_EXPECTED}")
    return VoteFile(path, rows, lines, None, broken)


def _csv(path: Path, text: str) -> VoteFile:
    csv.field_size_limit(max(csv.field_size_limit(), len(text)))
    head = text.split("\n", 1)[0]
    delimiter = max(",;\t", key=head.count)
    reader = csv.reader(io.StringIO(whole_characters(text), newline=""), delimiter=delimiter, strict=True)
    rows: list[dict[str, str]] = []
    columns: list[str] = []
    lines, broken = [], []
    while True:
        line = reader.line_num + 1
        try:
            cells = next(reader)
        except StopIteration:
            break
        except csv.Error as error:
            broken.append(
                f"{path}:{line}: is no row of CSV: {error}; expected quotes around text with quotes or commas"
            )
            continue
        if not columns:
            columns = [cell.strip().casefold() for cell in cells]
        elif len(cells) == len(columns):
            rows.append(dict(zip(columns, cells, strict=True)))
            lines.append(line)
        elif any(cells):
            broken.append(f"{path}:{line}: has {len(cells)} cells; expected {len(columns)}, as in the first line")
    return VoteFile(path, rows, lines, columns, broken)


def settled(
    file: VoteFile,
    votes: Iterable[ForeignVote | NoVote | str],
    comparisons: Mapping[str, Comparison],
    principles: Collection[str],
) -> ImportedVotes:
    """The verdicts in a file. Of several votes of one rater on one comparison the latest counts, with the time of all.

    Args:
        file: the file, whose broken lines are refused.
        votes: what a format found in it; a text says what is wrong with a row.
        comparisons: the run's, by id.
        principles: the ids of the principles that verdicts may be by.
    """
    latest: dict[tuple[str, str, str | None], tuple[float | None, Verdict, bool]] = {}
    refused, left_out, replaced = list[str](), Counter[str](), 0
    for vote in votes:
        if isinstance(vote, NoVote):
            left_out[vote.kind] += 1
            continue
        if isinstance(vote, str):
            refused.append(vote)
            continue
        try:
            verdict, when = _verdict(vote, comparisons, principles), _seconds(vote.when)
        except BadVoteError as error:
            refused.append(f"{vote.place}: {error}")
            continue
        key = (verdict.comparison, verdict.rater, verdict.principle)
        if key in latest:
            replaced += 1
            before, earlier, applied = latest[key]
            if earlier != verdict:  # a row that stands twice is one piece of work
                earlier, verdict = _with_work_of(earlier, verdict), _with_work_of(verdict, earlier)
            if when is not None and before is not None and when < before:
                latest[key] = (before, earlier, applied)
                continue
        latest[key] = (when, verdict, _word(vote.choice) != NOT_APPLICABLE)
    verdicts = [verdict for _, verdict, applies in latest.values() if applies]
    if len(verdicts) < len(latest):
        left_out["answers that a principle does not apply"] = len(latest) - len(verdicts)
    return ImportedVotes(verdicts, [*file.broken, *refused], left_out, replaced)


def _with_work_of(verdict: Verdict, other: Verdict) -> Verdict:
    """The verdict, with what another of the same rater on the same comparison took as well."""
    known = [row.seconds for row in (verdict, other) if row.seconds is not None]
    noted = [row.exposed for row in (verdict, other) if row.exposed is not None]
    work = {"seconds": sum(known) if known else None, "exposed": any(noted) if noted else None}
    return verdict.model_copy(update=work)


def _verdict(vote: ForeignVote, comparisons: Mapping[str, Comparison], principles: Collection[str]) -> Verdict:
    """The verdict that a vote is; `skip` where the principle does not apply."""
    name = _required(vote.comparison, "id of the comparison").strip().removeprefix(ID_MARK)
    if name not in comparisons:
        raise BadVoteError(f"there is no comparison {shortened(name)}; expected one of this run's {len(comparisons)}")
    principle = None if vote.principle in (None, "") else _principle(vote.principle, principles)
    choice = _choice(vote.choice, _left(vote, comparisons[name]), principle)
    strength = 1
    if vote.strength not in (None, ""):
        match = None if isinstance(vote.strength, bool) else _STRENGTH.fullmatch(str(vote.strength))
        if match is None:
            raise BadVoteError(f"the strength is {shortened(vote.strength)}; expected 1 (slightly) to 4 (far better)")
        strength = int(match[1])
    reason = "" if vote.reason is None else vote.reason
    if not isinstance(reason, str):
        raise BadVoteError(f"the reason is {shortened(reason)}; expected text")
    withdrawn = _flag(vote.withdrawn, "withdrawn") or False
    if withdrawn and choice != "skip":
        raise BadVoteError(f"a withdrawn vote says {shortened(vote.choice)}; expected skip")
    replaced = [_verdict(row, comparisons, principles) for row in _replaced(vote)]
    return Verdict.model_validate(
        {
            "comparison": name,
            "rater": _rater(vote.rater),
            "choice": choice,
            "strength": strength,
            "principle": principle,
            "rationale": whole_characters(reason),
            "seconds": _time_spent(vote.seconds),
            "exposed": _flag(vote.exposed, "exposed"),
            "withdrawn": withdrawn,
            "in_place_of": replaced,
        }
    )


def _required(value: object, name: str) -> str:
    if value is None:
        raise BadVoteError(f"the {name} is missing; expected it as it was exported")
    if not isinstance(value, str):
        raise BadVoteError(f"the {name} is {shortened(value)}; expected text, as it was exported")
    return whole_characters(value)


def _left(vote: ForeignVote, comparison: Comparison) -> str:
    """The response that the rater saw left, by its text: a tool may show texts in another order, or drop columns."""
    item = item_of(comparison, None)
    left, right = _required(vote.left, "left response"), _required(vote.right, "right response")
    orders = {"a": (item.left, item.right), "b": (item.right, item.left)}
    sides = [side for side, texts in orders.items() if same_text(texts[0], left) and same_text(texts[1], right)]
    if len(sides) != 1:
        raise BadVoteError("the responses are not those of the comparison; expected both texts as they were exported")
    if not same_text(_required(vote.conversation, "conversation"), item.conversation):
        raise BadVoteError("the conversation is not the comparison's; expected its text as it was exported")
    if vote.left_is not in (None, "", sides[0]):
        problem = f"'left_is' is {shortened(vote.left_is)}, but the text on the left is response {sides[0]}"
        raise BadVoteError(f"{problem}; expected both as they were exported")
    return sides[0]


def _principle(value: object, principles: Collection[str]) -> str:
    """The id of a principle, which some tools write in small letters."""
    name = _required(value, "principle").strip()
    named = {principle.casefold(): principle for principle in principles} | {part: part for part in principles}
    principle = named.get(name, named.get(name.casefold()))
    if principle is None:
        raise BadVoteError(f"there is no principle {shortened(name)}; expected {', '.join(principles) or 'none'}")
    return principle


def _word(choice: object) -> str | None:
    return "_".join(choice.casefold().replace("_", " ").split()) if isinstance(choice, str) else None


def _choice(value: object, left: str, principle: str | None) -> str:
    word = _word(value)
    if word in ("left", "right"):
        return left if word == "left" else "ab".replace(left, "")
    if word == NOT_APPLICABLE and principle is not None:
        return "skip"
    if word not in CHOICES:
        found = "there is no choice" if value in (None, "") else f"the choice is {shortened(value)}"
        raise BadVoteError(f"{found}; expected one of {', '.join((*CHOICES, *[NOT_APPLICABLE] * bool(principle)))}")
    return word


def _rater(value: object) -> str:
    """Who voted, as text: a number, a name, or an object with an e-mail address or an id."""
    if isinstance(value, dict):
        value = next((value[key] for key in ("email", "username", "id") if value.get(key) not in (None, "")), None)
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if not isinstance(value, str) or not value.strip():
        blank = value is None or isinstance(value, str)
        found = "it is not said who voted" if blank else f"the rater is {shortened(value)}"
        raise BadVoteError(f"{found}; expected a name, an address or a number")
    return whole_characters(value.strip())


def _time_spent(value: object) -> float | None:
    """Seconds, from a number or its text; None where there are none."""
    if value in (None, ""):
        return None
    try:
        seconds = float(value) if isinstance(value, int | float | str) and not isinstance(value, bool) else -1.0
    except (OverflowError, ValueError):
        seconds = -1.0
    if not math.isfinite(seconds) or seconds < 0:
        raise BadVoteError(f"the time is {shortened(value)}; expected seconds, such as 12.5, or nothing")
    return seconds


def _flag(value: object, name: str) -> bool | None:
    """A truth value, or yes or no; None where it is not said."""
    if value in (None, ""):
        return None
    found = value if isinstance(value, bool) else _FLAGS.get(str(value).strip().casefold())
    if found is None:
        raise BadVoteError(f"{name} is {shortened(value)}; expected yes, no, or nothing")
    return found


def _replaced(vote: ForeignVote) -> Iterator[ForeignVote]:
    """The votes that a vote replaces, from a list of objects or its JSON text."""
    value = vote.in_place_of
    if value in (None, ""):
        return
    try:
        rows = json.loads(value) if isinstance(value, str) else value
    except (ValueError, RecursionError):
        rows = None
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise BadVoteError(f"in_place_of is {shortened(value)}; expected a list of votes, as it was exported")
    for row in rows:
        yield vote._replace(
            rater=row.get("rater"),
            choice=row.get("choice"),
            strength=row.get("strength"),
            reason=row.get("reason"),
            principle=None,
            seconds=row.get("seconds"),
            exposed=row.get("exposed"),
            withdrawn=row.get("withdrawn"),
            in_place_of=None,
        )


def _seconds(when: object) -> float | None:
    """Seconds since 1970; None where there is no time that can be read."""
    if not isinstance(when, str):
        return None
    try:
        moment = datetime.fromisoformat(when.strip())
    except ValueError:
        return None
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
