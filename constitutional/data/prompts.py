"""The prompts of people's files, checked and split. No prompt is in both splits.

Files are read once to check them and to decide which rows are kept and on which side (`splits.py`), and again whenever
the prompts are asked for: of a prompt some bytes are held, and not its text.
"""

import difflib
import hashlib
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import dropwhile
from pathlib import Path
from typing import Any, Final, NamedTuple

from constitutional.base.errors import InputError
from constitutional.base.jsonl import as_json, shortened
from constitutional.base.progress import counted
from constitutional.base.records import Message, Prompt, Split
from constitutional.base.seeds import rng_of, seed_of
from constitutional.base.shards import RowStream
from constitutional.base.text import canonical
from constitutional.data.sources import DataFile, ReadAs, RowPlace, Rows
from constitutional.data.splits import HELD_OUT, SIDES, TRAIN, Facts, Places, Sides, digest
from constitutional.data.turns import BadRowError, Turns, is_blank, is_list_of

MAX_CHARACTERS: Final = 100_000
"""Of all messages of one prompt together: far above any model's context, far below what stalls a tokenizer."""

MOST_HELD_OUT: Final = 200
"""Prompts that are set aside for evaluation where nobody says how many."""

_OWN: Final = frozenset(("prompt", "messages", "split"))
_OF_RUNS: Final = frozenset(("id", *Prompt.model_fields))
"""The columns of the prompts that a run writes."""
_ROLES: Final = ("system", "user", "assistant")
COLUMNS: Final = (
    *("messages", "conversations", "conversation", "prompt", "instruction", "question", "query", "transcript"),
    *("user_prompt", "user_input", "forbidden_prompt", "Behavior", "behavior", "goal", "inputs", "input", "data"),
    *("text", "chosen"),
)
"""Columns that hold a prompt, or a conversation that begins with it, in the order in which they are looked for."""
_KEYS: Final[tuple[ReadAs, ...]] = ("prompt", "input", "system")
EXPECTED: Final = (
    'a text in quotes, {"prompt": "…"} or {"messages": [{"role": "user", "content": "…"}]}, '
    'with "split": "train" or "held_out" if you like'
)

Conversation = tuple[tuple[str, str], ...]
"""Role and canonical text of each message, with what else the model is given of it."""


class _Line(NamedTuple):
    place: RowPlace
    messages: tuple[Message, ...]
    conversation: Conversation
    split: Split | None
    """None where the file leaves it to us."""


class PromptSet(NamedTuple):
    """The prompts of files, each once."""

    prompts: RowStream[Prompt]
    """Of files: they are read again whenever this is iterated over; `list` makes a list of them."""
    repeated: Places | Sequence[RowPlace] = ()
    """Where a prompt stands that stands in an earlier place, too; it is left out."""
    places: Places | Sequence[RowPlace] = ()
    """The place of each prompt; none where they come from no file."""


@dataclass(frozen=True)
class PromptForm:
    """How the rows of a file of prompts are read."""

    name: str
    columns: dict[str, str]
    """The file's column by what it is read as; those that are met in later rows alone are added."""
    read: Callable[[Any], tuple[Message, ...]]
    """The conversation to be answered in a row; raises BadRowError."""
    keys: tuple[ReadAs, ...] = ()
    """What `columns` may name."""


