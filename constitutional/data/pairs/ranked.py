"""Ranks and scores of several replies (Nectar, NeMo-RL, UltraFeedback), and one reply a row (HelpSteer, KTO)."""

import json
from collections.abc import Callable, Mapping, Sequence
from itertools import combinations
from typing import Final

from constitutional.base.jsonl import as_json
from constitutional.data.candidates import SCORE_10, Candidate, Class, Opinion, Row
from constitutional.data.pairs.reader import CONTEXT, OwnColumns, PairForm, PairReader, key_of_column, source_of
from constitutional.data.sources import ReadAs
from constitutional.data.turns import BadRowError, Side, is_list_of

LISTS: Final = (
    *("answers", "completions", "responses", "candidates", "outputs", "replies", "generations"),
    *("candidates_completions", "all_generated_responses"),
)
"""Columns of several replies."""
LISTED: Final = ("answer", "completion", "response", "output", "text", "reply", "generation", "content")
"""Keys of a reply in a list of objects."""
RATED: Final = ("overall_score", "score", "rating", "reward", "pm_score", "fine-grained_score")
"""Keys of its score, of which the highest is best; `rank` is best where it is lowest."""
RANKS: Final = ("ranks", "rank", "ranking")
BESIDE: Final = (*RANKS, "ratings", "rating", "scores", "score", "rewards", "all_rm_scores")
"""Columns of ranks or scores beside a list of texts."""
_TURNS: Final = ("messages", "conversations", "conversation")
"""Columns of a whole conversation, of which the last turn is the reply."""
_LABELS: Final = ("helpfulness", "label", "kto_tag")
"""Columns that say how good the one reply of a row is."""
_KEYS: Final[tuple[ReadAs, ...]] = ("replies", "rank", "score")
"""What `columns` may name of several replies a row."""


def ranked(reader: PairReader, row: Row) -> PairForm | None:
    """A list of replies with ranks (Nectar, NeMo-RL) or with scores (UltraFeedback, StackExchange)."""
    given = reader.file.columns
    named = next((given[role] for role in _KEYS if role in given), "").partition(".")[0]
    column = next((name for name in ((named,) if named else LISTS) if is_list_of(dict, row.get(name))), None)
    if column is None:
        return None
    item = row[column][0]
    texts = (_within(given["replies"], column),) if "." in given.get("replies", "") else LISTED
    text = next((key for key in texts if isinstance(item.get(key), str | list | dict)), None)
    role, order = _order_within(given, column, item)
    if text is None or order is None:
        return None
    prompt = reader.prompt_columns({name: value for name, value in row.items() if name != column})
    columns = {**prompt, "replies": f"{column}.{text}", role: f"{column}.{order}"}
    sign = 1 if role == "rank" else -1  # the first rank and the highest score are best
    is_exported = source_of(row.get("source")) is not None and "probability" in row
    own = OwnColumns(reader, row, columns) if is_exported else None

    def read(number: int, row: Row) -> Sequence[Candidate]:
        items = row.get(column)
        if not isinstance(items, list) or not all(isinstance(item, dict) for item in items):
            raise BadRowError(f"'{column}' is {as_json(items)}; expected a list of objects with '{text}'")
        context = reader.context(row, prompt)
        replies = []
        for item in items:
            if text not in item:
                raise BadRowError(f"'{column}' has an entry without '{text}', which the first row has")
            value = reader.number(item.get(order), f"{column}.{order}")
            replies.append((reader.turns.side(item[text], f"{column}.{text}", context), value))
        if order == "overall_score" and any(_is_doubtful(item) for item in items):
            reader.notes[SCORE_10] += 1
        pairs = reader.all_pairs(number, replies, sign)
        if own and len(pairs) == 1 and pairs[0].label == "preference":
            return [_as_exported(pairs[0], own.read(row))]
        return pairs

    name = (
        "Nectar" if (column, order) == ("answers", "rank") else "NeMo-RL" if "context" in row else f"ranks by '{order}'"
    )
    return PairForm(name, columns, read, keys=(*CONTEXT, *_KEYS))


