r"""Conversations in the shapes that data sets have: lists of messages, transcripts, and single texts.

Transcripts are those of Anthropic's sets, `\n\nHuman: …\n\nAssistant: …`, and those of HelpSteer2, in which
`<extra_id_1>Assistant` begins a turn. They are split at these markers only: whatever else is in a message stays as it
is, `: ` and `Human:` in the middle of a line included.
"""

import json
import re
from bisect import bisect
from collections import Counter
from collections.abc import Mapping
from typing import Any, Final, NamedTuple

from constitutional.base.jsonl import BadTextError, as_json, shortened
from constitutional.base.message import Message, Role
from constitutional.base.text import canonical
from constitutional.data.cells import decoded_cell

ROLES: Final[Mapping[str, Role]] = {
    "system": "system",
    "user": "user",
    "assistant": "assistant",
    "tool": "tool",
    "developer": "developer",
    # ShareGPT, LlamaFactory, Anthropic's evaluations, OpenAssistant, Gemini, Llama
    "human": "user",
    "prompter": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "model": "assistant",
    "ai": "assistant",
    "function_call": "assistant",
    "observation": "tool",
    "function": "tool",
    "ipython": "tool",
}
_KEPT: Final = ("tool_calls", "tool_call_id", "name", "function_call")
"""Keys of a message that chat templates read beside role and content."""

LISTS: Final = ("messages", "conversations", "conversation")
"""Columns of lists of messages."""
_ALTERNATING: Final = ("conversations", "data", "history")
"""Columns of texts that alternate, of the user's and the assistant's."""
_MARKER: Final = re.compile(r"\n\n(Human|Assistant):")
_REPLY: Final = "\n\nAssistant:"
_SPEAKERS: Final[Mapping[str, Role]] = {"Human": "user", "Assistant": "assistant"}
_SPOKEN: Final = re.compile(r"(?:\A|\n\n)(System|Developer|User|Assistant|Tool): ")
"""How a turn begins in a conversation that people see as one text (`votes/items.py`)."""
_EXTRA_ID: Final = re.compile(r"\n?<extra_id_[01]>(System|User|Assistant)\n?")

CALLS: Final = "replies that call tools, whose calls are not trained on"
"""What is noted of them."""
NO_REPLY: Final = "replies without a last turn of the assistant, whose pairs are left out"
"""What is noted of them."""

Conversation = tuple[Message, ...]


class BadRowError(Exception):
    """What is wrong with a row."""


class Side(NamedTuple):
    """A reply and the conversation that it answers."""

    context: Conversation
    reply: str
    calls: str = ""
    """Its calls of tools, as JSON, which are not trained on."""


