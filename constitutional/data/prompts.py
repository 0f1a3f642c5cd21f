"""The prompts of a run: from a person's file, or composed in the sandbox's world. No prompt is in both splits."""

import codecs
import difflib
import hashlib
import json
import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, Final, NamedTuple, get_args

from constitutional.base.errors import ConfigurationError, InputError
from constitutional.base.records import Message, Prompt, Split
from constitutional.sandbox import topics, world

MAX_CHARACTERS: Final = 100_000
"""Of all messages of one prompt together: far above any model's context, far below what stalls a tokenizer."""

SANDBOX: Final = "sandbox"
"""The source of prompts that the sandbox's world composed."""

_KEYS: Final = ("prompt", "messages", "split")
_ROLES: Final = ("system", "user", "assistant")
_EXPECTED: Final = (
    'expected a text in quotes, {"prompt": "…"} or {"messages": [{"role": "user", "content": "…"}]}, '
    'with "split": "train" or "held_out" if you like'
)
_DRAWS: Final = 1000
"""How often a sandbox prompt that is already there is drawn again before giving up."""

Conversation = tuple[tuple[str, str], ...]


class _Line(NamedTuple):
    number: int
    messages: tuple[Message, ...]
    split: Split | None
    """None where the file leaves it to us."""


class PromptSet(NamedTuple):
    """The prompts of a file, each once."""

    prompts: list[Prompt]
    repeated: list[int]
    """Lines whose prompt stands in an earlier one, which are left out."""
    lines: list[int]
    """Where each prompt stands; none where they come from no file."""


def load_prompt_set(path: Path, *, held_out: int, seed: int) -> PromptSet:
    """The prompts of a file, in its order, each once.

    `.jsonl`: each line a JSON string, or an object with a `prompt` or with `messages`, and a `split` if wanted. `.txt`:
    one prompt a line. Blank lines are skipped. Of prompts that stand there more than once the first is kept.

    Args:
        path: the file.
        held_out: how many prompts are to be held out at least: those that the file says, and as many more as are
            missing, drawn by a digest of prompt and seed, so that prompts added later change little.
        seed: decides which.

    Raises:
        InputError: a line is no prompt, or there are too few; says the line and what was expected.
    """
    reader = {".jsonl": _json_line, ".txt": _text_line}.get(path.suffix.lower())
    if reader is None:
        raise InputError(path, "is no prompt set by its name; expected a file that ends in .jsonl or .txt")
    lines, repeated = _distinct(path, (reader(path, number, text) for number, text in _lines(path)))
    if not lines:
        raise InputError(path, f"holds no prompt; {_EXPECTED}" if reader is _json_line else "holds no prompt")
    splits = _splits(path, lines, held_out, seed)
    prompts = [
        Prompt(messages=line.messages, split=split, source=path.name) for line, split in zip(lines, splits, strict=True)
    ]
    _check_apart(prompts)
    return PromptSet(prompts, repeated, [line.number for line in lines])


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """The lines that are not blank, with their numbers."""
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise InputError(path, f"cannot be read: {error.strerror}; expected a file of prompts") from error
    if raw.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise InputError(path, "is UTF-16 text; save it as UTF-8", 1)
    # Only \n and \r\n end a line: other characters that Python calls line ends occur within texts.
    for number, line in enumerate(raw.removeprefix(b"\xef\xbb\xbf").split(b"\n"), start=1):
        if b"\0" in line:
            raise InputError(path, "holds a NUL character; save the file as UTF-8 text", number)
        try:
            text = line.decode("utf-8").strip()
        except UnicodeDecodeError as error:
            raise InputError(path, f"is not UTF-8 text ({error.reason}); save the file as UTF-8", number) from error
        if text:
            yield number, text


def _text_line(path: Path, number: int, text: str) -> _Line:
    return _Line(number, conversation(path, number, text), None)


