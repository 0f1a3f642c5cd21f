"""How a conversation is put to a model: its tokenizer, its chat template, and whether there is room for a reply."""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jinja2 import TemplateError

from constitutional.base.errors import ModelError
from constitutional.base.records import Message
from constitutional.engines.base import TooLongError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Tokenizer = Any
"""Transformers' type of it declares too little for mypy."""
Arguments = Mapping[str, bool | int | float | str]
"""Of a chat template, by name."""


def load_tokenizer(folder: Path | str, *, pad_token: str | None = None, template: Arguments | None = None) -> Tokenizer:
    """A model's tokenizer, with a token for padding in place of its own, and arguments for its chat template.

    They become part of the template, so that whoever renders it, trains with it or saves it keeps to them.

    Raises:
        ModelError: it cannot be loaded, or has no such token.
    """
    from transformers import AutoTokenizer

    try:
        tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    except (OSError, ValueError, RuntimeError) as error:
        raise ModelError(f"{folder}: cannot be loaded as a causal language model: {error}") from error
    # What is too long is left out and counted, or refused; a library's warning of it would only stand in between.
    tokenizer.deprecation_warnings["sequence-length-is-longer-than-the-specified-maximum"] = True
    if pad_token is not None:
        if pad_token not in tokenizer.get_vocab():
            special = ", ".join(map(json.dumps, sorted(_control_tokens(tokenizer))[:20]))
            raise ModelError(
                f"{folder}: its tokenizer has no token {json.dumps(pad_token)} for padding; it has {special}"
            )
        tokenizer.pad_token = pad_token
    if template and isinstance(tokenizer.chat_template, str):
        # JSON's texts and numbers are Jinja's too, and so are true and false.
        said = "".join(
            f"{{% set {name} = {json.dumps(value, ensure_ascii=False)} %}}" for name, value in template.items()
        )
        if not tokenizer.chat_template.startswith(said):  # as that of a model that was trained from this one does
            tokenizer.chat_template = f"{said}\n{tokenizer.chat_template}"  # Jinja takes a line's end after a tag away
    return tokenizer


def plain(tokenizer: Tokenizer, text: str) -> str:
    """The text without control tokens: nobody ends a turn, or begins another's, from within a message.

    Wherever a message is put to a model, to be answered or to be trained on, it goes through here.
    """
    control = _control(tokenizer)
    while (shorter := control.sub("", text)) != text:  # what is left on both sides may make up another
        text = shorter
    return text


@lru_cache(maxsize=8)
def _control(tokenizer: Tokenizer) -> re.Pattern[str]:
    tokens = sorted(_control_tokens(tokenizer), key=len, reverse=True)
    return re.compile("|".join(map(re.escape, tokens)) or "(?!)")


def _control_tokens(tokenizer: Tokenizer) -> list[str]:
    return [token.content for token in tokenizer.added_tokens_decoder.values() if token.special]


class ChatTokens:
    """How a conversation is put to a model: its chat template's words, and none of the control tokens from within."""

    def __init__(self, tokenizer: "PreTrainedTokenizerBase") -> None:
        self.tokenizer: Any = tokenizer

    def ids(self, messages: Sequence[Message], suffix: str = "") -> list[int]:
        """Token ids of a conversation, ready for the assistant's reply or going on with its last words."""
        goes_on = messages[-1].role == "assistant"
        said = [{"role": each.role, "content": plain(self.tokenizer, each.content)} for each in messages]
        # What the assistant has begun stands behind the generation prompt exactly as it is; many templates, and
        # transformers' own way to continue a message, would strip spaces from it.
        begun = said.pop()["content"] if goes_on else ""
        try:
            text = self.tokenizer.apply_chat_template(said, tokenize=False, add_generation_prompt=True)
        except TemplateError as error:
            roles = ", ".join(each["role"] for each in said)
            raise ModelError(
                f"{self.tokenizer.name_or_path}: its chat template refuses a conversation of the roles {roles}: "
                f"{error}. Put the conversation that begins {beginning(messages)} otherwise, or take another model"
            ) from error
        ids: list[int] = self.tokenizer(text + begun + suffix, add_special_tokens=False)["input_ids"]
        return ids


def room_to_reply(
    folder: Path, max_tokens: int, *, pad_token: str | None = None, template: Arguments | None = None
) -> Callable[[Sequence[Message]], None]:
    """A check that a conversation leaves the model in a folder room to reply. Its weights are not loaded.

    The check raises TooLongError where there is none, and ModelError where the chat template refuses the conversation.
    """
    limit = context_length(json.loads((folder / "config.json").read_text(encoding="utf-8")))
    tokens = ChatTokens(load_tokenizer(folder, pad_token=pad_token, template=template))

    def check(messages: Sequence[Message]) -> None:
        check_length(messages, len(tokens.ids(messages)), max_tokens, limit)

    return check


def context_length(config: Mapping[str, Any]) -> int | None:
    """The longest row of tokens that a model was made for, in its configuration; None where it does not say."""
    found = {**config.get("text_config", {}), **config}.get("max_position_embeddings")
    return found if isinstance(found, int) else None


def check_length(messages: Sequence[Message], tokens: int, to_come: int, limit: int | None) -> None:
    """Refuse a conversation of so many tokens that leaves no room for those to come.

    Beyond the positions that it was made for a model writes nonsense, or none at all.

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
    """How the user's first words go, shortened, in quotes."""
    text = " ".join(next((each.content for each in messages if each.role == "user"), messages[0].content).split())
    return json.dumps(text if len(text) <= 60 else f"{text[:60]}…", ensure_ascii=False)