def load_prompt_set(
    files: Path | Sequence[DataFile],
    *,
    held_out: int | None,
    seed: int,
    share: float | None = None,
    system: str | None = None,
) -> PromptSet:
    """The prompts of files, in their order, each once.

    Of prompts that people would read as the same (`canonical`) the first is kept. No conversation to train on goes on
    from a prompt that is held out. Files with weights give as many prompts as the scarcest of them allows.

    All files are read here, and again whenever the prompts are iterated over; a data set on the hub is then streamed
    again (where that takes long, download its files and name them instead).

    Args:
        files: a file, or several with their settings.
        held_out: how many prompts are to be held out at least: those that the files say, and as many more as are
            missing, drawn by a digest of prompt and seed, so that prompts added later change little. None means
            three tenths of them, 2 at least and 200 at most.
        seed: decides which.
        share: the share of prompts to hold out instead, 0 to 1. A digest of the words up to the user's first message
            decides, so that prompts added later change nothing.
        system: a message that is put before every prompt that has no system message of its own.

    Raises:
        InputError: a row is no prompt, or none is left to train on; says the place and what was expected. While the
            prompts are iterated over: a file has changed since.
    """
    chosen = _files(files)

    def draw(within: Sequence[Conversation]) -> int:
        if share is None:
            return seed_of(seed, "held out", within[-1])
        return int(rng_of(seed, "held out share", within[0]).random() < share)

    facts = _facts(chosen, draw, lambda conversation: seed_of(seed, "mixture", conversation))
    first = facts.first_rows()
    distinct, said = facts.distinct(first), facts.sides_said(first)
    kept = facts.mixed(distinct, chosen)
    goes_on = facts.goes_on(first, kept)
    follow = facts.sides_that_follow(said, goes_on)
    if share is None:
        if held_out is None:
            held_out = min(MOST_HELD_OUT, max(2, round(0.3 * int(kept.sum()))))
        sides, missing = facts.sides_by_number(kept, follow, goes_on, held_out)
        _check_splits(chosen[0].path, sides, int((said[kept] == HELD_OUT).sum()), held_out, missing)
    else:
        sides = facts.sides_by_share(kept, follow)
        _check_share(chosen[0].path, sides, share)
    prompts = _PromptsOfFiles(chosen, sides, facts.checksum, system)
    return PromptSet(prompts, facts.places(~distinct), facts.places(kept))


def with_system(messages: tuple[Message, ...], system: str | None) -> tuple[Message, ...]:
    """A prompt behind a system message, if there is one and the prompt has none."""
    return messages if system is None or messages[0].role == "system" else (Message("system", system), *messages)


def load_prompts_as_they_are(path: Path) -> PromptSet:
    """The prompts of a file as `load_prompt_set` reads it, without a split of its own: all are held out.

    Raises:
        InputError: a row is no prompt, or there is none.
    """
    files = _files(path)
    facts = _facts(files, lambda _: 0, lambda _: 0)
    first = facts.first_rows()
    distinct = facts.distinct(first)
    facts.sides_said(first)  # refuses a prompt that says two
    prompts = _PromptsOfFiles(files, distinct.astype("int8") * HELD_OUT, facts.checksum, None)
    return PromptSet(prompts, facts.places(~distinct), facts.places(distinct))


def _files(files: Path | Sequence[DataFile]) -> Sequence[DataFile]:
    return [DataFile(path=files)] if isinstance(files, Path) else files


def _source(place: RowPlace) -> str:
    return place.path.name if isinstance(place.path, Path) else place.path


def _facts(
    files: Sequence[DataFile], draw: Callable[[Sequence[Conversation]], int], rank: Callable[[Conversation], int]
) -> Facts:
    """What is held of the rows of files, which are all checked.

    Args:
        files: the files.
        draw: of the prompts within a conversation, what decides its side where nothing else does.
        rank: of a conversation, what decides whether it is in a mixture.
    """
    facts, weighted = Facts(), any(file.weight for file in files)
    for number, file in enumerate(files):
        for line in _lines(file):
            within = list(prompts_within(line.conversation))
            facts.add(number, line.place, line.split, within, draw(within), rank(within[-1]) if weighted else 0)
    return facts


class _PromptsOfFiles:
    """The prompts of files, which are read anew whenever they are iterated over; a byte a row is held."""

    def __init__(self, files: Sequence[DataFile], sides: Sides, checksum: bytes, system: str | None) -> None:
        self._files = files
        self._sides = sides.tobytes()
        self._checksum = checksum
        self._system = system

    def __len__(self) -> int:
        return len(self._sides) - self._sides.count(0)

    def __iter__(self) -> Iterator[Prompt]:
        checksum, sides = hashlib.sha256(), iter(self._sides)
        for file in self._files:
            for line in _lines(file):
                checksum.update(digest(line.conversation))
                if split := SIDES[next(sides, 0)]:
                    messages = with_system(line.messages, self._system)
                    yield Prompt(messages=messages, split=split, source=_source(line.place))
        if checksum.digest() != self._checksum:
            names = ", ".join(str(file.path) for file in self._files)
            raise InputError(names, "holds other prompts than when it was checked; leave it as it is, and start again")


