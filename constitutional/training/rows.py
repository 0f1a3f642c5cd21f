"""Training rows: conversations as TRL takes them, in exactly the tokens that are sampled later.

One chat template serves the policy and the reward model, and every row is a conversation, so that a reward model scores
exactly the tokens that it was trained on.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from constitutional.base.errors import ModelError, RunError
from constitutional.base.message import Message
from constitutional.engines.chat import Tokenizer, beginning, plain

if TYPE_CHECKING:
    from constitutional.base.records import Preference, SftExample

Row = dict[str, Any]
"""What TRL trains on: `prompt` and the completions as lists of messages, and for preferences a soft target."""

COMPLETIONS = ("completion", "chosen", "rejected")


def chat(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """A conversation as chat templates take it."""
    return [message.turn() for message in messages]


def supervised_rows(examples: "Sequence[SftExample]") -> list[Row]:
    """Training rows of supervised examples: the loss is on `completion` alone."""
    return [
        {"prompt": chat(example.prompt.messages), "completion": [{"role": "assistant", "content": example.reply}]}
        for example in examples
    ]


def preference_rows(preferences: "Sequence[Preference]") -> tuple[list[Row], dict[str, int]]:
    """Training rows of the preferences whose prompts may be trained on, and how many were left out and why.

    Weights are divided by their mean. Rows of the same prompt have the same `group`.
    """
    used = [pair for pair in preferences if pair.split == "train" and pair.prompt.split == "train"]
    unequal = [pair for pair in used if pair.chosen != pair.rejected]
    mean = sum(pair.weight for pair in unequal) / max(1, len(unequal))
    groups: dict[tuple[Message, ...], int] = {}
    rows = [
        {
            "prompt": chat(pair.prompt.messages),
            "chosen": [{"role": "assistant", "content": pair.chosen}],
            "rejected": [{"role": "assistant", "content": pair.rejected}],
            "probability": pair.probability,
            "weight": pair.weight / mean,
            "group": groups.setdefault(pair.prompt.messages, len(groups)),
        }
        for pair in unequal
    ]
    return rows, {"held_out": len(preferences) - len(used), "equal_texts": len(used) - len(unequal)}


def plain_messages(tokenizer: Tokenizer, messages: Sequence[Mapping[str, str]]) -> list[dict[str, str]]:
    """The messages without control tokens in them, as the engine puts them to a model."""
    return [{**message, "content": plain(tokenizer, message["content"])} for message in messages]


def fitting(rows: Sequence[Row], tokenizer: Tokenizer, max_length: int) -> tuple[list[Row], dict[str, int]]:
    """The rows that can be trained on as they are, without control tokens, and how many were left out and why.

    `too_long`: a conversation has more than `max_length` tokens; the trainers would cut a longer reply (SFT, DPO), and
    so teach to stop nowhere, or drop the pair in silence (reward). `rewritten`: the chat template changes a reply, as
    some templates do where it holds </think>, so that other words would be trained on than were sampled.

    Raises:
        RunError: nothing is left to train on.
        ModelError: the chat template refuses a row.
    """
    kept: list[Row] = []
    left_out = {"too_long": 0, "rewritten": 0}
    for original in rows:
        columns = [key for key in COMPLETIONS if key in original]
        row = original | {key: plain_messages(tokenizer, original[key]) for key in ("prompt", *columns)}
        if any(len(token_ids(tokenizer, row["prompt"] + row[key])) > max_length for key in columns):
            left_out["too_long"] += 1
        elif not all(_word_for_word(tokenizer, row["prompt"], row[key]) for key in columns):
            left_out["rewritten"] += 1
        else:
            kept.append(row)
    if not kept:
        raise RunError(
            f"Nothing to train on: of {len(rows)} rows {left_out['too_long']} are longer than max_length={max_length} "
            f"tokens, and the chat template rewrites the replies of {left_out['rewritten']}; give more prompts, or "
            "raise max_length"
        )
    return kept, left_out


def _word_for_word(tokenizer: Tokenizer, prompt: list[dict[str, str]], reply: list[dict[str, str]]) -> bool:
    """Whether the chat template renders a reply as it is; spaces around it do not count, which many templates strip."""
    opening = tokenizer.apply_chat_template(prompt, tokenize=False, add_generation_prompt=True)
    whole = tokenizer.apply_chat_template(prompt + reply, tokenize=False)
    return reply[-1]["content"].strip() in whole.removeprefix(opening)


def token_ids(tokenizer: Tokenizer, messages: list[dict[str, str]], *, ask: bool = False) -> list[int]:
    """Token ids of the messages without control tokens, as TRL makes them; `ask` ends with the assistant's opening.

    Raises:
        ModelError: the chat template refuses the conversation.
    """
    from jinja2 import TemplateError

    try:
        return render(tokenizer, plain_messages(tokenizer, messages), ask=ask)
    except TemplateError as error:
        roles = ", ".join(message["role"] for message in messages)
        users = [Message("user", message["content"]) for message in messages if message["role"] == "user"]
        start = beginning(users or [Message("user", "")])
        raise ModelError(
            f"{tokenizer.name_or_path}: its chat template refuses the row that begins {start}, a "
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
