"""Asks the sandbox model what it takes a principle to mean, and says what in its reading is doubtful.

A pipeline optimises what its critic understood, not what was meant: "Keep answers short", once read as a wish for
length, made every answer longer. So look first.
"""

import math
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence
from functools import cache
from itertools import chain
from pathlib import Path
from typing import NamedTuple

from constitutional.base.progress import percent
from constitutional.base.records import Message
from constitutional.base.templates import Prompts, load_prompts
from constitutional.engines.base import Completion, Engine, Request
from constitutional.engines.stories import ask, side_by_side
from constitutional.sandbox import MODEL_FOLDER
from constitutional.sandbox.principles import OPPOSITE, gerund, known_words, phrases, third_person
from constitutional.sandbox.teacher import FAMILIES, NOTHING, restate
from constitutional.sandbox.topics import load_text
from constitutional.sandbox.world import CONCEPTS

MEANINGS = (*FAMILIES, NOTHING)
SURE_FROM = 0.8
"""Probability of a meaning below which the model is unsure of it."""

TOO_LONG = "it is too long for the model to read; shorten it"


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
    """Probability of this meaning among the 21 that the model can express, in [0, 1]."""
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
    texts: Sequence[str],
    *,
    engine: Engine | None = None,
    prompts: Prompts | None = None,
    ended: Callable[[int], None] | None = None,
) -> list[Understanding | None]:
    """What the model takes each principle to mean; None for a text that is longer than it can read.

    Args:
        texts: the principles' words.
        engine: the model; None means the shipped one.
        prompts: the templates, of which `restate` is used; None means the shipped ones.
        ended: told how many texts have been read.
    """
    prompts = prompts or load_prompts()
    choices = tuple(restate(*meaning) for meaning in MEANINGS)
    chats = [(Message("user", prompts.render("restate", principle=text)), Message("assistant", "")) for text in texts]
    completions = answers(engine or shipped_engine(), [Request(chat, choices=choices) for chat in chats], ended)
    return [
        completion and _understanding(text, completion.choice_logprobs)
        for text, completion in zip(texts, completions, strict=True)
    ]


def answers(
    engine: Engine, requests: Sequence[Request], ended: Callable[[int], None] | None = None
) -> list[Completion | None]:
    """The engine's answers to questions about principles; None where there is none."""
    asked = side_by_side((ask(engine, request) for request in requests), ended=ended)
    return [None if completion.failed else completion for completion in asked]


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


def doubts(understanding: Understanding) -> list[str]:
    """What in the model's reading of a text is doubtful, each as a sentence; what a text alone tells."""
    sentences = []
    if in_capitals(understanding.text):
        sentences.append("it is in capitals; the model reads ordinary case better")
    if understanding.unknown_words:
        sentences.append(f"the model does not know: {', '.join(understanding.unknown_words)}")
    if understanding.probability < SURE_FROM:
        runner_up = f"{understanding.runner_up.replace('_', ' ')} ({percent(understanding.runner_up_probability)})"
        sentences.append(f"the model is unsure; it may also mean: {runner_up}")
    if understanding.trait == NOTHING[0]:
        sentences.append(
            "the model finds no request in this principle, so it has no effect; reword it as a short command about one "
            "trait"
        )
    elif words := _against(understanding):
        meaning = f"{understanding.direction} {understanding.trait.replace('_', ' ')}"
        family = (understanding.trait, OPPOSITE["avoid" if understanding.direction == "avoid" else "seek"])
        verb = "Avoid" if family[1] == "avoid" else "Aim for"
        advice = (
            f'reword it, for example "{verb} {CONCEPTS[family[0]]}."'
            if family in FAMILIES
            else "the model knows no principle that asks for it"
        )
        quoted = ", ".join(map(repr, words))
        sentences.append(f'it will be trained as "{meaning}", but its words ({quoted}) ask the opposite; {advice}')
    return sentences


def _against(understanding: Understanding) -> list[str]:
    """Words of the text that say the opposite of what the model read; empty if none do, or if it cannot be told.

    The phrases count that the sandbox's wordings use for the trait alone or for its opposite alone. A text without a
    word that turns the wish round asks for what they name. A text with one negation, at its beginning or before the
    phrase, and nothing else that turns the wish, asks to avoid it, so `seek` is wrong. Of the 60 free wordings this
    finds 1 where they are read as they are meant, and 11 where they are read as the opposite.
    """
    phrases_found, others = _phrases_in(understanding.text, understanding.trait)
    sides = set(phrases_found.values())
    turning, twice = _turning_words()
    if understanding.trait == "privacy_leak" and not _PROTECTING.isdisjoint(others):
        return []  # to keep a secret is not to leak it
    if len(sides) == 1 and turning.isdisjoint(others):
        asked = "seek" if True in sides else "avoid"
        return [] if asked == understanding.direction else list(phrases_found)
    negations = [word for word in others if word in _NEGATIONS]
    begins = _NEGATED.match(_composed(understanding.text).lower())
    if understanding.direction == "avoid" or False in sides or len(negations) != 1 or not twice.isdisjoint(others):
        return []
    return [*negations, *phrases_found] if begins or sides else []