def _lines(file: DataFile) -> Iterator[_Line]:
    rows = Rows(file.path, EXPECTED)
    form: PromptForm | None = None
    for number, row in rows:
        place = rows.place(number)
        try:
            form = form or _form(file, row)
            messages = checked(form.read(row))
            split = split_of(row)
        except BadRowError as error:
            raise place.error(str(error)) from error
        yield _Line(place, messages, conversation_of(messages), split)
    if form is None:
        raise InputError(file.path, f"holds no prompt; expected {EXPECTED if rows.unit == 'line' else 'one a row'}")


def split_of(row: object) -> Split | None:
    """The split that a row says; None where it leaves it to us.

    Other sets have a `split`, too, with words of their own: beside other columns only `held_out` is ours.

    Raises:
        BadRowError: a row of our own says none.
    """
    if not isinstance(row, dict) or (split := row.get("split")) is None:
        return None
    if split == "held_out":
        return "held_out"
    if not _is_own(row):
        return None
    if split == "train":
        return "train"
    raise BadRowError(f'has the split {shortened(split)}; expected "train" or "held_out"')


def _is_own(row: Mapping[str, object]) -> bool:
    """Whether an object has the columns of our own prompts, or of a run's, and no others."""
    return row.keys() <= _OWN or row.keys() == _OF_RUNS


def _form(file: DataFile, row: object) -> PromptForm:
    form = prompt_form(file, row)
    if form is not None:
        return form
    if not isinstance(row, dict):
        raise BadRowError(f"{as_json(row)} is no prompt; expected {EXPECTED}")
    raise BadRowError(_no_prompt(row))


def prompt_form(file: DataFile, row: object) -> PromptForm | None:
    """How a file that begins with this row is read as prompts; None where it holds none."""
    turns = Turns()
    if isinstance(row, str):
        columns = {"prompt": "the whole line"}
        return PromptForm("texts", columns, lambda row: _own(file, turns, row, columns))
    if not isinstance(row, dict):
        return None
    if problem := file.check_columns(row):
        raise BadRowError(problem)
    given = file.columns
    names = (given["prompt"],) if "prompt" in given else COLUMNS
    column = next((name for name in names if _may_be_prompt(name, row.get(name))), None)
    if column is None:
        return None
    if file.strengths:
        raise BadRowError("is a prompt, and 'strengths' is set, which is not read in prompts; leave strengths out")
    if _is_own(row) and given.items() <= {"prompt": column}.items():
        columns = {"prompt": column, **({"split": "split"} if "split" in row else {})}
        return PromptForm("prompts", columns, lambda row: _own(file, turns, row, columns), _KEYS)
    columns = {"prompt": column} | file.beside(row, column)
    if problem := file.check_read(columns, "prompts", _KEYS):
        raise BadRowError(problem)

    name = f"'{column}' of a set of conversations"
    return PromptForm(name, columns, _reader(file, turns, columns, row), _KEYS)


def _reader(
    file: DataFile, turns: Turns, columns: dict[str, str], first: Mapping[str, object]
) -> Callable[[Any], tuple[Message, ...]]:
    """What reads rows in these columns, to which those beside the prompt are added that the first row lacks."""
    column, met = columns["prompt"], set(first)

    def read(row: Any) -> tuple[Message, ...]:  # noqa: ANN401 - a row may be anything
        if not isinstance(row, dict) or column not in row:
            raise BadRowError(f"has no '{column}', which the first row has; expected it in every row")
        if not row.keys() <= met:  # JSON lines may leave out what a row lacks
            met.update(row)
            columns.update(file.beside(row, column) | columns)
        messages = _with_more(turns.prompt(row[column], column), row, columns)
        return _answerable(_after_history(turns, messages, row) if "history" in columns else messages)

    return read


