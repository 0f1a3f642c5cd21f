"""Training rows: conversations as TRL takes them, in exactly the tokens that are sampled later.

One chat template serves the policy and the reward model, and every row is a conversation, so that a reward model scores
exactly the tokens that it was trained on. Rows are made one by one, and stand in a file while they are trained on.
"""

import hashlib
import shutil
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from constitutional.base.errors import ModelError, RunError
from constitutional.base.files import writing
from constitutional.base.message import Message
from constitutional.engines.chat import Tokenizer, beginning, put_plainly
from constitutional.training import processes

if TYPE_CHECKING:
    from datasets import Dataset, Features  # type: ignore[import-untyped]

    from constitutional.base.records import Preference, SftExample
    from constitutional.base.shards import RowStream

Row = dict[str, Any]
"""What TRL trains on: `prompt` and the completions as lists of messages, and for preferences a soft target."""

COMPLETIONS = ("completion", "chosen", "rejected")


def chat(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """A conversation as chat templates take it."""
    return [message.turn() for message in messages]


def key_of(*parts: object) -> bytes:
    """16 bytes by which a row's parts, such as its messages, are known where all rows' would take too much memory."""
    return hashlib.sha256(repr(parts).encode("utf-8", "surrogatepass")).digest()[:16]


def supervised_rows(examples: "Iterable[SftExample]") -> Iterator[Row]:
    """Training rows of supervised examples: the loss is on `completion` alone."""
    for example in examples:
        yield {"prompt": chat(example.prompt.messages), "completion": [{"role": "assistant", "content": example.reply}]}


def preference_rows(preferences: "RowStream[Preference]") -> tuple[Iterator[Row], dict[str, int]]:
    """Training rows of the preferences whose prompts may be trained on, and how many were left out and why.

    Weights are divided by their mean. Rows of the same prompt have the same `group`, a number made of its digest. The
    preferences are gone through twice, here and for the rows.
    """
    held_out, equal_texts, weights = 0, 0, array("d")
    for pair in preferences:
        if not _may_be_trained_on(pair):
            held_out += 1
        elif pair.chosen == pair.rejected:
            equal_texts += 1
        else:
            weights.append(pair.weight)
    mean = sum(weights) / max(1, len(weights))

    def rows() -> Iterator[Row]:
        for pair in preferences:
            if _may_be_trained_on(pair) and pair.chosen != pair.rejected:
                yield {
                    "prompt": chat(pair.prompt.messages),
                    "chosen": [{"role": "assistant", "content": pair.chosen}],
                    "rejected": [{"role": "assistant", "content": pair.rejected}],
                    "probability": pair.probability,
                    "weight": pair.weight / mean,
                    "group": int.from_bytes(key_of(pair.prompt.messages)[:8], signed=True),
                }

    return rows(), {"held_out": held_out, "equal_texts": equal_texts}


def _may_be_trained_on(pair: "Preference") -> bool:
    return pair.split == "train" and pair.prompt.split == "train"


def plain_messages(tokenizer: Tokenizer, messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The messages without control tokens in them, as the engine puts them to a model."""
    return [put_plainly(tokenizer, message) for message in messages]


def fitting(rows: Iterable[Row], tokenizer: Tokenizer, max_length: int) -> tuple[Iterator[Row], dict[str, int]]:
    """The rows that can be trained on as they are, without control tokens, and how many were left out and why.

    The numbers are counted while the rows are taken.

    `too_long`: a conversation has more than `max_length` tokens; the trainers would cut a longer reply (SFT, DPO), and
    so teach to stop nowhere, or drop the pair in silence (reward). `rewritten`: the chat template changes a reply, as
    some templates do where it holds </think>, so that other words would be trained on than were sampled.

    Raises:
        RunError: nothing is left to train on.
        ModelError: the chat template refuses a row.
    """
    left_out = {"too_long": 0, "rewritten": 0}

    def kept() -> Iterator[Row]:
        some = False
        for original in rows:
            columns = [key for key in COMPLETIONS if key in original]
            row = original | {key: plain_messages(tokenizer, original[key]) for key in ("prompt", *columns)}
            if any(len(token_ids(tokenizer, row["prompt"] + row[key])) > max_length for key in columns):
                left_out["too_long"] += 1
            elif not all(_word_for_word(tokenizer, row["prompt"], row[key]) for key in columns):
                left_out["rewritten"] += 1
            else:
                some = True
                yield row
        if not some:
            raise RunError(
                f"Nothing to train on: of {sum(left_out.values())} rows {left_out['too_long']} are longer than "
                f"max_length={max_length} tokens, and the chat template rewrites the replies of "
                f"{left_out['rewritten']}; give more prompts, or raise max_length"
            )

    return kept(), left_out


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
    except (TemplateError, TypeError, ValueError) as error:
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


def on_disk(rows: Iterable[Row], folder: Path) -> "Dataset":
    """The rows in a file of the folder, which is made anew, as the trainers want them: read as they are needed.

    What the trainers make of them comes to lie in the folder as well. The main process writes it for all; the others go
    through the rows too, and so know what was counted on the way. There must be a row.
    """
    from datasets import Dataset
    from datasets.arrow_writer import ArrowWriter  # type: ignore[import-untyped]

    file = folder / "rows.arrow"
    if processes.is_main():
        iterator = iter(rows)
        first = next(iterator)
        features = _features(first)
        with writing(file):
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
            writer = ArrowWriter(path=str(file), features=features)
        with writer:
            for row in chain([first], iterator):  # what cannot be read says so itself
                with writing(file):
                    writer.write(row)
            with writing(file):
                writer.finalize()
    else:
        for _ in rows:
            pass
    processes.wait()
    return Dataset.from_file(str(file))


def dataset(rows: Sequence[Row]) -> "Dataset":
    """The rows in memory, as the trainers want them. There must be a row."""
    from datasets import Dataset

    return Dataset.from_list(list(rows), features=_features(rows[0]))


def _features(row: Row) -> "Features":
    """The types of a row's columns, as all rows have them.

    Of columns with a type for all keys, a message would be given the keys that only others have.
    """
    from datasets import Dataset, Features, Json, List

    messages = {key: List(Json()) for key in ("prompt", *COMPLETIONS) if key in row}
    return Features(Dataset.from_list([row]).features | messages)