def _order_within(given: Mapping[ReadAs, str], column: str, item: Row) -> tuple[str, str | None]:
    """Whether a key of a reply in a list of objects is its rank or its score, and the key."""
    for role in ("rank", "score"):
        if role in given:
            key = _within(given[role], column)
            return role, key if key in item else None
    order = next((key for key in ("rank", *RATED) if key in item), None)
    return "rank" if order == "rank" else "score", order


def _within(named: str, column: str) -> str:
    """The key in a list of objects that a setting names: `answers.rank`, or `rank` alone."""
    return named.removeprefix(f"{column}.")


def _is_doubtful(item: Row) -> bool:
    """Whether UltraFeedback's score 10 is not borne out by the mean of the four ratings from 1 to 5 beside it."""
    mean = item.get("fine-grained_score")
    return item.get("overall_score") == 10 and not (isinstance(mean, int | float) and mean > 2)


def _as_exported(pair: Candidate, opinion: Opinion) -> Candidate:
    """A preference with the probability, the weight and the source that an exported row says."""
    probability = 1.0 if opinion.probability is None else opinion.probability
    label: Class = "tie" if probability == 0.5 else "preference"
    source = opinion.source or pair.source
    return pair._replace(
        label=label, probability=probability, weight=opinion.weight, source=source, principles=opinion.principles
    )


def side_by_side(reader: PairReader, row: Row) -> PairForm | None:
    """A list of texts, and a list of ranks or scores beside it, as distilabel writes them."""
    given = reader.file.columns
    names = (given["replies"],) if "replies" in given else LISTS
    column = next((name for name in names if is_list_of(str, row.get(name)) and len(row[name]) > 1), None)
    if column is None:
        return None
    count = len(row[column])
    beside = [given[role] for role in ("rank", "score") if role in given] or BESIDE
    order = next((name for name in beside if _are_numbers(row.get(name), count)), None)
    prompt = reader.prompt_columns({name: value for name, value in row.items() if name != column})
    if order is None or not prompt:
        return None
    is_rank = "rank" in given or ("score" not in given and order in RANKS)
    sign = 1 if is_rank else -1

    def read(number: int, row: Row) -> Sequence[Candidate]:
        texts, values = row.get(column), row.get(order)
        if not isinstance(texts, list) or not isinstance(values, list) or len(texts) != len(values):
            raise BadRowError(f"'{column}' and '{order}' are no lists of one length; expected a number for each reply")
        context = reader.context(row, prompt)
        replies = [
            (reader.turns.side(text, column, context), reader.number(value, order))
            for text, value in zip(texts, values, strict=True)
        ]
        return reader.all_pairs(number, replies, sign)

    columns = {**prompt, "replies": column, "rank" if is_rank else "score": order}
    return PairForm(f"replies and their {order}", columns, read, keys=(*CONTEXT, *_KEYS))


def _are_numbers(value: object, count: int) -> bool:
    return (
        isinstance(value, list)
        and len(value) == count
        and all(isinstance(item, int | float | None) for item in value)
        and any(item is not None for item in value)
    )


# --- One reply a row ---