def _after_history(turns: Turns, messages: tuple[Message, ...], row: Mapping[str, object]) -> tuple[Message, ...]:
    """A prompt with the earlier turns before it, behind the system's message."""
    system = messages[:1] if messages and messages[0].role == "system" else ()
    return (*system, *turns.history(row.get("history"), "history"), *messages[len(system) :])


def _may_be_prompt(name: str, value: object) -> bool:
    """Whether a column of a name that prompts have holds them."""
    return is_list_of(str, value) if name == "data" else isinstance(value, str | list | dict)


def _own(file: DataFile, turns: Turns, row: object, columns: dict[str, str]) -> tuple[Message, ...]:
    """The conversation in a row of our own: a text, or an object with `prompt` or `messages`, and a system's message.

    The columns of that are added to those that are read.
    """
    if isinstance(row, str):
        return (Message("user", row),)
    if not isinstance(row, dict):
        raise BadRowError(f"{as_json(row)} is no prompt; expected {EXPECTED}")
    name = "messages" if "messages" in row else "prompt"
    if name not in row:
        raise BadRowError(_no_prompt(row))
    if not isinstance(row[name], str | list):
        raise BadRowError(f"'{name}' is {shortened(row[name])}, which is no prompt; expected {EXPECTED}")
    messages = turns.prompt(row[name], name)
    if not row.keys() <= _OWN:
        columns.update(file.beside(row, name) | columns)
        messages = _with_more(messages, row, columns)
    return _answerable(messages)


def _no_prompt(row: Mapping[str, object]) -> str:
    """That no column of a row holds a prompt."""
    if column := next((name for name in COLUMNS if row.get(name) is not None), None):
        return f"'{column}' is {shortened(row[column])}, which is no prompt; expected {EXPECTED}"
    for key in row:
        if near := difflib.get_close_matches(key, COLUMNS, n=1):
            return f"has the unknown key {shortened(key)}, and no prompt; did you mean {near[0]!r}?"
    names = ", ".join(map(repr, list(row)[:12])) or "no columns"
    return f"has {names}, none of which holds a prompt; name its column with columns: {{prompt: COLUMN}}"


def _with_more(
    messages: tuple[Message, ...], row: Mapping[str, Any], columns: Mapping[str, str]
) -> tuple[Message, ...]:
    """A prompt with the input that goes on from it, and with the system's message, where columns hold them."""
    texts: dict[str, str] = {}
    for role in ("input", "system"):
        value = row.get(columns.get(role, ""))
        if not isinstance(value, str | None):
            raise BadRowError(f"'{columns[role]}' is {type(value).__name__}; expected text")
        texts[role] = value or ""
    if messages and not is_blank(texts["input"]):
        messages = (*messages[:-1], Message(messages[-1].role, f"{messages[-1].content}\n{texts['input']}"))
    if messages and messages[0].role != "system" and not is_blank(texts["system"]):
        messages = (Message("system", texts["system"]), *messages)
    return messages


def _answerable(messages: tuple[Message, ...]) -> tuple[Message, ...]:
    """A conversation up to the last turn that is to be answered: what the assistant says last is a reply to it."""
    end = len(messages)
    while end and messages[end - 1].role not in ("user", "tool"):
        end -= 1
    return messages[:end]


def checked(messages: tuple[Message, ...]) -> tuple[Message, ...]:
    """A conversation to be answered; whether its roles follow on each other as they must is the chat template's to say.

    Raises:
        BadRowError: there is nothing to answer, a message says nothing, or there is too much of it.
    """
    if not messages:
        raise BadRowError("does not end with a user's message, which is the one to be answered")
    if any(is_blank(message.content) and not message.extra for message in messages):
        raise BadRowError("has an empty message; leave out the row, or say what is asked")
    length = sum(len(message.content) for message in messages)
    if length > MAX_CHARACTERS:
        raise BadRowError(f"has {length:,} characters; at most {MAX_CHARACTERS:,} are allowed")
    return messages


