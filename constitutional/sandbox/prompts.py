"""Prompts composed in the sandbox's world, as rows of a run and back."""

from collections.abc import Mapping
from functools import cache
from typing import Final

from constitutional.base.errors import ConfigurationError
from constitutional.base.records import Prompt, Split
from constitutional.base.seeds import rng_of
from constitutional.data.prompts import Conversation, conversation_of
from constitutional.sandbox import topics, world

SANDBOX: Final = "sandbox"
"""The source of prompts that the sandbox's world composed."""

_DRAWS: Final = 1000
"""How often a prompt that is already taken is drawn again before giving up."""


def sandbox_prompt_set(train: int, held_out: int, seed: int) -> list[Prompt]:
    """Distinct prompts from the sandbox's world: first those to train on, then those held out.

    Half of the held-out ones (the larger half) are about topics that the sandbox model has never seen, the others about
    topics that it has. More prompts to train on leave the ones before them and the held-out ones as they are. More
    held-out prompts leave the held-out ones before them as they are, but take what could be drawn to train on.

    Raises:
        ConfigurationError: the world does not have that many.
    """
    taken: set[Conversation] = set()
    # Held-out prompts first, so that how many are trained on does not change what is measured.
    held = [_draw(seed, "held_out", index, taken) for index in range(held_out)]
    return [_draw(seed, "train", index, taken) for index in range(train)] + held


def _draw(seed: int, split: Split, index: int, taken: set[Conversation]) -> Prompt:
    """A prompt that is not taken yet, and takes it."""
    rng = rng_of(seed, "sandbox prompts", split, index)
    new_topic = split == "held_out" and index % 2 == 0
    for _ in range(_DRAWS):
        drawn = world.draw_prompt(rng, held_out=new_topic)
        conversation = conversation_of(drawn.messages)
        if conversation not in taken:
            taken.add(conversation)
            info = {"kind": drawn.topic.kind, **drawn.topic.slots, "held_out_topic": "yes" if new_topic else "no"}
            return Prompt(messages=drawn.messages, split=split, source=SANDBOX, info=info)
    raise ConfigurationError(f"the sandbox's world has no {len(taken) + 1} different prompts; ask for fewer")


def sandbox_prompt(prompt: Prompt) -> world.WorldPrompt:
    """The world's prompt that a row was made from, with the facts that are known about its topic; for evaluation."""
    if prompt.source != SANDBOX:
        raise ValueError(f"prompt {prompt.id} comes from {prompt.source!r}, not from the sandbox")
    kind: topics.Kind = next(kind for kind in topics.KINDS if kind == prompt.info["kind"])
    fill = tuple((slot, prompt.info[slot]) for slot, _ in topics.topics(kind, held_out=True)[0].fill)
    known = _topics(kind, held_out=prompt.info["held_out_topic"] == "yes")
    return world.WorldPrompt(known.get(fill, topics.Topic(kind, fill)), prompt.messages)


@cache
def _topics(kind: topics.Kind, *, held_out: bool) -> Mapping[tuple[tuple[str, str], ...], topics.Topic]:
    return {topic.fill: topic for topic in topics.topics(kind, held_out=held_out)}
