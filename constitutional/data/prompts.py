"""The prompts of a person's file, checked and split. No prompt is in both splits."""

import difflib
from collections.abc import Container, Iterable, Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any, Final, NamedTuple, get_args

from constitutional.base.errors import InputError
from constitutional.base.jsonl import as_json, read_jsonl, read_lines, shortened
from constitutional.base.records import Message, Prompt, Split
from constitutional.base.seeds import seed_of
from constitutional.base.text import canonical

MAX_CHARACTERS: Final = 100_000
"""Of all messages of one prompt together: far above any model's context, far below what stalls a tokenizer."""

_KEYS: Final = ("prompt", "messages", "split")
_ROLES: Final = ("system", "user", "assistant")
_EXPECTED: Final = (
    'a text in quotes, {"prompt": "…"} or {"messages": [{"role": "user", "content": "…"}]}, '
    'with "split": "train" or "held_out" if you like'
)

Conversation = tuple[tuple[str, str], ...]
"""Role and canonical text of each message."""


class _Line(NamedTuple):
    number: int
    messages: tuple[Message, ...]
    conversation: Conversation
    split: Split | None
    """None where the file leaves it to us."""


class PromptSet(NamedTuple):
    """The prompts of a file, each once."""

    prompts: list[Prompt]
    repeated: list[int]
    """Lines whose prompt stands in an earlier one, which are left out."""
    lines: list[int]
    """The line of each prompt; none where they come from no file."""


def load_prompt_set(path: Path, *, held_out: int, seed: int) -> PromptSet:
    """The prompts of a file, in its order, each once.

    `.jsonl`: each line a JSON string, or an object with a `prompt` or with `messages`, and a `split` if wanted. `.txt`:
    one prompt a line. Either may be compressed (`.gz`). Blank lines are skipped. Of prompts that people would read as
    the same (`canonical`) the first is kept. No conversation to train on goes on from a prompt that is held out.

    Args:
        path: the file.
        held_out: how many prompts are to be held out at least: those that the file says, and as many more as are
            missing, drawn by a digest of prompt and seed, so that prompts added later change little.
        seed: decides which.

    Raises:
        InputError: a line is no prompt, or none is left to train on; says the line and what was expected.
    """
    lines, repeated = _read(path)
    prompts = [
        Prompt(messages=line.messages, split=split, source=path.name)
        for line, split in zip(lines, _splits(path, lines, held_out, seed), strict=True)
    ]
    return PromptSet(prompts, repeated, [line.number for line in lines])


def load_prompts_as_they_are(path: Path) -> PromptSet:
    """The prompts of a file as `load_prompt_set` reads it, without a split of its own: all are held out.

    Raises:
        InputError: a line is no prompt, or there is none.
    """
    lines, repeated = _read(path)
    prompts = [Prompt(messages=line.messages, split="held_out", source=path.name) for line in lines]
    return PromptSet(prompts, repeated, [line.number for line in lines])


def _read(path: Path) -> tuple[list[_Line], list[int]]:
    """The first line of each prompt, and the numbers of the others."""
    ending = Path(path.name.lower().removesuffix(".gz")).suffix
    if ending not in (".jsonl", ".txt"):
        raise InputError(path, "is no prompt set by its name; expected a file that ends in .jsonl or .txt")
    if ending == ".jsonl":
        read = (_json_line(path, number, value) for number, value in read_jsonl(path, _EXPECTED))
    else:
        texts = read_lines(path, "a file of prompts, one a line")
        read = (_line(path, number, text, None) for number, text in texts)
    lines, repeated = _distinct(path, read)
    if not lines:
        raise InputError(path, f"holds no prompt; expected {_EXPECTED if ending == '.jsonl' else 'one a line'}")
    return lines, repeated


