"""Two columns of replies, and columns that say which is better: PKU-SafeRLHF, HelpSteer, the arenas, SHP, ICAI."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from typing import Any, Final

from constitutional.base.jsonl import BadTextError, as_json, parse
from constitutional.data.candidates import (
    SIDES,
    Candidate,
    Choice,
    Opinion,
    Row,
    choice_of,
    signed_opinion,
    two_columns,
)
from constitutional.data.pairs.reader import CONTEXT, PairForm, PairReader, Replies
from constitutional.data.sources import ReadAs
from constitutional.data.turns import BadRowError, Side

VERDICTS: Final = (
    *("winner", "preferred_text", "preference", "preferred", "choice", "label", "better", "vote", "verdict"),
    *("preferred_response", "overall_response"),
)
"""Columns that name the better side."""
SIGNED: Final = ("preference_strength", "overall_preference")
"""HelpSteer's columns with a strength from -3 to 3 that is negative where the first reply is better."""
SAFETY: Final = {"better_response_id": "helpfulness", "safer_response_id": "safety"}
"""PKU-SafeRLHF's two verdicts, and the principles that they are by."""
SINGLE: Final = ("individual_preference", "all_preferences_unprocessed")
"""HelpSteer's columns of what single raters say."""

_KEYS: Final[tuple[ReadAs, ...]] = ("winner", "strength", "probability", "rater")
"""What `columns` may name of a verdict."""

Verdicts = Callable[[Row], Iterable[Opinion]]


def two_sides(reader: PairReader, row: Row) -> PairForm | None:
    """The form of rows with two replies side by side."""
    given = reader.file.columns
    sides = two_columns(row, given)
    if sides is None:
        return None
    prompt = reader.prompt_columns({name: value for name, value in row.items() if name not in sides})
    verdicts, columns = _verdicts(reader, row, sides)
    if not verdicts and not prompt:
        return None
    replies = Replies(sides)

    def read(number: int, row: Row) -> Sequence[Candidate]:
        first, second = (_up_to(row.get("turn"), reply) for reply in replies.of(row))
        context = reader.context(row, prompt)
        a, b = reader.turns.side(first, sides[0], context), reader.turns.side(second, sides[1], context)
        if verdicts is None:
            reader.notes[
                "pairs of which no column says which is better; name it with columns: {winner: COLUMN}, or with "
                f"{{probability: COLUMN}} where it is the probability that '{sides[0]}' is"
            ] += 1
            return [reader.candidate(number, a, b, Opinion(None))]
        return [reader.candidate(number, a, b, opinion) for opinion in verdicts(row)]

    columns = {**prompt, "response_a": sides[0], "response_b": sides[1], **columns}
    if isinstance(row.get("turn"), int) and isinstance(row[sides[0]], list):
        columns["turn"] = "turn"
    return PairForm(_name(row, sides), columns, read, keys=(*CONTEXT, "response_a", "response_b", *_KEYS))


def _up_to(turn: object, reply: Any) -> Any:  # noqa: ANN401 - a text, or messages
    """A conversation up to the reply that the verdict is on, as MT-bench numbers them from 1; a text as it is."""
    if not isinstance(turn, int) or not isinstance(reply, list):
        return reply
    ends = [
        at for at, message in enumerate(reply, 1) if isinstance(message, dict) and message.get("role") == "assistant"
    ]
    return reply[: ends[turn - 1]] if 1 <= turn <= len(ends) else reply


def _verdicts(reader: PairReader, row: Row, sides: tuple[str, str]) -> tuple[Verdicts | None, dict[str, str]]:
    """What reads the opinions of a row, and the columns that it reads."""
    given = reader.file.columns
    rater = reader.rater_column(row)
    named = given.keys() & {"winner", "strength", "probability"}
    if not named and "winner_model_a" in row and "winner_model_b" in row:
        flags = [name for name in ("winner_model_a", "winner_model_b", "winner_tie") if name in row]
        return lambda row: [_flagged(reader, row, flags)], {f"winner {flag[7:]}": flag for flag in flags}
    if not named and SAFETY.keys() & row.keys():
        columns = {f"winner by {principle}": name for name, principle in SAFETY.items() if name in row}
        return lambda row: _safe(reader, row, sides), columns
    found = _opinion_column(reader, row, sides)
    if found is None:
        return _by_scores(reader, row, sides)
    column, opinion_of = found
    single = next((name for name in SINGLE if name in row), "") if column in SIGNED else ""
    role = next((role for role in ("probability", "strength") if given.get(role) == column), "winner")
    columns = {role: column, **({"raters": single} if single else {}), **rater}

    def read(row: Row) -> Iterable[Opinion]:
        who = reader.rater(row.get(rater["rater"]), rater["rater"]) if rater else ""
        if column not in row:
            raise BadRowError(f"has no '{column}', which the first row has; expected it in every row")
        try:
            opinion = opinion_of(row[column])
        except BadRowError:  # a model may be named, and not the side
            models = [row.get("model_a"), row.get("model_b")]
            if models.count(row[column]) != 1:
                raise
            opinion = Opinion("a" if models[0] == row[column] else "b")
        if single:
            opinion = opinion._replace(raters=_raters(row.get(single)))
        return (opinion._replace(rater=who) if who else opinion,)

    return read, columns