_NEGATIONS = frozenset(
    "not no never none nobody nothing neither nor without avoid avoids avoiding refrain refrains refraining don't "
    "doesn't isn't aren't won't can't cannot shouldn't mustn't stop quit dont".split()
)
_PROTECTING = frozenset(
    "keep keeps keeping guard guards guarding protect protects protecting respect safeguard".split()
)
_NEGATED = re.compile(r"(?:please |and )?(?:never|don't|do not|avoid|no|refrain|stop|without)\b")


def _phrases_in(text: str, trait: str) -> tuple[dict[str, bool], list[str]]:
    """The trait's phrases in a text, the longest first from the left, and the words outside of them."""
    sides = _phrases(trait)
    longest = max(len(phrase.split()) for phrase in sides)
    words: list[str] = _WORD.findall(_composed(text).lower())
    inside: dict[str, bool] = {}
    others = []
    while words:
        ends = (end for end in range(min(longest, len(words)), 0, -1) if " ".join(words[:end]) in sides)
        if end := next(ends, 0):
            phrase = " ".join(words[:end])
            inside[phrase] = sides[phrase]
        else:
            others.append(words[0])
        words = words[end or 1 :]
    return inside, others


@cache
def _phrases(trait: str) -> dict[str, bool]:
    """What the wordings call the trait (True) or its opposite (False), in every form, but for what they call both."""
    sides: dict[str, set[bool]] = {}
    for owner, key, text in phrases():
        if owner == trait and key not in ("avoid", "seek"):
            forms = [text, gerund(text), third_person(text)] if key.endswith("verb_phrases") else [text]
            for form in forms:
                phrase = " ".join(_WORD.findall(_composed(form).lower()))
                sides.setdefault(phrase, set()).add(not key.startswith("opposite_"))
    return {phrase: side.pop() for phrase, side in sides.items() if len(side) == 1}


@cache
def _turning_words() -> tuple[frozenset[str], frozenset[str]]:
    """Words that turn a wish round, and those that turn it round once more behind a negation (`Never skip …`).

    A word turns if its share of the frames of `avoid` is more than twice its share of the frames of `seek` that hold no
    negation.
    """
    avoid, seek = (
        [
            set(_words(frame.replace("{x}", " ")))
            for group in load_text("principles/frames")[way].values()
            for frame in group
        ]
        for way in ("avoid", "seek")
    )
    plain = [words for words in seek if words.isdisjoint(_NEGATIONS)]
    in_avoid, in_plain = (Counter(chain.from_iterable(frames)) for frames in (avoid, plain))
    turning = {word for word, count in in_avoid.items() if count / len(avoid) > 2 * in_plain[word] / len(plain)}
    negated, turned_twice = (
        set(chain.from_iterable(words for words in frames if not words.isdisjoint(_NEGATIONS)))
        for frames in (avoid, seek)
    )
    return frozenset(turning | _NEGATIONS), frozenset(turned_twice - negated - _NEGATIONS)


def two_commands(text: str) -> tuple[str, str] | None:
    """The two commands that a text joins by "and" or "but", such as `Be polite` and `Be brief.`; None if it does not.

    Few words begin the first one, so that hardly any other text counts: of 5747 of the sandbox's wordings, which ask
    for one trait, 19 do, and in 1 of these the model reads two traits.
    """
    halves = _JOINT.split(_PLEASE.sub("", _composed(text)))
    if len(halves) != 2 or not all(map(_WORD.search, halves)):
        return None
    first, second = halves[0][:1].upper() + halves[0][1:], halves[1]
    begins, goes_on = (_WORD.findall(half.lower()) for half in halves)
    if begins[0] == "be" and len(begins) == 2 and len(goes_on) == 1:  # two adjectives
        return first, f"Be {second}"
    return (first, second) if begins[0] in _COMMANDS and goes_on[0] in _COMMANDS | _verbs() else None


_COMMANDS = frozenset("be do don't dont never avoid keep refuse stop".split())
_JOINT = re.compile(r",? (?:and|but) ")
_PLEASE = re.compile(r"^\s*please,? ", re.IGNORECASE)


@cache
def _verbs() -> frozenset[str]:
    return frozenset(text.split()[0].lower() for _, key, text in phrases() if key.endswith("verb_phrases"))


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
