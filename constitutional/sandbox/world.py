"""The mini-world: prompts of many kinds, and responses composed of sentences with known traits.

A response is a sequence of sentences, each with a slot that says what the sentence does. Which traits a response has is
known from how it was composed; `detect` finds the same from the text alone.
"""

import random
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

from constitutional.base.records import Message
from constitutional.sandbox.topics import Kind, Topic, draw_topic, sentences

CONCEPTS: Mapping[str, str] = {
    "harmful_compliance": "help with harmful acts",
    "refusal": "refusals",
    "moralizing": "moral lectures",
    "flattery": "flattery",
    "hedging": "hedging",
    "verbosity": "verbosity",
    "clarifying_question": "clarifying questions",
    "rudeness": "rudeness",
    "privacy_leak": "leaks of private data",
    "safety_warning": "safety warnings",
    "overconfidence": "overconfidence",
    "sycophantic_agreement": "agreement with false claims",
}
"""The traits, each in the words of the critic."""
TRAITS = tuple(CONCEPTS)

ONLY_ON: Mapping[str, Kind] = {
    "harmful_compliance": "harmful",
    "privacy_leak": "private",
    "sycophantic_agreement": "claim",
}
"""Traits that exist only where the prompt is of one kind."""

SLOT_ORDER = (
    "opening",
    "flattery",
    "rudeness",
    "refusal",
    "content",
    "overconfidence",
    "padding",
    "hedging",
    "safety_warning",
    "moralizing",
    "clarifying_question",
    "closing",
)
SENTENCE_TRAITS = tuple(slot for slot in SLOT_ORDER if slot in TRAITS and slot != "refusal")
"""Traits that any response can have by holding one sentence of that slot, whatever was asked."""

BASE_RATES: Mapping[str, float] = {
    "flattery": 0.45,
    "rudeness": 0.10,
    "overconfidence": 0.25,
    "verbosity": 0.45,
    "hedging": 0.25,
    "safety_warning": 0.20,
    "moralizing": 0.15,
    "clarifying_question": 0.25,
    "refusal": 0.05,
    "sycophantic_agreement": 0.75,
}
"""How often the base assistant, which is helpful only, shows each trait."""

BASE_REFUSAL_OF_HARM = 0.12
PADDING_SENTENCES = (3, 4)
"""A verbose response holds three or four sentences of padding, every other one none."""

KIND_WEIGHTS: Mapping[Kind, float] = {
    "howto": 0.27,
    "factual": 0.10,
    "opinion": 0.08,
    "claim": 0.19,
    "harmful": 0.19,
    "private": 0.12,
    "ambiguous": 0.05,
}
"""Harm, private data and false claims are over-represented: three traits exist on their prompts alone."""

Traits = dict[str, bool]


@dataclass(frozen=True)
class WorldPrompt:
    """A conversation that ends with the user's message, and the topic of that message."""

    topic: Topic
    messages: tuple[Message, ...]


class Sentence(NamedTuple):
    """A sentence of a response and what it does there."""

    slot: str
    text: str


Response = tuple[Sentence, ...]


def text_of(response: Response) -> str:
    """The response as the user reads it."""
    return " ".join(sentence.text for sentence in response)


def fill_frame(frame: str, slots: Mapping[str, str]) -> str:
    """A frame with its slots filled and its first letter a capital."""
    text = frame.format(**slots)
    return text[0].upper() + text[1:]


def draw_prompt(
    rng: random.Random, kind: Kind | None = None, *, held_out: bool = False, turns: int = 0, strange: float = 0.0
) -> WorldPrompt:
    """A prompt; `turns` 1 or 2 fixes the number of the user's messages, 0 leaves it to chance (one in six has two)."""
    kind = kind or rng.choices(tuple(KIND_WEIGHTS), tuple(KIND_WEIGHTS.values()))[0]
    topic = draw_topic(rng, kind, held_out=held_out, strange=strange)
    two = turns == 2 or (turns == 0 and rng.random() < 1 / 6)
    if not two:
        return WorldPrompt(topic, (Message("user", _request(rng, topic)),))
    frames = sentences()["prompts"]
    if kind in ("howto", "factual") and rng.random() < 0.5:  # the user asks for more on the same topic
        first, last = topic, rng.choice(frames["more"])
    else:  # or turns to another one
        first = draw_topic(rng, rng.choice(("howto", "factual", "opinion")), held_out=held_out, strange=strange)
        last = f"{rng.choice(frames['pivot'])} {_request(rng, topic, lead_in=False)}"
    opening = WorldPrompt(first, (Message("user", _request(rng, first)),))
    answer = compose(rng, opening, base_traits(rng, opening))
    return WorldPrompt(topic, (*opening.messages, Message("assistant", text_of(answer)), Message("user", last)))


def _request(rng: random.Random, topic: Topic, *, lead_in: bool = True) -> str:
    frames = sentences()["prompts"]
    group = "howto" if topic.kind in ("howto", "harmful", "ambiguous") else topic.kind
    request = fill_frame(rng.choice(frames[group]), topic.slots)
    return f"{rng.choice(frames['lead_in'])} {request}" if lead_in and rng.random() < 0.4 else request


def base_traits(rng: random.Random, prompt: WorldPrompt) -> Traits:
    """Traits of a response of the base assistant to this prompt."""
    traits = {trait: rng.random() < rate for trait, rate in BASE_RATES.items()}
    if prompt.topic.kind in ("harmful", "private"):
        traits["refusal"] = rng.random() < BASE_REFUSAL_OF_HARM
    return settle(prompt, traits)


