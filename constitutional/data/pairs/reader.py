"""What all forms of preferences share: how rows become candidates, and how prompts, texts and numbers are read."""

import json
import math
from collections import Counter
from collections.abc import Callable, Container, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import combinations
from typing import Any, Final

from constitutional.base.jsonl import BadTextError, as_json
from constitutional.base.text import same_text
from constitutional.data.candidates import (
    Candidate,
    Choice,
    Class,
    Opinion,
    Row,
    alike,
    has_silent_turn,
    plainly_different,
)
from constitutional.data.cells import decoded_cell
from constitutional.data.sources import DataFile, ReadAs
from constitutional.data.turns import (
    BadRowError,
    Conversation,
    Side,
    Turns,
    is_blank,
)

PROMPTS: Final = (
    *("prompt", "prompt_conversation", "instruction", "question", "query", "messages", "conversations"),
    *("conversation", "context", "input", "history", "post", "trajectory"),
)
"""Columns of the conversation before the replies, in the order in which they are looked for."""
RATERS: Final = ("rater", "judge", "annotator", "worker", "judge_hash")
"""Columns that say who compares."""
_OWN: Final = ("probability", "rater", "principle", "weight", "strength", "raters")
"""Columns of our own rows beside the replies."""
_WHO: Final = {"source": "source", "principles": "principles"}
"""More of them, which are read where a row says who prefers."""
CONTEXT: Final[tuple[ReadAs, ...]] = ("prompt", "input", "system")
"""What is read of the conversation, as `columns` may name it."""
_OTHER: Final = {"prompt": "messages", "messages": "prompt"}

CHOSEN: Final = Opinion("a")
"""The opinion of a row that says nothing but which reply is better."""


@dataclass
class PairForm:
    """How the rows of a file are read."""

    name: str
    """The set or the format."""
    columns: dict[str, str]
    """The file's column by what it is read as."""
    read: Callable[[int, Row], Sequence[Candidate]]
    """The candidates of a row; or of rows that belong together, as (number, row) under the key `rows`."""
    together: Callable[[Row], object] | None = None
    """What rows share that stand one after the other and belong together; raises BadRowError."""
    keys: tuple[ReadAs, ...] = ()
    """What `columns` may name; nothing in the files of tools, whose columns have fixed names."""
    labelled: str = ""
    """By which model a public set is labelled, as a predicate; empty where nothing is known of that."""