class Turns:
    """Reads conversations; `notes` counts what is left out of them."""

    def __init__(self) -> None:
        self.notes: Counter[str] = Counter()

    def messages(self, value: object, name: str) -> Conversation:
        """A list of messages, or a single message, under the name of its column.

        Raises:
            BadRowError: it is neither.
        """
        if isinstance(value, dict):
            alone = "full_text" in value or ("text" in value and not {"role", "from"} & value.keys())
            value = [{"role": "user", **value}] if alone else value.get("messages", [value])
        if not isinstance(value, list):
            expected = 'expected [{"role": "user", "content": "…"}, …]'
            raise BadRowError(f"'{name}' is no list; it is {as_json(value)}; {expected}")
        if value and not (isinstance(value[0], dict) and ("role" in value[0] or "from" in value[0])):
            value = _in_pairs(value, name)
        turns = []
        for item in value:
            # Most messages are a role and a text; to look at them here saves a tenth of the time of a row.
            if type(item) is dict and len(item) == 2 and type(content := item.get("content")) is str:
                role = item.get("role")
                if type(role) is str and role in ROLES:
                    turns.append(Message(ROLES[role], content))
                    continue
            turns.append(self._message(item, name))
        # Many sets write a system message in every row, and leave it empty where there is none.
        if turns and turns[0].role == "system" and is_blank(turns[0].content):
            del turns[0]
        return tuple(turns)

    def _message(self, value: object, name: str) -> Message:
        if not isinstance(value, dict):
            expected = 'expected {"role": "…", "content": "…"}'
            raise BadRowError(f"'{name}' has a message that is {as_json(value)}; {expected}")
        role = value.get("role")
        if role is None:
            role = value.get("from")
        known = ROLES.get(role) if isinstance(role, str) else None
        if known is None and isinstance(role, str):
            known = ROLES.get(role.lower())
        if known is None:
            expected = "system, user, assistant, tool, developer, human, gpt"
            raise BadRowError(f"'{name}' has a message with the role {shortened(role)}; expected {expected}")
        content = (
            value["content"] if "content" in value else value.get("value", value.get("text", value.get("full_text")))
        )
        extra = ""
        if len(value) > 2:
            extra = _extra(value)
        if not isinstance(content, str):
            content = "" if content is None and extra else self._parts(content, name)
        return Message(known, content, extra) if extra else Message(known, content)

    def _parts(self, content: object, name: str) -> str:
        """The text of content that stands in parts, as vision models take it."""
        if not isinstance(content, list):
            problem = f"'{name}' has a message whose content is {as_json(content)}"
            raise BadRowError(f"{problem}, which is no message; expected a text in quotes")
        texts = []
        for part in content:
            text = part.get("text") if isinstance(part, dict) else part
            if isinstance(text, str):
                texts.append(text)
            elif not isinstance(part, dict):
                raise BadRowError(f"'{name}' has content with the part {shortened(part)}; expected a text")
            else:
                self.notes["parts of messages that are no texts, such as images, and are left out"] += 1
        return "\n".join(texts)

    def history(self, value: object, name: str) -> Conversation:
        """Earlier turns in pairs of what the user said and what the assistant answered, as LlamaFactory has them.

        Raises:
            BadRowError: they are no pairs.
        """
        pairs = [] if value is None else value
        if not isinstance(pairs, list) or not all(isinstance(pair, list) and len(pair) == 2 for pair in pairs):
            raise BadRowError(f"'{name}' is {as_json(value)}; expected pairs of texts, [[question, answer], …]")
        return self.messages(_in_pairs([text for pair in pairs for text in pair], name), name)

    def prompt(self, value: object, name: str) -> Conversation:
        """A conversation to be answered: messages, a transcript, or what a user says.

        Raises:
            BadRowError: it is none of them.
        """
        if not isinstance(value, str):
            if value is None:
                return (Message("user", ""),)
            if isinstance(value, list | dict):
                return self.messages(value, name)
            raise BadRowError(f"'{name}' is {as_json(value)}, which is no prompt; expected a text or messages")
        if name in LISTS:
            return (name == "conversation" and spoken(value)) or self.messages(_decoded(value, name), name)
        if is_transcript(value):
            turns = transcript(value, name)
            return turns[:-1] if turns[-1].role == "assistant" and is_blank(turns[-1].content) else turns
        if "<extra_id_1>" in value:
            return _steered(value)
        return (Message("user", value),)

    def side(self, value: object, name: str, context: Conversation) -> Side:
        """A reply of any shape to a conversation, which messages and transcripts may bring themselves.

        The reply is empty where the last turn is not the assistant's.

        Raises:
            BadRowError: it is no reply.
        """
        if isinstance(value, str):
            if not value.startswith("\n\nHuman:"):
                return Side(_answered(context), value)
            turns = transcript(value, name)
        elif value is None:
            return Side(context, "")
        elif isinstance(value, dict) and isinstance(value.get("text"), str) and not {"role", "from"} & value.keys():
            return Side(_answered(context), value["text"])
        elif type(value) is list or isinstance(value, dict):
            turns = self.messages(value, name)
        else:
            raise BadRowError(f"'{name}' is {type(value).__name__}; expected text or messages")
        if not turns or turns[0].role in ("assistant", "tool"):
            turns = _answered(context) + turns
        elif context and context[0].role == "system" and turns[0].role != "system":
            turns = context[:1] + turns
        if not turns or turns[-1].role != "assistant":
            self.notes[NO_REPLY] += 1
            return Side(turns, "")
        calls = _calls(turns[-1].extra) if turns[-1].extra else ""
        if calls:
            self.notes[CALLS] += 1
        return Side(turns[:-1], turns[-1].content, calls)

    def sides(self, replies: tuple[Any, Any], names: tuple[str, str], context: Conversation) -> tuple[Side, Side]:
        """Both replies of a pair; a conversation that both bring is read once.

        Raises:
            BadRowError: one is no reply.
        """
        first, second = replies
        a = self.side(first, names[0], context)
        if type(first) is type(second) is list and len(second) > 1 and first[:-1] == second[:-1]:
            last = _plain(second[-1])
            if last is not None and last.role == "assistant" and a.reply:
                return a, Side(a.context, last.content)
        return a, self.side(second, names[1], context)

    def transcripts(self, first: str, second: str, names: tuple[str, str]) -> tuple[Side, Side]:
        """Two whole transcripts.

        Raises:
            BadRowError: one of them is none.
        """
        before, _, reply = first.rpartition(_REPLY)
        also_before, _, other = second.rpartition(_REPLY)
        if before == also_before and before and "\n\nHuman:" not in reply and "\n\nHuman:" not in other:
            context = transcript(before, names[0])
            if context[-1].role == "user":
                return Side(context, reply.removeprefix(" ")), Side(context, other.removeprefix(" "))
        return self._split(transcript(first, names[0])), self._split(transcript(second, names[1]))

    def _split(self, turns: Conversation) -> Side:
        if turns[-1].role == "assistant":
            return Side(turns[:-1], turns[-1].content)
        self.notes[NO_REPLY] += 1
        return Side(turns, "")