def _json_line(path: Path, number: int, value: object) -> _Line:
    if isinstance(value, str):
        return _line(path, number, value, None)
    if not isinstance(value, dict):
        raise InputError(path, f"{as_json(value)} is no prompt; expected {_EXPECTED}", number)
    for key in value:
        if key not in _KEYS:
            near = difflib.get_close_matches(key, _KEYS, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else f"; expected {', '.join(map(repr, _KEYS))}"
            raise InputError(path, f"has the unknown key {shortened(key)}{hint}", number)
    if ("prompt" in value) == ("messages" in value):
        raise InputError(path, f"must have either 'prompt' or 'messages'; expected {_EXPECTED}", number)
    split = value.get("split")
    if split is not None and split not in get_args(Split):
        raise InputError(path, f'has the split {shortened(split)}; expected "train" or "held_out"', number)
    return _line(path, number, value.get("prompt", value.get("messages")), split)


def _line(path: Path, number: int, value: object, split: Split | None) -> _Line:
    messages = conversation(path, number, value)
    return _Line(number, messages, conversation_of(messages), split)


def conversation(path: Path, number: int, value: object) -> tuple[Message, ...]:
    """A conversation to be answered, from a text or from a list of messages in a file's line, checked.

    Raises:
        InputError: it is none that every model takes.
    """
    if isinstance(value, str):
        value = [{"role": "user", "content": value}]
    elif not isinstance(value, list):
        raise InputError(path, f"{as_json(value)} is no prompt; expected {_EXPECTED}", number)
    messages = tuple(message_of(path, number, item) for item in value)
    if not messages or messages[-1].role != "user":
        raise InputError(path, "does not end with a user's message, which is the one to be answered", number)
    if any(message.role == "system" for message in messages[1:]):
        raise InputError(path, "has a system message that is not the first; move it to the front", number)
    # Many chat templates refuse any other order, and that would be found only when a model is first asked.
    turns = [message.role for message in messages if message.role != "system"]
    for place, role in enumerate(turns):
        if role != ("user", "assistant")[place % 2]:
            turn = f"two messages of the {role} in a row" if place else f"a first message of the {role}"
            problem = f"has {turn}; expected user and assistant by turns: write what one says in a row as one message"
            raise InputError(path, problem, number)
    length = sum(len(message.content) for message in messages)
    if length > MAX_CHARACTERS:
        raise InputError(path, f"has {length:,} characters; at most {MAX_CHARACTERS:,} are allowed", number)
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


def _distinct(path: Path, lines: Iterable[_Line]) -> tuple[list[_Line], list[int]]:
    """The first line of each prompt, with the split that any of them says, and the numbers of the others."""
    first: dict[Conversation, _Line] = {}
    repeated: list[int] = []
    for line in lines:
        kept = first.setdefault(line.conversation, line)
        if kept is line:
            continue
        repeated.append(line.number)
        if None not in (kept.split, line.split) and kept.split != line.split:
            splits = f"its split is {line.split} here and {kept.split} there"
            problem = f"is the same prompt as in line {kept.number}, but {splits}; remove one of the two"
            raise InputError(path, problem, line.number)
        first[line.conversation] = kept._replace(split=kept.split or line.split)
    return list(first.values()), repeated


def conversation_of(messages: Iterable[Message]) -> Conversation:
    """What makes two prompts the same: who says what, as people read it."""
    return tuple((message.role, canonical(message.content)) for message in messages)


def prompts_within(conversation: Conversation) -> Iterator[Conversation]:
    """The prompts that a conversation answers on its way, the shortest first and itself last."""
    for end, (role, _) in enumerate(conversation, start=1):
        if role == "user":
            yield conversation[:end]


def contains_one_of(messages: Iterable[Message], prompts: Container[Conversation]) -> bool:
    """Whether a conversation is one of the prompts, or goes on from one with its answer."""
    return any(prompt in prompts for prompt in prompts_within(conversation_of(messages)))


def _splits(path: Path, lines: Sequence[_Line], held_out: int, seed: int) -> list[Split]:
    """The split of each line: what the file says, what follows from it, and the others by a draw."""
    splits = _declared(path, lines)
    open_lines = [line for line in lines if line.conversation not in splits]
    missing = held_out - sum(split == "held_out" for split in splits.values())
    among_open = {line.conversation for line in open_lines}

    def root(line: _Line) -> Conversation:
        return next(prompt for prompt in prompts_within(line.conversation) if prompt in among_open)

    def place(line: _Line) -> int:
        return seed_of(seed, "held out", root(line))

    # Conversations that go on from one prompt have its place, and so one side.
    for _, family in groupby(sorted(open_lines, key=place), key=place):
        members = list(family)
        splits |= {line.conversation: "held_out" if missing > 0 else "train" for line in members}
        missing -= len(members)
    declared = sum(line.split == "held_out" for line in lines)
    problem = f"holds {len(lines)} different prompts, {declared} of them with the split held_out"
    advice = "add prompts to train on, or " + (
        "ask for fewer with prompts.held_out" if held_out > declared else "take that split off some of them"
    )
    if "train" not in splits.values():
        raise InputError(path, f"{problem}; with prompts.held_out={held_out} none is left to train on: {advice}")
    if missing > 0:
        more = f"prompts.held_out={held_out} asks for {missing} more than there are"
        raise InputError(path, f"{problem}; {more}: {advice}")
    return [splits[line.conversation] for line in lines]


def _declared(path: Path, lines: Sequence[_Line]) -> dict[Conversation, Split]:
    """The splits that the file says, and of open lines those that follow.

    What goes on from a prompt that is held out is held out; what a conversation to train on goes on from is trained on.
    """
    held = {line.conversation: line.number for line in lines if line.split == "held_out"}
    trained: set[Conversation] = set()
    for line in lines:
        within = list(prompts_within(line.conversation))
        if line.split == "train":
            trained |= set(within)
            if before := next((held[prompt] for prompt in within if prompt in held), None):
                problem = f"is to be trained on and goes on from the prompt in line {before}, which is held out"
                raise InputError(path, f"{problem}; give both the same split, or remove one", line.number)
    splits: dict[Conversation, Split] = {}
    for line in lines:
        if line.split or line.conversation in trained:
            splits[line.conversation] = line.split or "train"
        elif any(prompt in held for prompt in prompts_within(line.conversation)):
            splits[line.conversation] = "held_out"
    return splits
