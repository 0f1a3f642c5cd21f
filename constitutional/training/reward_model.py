"""Reward models in use: loading, and scoring conversations that end with a reply."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from constitutional.base.errors import ModelError
from constitutional.base.records import Message
from constitutional.engines.chat import Tokenizer
from constitutional.training.rows import chat, token_ids
from constitutional.training.trl import quiet_libraries

if TYPE_CHECKING:
    from transformers import PreTrainedModel

NORMALISATION = "normalisation.json"


class Moments(NamedTuple):
    """Of a reward model's scores on reference samples."""

    mean: float
    deviation: float
    """More than 0."""


class RewardScore(NamedTuple):
    """What a reward model, or several, gives to a conversation, in deviations from the mean of reference samples."""

    mean: float
    deviation: float
    """Of the members about their mean (Christiano et al. 2017, section 2.2.4); 0 if there is one."""


def moments(folder: Path) -> list[Moments]:
    """For each reward model in a folder that a run made, what its scores are normalised by.

    Raises:
        ModelError: one gave every reference sample the same score: there is nothing in it to learn from.
    """
    members = json.loads((folder / NORMALISATION).read_text())["members"]
    found = [Moments(each["mean"], each["deviation"]) for each in members]
    if flat := [number for number, each in enumerate(found) if not each.deviation > 0]:
        raise ModelError(
            f"{folder / str(flat[0])}: gave every reference sample the same score, so nothing can be learned from it; "
            "look at the preferences that it was trained on, and train it again"
        )
    return found


def has_members(folder: Path) -> bool:
    """Whether a run trained a reward model into this folder: without preferences it has no member."""
    file = folder / NORMALISATION
    return not file.exists() or bool(json.loads(file.read_text())["members"])


def score(folder: Path, conversations: Sequence[Sequence[Message]]) -> list[RewardScore]:
    """Score conversations by the reward model in a folder, each member's scores normalised before they are averaged."""
    columns = []
    for number, reference in enumerate(moments(folder)):
        model, tokenizer = load_reward_model(folder / str(number))
        raw = raw_scores(model, tokenizer, conversations)
        columns.append([(each - reference.mean) / reference.deviation for each in raw])
    scores = []
    for values in zip(*columns, strict=True):
        mean = sum(values) / len(values)
        scores.append(RewardScore(mean, math.sqrt(sum((value - mean) ** 2 for value in values) / len(values))))
    return scores


def load_reward_model(folder: Path, *, seed: int = 0, dtype: str = "float32") -> "tuple[PreTrainedModel, Tokenizer]":
    """A model with one number as its output, and its tokenizer; a language model gets a head, drawn by the seed.

    All random generators of the process are seeded by it, whether a head is drawn or not.
    """
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer, set_seed
    from trl.trainer.reward_trainer import suppress_seqcls_warning

    quiet_libraries()
    set_seed(seed)
    try:
        tokenizer: Any = AutoTokenizer.from_pretrained(folder)
        with suppress_seqcls_warning():
            model = AutoModelForSequenceClassification.from_pretrained(
                folder, num_labels=1, dtype=getattr(torch, dtype), use_safetensors=True
            )
    except (OSError, ValueError, RuntimeError) as error:
        raise ModelError(f"{folder}: cannot be loaded as a reward model: {error}") from error
    model.config.get_text_config().pad_token_id = tokenizer.pad_token_id  # by it the head finds the last token
    if torch.cuda.is_available():
        return model.to("cuda").eval(), tokenizer
    # Weights that are read lie where the file's header ends, and a CPU rounds otherwise at another alignment: without
    # the copy a model may score otherwise, in the last digit, than the same weights read from another file.
    for weights in model.parameters():
        weights.data = weights.data.clone()
    return model.eval(), tokenizer


def raw_scores(
    model: "PreTrainedModel",
    tokenizer: Tokenizer,
    conversations: Sequence[Sequence[Message]],
    batch_size: int = 32,
) -> list[float]:
    """A reward model's own numbers, one for each conversation; only their differences mean anything."""
    import torch

    rows = [token_ids(tokenizer, chat(conversation)) for conversation in conversations]
    order = sorted(range(len(rows)), key=lambda index: len(rows[index]))
    scores = [0.0] * len(rows)
    for first in range(0, len(order), batch_size):
        batch = order[first : first + batch_size]
        width = len(rows[batch[-1]])
        ids = torch.tensor([rows[each] + [tokenizer.pad_token_id] * (width - len(rows[each])) for each in batch])
        mask = torch.tensor([[1] * len(rows[each]) + [0] * (width - len(rows[each])) for each in batch])
        with torch.inference_mode():
            logits = model(input_ids=ids.to(model.device), attention_mask=mask.to(model.device), use_cache=False).logits
        for index, value in zip(batch, logits[:, 0].float().tolist(), strict=True):
            scores[index] = value
    return scores
