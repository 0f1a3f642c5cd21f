"""How a conversation is put to a model: its tokenizer, its chat template, and whether there is room for a reply."""

import json
import re
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

from jinja2 import TemplateError

from constitutional.base.errors import ModelError
from constitutional.base.message import Message
from constitutional.base.text import thoughts_apart
from constitutional.engines.architecture import unloadable
from constitutional.engines.base import Completion, Finish, Request, TooLongError

if TYPE_CHECKING:
    from transformers import GenerationConfig, PretrainedConfig, PreTrainedTokenizerBase

Tokenizer = Any
"""Transformers' type of it declares too little for mypy."""
Arguments = Mapping[str, bool | int | float | str]
"""Arguments of a chat template, by name."""

NOW: Final = datetime(2024, 7, 26, tzinfo=UTC)
"""What `strftime_now` tells a chat template: a conversation reads the same on every day. It is Llama's own date."""
_ADDED: Final = "{# the template itself #}"
"""Stands in a chat template behind what this module puts before it."""


def load_tokenizer(folder: Path | str, *, pad_token: str | None = None, template: Arguments | None = None) -> Tokenizer:
    """A model's tokenizer, with a token for padding in place of its own, and arguments for its chat template.

    The arguments become part of the template, so that everything that renders, trains with or saves it keeps to them.
    The template's clock is set to `NOW` in the same way.

    Raises:
        ModelError: the tokenizer cannot be loaded, has no such token, or its template reads no such argument.
    """
    from transformers import AutoTokenizer

    try:
        tokenizer: Any = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except (OSError, ValueError, RuntimeError, ImportError) as error:
        raise unloadable(folder, error) from error
    # Rows that are too long are left out and counted, or refused; a library's warning would only repeat it.
    tokenizer.deprecation_warnings["sequence-length-is-longer-than-the-specified-maximum"] = True
    if pad_token is not None:
        if pad_token not in tokenizer.get_vocab():
            special = ", ".join(map(json.dumps, sorted(_control_tokens(tokenizer)[0])[:20]))
            raise ModelError(
                f"{folder}: its tokenizer has no token {json.dumps(pad_token)} for padding; it has {special}"
            )
        tokenizer.pad_token = pad_token
    if isinstance(tokenizer.chat_template, dict):  # named templates, of which transformers takes this one without tools
        if "default" not in tokenizer.chat_template:
            names = ", ".join(sorted(tokenizer.chat_template))
            raise ModelError(f"{folder}: its chat templates are {names}, and none is named 'default'; add one")
        default = _with_arguments(folder, tokenizer.chat_template["default"], template or {})
        tokenizer.chat_template = {**tokenizer.chat_template, "default": default}
    elif tokenizer.chat_template or template:
        tokenizer.chat_template = _with_arguments(folder, tokenizer.chat_template or "", template or {})
    return tokenizer


def check_answering(tokenizer: Tokenizer) -> None:
    """Refuse a tokenizer with which no model can answer here.

    Raises:
        ModelError: it has no chat template, or no token for padding.
    """
    ChatTokens(tokenizer)  # says what it needs
    if tokenizer.pad_token_id is None:
        raise ModelError(
            f"{tokenizer.name_or_path}: its tokenizer has no pad token; name one of its tokens that occurs in no "
            "text with model.pad_token=TOKEN (or that role's, such as labeler.pad_token=TOKEN, where a role's path "
            "names this model)"
        )


def _with_arguments(folder: Path | str, text: str, arguments: Arguments) -> str:
    """The template with its clock stopped and its arguments set; unchanged where that was done before."""
    added, mark, own = text.rpartition(_ADDED)
    if unread := [name for name in arguments if not re.search(rf"\b{name}\b", own)]:
        raise ModelError(
            f"{folder}: its chat template reads no argument {', '.join(unread)}; correct the name in model.template "
            "(or that role's, such as labeler.template, where a role's path names this model), or take it out"
        )
    if "strftime_now" in own and not mark:
        directives = [f"%{letter}" for letter in "aAbBcdDeFHIjmMpSTuwxXyYzZ"] + ["%-d", "%-m", "%-H", "%-I", "%%"]
        told = "".join(f" | replace({json.dumps(name)}, {json.dumps(NOW.strftime(name))})" for name in directives)
        added += f"{{% macro strftime_now(format) %}}{{{{ format{told} }}}}{{% endmacro %}}"
    # JSON's texts and numbers are Jinja's too, and so are true and false.
    assignments = "".join(
        f"{{% set {name} = {json.dumps(value, ensure_ascii=False)} %}}" for name, value in arguments.items()
    )
    if not added.endswith(assignments):  # as those of a model that was trained from this one do
        added += assignments
    return f"{added}{_ADDED}{own}" if added else own