class PairReader:
    """Makes candidates of a file's rows; `notes` counts what deserves a warning."""

    def __init__(self, file: DataFile, *, texts: bool = False) -> None:
        """Read rows by the settings of a file.

        Args:
            file: names columns and the probabilities of strengths.
            texts: numbers stand as texts, as in CSV.
        """
        self.file = file
        self.texts = texts
        self.columns: dict[str, str] = {}
        """Those of the form, once it is known."""
        self._met: set[str] = set()
        """Columns of which it is known whether they are read with the prompt."""
        self.turns = Turns()
        self.notes: Counter[str] = self.turns.notes

    def warnings(self) -> list[str]:
        """What deserves a warning in the rows that were read, each with how often."""
        return [f"{note}: {count:,}" for note, count in self.notes.items()]

    def candidate(self, number: int, a: Side, b: Side, opinion: Opinion) -> Candidate:
        """Two replies and an opinion on them, in its class."""
        choice, strength = opinion.choice, opinion.strength
        label = _class_of(a, b, choice)
        source = opinion.source or self.file.source or "human"
        if opinion is CHOSEN and source == "human":
            return Candidate(number, a.context, a.reply, b.reply, label)
        first, second = (b.reply, a.reply) if choice == "b" else (a.reply, b.reply)
        probability = opinion.probability
        if choice not in ("a", "b"):
            probability = 0.5
        elif probability is None:
            probability = self.file.strengths.get(strength, 1.0) if strength else 1.0
            if strength and self.file.strengths and strength not in self.file.strengths:
                self.notes[
                    f"pairs of the strength {strength}, which 'strengths' does not name, so that it counts 1.0"
                ] += 1
            if probability == 0.5 and label == "preference":
                label = "tie"
        signs = tuple(0 - strength for strength in opinion.raters) if choice != "b" else opinion.raters
        says_strength = opinion.probability is None and choice in ("a", "b")
        about = (opinion.weight, opinion.rater, signs, opinion.principles, source, strength * says_strength)
        return Candidate(number, a.context, first, second, label, probability, *about)

    def all_pairs(
        self,
        number: int,
        replies: Sequence[tuple[Side, float | None]],
        sign: int,
        *,
        strengths: bool = False,
        rater: str = "",
    ) -> list[Candidate]:
        """Every pair of K replies, with the weight of one comparison shared among the pairs that somebody judged.

        Args:
            number: the row's.
            replies: each with its rank or score; without one, nobody says how good it is.
            sign: 1 where the lowest is the best, as of ranks; -1 where the highest is, as of scores.
            strengths: the difference is a strength.
            rater: who ranks.
        """
        judged = sum(value is not None for _, value in replies)
        weight = 2 / (judged * (judged - 1)) if judged > 1 else 1.0
        made = []
        for (a, first), (b, second) in combinations(replies, 2):
            if first is None or second is None:
                opinion = Opinion(None, rater=rater, weight=weight)
            else:
                difference = sign * (second - first)
                choice: Choice = "a" if difference > 0 else "b" if difference < 0 else "tie"
                opinion = Opinion(choice, round(abs(difference)) if strengths else 0, rater=rater, weight=weight)
            made.append(self.candidate(number, a, b, opinion))
        return made

    def prompt_columns(self, row: Row) -> dict[str, str]:
        """The columns of the conversation that the replies answer, by what they are read as."""
        given = self.file.columns
        names = (given["prompt"],) if "prompt" in given else PROMPTS
        if not isinstance(row.get(names[0]), str | list | dict | None):
            raise BadRowError(f"'{names[0]}' is {as_json(row[names[0]])}; expected a text or messages")
        column = next((name for name in names if isinstance(row.get(name), str | list | dict)), None)
        if column is None:
            return {}
        self._met.update(row)
        return {"prompt": column} | self.file.beside(row, column)

    def meet(self, row: Row, columns: dict[str, str]) -> None:
        """Add what goes with the prompt and the first row lacks: JSON lines may leave out what a row has not."""
        if not row.keys() <= self._met and "prompt" in columns:
            self._met.update(row)
            late = self.file.beside(row, columns["prompt"])
            for known in (columns, self.columns):
                known.update(late | known)

    def context(self, row: Row, columns: dict[str, str]) -> Conversation:
        """The conversation that the replies answer, in columns to which those are added that later rows alone have.

        Raises:
            BadRowError: it is none.
        """
        column = columns.get("prompt")
        if column is None:
            return ()
        self.meet(row, columns)
        if column not in row and _OTHER.get(column) in row:
            column = _OTHER[column]  # our own rows have either
        if column not in row:
            raise BadRowError(f"has no '{column}', which the first row has; expected it in every row")
        turns = self.turns.prompt(row[column], column)
        if turns and "input" in columns and (more := row.get(columns["input"])):
            last = turns[-1]
            turns = (*turns[:-1], type(last)(last.role, f"{last.content}\n{self.text(more, columns['input'])}"))
        if "history" in columns:
            turns = (*self.turns.history(row.get("history"), "history"), *turns)
        if "system" in columns and (system := row.get(columns["system"])) and turns[:1] and turns[0].role != "system":
            turns = (type(turns[0])("system", self.text(system, columns["system"])), *turns)
        return turns

    def text(self, value: object, name: str) -> str:
        """A text; nothing where there is none."""
        if not isinstance(value, str | None):
            raise BadRowError(f"'{name}' is {type(value).__name__}; expected text")
        return value or ""

    def number(self, value: object, name: str) -> float | None:
        """A number; None where there is none."""
        if type(value) is float and math.isfinite(value):
            return value
        if value is None or (self.texts and value == ""):
            return None
        if self.texts and isinstance(value, str):
            with suppress(ValueError):
                value = float(value)
        if isinstance(value, int | float):
            with suppress(OverflowError):  # an integer of hundreds of digits
                number = float(value)
                if math.isfinite(number):
                    return number
        raise BadRowError(f"'{name}' is {as_json(value)}; expected a number")

    def between(self, value: object, name: str, least: float) -> float:
        """A probability of 0.5 to 1, or a share above 0, as the least value says."""
        number = None if isinstance(value, bool) else self.number(value, name)
        if number is None or not least <= number <= 1 or not number:
            expected = "expected that chosen is better, 0.5 to 1; below 0.5, swap chosen and rejected"
            raise BadRowError(f"'{name}' is {value!r}; {expected if least else 'expected a share above 0, at most 1'}")
        return number

    def rater_column(self, row: Row) -> dict[str, str]:
        """The column that says who compares, if there is one."""
        if "rater" in self.file.columns:
            return {"rater": self.file.columns["rater"]}
        column = next((name for name in RATERS if _is_name(row.get(name))), None)
        return {} if column is None else {"rater": column}

    def rater(self, value: object, name: str) -> str:
        """Who compares; a number is a name, too. Empty where nobody is named.

        Raises:
            BadRowError: it is no name.
        """
        if value is None:
            return ""
        if not _is_name(value):
            raise BadRowError(f"'{name}' is {as_json(value)}; expected a name, as text or as a number")
        return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def _class_of(a: Side, b: Side, choice: Choice | None) -> Class:
    """The class of two replies of which the one is better, or neither."""
    if a.context is not b.context and not alike(a.context, b.context):
        return "different_contexts"
    if is_blank(a.reply) or is_blank(b.reply) or has_silent_turn(a.context):
        return "empty" if a.calls == b.calls else "calls"
    if a.reply == b.reply or (not plainly_different(a.reply, b.reply) and same_text(a.reply, b.reply)):
        return "equal" if a.calls == b.calls else "calls"
    if choice is None:
        return "unlabelled"
    return "preference" if choice in ("a", "b") else choice  # type: ignore[return-value]


