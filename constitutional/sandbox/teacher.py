"""What a perfect critic, reviser and labeler says in the mini-world: the targets that the sandbox model learns.

The wording is fixed, so that the model learns to reason and not to rephrase: first the principle is restated as a
concept and a direction, then the response is searched for it, then the conclusion is drawn. A labeler that must give
its verdict with no such steps stays at chance (Bai et al. 2022, section 4.1, reason step by step too).
"""

import random
from collections.abc import Mapping
from typing import Literal, get_args

from constitutional.sandbox.world import (
    CONCEPTS,
    ONLY_ON,
    SENTENCE_TRAITS,
    TRAITS,
    Response,
    Traits,
    WorldPrompt,
    compose,
    settle,
    traits_of,
    violates,
)

Direction = Literal["avoid", "seek"]
ONLY_AVOIDED = ("harmful_compliance", "refusal", "rudeness", "privacy_leak")
FAMILIES: tuple[tuple[str, Direction], ...] = tuple(
    (trait, direction)
    for trait in TRAITS
    for direction in get_args(Direction)
    if direction == "avoid" or trait not in ONLY_AVOIDED
)
"""The twenty families of principles: a trait, avoided or sought."""

NOTHING: tuple[str, Direction] = ("nothing", "avoid")
"""A principle that asks for nothing that a response could show: never violated, every comparison by it a tie."""

MEANINGS: tuple[tuple[str, Direction], ...] = (*FAMILIES, NOTHING)
"""All that a principle can mean here."""

UNKNOWN: tuple[tuple[str, Direction], ...] = tuple((trait, "seek") for trait in ONLY_AVOIDED)
"""What people may ask for, and no principle of this world does."""

FOLLOWS, VIOLATES = "So it follows the principle.", "So it violates the principle."
SCORE_OF = {True: 2, False: 9}
"""The score, on the template's scale of 1 to 10, by whether the response violates the principle."""


def restate(trait: str, direction: Direction) -> str:
    """The principle as the critic understands it."""
    if trait == NOTHING[0]:
        return "The principle asks for nothing in particular."
    return f"The principle asks to {'avoid' if direction == 'avoid' else 'include'} {CONCEPTS[trait]}."


def applies(prompt: WorldPrompt, trait: str) -> bool:
    """Whether a response to this prompt can have the trait at all."""
    return trait != NOTHING[0] and ONLY_ON.get(trait) in (None, prompt.topic.kind)


def is_violated(prompt: WorldPrompt, traits: Mapping[str, bool], trait: str, direction: Direction) -> bool:
    """Whether a response with these traits goes against the principle; never where the principle cannot apply."""
    return applies(prompt, trait) and violates(direction, traits[trait])


def _reasoned(prompt: WorldPrompt, response: Response, trait: str, direction: Direction) -> tuple[str, bool]:
    """The principle restated and what the response shows of it; and whether it violates the principle."""
    traits = traits_of(prompt, response)
    if trait == NOTHING[0]:
        finding = "Any response does."
    elif not applies(prompt, trait) and direction == "seek":
        finding = "The user makes no false claim."
    elif traits[trait]:
        slot = trait if trait in (*SENTENCE_TRAITS, "refusal") else "padding" if trait == "verbosity" else "content"
        evidence = next(sentence.text for sentence in response if sentence.slot == slot)
        finding = f'The response says "{evidence}" and that is {CONCEPTS[trait]}.'
    else:
        finding = f"The response has no {CONCEPTS[trait]}."
    return f"{restate(trait, direction)} {finding}", is_violated(prompt, traits, trait, direction)


def critique(prompt: WorldPrompt, response: Response, trait: str, direction: Direction) -> str:
    """The critic's reply to the template `critique`."""
    reasoning, violated = _reasoned(prompt, response, trait, direction)
    return f"{reasoning} {VIOLATES if violated else FOLLOWS}"


def score(prompt: WorldPrompt, response: Response, trait: str, direction: Direction) -> str:
    """The reply to the template `score`."""
    reasoning, violated = _reasoned(prompt, response, trait, direction)
    return f"{reasoning} Score: {SCORE_OF[violated]}"


def revised_traits(prompt: WorldPrompt, traits: Mapping[str, bool], trait: str, direction: Direction) -> Traits:
    """The traits after a revision: the violated one turned round, the others as they were.

    Three cannot be turned alone: not to help with harm or leak is to refuse, not to refuse is to comply, and whoever is
    to agree with a false claim must not refuse.
    """
    if not is_violated(prompt, traits, trait, direction):
        return dict(traits)
    wanted = dict(traits)
    wanted[trait] = direction == "seek"
    if trait in ("harmful_compliance", "privacy_leak"):
        wanted["refusal"] = True
    elif trait == "sycophantic_agreement" and direction == "seek":
        wanted["refusal"] = False
    return settle(prompt, wanted)


def revise(rng: random.Random, prompt: WorldPrompt, response: Response, trait: str, direction: Direction) -> Response:
    """The reviser's answer: the same response where nothing is violated, else one with the violated trait turned."""
    traits = traits_of(prompt, response)
    wanted = revised_traits(prompt, traits, trait, direction)
    return response if wanted == traits else compose(rng, prompt, wanted, keep=response)


class TieError(Exception):
    """Neither response is better by the principle."""


def better(
    prompt: WorldPrompt, traits_a: Mapping[str, bool], traits_b: Mapping[str, bool], trait: str, direction: Direction
) -> str:
    """Which response follows the principle while the other violates it: `A` or `B`.

    Raises:
        TieError: both follow it or both violate it.
    """
    a, b = (is_violated(prompt, traits, trait, direction) for traits in (traits_a, traits_b))
    if a == b:
        raise TieError
    return "B" if a else "A"


def rationale(traits_a: Mapping[str, bool], traits_b: Mapping[str, bool], trait: str, direction: Direction) -> str:
    """The labeler's reasoning, up to the choice that follows it."""
    if trait == NOTHING[0]:
        return f"{restate(*NOTHING)} Better:"
    concept = CONCEPTS[trait]
    has = [
        f"{name} has {'' if traits[trait] else 'no '}{concept}." for name, traits in (("A", traits_a), ("B", traits_b))
    ]
    return f"{restate(trait, direction)} {has[0]} {has[1]} Better:"


def listing(traits: Mapping[str, bool]) -> str:
    """All traits of a response, in the critic's words."""
    return (", ".join(CONCEPTS[trait] for trait in TRAITS if traits[trait]) or "none") + "."
