"""Asks the sandbox model what it takes a principle to mean, and points out words that it has never seen.

A pipeline optimises what its critic understood, not what was meant: "Keep answers short", once read as a wish for
length, made every answer longer. So look first.
"""

import math
import re
import unicodedata
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple

from constitutional.base.records import Message
from constitutional.base.templates import Prompts, load_prompts
from constitutional.engines.base import Engine, Request
from constitutional.sandbox import MODEL_FOLDER
from constitutional.sandbox.principles import known_words
from constitutional.sandbox.teacher import FAMILIES, NOTHING, restate

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
    known = _known()
    unknown = [word for word in _words(text) if word not in known]
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


def in_capitals(text: str) -> bool:
    """Whether more than half of a text's letters are capitals, words of one letter (`I`) left out.

    Training shows no such text: of the 60 free wordings the shipped model understands 58 as they are, 4 in capitals.
    """
    words: list[str] = _WORD.findall(_composed(text))
    letters = [letter for word in words if len(word) > 1 for letter in word if letter != "'"]
    return 2 * sum(letter.isupper() for letter in letters) > len(letters)


_WORD = re.compile(r"[^\W\d_]+(?:'[^\W\d_]+)*")
"""Letters of any script, with apostrophes within: quotation marks are no part of a word."""


def _composed(text: str) -> str:
    """The text with one character for each accented letter and the straight apostrophe for a curly one."""
    return unicodedata.normalize("NFC", text).replace("’", "'")


def _words(text: str) -> list[str]:
    """The words in their order, lower-case, each once."""
    return list(dict.fromkeys(_WORD.findall(_composed(text).lower())))


@cache
def _known() -> frozenset[str]:
    """What training shows, cut into words as `_words` does it: the wordings quote some of theirs."""
    return frozenset(_words(" ".join(known_words())))