def _is_name(value: object) -> bool:
    return isinstance(value, str | int | float) and not isinstance(value, bool)


class OwnColumns:
    """What columns of our own rows, and of those that `export` writes, say beside the replies.

    Other sets have columns of these names, too. One that holds something else in the first row is not read, unless the
    settings name it.
    """

    def __init__(self, reader: PairReader, row: Row, columns: dict[str, str]) -> None:
        """Look for the columns in a file's first row.

        Args:
            reader: the file's.
            row: the first.
            columns: of the form, by what they are read as; those that are met are added, also in later rows.

        Raises:
            BadRowError: a column that the settings name holds something else.
        """
        given = {str(role): column for role, column in reader.file.columns.items()}
        self._reader = reader
        self._columns = columns
        self.names: dict[str, str] = {role: given.get(role, role) for role in _OWN} | reader.rater_column(row)
        asked = given.keys() | ({"strength"} if reader.file.strengths else set())
        self._leave_others(row, asked)
        self._labels = {self.names[role] for role in ("probability", "strength") if role in self.names}
        self.marked = self._says_who(row)
        """Whether the first row says who prefers, so that all must."""
        if self.marked:
            self.names |= _WHO
            self._leave_others(row, asked)
        columns |= {role: column for role, column in self.names.items() if column in row}

    def _says_who(self, row: Row) -> bool:
        """Whether a row says who prefers, beside how sure or how much."""
        return source_of(row.get("source")) is not None and not self._labels.isdisjoint(row)

    def _leave_others(self, row: Row, asked: Container[str]) -> None:
        """Leave out the columns that hold something else; refuse one of those that were asked for."""
        for role, column in list(self.names.items()):
            try:
                self._parsed(role, column, row.get(column))
            except BadRowError as error:
                if role in asked:
                    raise
                del self.names[role]
                self._reader.notes[f"columns of other sets with a name of ours, which are not read ({error})"] += 1

    def read(self, row: Row) -> Opinion:
        """What a row says.

        Raises:
            BadRowError: a column holds something else.
        """
        said: dict[str, Any] = {}
        names = self.names if self.marked or not self._says_who(row) else self.names | _WHO
        for role, column in names.items():
            value = self._parsed(role, column, row.get(column))
            if value is not None:
                said[role] = value
        if not said:
            return CHOSEN
        if self.marked and "source" not in said:
            raise BadRowError('\'source\' is null; expected "ai" or "human", as in the first row')
        if not said.keys() <= self._columns.keys():
            self._columns |= {role: names[role] for role in said}
        probability, strength = said.get("probability"), said.get("strength")
        is_tie = probability == 0.5 or (probability is None and strength == 0)
        by = (*([said["principle"]] if "principle" in said else []), *said.get("principles", ()))
        signs = tuple(0 - sign for sign in said.get("raters", ()))
        about = (strength or 0, said.get("rater", ""), signs, by, probability, said.get("weight", 1.0))
        return Opinion("tie" if is_tie else "a", *about, said.get("source"))

    def _parsed(self, role: str, column: str, value: object) -> object:
        """What a column says; None where it says nothing."""
        if value is None or value == "":
            return None
        return _PARSERS[role](self._reader, value, column)