# --- Tokens that only the template writes ---

REMOVED: Final = "[removed]"
"""Stands in a message for a control token. It is ASCII, because a small vocabulary may lack any other character."""
_LINE_ENDS: Final = r"\n\r\v\f\x85\u2028\u2029"


def plain(tokenizer: Tokenizer, text: str) -> str:
    """The text with a placeholder for its control tokens: no message ends its turn, or begins another's.

    Wherever a message is put to a model, to be answered or to be trained on, it goes through here. Without the
    placeholder, what follows a token could become the beginning of a line, or another token. Tokens at the text's end
    have nothing behind them and are deleted.
    """
    end = len(text.rstrip())
    control = _control(tokenizer, str(tokenizer.chat_template))
    return control.sub(lambda match: REMOVED if match.end() < end else "", text)


def put_plainly(tokenizer: Tokenizer, turn: Mapping[str, Any]) -> dict[str, Any]:
    """A message as a chat template takes it, without control tokens in its content.

    The arguments of a tool call are JSON text in OpenAI's form and objects elsewhere. Where a template refuses one of
    the two, it is given the other.
    """
    turn = {**turn, "content": plain(tokenizer, turn["content"])}
    form = _arguments_form(tokenizer, str(tokenizer.chat_template)) if turn.get("tool_calls") else ""
    return turn | {"tool_calls": _in_form(turn["tool_calls"], form)} if form else turn


def _in_form(calls: Any, form: str) -> Any:  # noqa: ANN401 - whatever a file has there
    """The tool calls with arguments as text or as objects; what cannot be had in that form stays."""
    if isinstance(calls, list):
        return [_in_form(call, form) for call in calls]
    if not isinstance(calls, dict):
        return calls
    if isinstance(calls.get("function"), dict):
        return calls | {"function": _in_form(calls["function"], form)}
    arguments = calls.get("arguments")
    if form == "text" and isinstance(arguments, dict):
        return calls | {"arguments": json.dumps(arguments, ensure_ascii=False)}
    if form == "object" and isinstance(arguments, str):
        with suppress(ValueError):
            return calls | {"arguments": json.loads(arguments)}
    return calls


@lru_cache(maxsize=8)
def _arguments_form(tokenizer: Tokenizer, template: str) -> str:  # noqa: ARG001 - the template is the tokenizer's
    """The form in which a template takes the arguments of tool calls, text or object, if it refuses the other."""
    taken = []
    forms: dict[str, object] = {"text": '{"wexu": 1}', "object": {"wexu": 1}}
    for form, arguments in forms.items():
        # Mistral's templates want an id of nine characters.
        call = {"id": "wexuwexu1", "type": "function", "function": {"name": "wexu", "arguments": arguments}}
        if _rendered(tokenizer, [_QUESTION, {"role": "assistant", "content": "", "tool_calls": [call]}]):
            taken.append(form)
    return taken[0] if len(taken) == 1 else ""


@lru_cache(maxsize=8)
def _control(tokenizer: Tokenizer, template: str) -> re.Pattern[str]:  # noqa: ARG001 - the tokens are the template's too
    tokens, words, lines = _control_tokens(tokenizer)

    def any_of(texts: set[str]) -> str:
        return "|".join(map(re.escape, sorted(texts, key=len, reverse=True))) or "(?!)"

    return re.compile(
        rf"(?:{any_of(tokens)})(?:\s*+(?:{any_of(tokens)}))*|(?<!\w)(?:{any_of(words)})"
        rf"|(?<![^{_LINE_ENDS}])[^\S{_LINE_ENDS}]*+(?:{any_of(lines)})"
    )