def _json_line(path: Path, number: int, text: str) -> _Line:
    try:
        found = json.loads(text, parse_constant=_refuse_constant, object_pairs_hook=_object)
    except RecursionError as error:
        raise InputError(path, f"is nested too deeply; {_EXPECTED}", number) from error
    except ValueError as error:
        raise InputError(path, f"is not JSON: {error}; {_EXPECTED}", number) from error
    if isinstance(found, str):
        return _Line(number, conversation(path, number, found), None)
    if not isinstance(found, dict):
        raise InputError(path, f"{_kind(found)} is no prompt; {_EXPECTED}", number)
    for key in found:
        if key not in _KEYS:
            near = difflib.get_close_matches(key, _KEYS, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else f"; expected {', '.join(map(repr, _KEYS))}"
            raise InputError(path, f"has the unknown key {_ascii(key)}{hint}", number)
    if ("prompt" in found) == ("messages" in found):
        raise InputError(path, f"must have either 'prompt' or 'messages'; {_EXPECTED}", number)
    split = found.get("split")
    if split is not None and split not in get_args(Split):
        raise InputError(path, f'has the split {_ascii(split)}; expected "train" or "held_out"', number)
    return _Line(number, conversation(path, number, found.get("prompt", found.get("messages"))), split)


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON value")


def _object(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"the key {_ascii(twice)} appears twice")
    return made


def conversation(path: Path, number: int, found: object) -> tuple[Message, ...]:
    """A conversation to be answered, from a text or from a list of messages in a file's line, checked.

    Raises:
        InputError: it is none that every model takes.
    """
    if isinstance(found, str):
        found = [{"role": "user", "content": found}]
    elif not isinstance(found, list):
        raise InputError(path, f"{_kind(found)} is no prompt; {_EXPECTED}", number)
    messages = tuple(_message(path, number, each) for each in found)
    if not messages or messages[-1].role != "user":
        raise InputError(path, "does not end with a user's message, which is the one to be answered", number)
    if any(message.role == "system" for message in messages[1:]):
        raise InputError(path, "has a system message that is not the first; move it to the front", number)
    # Many chat templates refuse any other order, and that would be found only when a model is first asked.
    turns = [message.role for message in messages if message.role != "system"]
    for place, role in enumerate(turns):
        if role != ("user", "assistant")[place % 2]:
            found = f"two messages of the {role} in a row" if place else f"a first message of the {role}"
            problem = f"has {found}; expected user and assistant by turns: write what one says in a row as one message"
            raise InputError(path, problem, number)
    length = sum(len(message.content) for message in messages)
    if length > MAX_CHARACTERS:
        raise InputError(path, f"has {length:,} characters; at most {MAX_CHARACTERS:,} are allowed", number)
    return messages


def _message(path: Path, number: int, found: object) -> Message:
    if not isinstance(found, dict) or found.keys() != {"role", "content"}:
        raise InputError(path, 'has a message that is not {"role": "…", "content": "…"}', number)
    role, content = found["role"], found["content"]
    if role not in _ROLES:
        raise InputError(path, f"has a message with the role {_ascii(role)}; expected {', '.join(_ROLES)}", number)
    if not isinstance(content, str):
        raise InputError(path, f"{_kind(content)} is no message; expected a text in quotes", number)
    if not content.strip():
        raise InputError(path, "has an empty message; leave out the line, or say what is asked", number)
    if "\0" in content:
        raise InputError(path, "holds a NUL character (\\u0000); remove it", number)
    try:
        content.encode()
    except UnicodeEncodeError as error:
        lone = f"\\u{ord(content[error.start]):04x}"
        problem = f"holds half of a surrogate pair ({lone}), which is no character; repair or remove it"
        raise InputError(path, problem, number) from error
    return Message(role, content)


def _kind(found: object) -> str:
    """What was found instead, as JSON, shortened."""
    shown = json.dumps(found)
    return shown if len(shown) <= 40 else f"{shown[:39]}…"


def _ascii(found: object) -> str:
    return ascii(found) if len(ascii(found)) <= 40 else f"{ascii(found)[:39]}…"


def _distinct(path: Path, lines: Iterable[_Line]) -> tuple[list[_Line], list[int]]:
    """The first of each prompt, and the lines of the others; that those said nothing against it is checked."""
    first: dict[Conversation, _Line] = {}
    repeated: list[int] = []
    for line in lines:
        kept = first.setdefault(conversation_of(line.messages), line)
        if kept is line:
            continue
        repeated.append(line.number)
        if None not in (kept.split, line.split) and kept.split != line.split:
            problem = (
                f"is the same prompt as in line {kept.number}, but its split is {line.split} here and {kept.split} "
                "there; a prompt cannot be trained on and held out: remove one"
            )
            raise InputError(path, problem, line.number)
        first[conversation_of(line.messages)] = kept._replace(split=kept.split or line.split)
    return list(first.values()), repeated


def conversation_of(messages: Iterable[Message]) -> Conversation:
    """What makes two prompts the same: who says what, whatever the spaces around it."""
    return tuple((message.role, message.content.strip()) for message in messages)


def _splits(path: Path, lines: Sequence[_Line], held_out: int, seed: int) -> list[Split]:
    open_lines = [index for index, line in enumerate(lines) if line.split is None]
    missing = max(0, held_out - sum(line.split == "held_out" for line in lines))
    trained = sum(line.split == "train" for line in lines) + len(open_lines) - missing
    if missing > len(open_lines) or (missing and trained < 1):
        problem = f"holds {len(lines)} different prompts; {held_out} held out leave none to train on: ask for fewer"
        raise InputError(path, problem)

    def place(index: int) -> str:
        return hashlib.sha256(f"{seed} held out {conversation_of(lines[index].messages)}".encode()).hexdigest()

    drawn = set(sorted(open_lines, key=place)[:missing])
    return [line.split or ("held_out" if index in drawn else "train") for index, line in enumerate(lines)]


def sandbox_prompt_set(train: int, held_out: int, seed: int) -> list[Prompt]:
    """Distinct prompts from the sandbox's world: first those to train on, then those held out.

    Half of the held-out ones (the larger half) are about topics that the sandbox model has never seen, the others about
    topics that it has. More prompts to train on, or more held out, leave the ones before them as they are.

    Raises:
        ConfigurationError: the world does not have that many.
    """
    taken: set[Conversation] = set()
    # Held-out prompts first, so that how many are trained on does not change what is measured.
    held = [_draw(seed, "held_out", index, taken) for index in range(held_out)]
    trained = [_draw(seed, "train", index, taken) for index in range(train)]
    prompts = trained + held
    _check_apart(prompts)
    return prompts


def _draw(seed: int, split: Split, index: int, taken: set[Conversation]) -> Prompt:
    """A prompt that is not taken yet, and takes it."""
    rng = random.Random(f"{seed} sandbox prompts {split} {index}")
    new_topic = split == "held_out" and index % 2 == 0
    for _ in range(_DRAWS):
        drawn = world.draw_prompt(rng, held_out=new_topic)
        if conversation_of(drawn.messages) not in taken:
            taken.add(conversation_of(drawn.messages))
            info = {"kind": drawn.topic.kind, **drawn.topic.slots, "held_out_topic": "yes" if new_topic else "no"}
            return Prompt(messages=drawn.messages, split=split, source=SANDBOX, info=info)
    raise ConfigurationError(f"the sandbox's world has no {len(taken) + 1} different prompts; ask for fewer")


def sandbox_prompt(prompt: Prompt) -> world.Prompt:
    """The world's prompt that a row was made from, with the facts that are known about its topic; for evaluation."""
    if prompt.source != SANDBOX:
        raise ValueError(f"prompt {prompt.id} comes from {prompt.source!r}, not from the sandbox")
    kind: topics.Kind = next(each for each in topics.KINDS if each == prompt.info["kind"])
    fill = tuple((slot, prompt.info[slot]) for slot in _slots(kind))
    known = _topics(kind, held_out=prompt.info["held_out_topic"] == "yes")
    return world.Prompt(known.get(fill, topics.Topic(kind, fill)), prompt.messages)


def _slots(kind: topics.Kind) -> tuple[str, ...]:
    """The names of the words that fill the frames of a kind, in the topic's order."""
    return tuple(slot for slot, _ in topics.topics(kind, held_out=True)[0].fill)


@cache
def _topics(kind: topics.Kind, *, held_out: bool) -> Mapping[tuple[tuple[str, str], ...], topics.Topic]:
    return {topic.fill: topic for topic in topics.topics(kind, held_out=held_out)}


def _check_apart(prompts: Sequence[Prompt]) -> None:
    """No prompt is trained on and held out: a mistake of ours if it were, and one that would flatter every result."""
    keys: dict[Split, set[Conversation]] = {"train": set(), "held_out": set()}
    for prompt in prompts:
        keys[prompt.split].add(conversation_of(prompt.messages))
    assert keys["train"].isdisjoint(keys["held_out"]), "a prompt stands in both splits"