def _strength(reader: PairReader, value: object, column: str) -> int:
    """How much better chosen is, from 1; 0 is a tie.

    Raises:
        BadRowError: it is no whole number, or is negative, as where a sign says which reply is better.
    """
    number = None if isinstance(value, bool) else reader.number(value, column)
    if number is not None and number < 0:
        raise BadRowError(
            f"'{column}' is {number:g}, and the names of the columns say which reply is better; expected a whole "
            "number from 0: write it without the sign, or swap the replies where the sign is right"
        )
    if number is None or number != int(number):
        raise BadRowError(f"'{column}' is {as_json(value)}; expected a whole number from 0")
    return int(number)


def _source(_reader: PairReader, value: object, column: str) -> object:
    """Who prefers."""
    if (who := source_of(value)) is None:
        raise BadRowError(f'\'{column}\' is {as_json(value)}; expected "ai" or "human", as in the first row')
    return who


def source_of(value: object) -> str | None:
    """Whether `ai` or `human` prefers, however it is written; None where a column of that name says something else."""
    who = value.strip().lower() if isinstance(value, str) else ""
    return who if who in ("ai", "human") else None


def _texts(reader: PairReader, value: object, column: str) -> tuple[str, ...] | None:
    """The texts of a list; None where it is empty."""
    listed = _listed(reader, value)
    if not isinstance(listed, list) or not all(isinstance(item, str) for item in listed):
        raise BadRowError(f"'{column}' is {as_json(value)}; expected a list of texts")
    return tuple(listed) or None


def _numbers(reader: PairReader, value: object, column: str) -> tuple[float, ...] | None:
    """The numbers of a list; None where it is empty."""
    listed = _listed(reader, value)
    if not isinstance(listed, list) or not all(isinstance(item, int | float) for item in listed):
        raise BadRowError(f"'{column}' is {as_json(value)}; expected a list of numbers")
    return tuple(map(float, listed)) or None


def _listed(reader: PairReader, value: object) -> object:
    """A list that stands in the cell of a table."""
    if reader.texts and isinstance(value, str):
        with suppress(BadTextError):
            return decoded_cell(value)
    return value


_PARSERS: Final[Mapping[str, Callable[[PairReader, object, str], object]]] = {
    "probability": lambda reader, value, column: reader.between(value, column, 0.5),
    "weight": lambda reader, value, column: reader.between(value, column, 0.0),
    "rater": PairReader.rater,
    "principle": PairReader.text,
    "strength": _strength,
    "source": _source,
    "principles": _texts,
    "raters": _numbers,
}
"""What reads a column of our own, by what it is read as."""


def names_of(value: object) -> tuple[str, ...]:
    """The principles of rows that `export` writes; none where a column of that name holds something else."""
    return tuple(value) if isinstance(value, list) and all(isinstance(name, str) for name in value) else ()


class Replies:
    """The two columns of replies, which are of one type in all rows: texts, or messages."""

    def __init__(self, names: tuple[str, str]) -> None:
        """Read the columns of these names."""
        self.names = names
        self.kind: type | None = None

    def of(self, row: Row) -> tuple[Any, Any]:
        """The two replies of a row.

        Raises:
            BadRowError: one is missing, or is of another type than those before.
        """
        first, second = self.names
        try:
            values = row[first], row[second]
        except KeyError as error:
            raise BadRowError(f"{error} is missing; expected text or messages, as in the first row") from error
        if type(values[0]) is self.kind is type(values[1]):
            return values
        for name, value in zip(self.names, values, strict=True):
            kind = list if isinstance(value, dict) else type(value)
            if value is None:
                continue
            if kind not in (str, list):
                raise BadRowError(f"'{name}' is {type(value).__name__}; expected text or messages")
            self.kind = self.kind or kind
            if kind is not self.kind:
                raise BadRowError(f"'{name}' is {kind.__name__}; expected {self.kind.__name__}, as in the rows before")
        return values


def key_of_column(column: str) -> Callable[[Row], object]:
    """What rows share that have the same value in a column."""

    def key(row: Row) -> object:
        if column not in row:
            raise BadRowError(f"has no '{column}', which the first row has; expected it in every row")
        value = row[column]
        return value if isinstance(value, str) else json.dumps(value, default=str)

    return key