def _control_tokens(tokenizer: Tokenizer) -> tuple[set[str], set[str], set[str]]:
    """The special tokens, and the markers that the chat template writes around messages, special or not.

    A marker is a token that was added to the vocabulary, a word in brackets such as <|user|> or [INST], or a whole line
    between two messages that is not made of letters alone, such as "### Response:" or "USER:". A text may hold any of
    them anywhere, except that a whole line marks a turn only where it begins a line.

    Returns:
        tokens and words in brackets; what the template writes on a message's own last line; what it begins a line with.
    """
    added = tokenizer.added_tokens_decoder.values()
    tokens = sorted((token.content for token in added), key=len, reverse=True)
    markers = {token for token in tokens if len(token) > 2 and token in str(tokenizer.chat_template)}
    words: set[str] = set()
    lines: set[str] = set()
    for number, text in _around_messages(tokenizer):
        markers |= {token for token in tokens if token in text}
        for part in re.split("|".join(map(re.escape, tokens)) or "(?!)", text):
            if brackets := re.findall(r"<{1,2}[^<>\s]+>{1,2}|\[[^\[\]\s]+\]", part):
                markers.update(brackets)
            elif number:  # before the first message stands prose, such as a system prompt by default
                first, *others = (line.strip() for line in part.splitlines() or [""])
                words.add(first)
                lines.update(others)
    ordinary = re.compile(r"[\w\s]*|</?think>")  # thoughts are part of a reply
    markers, words, lines = (
        {text for text in texts if not ordinary.fullmatch(text)} for texts in (markers, words, lines)
    )
    return markers | {token.content for token in added if token.special}, words, lines


def _around_messages(tokenizer: Tokenizer) -> Iterator[tuple[int, str]]:
    """What the chat template writes before and between messages, with the number of messages before it.

    Not what it writes behind the last message: there a reply begins, which may hold such marks as <think>.
    """
    contents = ["Qavo", "Wexu", "Zupi", "Jyro"]
    for roles in (("user", "assistant", "user"), ("system", "user", "assistant", "user")):
        messages = [{"role": role, "content": text} for role, text in zip(roles, contents, strict=False)]
        try:
            text = tokenizer.apply_chat_template(messages, tokenize=False)
        except (TemplateError, TypeError, ValueError):  # preflight says which conversations a template refuses
            continue
        pieces = re.split("|".join(contents), text)
        yield from enumerate(pieces[:-1])


def end_of_turn(tokenizer: Tokenizer) -> int | None:
    """The token that the chat template puts behind a reply; None where it writes no token of its own there."""
    turn = [{"role": "user", "content": "Yes?"}, {"role": "assistant", "content": "Yes."}]
    try:
        rest = tokenizer.apply_chat_template(turn, tokenize=False).rpartition("Yes.")[2].strip()
    except (TemplateError, TypeError, ValueError):
        return None
    ids: list[int] = tokenizer(rest, add_special_tokens=False)["input_ids"]
    return ids[0] if ids and ids[0] in tokenizer.added_tokens_decoder else None


def end_tokens(tokenizer: Tokenizer, config: "PretrainedConfig", generation: "GenerationConfig | None") -> list[int]:
    """The tokens that end a reply: where the chat template ends a turn, and where tokenizer or model say so."""
    tokens = {end_of_turn(tokenizer) if tokenizer.chat_template else None, tokenizer.eos_token_id}
    for ends in (config.get_text_config().eos_token_id, getattr(generation, "eos_token_id", None)):
        tokens |= set(ends if isinstance(ends, list) else [ends])
    return sorted(tokens - {None})


# --- What a template does with thoughts and system messages ---

_QUESTION: Final = {"role": "user", "content": "Wexu"}