def _opinion_column(
    reader: PairReader, row: Row, sides: tuple[str, str]
) -> tuple[str, Callable[[Any], Opinion]] | None:
    """The one column that tells the better side, and what reads it."""
    given = reader.file.columns
    if "probability" in given:
        return given["probability"], _probable(reader, given["probability"])
    signed = [given["strength"]] if "strength" in given else SIGNED
    if "winner" in given:
        signed = [name for name in signed if name == given["winner"]]
    column = next((name for name in signed if name in row), None)
    if column is not None:
        return column, _signed(reader, column)
    names = (given["winner"],) if "winner" in given else VERDICTS
    column = next((name for name in names if name in row and _may_name(row[name])), None)
    return None if column is None else (column, _naming(reader, row[column], sides, column))


def _may_name(value: object) -> bool:
    """Whether a value may name a side: a text, a number, or a selection of Label Studio."""
    return not isinstance(value, list | dict) or _selection(value) is not None


def _selection(value: object) -> object:
    """What is selected in an annotation of Label Studio, in its short form."""
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    return value.get("selected") if isinstance(value, dict) else None


def _signed(reader: PairReader, column: str) -> Callable[[Any], Opinion]:
    most = 3 if column in SIGNED else 10
    return lambda value: signed_opinion(reader.number(value, column), column, most)


def _probable(reader: PairReader, column: str) -> Callable[[Any], Opinion]:
    """What reads a column with the probability that the first reply is better, 0 to 1; 0.5 is a tie."""

    def read(value: object) -> Opinion:
        first = reader.number(value, column)
        if first is None:
            return Opinion(None)
        if not 0 <= first <= 1:
            raise BadRowError(f"'{column}' is {first:g}; expected the probability that the first is better, 0 to 1")
        if first == 0.5:
            return Opinion("tie")
        return Opinion("a" if first > 0.5 else "b", probability=max(first, round(1 - first, 9)))  # 1 - 0.9 is 0.0999…98

    return read


def _naming(reader: PairReader, first: object, sides: tuple[str, str], column: str) -> Callable[[Any], Opinion]:
    """What reads a column that names the better side; a number names a side where the sides have numbers.

    Raises:
        BadRowError: the column holds numbers that could be sides, strengths or probabilities.
    """
    ends = [match["side"] for name in sides if (match := SIDES.fullmatch(name))]
    if reader.texts and isinstance(first, str):
        with suppress(ValueError):
            first = float(first)
    is_number = isinstance(first, int | float) and not isinstance(first, bool)
    if is_number and ends == ["1", "2"] and (first == 0 or 1 <= first <= 2):  # type: ignore[operator]
        return lambda value: _of_one_or_two(reader.number(value, column), sides, column)
    if is_number and ends != ["0", "1"]:
        if 0 <= first <= 1:  # type: ignore[operator]
            raise _ambiguous(first, sides, column)
        return _signed(reader, column)

    def read(value: object) -> Opinion:
        selected = _selection(value)
        if selected is not None:
            return Opinion(choice_of(selected, ("left", "right"), column))
        return Opinion(choice_of(value, sides, column))

    return read


def _ambiguous(value: object, sides: tuple[str, str], column: str) -> BadRowError:
    return BadRowError(
        f"'{column}' is {as_json(value)}, which could be a side, a truth, a probability or a strength; write "
        f"'{sides[0]}', '{sides[1]}' or 'tie' in it, or have it read as the probability that '{sides[0]}' is better, "
        f"with columns: {{probability: {column}}}, or as a strength that is negative where '{sides[0]}' is better, "
        f"with columns: {{strength: {column}}}"
    )


def _of_one_or_two(value: float | None, sides: tuple[str, str], column: str) -> Opinion:
    """A side by its number; between the numbers stands the probability of the second, as in AlpacaEval.

    Raises:
        BadRowError: it is another number. 0 is a tie in AlpacaEval's column alone; elsewhere it may be the first of
            two sides that are counted from 0, or a truth.
    """
    if value is None:
        return Opinion(None)
    if value == 0 and (sides, column) != (("output_1", "output_2"), "preference"):
        raise _ambiguous(0, sides, column)
    if value in (0, 1.5):
        return Opinion("tie")
    if not 1 <= value <= 2:
        raise BadRowError(
            f"'{column}' is {value:g}; expected 1 or 2, the number of the better reply, as in the first row; where it "
            f"is a strength that is negative where the first reply is better, say columns: {{strength: {column}}}"
        )
    second = round(value - 1, 9)  # 1.9 - 1 is 0.8999999999999999
    return Opinion("b" if second > 0.5 else "a", probability=max(second, 1 - second))