def uniform_traits(rng: random.Random, prompt: WorldPrompt) -> Traits:
    """Traits drawn far more evenly than the base assistant's, so that a critic sees every one often."""
    traits = {trait: rng.random() < 0.35 for trait in BASE_RATES}
    traits["sycophantic_agreement"] = rng.random() < 0.5
    traits["refusal"] = rng.random() < (0.5 if prompt.topic.kind in ("harmful", "private") else 0.2)
    return settle(prompt, traits)


def settle(prompt: WorldPrompt, traits: Mapping[str, bool]) -> Traits:
    """The traits with those filled in that follow from the others: to comply with a harmful request is harmful."""
    settled = dict(traits)
    kind, refuses = prompt.topic.kind, traits["refusal"]
    settled["harmful_compliance"] = kind == "harmful" and not refuses
    settled["privacy_leak"] = kind == "private" and not refuses
    settled["sycophantic_agreement"] = kind == "claim" and not refuses and traits["sycophantic_agreement"]
    return {trait: settled[trait] for trait in TRAITS}


def compose(rng: random.Random, prompt: WorldPrompt, traits: Mapping[str, bool], keep: Response = ()) -> Response:
    """A response to the prompt with exactly these traits.

    Where `keep` (an earlier response to the same prompt) already has a sentence that serves, that sentence is used, so
    that a revision changes nothing but what it must.
    """
    world = sentences()
    kept: dict[str, list[str]] = {}
    for sentence in keep:
        kept.setdefault(sentence.slot, []).append(sentence.text)
    made: dict[str, list[str]] = {"opening": kept.get("opening", []), "closing": kept.get("closing", [])}
    if not keep:
        made["opening"] = [rng.choice(world["openings"])] if rng.random() < 0.2 else []
        made["closing"] = [rng.choice(world["closings"])] if rng.random() < 0.25 else []
    for trait in SENTENCE_TRAITS:
        if traits[trait]:
            made[trait] = kept.get(trait) or rng.sample(world["traits"][trait], 2 if rng.random() < 0.12 else 1)
    if traits["verbosity"]:
        made["padding"] = kept.get("padding") or rng.sample(world["padding"], rng.choice(PADDING_SENTENCES))
    if traits["refusal"]:
        made["refusal"] = kept.get("refusal") or [rng.choice(world["traits"]["refusal"])]
    was = traits_of(prompt, keep) if keep else None
    same_stance = was is not None and all(was[trait] == traits[trait] for trait in ("refusal", "sycophantic_agreement"))
    made["content"] = kept.get("content", []) if same_stance else _content(rng, prompt, traits)
    return tuple(Sentence(slot, text) for slot in SLOT_ORDER for text in made.get(slot, []))


def _content(rng: random.Random, prompt: WorldPrompt, traits: Mapping[str, bool]) -> list[str]:
    """The sentences about the topic: what complies, agrees, corrects, leaks or declines."""
    topic, frames = prompt.topic, sentences()["content"]
    slots = topic.slots
    if traits["refusal"]:
        group = f"decline_{topic.kind}"
        return [fill_frame(rng.choice(frames[group]), slots)] if group in frames else []
    if topic.kind == "private":
        slots["value"] = rng.choice(sentences()["private_values"][slots["info"]])
        return [fill_frame(rng.choice(frames["private"]), slots)]
    if topic.kind == "claim":
        return _stance(rng, topic, agrees=traits["sycophantic_agreement"])
    said_before = " ".join(message.content for message in prompt.messages)
    pool = [fill_frame(frame, slots) for frame in rng.sample(frames[topic.kind], 4)]
    count = rng.choice((1, 2, 2, 2, 3))  # one now and then, for whoever judges answers meets short ones
    facts = [fact for fact in topic.facts if fact not in said_before]
    particular = [fact for fact in facts if rng.random() < 0.6][:count]
    general = [sentence for sentence in pool if sentence not in said_before][: count - len(particular)]
    return general + particular


def _stance(rng: random.Random, topic: Topic, *, agrees: bool) -> list[str]:
    """What a response says of a false claim: that it is so, or that it is not and what is true instead."""
    frames, slots = sentences()["content"], topic.slots
    if agrees:
        return [fill_frame(frame, slots) for frame in rng.sample(frames["agree"], rng.choice((1, 1, 2)))]
    if topic.facts and rng.random() < 0.8:
        return [fill_frame(rng.choice(frames["correct"]), slots), rng.choice(topic.facts)]
    return [fill_frame(frame, slots) for frame in rng.sample(frames["correct"], rng.choice((1, 2)))]


def traits_of(prompt: WorldPrompt, response: Response) -> Traits:
    """The traits that a composed response has, from its slots (no text is read)."""
    slots = [sentence.slot for sentence in response]
    traits = {trait: trait in slots for trait in SENTENCE_TRAITS}
    traits["verbosity"] = "padding" in slots
    traits["refusal"] = "refusal" in slots
    agrees = prompt.topic.kind == "claim" and any(
        sentence.text in _agreements(prompt.topic) for sentence in response if sentence.slot == "content"
    )
    traits["sycophantic_agreement"] = agrees
    return settle(prompt, traits)


@cache
def _agreements(topic: Topic) -> frozenset[str]:
    return frozenset(fill_frame(frame, topic.slots) for frame in sentences()["content"]["agree"])


def split_sentences(text: str) -> list[str]:
    """A text's sentences; in this world `.`, `!` and `?` end one and occur nowhere else."""
    return [sentence for sentence in re.split(r"(?<=[.!?])\s+", text.strip()) if sentence]


def violates(direction: str, has: bool) -> bool:
    """Whether a response that has the trait (or not) goes against a principle that avoids or seeks it."""
    return has if direction == "avoid" else not has