@lru_cache(maxsize=8)
def _no_thought(tokenizer: Tokenizer, template: str) -> str:  # noqa: ARG001 - the template is the tokenizer's
    """What stands between the opening of a reply and a reply without a thought; empty where the template has none."""
    opening = _rendered(tokenizer, [_QUESTION], add_generation_prompt=True)
    whole = _rendered(tokenizer, [_QUESTION, {"role": "assistant", "content": "Qavo"}])
    before, reply, _ = whole.rpartition("Qavo")
    if reply and before.startswith(opening) and "</think>" in before[len(opening) :]:
        return before[len(opening) :]
    if not opening.rstrip().endswith("<think>"):
        return ""
    space = opening[len(opening.rstrip()) :]
    return f"{space}</think>{space}{space}"


@lru_cache(maxsize=8)
def _channel(tokenizer: Tokenizer, template: str) -> str:  # noqa: ARG001 - the template is the tokenizer's
    """Control tokens that stand before a reply where the model itself would have to write them, as gpt-oss's does."""
    opening = _rendered(tokenizer, [_QUESTION], add_generation_prompt=True)
    if opening == _rendered(tokenizer, [_QUESTION]):  # it opens no reply, and what it writes before one is the role
        return ""
    before, reply, _ = _rendered(tokenizer, [_QUESTION, {"role": "assistant", "content": "Qavo"}]).rpartition("Qavo")
    between = before.removeprefix(opening)
    marked = reply and between != before and "</think>" not in between and re.search(r"<\|[^<>\s]+\|>", between)
    return between.strip() if marked else ""


def thinks(tokenizer: Tokenizer) -> Literal["", "switch", "always"]:
    """Whether a chat template lets its model think before replies, and whether `enable_thinking: false` ends that.

    What a model does by itself, where the template says nothing of it, is not known.
    """
    opening = _rendered(tokenizer, [_QUESTION], add_generation_prompt=True)
    quiet = _rendered(tokenizer, [_QUESTION], add_generation_prompt=True, enable_thinking=False)
    if quiet != opening and quiet.rstrip().endswith("</think>"):
        return "switch"
    return "always" if opening.rstrip().endswith("<think>") else ""


def no_system(tokenizer: Tokenizer) -> str:
    """What a chat template does with a system message where it does not show it to the model; empty where it does."""
    return _no_system(tokenizer, str(tokenizer.chat_template))


@lru_cache(maxsize=8)
def _no_system(tokenizer: Tokenizer, template: str) -> str:  # noqa: ARG001 - the template is the tokenizer's
    messages = [{"role": "system", "content": "Qavo"}, _QUESTION]
    try:
        text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    except (TemplateError, TypeError, ValueError) as error:
        return f"refuses system messages ({error})" if _rendered(tokenizer, [_QUESTION]) else ""
    return "" if "Qavo" in text else "leaves system messages out"


def _rendered(tokenizer: Tokenizer, messages: Sequence[Mapping[str, Any]], **arguments: bool) -> str:
    """A conversation in the chat template; empty where the template refuses it."""
    try:
        return str(tokenizer.apply_chat_template(messages, tokenize=False, **arguments))
    except (TemplateError, TypeError, ValueError):  # preflight says which conversations a template refuses
        return ""


# --- Conversations ---