def message_of(path: Path, number: int, value: Any) -> Message:  # noqa: ANN401 - JSON may be anything
    """A message of a file's line, checked.

    Raises:
        InputError: it has other keys, another role, or says nothing.
    """
    if not isinstance(value, dict) or value.keys() != {"role", "content"}:
        raise InputError(path, 'has a message that is not {"role": "…", "content": "…"}', number)
    role, content = value["role"], value["content"]
    if role not in _ROLES:
        raise InputError(path, f"has a message with the role {shortened(role)}; expected {', '.join(_ROLES)}", number)
    if not isinstance(content, str):
        raise InputError(path, f"{as_json(content)} is no message; expected a text in quotes", number)
    if not canonical(content):
        raise InputError(path, "has an empty message; leave out the line, or say what is asked", number)
    return Message(role, content)


def conversation_of(messages: Iterable[Message]) -> Conversation:
    """What makes two prompts the same: who says what, as people read it."""
    return tuple((message.role, canonical(message.content) + message.extra) for message in messages)


def prompts_within(conversation: Conversation) -> Iterator[Conversation]:
    """The prompts that a conversation answers on its way, the shortest first and itself last."""
    for end, (role, _) in enumerate(conversation, start=1):
        if role in ("user", "tool"):
            yield conversation[:end]


def opening_of(turns: Iterable[tuple[str, str, str]]) -> Conversation:
    """The words of a conversation up to the user's first message, without the system's messages that begin it.

    Args:
        turns: the role, the content and the `extra` of all messages.
    """
    said: list[tuple[str, str]] = []
    for role, content, extra in turns:
        if role != "system" or said:
            said.append((role, canonical(content) + extra))
        if role in ("user", "tool"):
            break
    return tuple(said)


def held_out_of(prompts: Iterable[Prompt]) -> frozenset[Conversation]:
    """The prompts that are held out for evaluation, as `contains_one_of` looks for them."""
    return frozenset(_after_system(prompt.messages) for prompt in prompts if prompt.split == "held_out")


def contains_one_of(messages: Iterable[Message], held_out: Container[Conversation]) -> bool:
    """Whether a conversation is one of the prompts (`held_out_of`), or goes on from one with its answer.

    The system's messages that begin either are left out: a run may put one before prompts, and people's files lack it.
    """
    return any(prompt in held_out for prompt in prompts_within(_after_system(messages)))


def _after_system(messages: Iterable[Message]) -> Conversation:
    return tuple(dropwhile(lambda turn: turn[0] == "system", conversation_of(messages)))


def _check_splits(path: Path | str, sides: Sides, declared: int, held_out: int, missing: int) -> None:
    """Refuse files of which too little is left to train on or to hold out.

    Args:
        path: the first of them.
        sides: the split of each row.
        declared: prompts that they say are held out.
        held_out: how many were to be held out.
        missing: how many of these there are not.
    """
    problem = f"holds {counted(int((sides > 0).sum()), 'different prompt')}, {declared} of them with the split held_out"
    advice = "add prompts to train on, or " + (
        "ask for fewer with prompts.held_out" if held_out > declared else "take that split off some of them"
    )
    if not (sides == TRAIN).any():
        raise InputError(path, f"{problem}; with prompts.held_out={held_out} none is left to train on: {advice}")
    if missing > 0:
        more = f"prompts.held_out={held_out} asks for {missing} more than there are"
        raise InputError(path, f"{problem}; {more}: {advice}")


def _check_share(path: Path | str, sides: Sides, share: float) -> None:
    """Refuse files of which a share leaves nothing to train on."""
    if not (sides == TRAIN).any():
        problem = f"holds {counted(int((sides > 0).sum()), 'different prompt')}, and none is left to train on"
        raise InputError(path, f"{problem} with prompts.held_out_share={share}: add prompts, or lower the share")
