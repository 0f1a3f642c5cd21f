"""Scores replies by the reward models beside this file, as the run did that trained them: for verl and OpenRLHF.

`compute_score` is a custom reward function of verl, `reward_func` one of OpenRLHF. A score is in deviations from the
mean of reference samples; of several reward models it is their mean. This file needs nothing of `constitutional`: it
goes to where the training is, as `reward.py`.
"""

import asyncio
import json
import threading
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent / "reward_model"
_ONE_AT_A_TIME = threading.Lock()
"""verl asks from many threads, each of which would else load models of its own."""


async def compute_score(
    data_source: str,  # noqa: ARG001 - verl names all of these
    solution_str: str,
    ground_truth: object,  # noqa: ARG001
    extra_info: Mapping[str, Any],
    reward_router_address: str | None = None,
    **_others: object,
) -> float:
    """What a reply is worth.

    Args:
        data_source: what verl calls the data.
        solution_str: the reply.
        ground_truth: nothing.
        extra_info: the row's; `messages` is the prompt as JSON.
        reward_router_address: where verl serves the reward model; None where this process scores.
    """
    messages = [*json.loads(extra_info["messages"]), {"role": "assistant", "content": solution_str}]
    text = _tokenizer(_members()[0]).apply_chat_template(messages, tokenize=False)
    if reward_router_address is None:
        (score,) = await asyncio.to_thread(scores, [text])
        return score
    import aiohttp

    asked = {"model": str(FOLDER), "input": text, "use_activation": False, "add_special_tokens": False}
    timeout = aiohttp.ClientTimeout(total=None)  # it may wait for many others
    async with (
        aiohttp.ClientSession(timeout=timeout) as session,
        session.post(f"http://{reward_router_address}/classify", json=asked) as answer,
    ):
        answer.raise_for_status()
        return float((await answer.json())["data"][-1]["probs"][-1]) - _shift(FOLDER)


def reward_func(queries: Sequence[str], prompts: Sequence[str], labels: Sequence[Any]) -> dict[str, Any]:  # noqa: ARG001
    """What replies are worth.

    Args:
        queries: prompts with their replies, with all special tokens, as texts.
        prompts: the prompts alone.
        labels: nothing.
    """
    import torch

    rewards = torch.tensor(scores(queries))
    return {"rewards": rewards, "scores": rewards}


def scores(texts: Sequence[str]) -> list[float]:
    """A score for each conversation, which is as the chat template renders it."""
    columns = []
    with _ONE_AT_A_TIME:
        for member in _members():
            column = [_raw(member, text) - _shift(member) for text in texts]
            columns.append(column)
    return [sum(values) / len(values) for values in zip(*columns, strict=True)]


def _raw(folder: Path, text: str) -> float:
    import torch

    model, tokenizer = _model(folder), _tokenizer(folder)
    ids = torch.tensor([tokenizer(text, add_special_tokens=False)["input_ids"]], device=model.device)
    with torch.inference_mode():
        return float(model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[0, 0])


def _members() -> list[Path]:
    """The folders of the reward models: the folder itself, or one for each."""
    if (FOLDER / "config.json").exists():
        return [FOLDER]
    return sorted((path.parent for path in FOLDER.glob("*/config.json")), key=lambda folder: int(folder.name))


@cache
def _shift(folder: Path) -> float:
    """The mean score of reference samples."""
    return float(json.loads((folder / "config.json").read_text(encoding="utf-8"))["mean"])


@cache
def _tokenizer(folder: Path) -> Any:  # noqa: ANN401 - of transformers
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder, trust_remote_code=False)


@cache
def _model(folder: Path) -> Any:  # noqa: ANN401
    import torch

    model = _kind_of(folder).from_pretrained(folder, use_safetensors=True)
    return model.to("cuda" if torch.cuda.is_available() else "cpu").eval()


def _kind_of(folder: Path) -> Any:  # noqa: ANN401
    """What loads the reward model: of an architecture that transformers has no such class for, the one it was made as.

    The run made it in the same way, as transformers makes Llama's.
    """
    from transformers import (
        MODEL_FOR_CAUSAL_LM_MAPPING,
        MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
        AutoConfig,
        AutoModelForSequenceClassification,
        PreTrainedModel,
    )
    from transformers.modeling_layers import GenericForSequenceClassification

    config: Any = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    if type(config) in MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING:
        return AutoModelForSequenceClassification
    policy: Any = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    kinds = policy.__mro__
    named = {
        "config_class": type(config),
        "base_model_prefix": policy.base_model_prefix,
        "__module__": policy.__module__,
    }
    parents = (GenericForSequenceClassification, kinds[kinds.index(PreTrainedModel) - 1])
    return type(config.architectures[0], parents, named)
