"""One column of better and one of worse replies: TRL, hh-rlhf, UltraFeedback, OpenAI, LlamaFactory, axolotl."""

from collections.abc import Callable, Mapping, Sequence
from typing import Final

from constitutional.base.text import canonical
from constitutional.data.candidates import SCORE_10, Candidate, Opinion, Row
from constitutional.data.pairs.reader import CHOSEN, CONTEXT, OwnColumns, PairForm, PairReader, Replies
from constitutional.data.sources import ReadAs
from constitutional.data.turns import BadRowError, Side, common_start, is_blank, is_list_of, is_transcript

COLUMNS: Final = (
    ("chosen", "rejected"),
    ("chosen_response", "rejected_response"),
    ("preferred_output", "non_preferred_output"),
    ("preferred", "dispreferred"),
    ("response_chosen", "response_rejected"),
    ("chosen_answer", "rejected_answer"),
    ("better", "worse"),
    ("accepted", "rejected"),
    ("response_j", "response_k"),
    ("good_edited_response", "bad_edited_response"),
)
"""Columns of the better and the worse reply."""
SCORES: Final = tuple(
    (form.format("chosen"), form.format("rejected"))
    for form in (
        *("score_{}", "{}_score", "{}-rating", "{}_rating", "rating_{}", "{}_avg_rating", "{}_reward", "reward_{}"),
    )
)
_KEYS: Final[tuple[ReadAs, ...]] = (
    *(*CONTEXT, "chosen", "rejected"),
    *("probability", "strength", "rater", "principle", "weight"),
)
_PLAIN_MARKER: Final = "\n\nAssistant:"
"""How a transcript ends whose reply brings the space behind the marker."""


def chosen_and_rejected(reader: PairReader, row: Row) -> PairForm | None:
    """The form of rows with a better and a worse reply."""
    pair = _columns(reader, row)
    if pair is None:
        return None
    prompt = reader.prompt_columns(row)
    columns = {**prompt, "chosen": pair[0], "rejected": pair[1]}
    opinion_of = _opinions(reader, row, columns)
    replies = Replies(pair)
    nameless = not prompt and "prompt" in row  # our own rows of pairs whose prompt nobody knows
    opening = row.get(prompt.get("prompt", ""))
    spaced = isinstance(opening, str) and is_transcript(opening) and opening.endswith(_PLAIN_MARKER)

    def read(number: int, row: Row) -> Sequence[Candidate]:
        first, second = replies.of(row)
        if not prompt and (row.get("prompt") is not None or "messages" in row):
            raise BadRowError("has a prompt beside the replies, and the first row has none; expected one form")
        if not prompt and not nameless and isinstance(first, str) and isinstance(second, str):
            a, b = _without_prompt(reader, first, second, pair)
        else:
            reader.meet(row, prompt)
            context = () if begins_itself(first) and "system" not in prompt else reader.context(row, prompt)
            if spaced and isinstance(first, str) and isinstance(second, str):
                first, second = first.removeprefix(" "), second.removeprefix(" ")
            a, b = reader.turns.sides((first, second), pair, context)
            if (
                context == ()
                and isinstance(asked := row.get(prompt.get("prompt", "")), str)
                and not _is_asked(asked, a)
            ):
                reader.notes[
                    f"rows whose '{prompt['prompt']}' does not stand in the messages of the replies, which are read"
                ] += 1
            if prompt and not a.context:
                raise BadRowError(f"'{prompt['prompt']}' holds no message; it does not end with a user's message")
        return (reader.candidate(number, a, b, opinion_of(row)),)

    return PairForm(_name(row, pair, prompt), columns, read, keys=_KEYS)


def _is_asked(asked: str, side: Side) -> bool:
    """Whether a text, or the end of a transcript, is a turn before a reply that is a list of messages."""
    for turn in side.context:  # a generator would take a twentieth of the time of a row
        if turn.content == asked:
            return True
    return any(canonical(turn.content) in canonical(asked) for turn in side.context if turn.role == "user")


def _columns(reader: PairReader, row: Row) -> tuple[str, str] | None:
    """The columns of the better and the worse reply."""
    given = reader.file.columns
    pairs: Sequence[tuple[str, str]] = COLUMNS
    if given.keys() & {"chosen", "rejected"}:
        pairs = [(given.get("chosen", "chosen"), given.get("rejected", "rejected"))]
    pair = next((pair for pair in pairs if pair[0] in row and pair[1] in row), None)
    return None if pair is None or any(is_list_of(str, row[column]) for column in pair) else pair


def several_replies(row: Row) -> str:
    """What is wrong with a row of a better and a worse reply that is a list of texts; empty where nothing is."""
    for pair in COLUMNS:
        column = next((name for name in pair if is_list_of(str, row.get(name))), None)
        if column is not None and pair[0] in row and pair[1] in row:
            return (
                f"'{column}' is a list of texts; expected one reply, as text or messages: write a row for each pair of "
                "replies"
            )
    return ""