def _answered(context: Conversation) -> Conversation:
    """A conversation that a reply can answer.

    Raises:
        BadRowError: it ends with a reply.
    """
    if context and context[-1].role == "assistant":
        raise BadRowError("the conversation does not end with a user's message, which is the one that is answered")
    return context


def _decoded(text: str, name: str) -> object:
    """A list of messages that stands in a text.

    Raises:
        BadRowError: the text is no list.
    """
    try:
        return decoded_cell(text)
    except BadTextError as error:
        raise BadRowError(f"'{name}' is no list of messages: it {error}") from error


def _in_pairs(items: list[Any], name: str) -> list[Any]:
    """Messages of turns that have no roles: texts that alternate, the user's first, or objects of input and output."""
    if all(isinstance(item, str) for item in items) and name in _ALTERNATING:
        return [{"role": ("user", "assistant")[number % 2], "content": text} for number, text in enumerate(items)]
    if all(isinstance(item, dict) and {"input", "output"} <= item.keys() for item in items):
        pairs = (zip(("user", "assistant"), (item["input"], item["output"]), strict=True) for item in items)
        return [{"role": role, "content": text} for pair in pairs for role, text in pair]
    return items


def _plain(value: object) -> Message | None:
    """The message that most sets have, of a role and a text, without the checks that others need."""
    if type(value) is not dict or len(value) != 2:
        return None
    role, content = value.get("role"), value.get("content")
    known = ROLES.get(role) if type(role) is str else None
    return Message(known, content) if known is not None and type(content) is str else None


def _extra(value: Mapping[str, Any]) -> str:
    kept = {key: value[key] for key in _KEPT if value.get(key)}
    return json.dumps(kept, ensure_ascii=False, sort_keys=True, default=str) if kept else ""


def _calls(extra: str) -> str:
    """The calls of tools in what a message holds beside its text; empty where there are none."""
    calls = [json.loads(extra).get(key) for key in ("tool_calls", "function_call")]
    return json.dumps(calls, sort_keys=True) if any(calls) else ""


def is_transcript(text: str) -> bool:
    """Whether a text is a transcript of Human and Assistant."""
    return text.startswith("\n\nHuman:") or (text.startswith("Human:") and _REPLY in text)


def transcript(text: str, name: str) -> Conversation:
    """The turns of a transcript, which begins with the human's.

    Two turns of one speaker in a row become one, because most chat templates take only turns that alternate.

    Raises:
        BadRowError: it does not begin with the human's turn.
    """
    first, *rest = _MARKER.split(f"\n\n{text}" if text.startswith("Human:") else text)
    turns: list[Message] = []
    for speaker, passage in zip(rest[::2], rest[1::2], strict=True):
        content = passage.removeprefix(" ")  # the one space that belongs to the marker
        role = _SPEAKERS[speaker]
        if turns and turns[-1].role == role:
            content = f"{turns.pop().content}\n\n{content}"
        turns.append(Message(role, content))
    if first or not turns or turns[0].role != "user":
        raise BadRowError(f"'{name}' begins {text[:20]!r}; expected '\\n\\nHuman: ', or a 'prompt' beside it")
    return tuple(turns)


def spoken(text: str) -> Conversation:
    """The turns of a text in which speakers' names begin them, as people see conversations; empty for another text."""
    first, *rest = _SPOKEN.split(text)
    if first or not rest:
        return ()
    return tuple(
        Message(ROLES[speaker.lower()], passage) for speaker, passage in zip(rest[::2], rest[1::2], strict=True)
    )


def _steered(text: str) -> Conversation:
    """The turns of a prompt of HelpSteer2, which begins with the user's words."""
    first, *rest = _EXTRA_ID.split(text)
    turns = [Message("user", first)] if first.strip() else []
    for speaker, passage in zip(rest[::2], rest[1::2], strict=True):
        turns.append(Message(ROLES[speaker.lower()], passage))
    while turns and turns[-1].role == "assistant" and is_blank(turns[-1].content):
        del turns[-1]
    if turns and turns[0].role == "system" and is_blank(turns[0].content):
        del turns[0]
    return tuple(turns)


def common_start(first: str, second: str) -> int:
    """Where two texts that begin alike part: before the space of the first word in which they differ.

    TRL's implicit prompts are found so, but that no word is cut.
    """
    lengths = range(min(len(first), len(second)) + 1)
    end = bisect(lengths, False, key=lambda length: first[:length] != second[:length]) - 1
    if first == second or (end == lengths[-1] and (first[end:] + second[end:])[:1].isspace()):
        return end
    while end and not first[end - 1].isspace():
        end -= 1
    return len(first[:end].rstrip())


def is_blank(text: str) -> bool:
    """Whether people see nothing of a text."""
    return not "!" <= text[:1] <= "~" and not canonical(text)  # these characters are all visible


def is_list_of(kind: type, value: object) -> bool:
    """Whether a value is a list that is not empty and begins with one of a kind."""
    return isinstance(value, list) and bool(value) and isinstance(value[0], kind)