def _by_scores(reader: PairReader, row: Row, sides: tuple[str, str]) -> tuple[Verdicts | None, dict[str, str]]:
    """Scores of both sides, such as `score_0` and `score_1`; or the one column of a selection."""
    ends = [match["side"] for name in sides if (match := SIDES.fullmatch(name))]
    for stem in ("score", "rating", "reward"):
        names = [f"{stem}_{end}" for end in ends]
        if len(names) == 2 and all(name in row for name in names):

            def read(row: Row, names: Sequence[str] = tuple(names)) -> Iterable[Opinion]:
                a, b = (reader.number(row.get(name), name) for name in names)
                if a is None or b is None:
                    return (Opinion(None),)
                return (Opinion("a" if a > b else "b" if b > a else "tie"),)

            return read, {"score of response_a": names[0], "score of response_b": names[1]}
    selected = next((name for name, value in row.items() if _selection(value) is not None), None)
    if selected is None:
        return None, {}
    opinion_of = _naming(reader, row[selected], sides, selected)
    rater = reader.rater_column(row)

    def select(row: Row) -> Iterable[Opinion]:
        value = row.get(selected)
        opinion = Opinion(None) if _selection(value) is None else opinion_of(value)
        return (opinion._replace(rater=reader.rater(row.get(rater["rater"]), rater["rater"])) if rater else opinion,)

    return select, {"winner": selected, **rater}


def _flagged(reader: PairReader, row: Row, flags: Sequence[str]) -> Opinion:
    """One of three columns is 1."""
    values = [reader.number(row.get(flag), flag) for flag in flags]
    choices: tuple[Choice, ...] = ("a", "b", "tie")
    marked = [choice for choice, value in zip(choices, values, strict=False) if value]
    if len(marked) > 1 or any(value not in (None, 0, 1) for value in values):
        raise BadRowError(f"'{flags[0]}' and the columns beside it are {values}; expected a 1 in one of them")
    return Opinion(marked[0] if marked else None)


def _safe(reader: PairReader, row: Row, sides: tuple[str, str]) -> Iterator[Opinion]:
    """PKU-SafeRLHF's verdicts by two principles, which may disagree."""
    if all(str(row.get(f"is_response_{side}_safe")).lower() == "false" for side in (0, 1)):
        reader.notes["rows with two unsafe replies, whose verdict on safety says which is the less harmful"] += 1
    for column, principle in SAFETY.items():
        if column in row:
            yield Opinion(choice_of(row[column], sides, column), principles=(principle,))


def _raters(value: object) -> tuple[float, ...]:
    """Strengths of single raters, in HelpSteer's lists of objects."""
    if not isinstance(value, list):
        return ()
    found = [
        next((item[key] for key in ("score", "strength", "preference") if key in item), None)
        for item in value
        if isinstance(item, dict)
    ]
    return tuple(float(score) for score in found if isinstance(score, int | float))


def lists_as_texts(reader: PairReader, row: Row) -> PairForm | None:
    """The arena's 55k rows, whose columns hold lists of turns as JSON texts."""
    sides = ("response_a", "response_b")
    if reader.file.columns.keys() & {*CONTEXT, *sides} or not all(
        isinstance(row.get(name), str) and row[name].lstrip()[:1] == "[" for name in ("prompt", *sides)
    ):
        return None
    verdicts, columns = _verdicts(reader, row, sides)

    def read(number: int, row: Row) -> Sequence[Candidate]:
        asked, first, second = (_texts_within(row, name) for name in ("prompt", *sides))
        a, b = (_turn_by_turn(reader, asked, replies) for replies in (first, second))
        opinions = verdicts(row) if verdicts else (Opinion(None),)
        return [reader.candidate(number, a, b, opinion) for opinion in opinions]

    columns = {"prompt": "prompt", "response_a": sides[0], "response_b": sides[1], **columns}
    return PairForm("lmarena 55k", columns, read, keys=_KEYS)


def _turn_by_turn(reader: PairReader, asked: Sequence[str], replies: Sequence[str]) -> Side:
    if len(asked) != len(replies):
        raise BadRowError(f"'prompt' has {len(asked)} turns and a response {len(replies)}; expected as many")
    turns = [
        {"role": role, "content": text}
        for pair in zip(asked, replies, strict=True)
        for role, text in zip(("user", "assistant"), pair, strict=True)
    ]
    return reader.turns.side(turns, "prompt", ())


def _texts_within(row: Row, name: str) -> list[str]:
    """The texts of a JSON list that stands in a text."""
    value = row.get(name)
    try:
        texts = parse(value) if isinstance(value, str) else value
    except BadTextError as error:
        raise BadRowError(f"'{name}' {error}; expected a JSON list of texts") from error
    if not isinstance(texts, list) or not all(isinstance(text, str | None) for text in texts):
        raise BadRowError(f"'{name}' is {as_json(value)}; expected a JSON list of texts")
    return [text or "" for text in texts]


def _name(row: Row, sides: tuple[str, str]) -> str:
    known = {
        "PKU-SafeRLHF": "safer_response_id",
        "HelpSteer2 preference": "preference_strength",
        "HelpSteer3 preference": "overall_preference",
        "ICAI": "preferred_text",
        "tinker": "completion_A",
        "lmarena": "model_a",
    }
    return next((name for name, column in known.items() if column in row), f"'{sides[0]}' and '{sides[1]}'")
