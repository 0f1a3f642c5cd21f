"""Asks the sandbox model what it takes a principle to mean, and points out words that it has never seen.

A pipeline optimises what its critic understood, not what was meant: "Keep answers short", once read as a wish for
length, made every answer longer. So look first.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from constitutional.engines.base import Engine, Request
from constitutional.prompts import Prompts, load_prompts
from constitutional.records import Message
from constitutional.sandbox import MODEL_FOLDER
from constitutional.sandbox.principles import known_words
from constitutional.sandbox.teacher import FAMILIES, NOTHING, restate
from constitutional.sandbox.topics import words_of

MEANINGS = (*FAMILIES, NOTHING)


class Understanding(NamedTuple):
    """What the model takes a principle to mean."""

    text: str
    trait: str
    """One of the sandbox's traits, or `nothing`."""
    direction: str
    """`avoid` or `seek`."""
    restated: str
    """The meaning in the critic's own words."""
    probability: float
    """Of this meaning among the 21 that the model can express, in [0, 1]."""
    runner_up: str
    """The next likely meaning, such as `avoid hedging`."""
    runner_up_probability: float
    unknown_words: list[str]
    """Words that no principle in the model's training holds, in the order of the text."""


def shipped_engine(folder: Path = MODEL_FOLDER) -> Engine:
    """The sandbox's own model, in this process, in 32 bits on the CPU."""
    from constitutional.engines.local import LocalEngine, load_model

    return LocalEngine(*load_model(folder, dtype="float32", device="cpu"))


def understand_texts(
    texts: Sequence[str], *, engine: Engine | None = None, prompts: Prompts | None = None
) -> list[Understanding]:
    """What the model (the shipped one by default) takes each principle to mean."""
    engine = engine or shipped_engine()
    prompts = prompts or load_prompts()
    choices = tuple(restate(*meaning) for meaning in MEANINGS)
    chats = [(Message("user", prompts.render("restate", principle=text)), Message("assistant", "")) for text in texts]
    completions = engine.complete([Request(chat, choices=choices) for chat in chats])
    return [
        _understanding(text, completion.choice_logprobs) for text, completion in zip(texts, completions, strict=True)
    ]


def _understanding(text: str, logprobs: Sequence[float]) -> Understanding:
    top = max(logprobs)
    weights = [math.exp(logprob - top) for logprob in logprobs]
    total = sum(weights)
    ranked = sorted(zip(weights, MEANINGS, strict=True), reverse=True)
    (weight, (trait, direction)), (next_weight, (next_trait, next_direction)) = ranked[:2]
    known = known_words()
    unknown = [word for word in dict.fromkeys(_words(text)) if word not in known]
    return Understanding(
        text=text,
        trait=trait,
        direction=direction,
        restated=restate(trait, direction),
        probability=weight / total,
        runner_up=next_trait if next_trait == NOTHING[0] else f"{next_direction} {next_trait}",
        runner_up_probability=next_weight / total,
        unknown_words=unknown,
    )


def _words(text: str) -> list[str]:
    """The words in their order, lower-case, each once."""
    found = words_of([text])
    return sorted(found, key=text.lower().find)