class ChatTokens:
    """How a conversation is put to a model: in its chat template, with no control tokens from within a message.

    Raises:
        ModelError: the tokenizer has no chat template, or one that puts replies into a channel.
    """

    def __init__(self, tokenizer: "PreTrainedTokenizerBase") -> None:
        if not tokenizer.chat_template:
            raise ModelError(
                f"{tokenizer.name_or_path}: its tokenizer has no chat template; use a chat model, or add one"
            )
        if channel := _channel(tokenizer, str(tokenizer.chat_template)):
            raise ModelError(
                f"{tokenizer.name_or_path}: its chat template writes {channel} before a reply, and its model's "
                "thoughts into channels of their own, which are not told apart here; take another model, or have a "
                "server answer with this one, such as labeler=http labeler.url=http://127.0.0.1:8000/v1 "
                "labeler.model=NAME"
            )
        self.tokenizer: Any = tokenizer

    def ids(self, messages: Sequence[Message], suffix: str | None = None) -> list[int]:
        """Token ids of a conversation, ready for the assistant's reply, or going on with words of it.

        What is known of a reply (its first words, or `suffix`) stands behind an empty thought, where the template
        writes a thought before replies. A template without system messages has them at the user's first one's front.
        """
        turns = [put_plainly(self.tokenizer, turn.turn()) for turn in messages]
        if [turn.role for turn in messages[:2]] == ["system", "user"] and no_system(self.tokenizer):
            system, user, *rest = turns
            turns = [user | {"content": f"{system['content']}\n\n{user['content']}"}, *rest]
        check_shown(self.tokenizer, turns)
        # The assistant's first words stand behind the generation prompt exactly as they are; many templates, and
        # transformers' own way to continue a message, would strip spaces from them.
        begun = turns.pop()["content"] if messages[-1].role == "assistant" else ""
        try:
            text = self.tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
        except (TemplateError, TypeError, ValueError) as error:
            roles = ", ".join(turn["role"] for turn in turns)
            raise ModelError(
                f"{self.tokenizer.name_or_path}: its chat template refuses a conversation of the roles {roles}: "
                f"{error}. Put the conversation that begins {beginning(messages)} otherwise, or take another model"
            ) from error
        if (begun or suffix is not None) and not text.rstrip().endswith("</think>"):
            text += _no_thought(self.tokenizer, str(self.tokenizer.chat_template))
        ids: list[int] = self.tokenizer(text + begun + (suffix or ""), add_special_tokens=False)["input_ids"]
        return ids

    def rows(self, request: Request, limit: int | None) -> list[list[int]]:
        """A request's token ids: one row for a reply, or a row for each choice.

        Raises:
            TooLongError: they do not fit into `limit`.
            ModelError: the chat template refuses the conversation, or two choices are the same tokens.
        """
        rows = self._options(request) if request.choices else [self.ids(request.messages)]
        to_come = 0 if request.choices else request.sampling.max_tokens
        check_length(request.messages, max(map(len, rows)), to_come, limit)
        return rows

    def _options(self, request: Request) -> list[list[int]]:
        """The conversation's token ids with each of the choices.

        Where one choice begins another in tokens (1 and 10, digit by digit), the end of the turn is part of each.
        """
        options = [self.ids(request.messages, plain(self.tokenizer, choice)) for choice in request.choices]
        in_order = sorted(options)  # a list that begins others comes right before one of them
        if any(longer[: len(shorter)] == shorter for shorter, longer in pairwise(in_order)):
            end = end_of_turn(self.tokenizer) or self.tokenizer.eos_token_id
            options = [[*option, end] for option in options]
        if len(set(map(tuple, options))) < len(options):
            raise ModelError(f"choices {request.choices} cannot be told apart: two of them are the same tokens")
        return options

    def completion(self, request: Request, prompt: list[int], row: Sequence[int], ends: Container[int]) -> Completion:
        """What the tokens of a reply say, up to the first end token or the first of the request's stops.

        Args:
            request: what was asked.
            prompt: its token ids.
            row: those of the reply.
            ends: tokens that end a reply.
        """
        length = next((index for index, token in enumerate(row) if token in ends), None)
        written = len(row) if length is None else length + 1
        ids = [token for token in row[:length] if token != self.tokenizer.pad_token_id]
        text = str(self.tokenizer.decode(ids, skip_special_tokens=True))
        cut = min((text.index(stop) for stop in request.sampling.stop if stop in text), default=None)
        finish: Finish = "length" if length is None and cut is None else "stop"
        thought, spoken = self.thoughts_apart(request, prompt, text[:cut])
        return Completion(spoken, finish, completion_tokens=written, reasoning=thought)

    def thoughts_apart(self, request: Request, prompt: list[int], text: str) -> tuple[str, str]:
        """What a model thought before a reply, and the reply; JSON, or one that goes on from words, has no thought."""
        if request.schema or request.messages[-1].role == "assistant":
            return "", text
        end = str(self.tokenizer.decode(prompt[-16:]))  # the tag may be as many tokens as it has characters
        return thoughts_apart(text, opened=end.rstrip().endswith("<think>"))


def shared_beginning(options: Sequence[list[int]]) -> int:
    """How many tokens all of them have in common from the start."""
    # No other differs from both earlier than these two do from one another.
    low, high = min(options), max(options)
    return next((at for at, (one, other) in enumerate(zip(low, high, strict=False)) if one != other), len(low))


