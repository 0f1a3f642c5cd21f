"""Training rows: conversations as TRL takes them, in exactly the tokens that are sampled later.

One chat template serves the policy and the reward model, and every row is a conversation, so that a reward model scores
exactly the tokens that it was trained on.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from constitutional.base.errors import ModelError, RunError
from constitutional.base.records import Message, Preference, SftExample
from constitutional.engines.chat import Tokenizer, beginning, plain

Row = dict[str, Any]
"""What TRL trains on: `prompt` and the completions as lists of messages, and for preferences a soft target."""

COMPLETIONS = ("completion", "chosen", "rejected")


def chat(messages: Sequence[Message]) -> list[dict[str, str]]:
    """A conversation as chat templates take it."""
    return [{"role": message.role, "content": message.content} for message in messages]


def supervised_rows(examples: Sequence[SftExample]) -> list[Row]:
    """Training rows of supervised examples: the loss is on `completion` alone."""
    return [
        {"prompt": chat(example.prompt.messages), "completion": [{"role": "assistant", "content": example.reply}]}
        for example in examples
    ]


def preference_rows(preferences: Sequence[Preference]) -> tuple[list[Row], dict[str, int]]:
    """Training rows of the preferences whose prompts may be trained on, and how many were left out and why."""
    used = [each for each in preferences if each.split == "train" and each.prompt.split == "train"]
    unequal = [each for each in used if each.chosen != each.rejected]
    rows = [
        {
            "prompt": chat(each.prompt.messages),
            "chosen": [{"role": "assistant", "content": each.chosen}],
            "rejected": [{"role": "assistant", "content": each.rejected}],
            "probability": each.probability,
        }
        for each in unequal
    ]
    return rows, {"held_out": len(preferences) - len(used), "equal_texts": len(used) - len(unequal)}


def plain_messages(tokenizer: Tokenizer, messages: Sequence[Mapping[str, str]]) -> list[dict[str, str]]:
    """The messages without control tokens in them, as the engine puts them to a model."""
    return [{**each, "content": plain(tokenizer, each["content"])} for each in messages]


def fitting(rows: Sequence[Row], tokenizer: Tokenizer, max_length: int) -> tuple[list[Row], int]:
    """The rows whose conversations have at most `max_length` tokens, and how many have more.

    They are without control tokens, so that the trainers, which render them by themselves, train on what is sampled.
    The trainers would cut a longer reply (SFT, DPO), and so teach to stop nowhere, or drop the pair in silence
    (reward).

    Raises:
        RunError: nothing is left to train on.
        ModelError: the chat template refuses a row.
    """
    said = ("prompt", *COMPLETIONS)
    kept = [
        row
        for row in (
            {key: plain_messages(tokenizer, each) if key in said else each for key, each in row.items()} for row in rows
        )
        if all(len(token_ids(tokenizer, row["prompt"] + row[key])) <= max_length for key in COMPLETIONS if key in row)
    ]
    if not kept:
        raise RunError(
            f"Nothing to train on: {len(rows)} rows, all of them longer than max_length={max_length} tokens; "
            "give more prompts, or raise max_length"
        )
    return kept, len(rows) - len(kept)


def token_ids(tokenizer: Tokenizer, messages: list[dict[str, str]], *, ask: bool = False) -> list[int]:
    """Token ids as TRL makes them, of the messages without control tokens; `ask` ends with the assistant's opening.

    Raises:
        ModelError: the chat template refuses the conversation.
    """
    from jinja2 import TemplateError

    try:
        return render(tokenizer, plain_messages(tokenizer, messages), ask=ask)
    except TemplateError as error:
        roles = ", ".join(each["role"] for each in messages)
        said = [Message("user", each["content"]) for each in messages if each["role"] == "user"] or [
            Message("user", "")
        ]
        raise ModelError(
            f"{tokenizer.name_or_path}: its chat template refuses the row that begins {beginning(said)}, a "
            f"conversation of the roles {roles}: {error}. Leave the row out, or take another model"
        ) from error


def render(tokenizer: Tokenizer, messages: list[dict[str, str]], *, ask: bool = False) -> list[int]:
    """Token ids of the messages as they are, as TRL makes them; `ask` ends with the assistant's opening.

    Raises:
        jinja2.TemplateError: the chat template refuses the conversation.
    """
    rendered = tokenizer.apply_chat_template(messages, tokenize=True, return_dict=True, add_generation_prompt=ask)
    ids: list[int] = rendered["input_ids"]
    return ids


def dataset(rows: Sequence[Row]) -> Any:  # noqa: ANN401 - the library has no types
    """The rows in memory, as the trainers want them."""
    from datasets import Dataset  # type: ignore[import-untyped]

    return Dataset.from_list(list(rows))