def _opinions(reader: PairReader, row: Row, columns: dict[str, str]) -> Callable[[Row], Opinion]:
    """What reads the opinion of a row; the columns that it reads are added to the form's."""
    scores = _scores_of(row)
    if scores is None and {"status", "original_chosen"} <= row.keys():  # distilabel's reading of Orca's pairs
        columns["tie"] = "status"
        return lambda row: Opinion("tie") if row.get("status") == "tie" else CHOSEN
    own = OwnColumns(reader, row, columns)
    names = frozenset(own.names.values())

    def opinion(row: Row) -> Opinion:
        return CHOSEN if names.isdisjoint(row) else own.read(row)

    if scores is None:
        return opinion
    columns |= {"score of chosen": scores[0], "score of rejected": scores[1]}
    return lambda row: _scored(reader, row, scores, opinion(row))


def _scores_of(row: Row) -> tuple[str, str] | None:
    return next((names for names in SCORES if names[0] in row and names[1] in row), None)


def best_first(reader: PairReader, row: Row) -> PairForm | None:
    """A list of a better and a worse reply beside an instruction, as LlamaFactory had it before 2024."""
    asked, replies = row.get("instruction"), row.get("output")
    if reader.file.columns.get("replies", "output") != "output":
        return None
    if not isinstance(asked, str) or not is_list_of(str, replies) or len(replies) != 2:  # type: ignore[arg-type]
        return None
    prompt = reader.prompt_columns(row)

    def read(number: int, row: Row) -> Sequence[Candidate]:
        replies = row.get("output")
        if not is_list_of(str, replies) or [type(reply) for reply in replies] != [str, str]:  # type: ignore[union-attr]
            raise BadRowError("'output' is no list of two texts, the better first; expected it as in the first row")
        a, b = reader.turns.sides((replies[0], replies[1]), ("output", "output"), reader.context(row, prompt))  # type: ignore[index]
        return (reader.candidate(number, a, b, CHOSEN),)

    return PairForm(
        "LlamaFactory alpaca, the better reply first", {**prompt, "replies": "output"}, read, keys=(*CONTEXT, "replies")
    )


def begins_itself(reply: object) -> bool:
    """Whether a reply is a list of messages that begins with the conversation."""
    if not isinstance(reply, list) or len(reply) < 2 or not isinstance(reply[0], dict):
        return False
    return reply[0].get("role", reply[0].get("from")) in ("user", "human")


def _without_prompt(reader: PairReader, first: str, second: str, names: tuple[str, str]) -> tuple[Side, Side]:
    if is_transcript(first) or is_transcript(second):
        return reader.turns.transcripts(first, second, names)
    end = common_start(first, second)
    if is_blank(first[:end]):
        # Nothing is shared, so nothing tells what is answered.
        reader.notes["rows without a prompt whose replies share no beginning"] += 1
        return Side(reader.turns.prompt(first, names[0]), first), Side(reader.turns.prompt(second, names[1]), second)
    context = reader.turns.prompt(first[:end], names[0])
    return Side(context, first[end:]), Side(context, second[end:])


def _scored(reader: PairReader, row: Row, names: tuple[str, str], opinion: Opinion) -> Opinion:
    """The opinion of a row with the scores of both replies, which make a tie where no probability stands beside."""
    better, worse = reader.number(row.get(names[0]), names[0]), reader.number(row.get(names[1]), names[1])
    if "score_chosen" in names and 10 in (better, worse):
        reader.notes[SCORE_10] += 1
    if better is None or worse is None:
        return opinion
    if better < worse:
        reader.notes[
            f"rows with a lower '{names[0]}' than '{names[1]}', which are read as the columns of replies say"
        ] += 1
    return opinion._replace(choice="tie") if better == worse and opinion.probability is None else opinion


def _name(row: Row, pair: tuple[str, str], prompt: Mapping[str, str]) -> str:
    texts, column = isinstance(row[pair[0]], str), prompt.get("prompt")
    names = {
        "OpenAI preference fine-tuning": pair[0] == "preferred_output",
        "argilla/ultrafeedback-binarized-preferences": pair[0] == "chosen_response" or "chosen-rating" in row,
        "HuggingFaceH4/ultrafeedback_binarized": _scores_of(row) is not None and "prompt_id" in row,
        "HuggingFaceH4/cai-conversation-harmless": "init_prompt" in row,
        "Anthropic/hh-rlhf": column is None and texts and is_transcript(row[pair[0]]),
        "TRL implicit": column is None,
        "LlamaFactory alpaca": column == "instruction",
        "messages with chosen and rejected replies": column in ("conversations", "messages"),
        "TRL explicit": True,
    }
    return next(name for name, fits in names.items() if fits)