def room_to_reply(
    folder: Path, max_tokens: int, *, pad_token: str | None = None, template: Arguments | None = None
) -> Callable[[Sequence[Message]], None]:
    """A check that a model takes a conversation and has room for a reply of `max_tokens`. No weights are loaded.

    The check raises TooLongError where there is no room, and ModelError where the chat template refuses the
    conversation, or has no system messages and there is one: a training takes the conversation as it is. With
    `max_tokens` 0 it serves for conversations that end with a reply, such as people's comparisons.
    """
    limit = context_length(json.loads((folder / "config.json").read_text(encoding="utf-8")))
    tokens = ChatTokens(load_tokenizer(folder, pad_token=pad_token, template=template))

    def check(messages: Sequence[Message]) -> None:
        check_system(tokens.tokenizer, messages)
        check_length(messages, len(tokens.ids(messages)), max_tokens, limit)

    return check


def check_shown(tokenizer: Tokenizer, turns: Sequence[Mapping[str, Any]]) -> None:
    """Refuse a conversation of which the template leaves a message out without a word.

    Many do so with the role developer, some with tools' answers or with a system message that is not the first.

    Raises:
        ModelError: it leaves one out.
    """
    special = {at for at, turn in enumerate(turns) if turn["role"] not in ("user", "assistant", "system")}
    special |= {at for at, turn in enumerate(turns) if at and turn["role"] == "system"}
    if not special:
        return
    text = _rendered(tokenizer, [{**turn, "content": f"Qavo{at}x"} for at, turn in enumerate(turns)])
    if lost := [turns[at]["role"] for at in sorted(special) if text and f"Qavo{at}x" not in text]:
        users = [Message("user", turn["content"]) for turn in turns if turn["role"] == "user"]
        where = f"the conversation that begins {beginning(users)} has one" if users else "a conversation has one"
        raise ModelError(
            f"{tokenizer.name_or_path}: its chat template leaves out {'later ' if lost[0] == 'system' else ''}messages "
            f"of the role {lost[0]}, and {where}; give it the role system at the conversation's beginning, put its "
            "words into the user's message, or take another model"
        )


def check_system(tokenizer: Tokenizer, messages: Sequence[Message]) -> None:
    """Refuse messages in what a model is to be trained on that its template does not show it, such as a system message.

    Raises:
        ModelError: there is one.
    """
    check_shown(tokenizer, [message.turn() for message in messages])
    if messages[0].role == "system" and (problem := no_system(tokenizer)):
        raise ModelError(
            f"{tokenizer.name_or_path}: its chat template {problem}, and the conversation that begins "
            f"{beginning(messages)} has one; put its words into the user's first message in its place "
            "(prompts.system=null, if it comes from there), or take another model"
        )


def context_length(config: Mapping[str, Any]) -> int | None:
    """The longest row of tokens that a model was made for, in its configuration; None where it does not say."""
    length = {**config.get("text_config", {}), **config}.get("max_position_embeddings")
    return length if isinstance(length, int) else None


def check_length(messages: Sequence[Message], tokens: int, to_come: int, limit: int | None) -> None:
    """Refuse a conversation of `tokens` tokens that leaves no room for `to_come` more within the limit.

    Beyond the positions that it was made for, a model writes nonsense or nothing.

    Raises:
        TooLongError: there is no room; without a limit there always is.
    """
    if limit is not None and tokens + to_come > limit:
        reply = f" and the reply may have {to_come:,}" if to_come else ""
        raise TooLongError(
            f"the request that begins {beginning(messages)} has {tokens:,} tokens{reply}, but the model takes "
            f"{limit:,} in all; shorten it or leave it out{', or lower max_tokens' if to_come else ''}"
        )


def beginning(messages: Sequence[Message]) -> str:
    """The user's first words, shortened, in quotes."""
    text = " ".join(next((turn.content for turn in messages if turn.role == "user"), messages[0].content).split())
    return json.dumps(text if len(text) <= 60 else f"{text[:60]}…", ensure_ascii=False)