def one_a_row(reader: PairReader, row: Row) -> PairForm | None:
    """One reply a row with a score (HelpSteer) or with a label (TRL's unpaired rows, LlamaFactory's KTO).

    Rows of one conversation stand one after the other.
    """
    role, judged = _judged_by(reader, row)
    if not judged:
        return None
    found = _reply_column(reader, row) or _reply_within(reader, row)
    if found is None:
        return None
    columns, key, side_of = found
    judge = _truth if role == "label" else _graded

    def read(number: int, group: Row) -> Sequence[Candidate]:
        replies = []
        for place, member in group["rows"]:
            try:
                replies.append((side_of(member), judge(reader, member.get(judged), judged)))
            except BadRowError as error:
                raise BadRowError(str(error), place) from error
        if len(replies) == 1:
            reader.notes[f"rows that stand alone, as no row beside them has the same '{columns['prompt']}'"] += 1
        if role != "label":
            return reader.all_pairs(number, replies, 1 if role == "rank" else -1, strengths=role == "score")
        # Two good replies are no pair, nor are two bad ones.
        pairs = [pair for pair in combinations(replies, 2) if pair[0][1] != pair[1][1]]
        judged_pairs = sum(None not in (good, other) for (_, good), (_, other) in pairs)

        def opinion(good: float | None, other: float | None) -> Opinion:
            if good is None or other is None:
                return Opinion(None)
            return Opinion("a" if good else "b", weight=1 / judged_pairs)

        return [reader.candidate(number, a, b, opinion(good, other)) for (a, good), (b, other) in pairs]

    name = "HelpSteer2" if judged == "helpfulness" else "TRL unpaired" if role == "label" else f"replies by '{judged}'"
    keys: tuple[ReadAs, ...] = (*CONTEXT, "reply", "score", "rank", "label")
    return PairForm(name, {**columns, role: judged}, read, key, keys)


def _judged_by(reader: PairReader, row: Row) -> tuple[str, str]:
    """Whether a label, a score or a rank says how good the one reply of a row is, and its column; empty if none does.

    Raises:
        BadRowError: the label that the settings name is no truth.
    """
    given = reader.file.columns
    for role in ("score", "rank"):
        if role in given:
            return role, given[role]
    judged = given.get("label") or next((name for name in _LABELS if name in row), "")
    if judged == "helpfulness" and "label" not in given:
        return "score", judged
    if not judged or _is_truth(row[judged]):
        return "label", judged
    if "label" not in given:
        return "label", ""
    raise _no_truth(row[judged], judged)


_Found = tuple[dict[str, str], Callable[[Row], object], Callable[[Row], Side]]
"""The columns that are read, what rows of one conversation share, and the reply of a row."""


def _reply_column(reader: PairReader, row: Row) -> _Found | None:
    """A column of replies beside that of the conversation."""
    given = reader.file.columns
    names = (given["reply"],) if "reply" in given else ("completion", "response", "output")
    reply = next((name for name in names if isinstance(row.get(name), str | list)), None)
    prompt = reader.prompt_columns({name: value for name, value in row.items() if name != reply})
    if reply is None or not prompt:
        return None

    def side(row: Row) -> Side:
        if reply not in row:
            raise BadRowError(f"has no '{reply}', which the first row has; expected it in every row")
        return reader.turns.side(row[reply], reply, reader.context(row, prompt))

    return {**prompt, "reply": reply}, key_of_column(prompt["prompt"]), side


def _reply_within(reader: PairReader, row: Row) -> _Found | None:
    """A conversation that ends with the reply."""
    column = next((name for name in _TURNS if is_list_of(dict, row.get(name)) and len(row[name]) > 1), None)
    if column is None or row[column][-1].get("role", row[column][-1].get("from")) not in ("assistant", "gpt"):
        return None

    def key(row: Row) -> object:
        value = row.get(column)
        if not isinstance(value, list):
            raise BadRowError(f"'{column}' is {as_json(value)}; expected messages, as in the first row")
        return json.dumps(value[:-1], default=str)

    return {"prompt": column, "reply": column}, key, lambda row: reader.turns.side(row[column], column, ())


def _is_truth(value: object) -> bool:
    return value in (True, False) or str(value).lower() in ("true", "false")


def _truth(reader: PairReader, value: object, name: str) -> float | None:
    if str(value).lower() in ("true", "false"):
        return float(str(value).lower() == "true")
    number = reader.number(value, name)
    if number not in (None, 0, 1):
        raise _no_truth(value, name)
    return number


def _no_truth(value: object, name: str) -> BadRowError:
    return BadRowError(
        f"'{name}' is {as_json(value)}; expected true or false (1 or 0), or nothing; where it says how good the "
        f"reply is, name it with columns: {{score: {name}}}"
    )


def _graded(reader: PairReader, value: object, name: str) -> float | None:
    return reader.number(value, name)
