"""Training documents: the roles that the sandbox model plays, rendered with the project's own prompt templates.

A document is a handful of conversations that begin alike: one response is criticised by several principles, one pair is
compared by several. `packing` lays them out for the trainer.
"""

import random
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple

from constitutional.base.records import Message
from constitutional.base.templates import Prompts, load_prompts
from constitutional.sandbox import principles, teacher
from constitutional.sandbox.teacher import FAMILIES, NOTHING, Direction
from constitutional.sandbox.world import (
    ONLY_ON,
    Response,
    Traits,
    WorldPrompt,
    base_traits,
    compose,
    draw_prompt,
    text_of,
    traits_of,
    uniform_traits,
)
from scripts.sandbox_training.packing import Conversation, Rows, Turn, pack
from scripts.sandbox_training.tokenizer import Encoder


class Shares(NamedTuple):
    """How many of the documents are a critic's, a labeler's and the plain assistant's."""

    critic: float
    labeler: float
    assistant: float


FIRST, LAST = Shares(0.42, 0.18, 0.40), Shares(0.80, 0.10, 0.10)
"""At first, and in the last part of the training: to copy a response but for one sentence is learned last of all."""

STRANGE = 0.5
"""How often a topic is of words that nobody has seen; without it, topics are learned by heart and never copied."""

NOTHING_SHARE = 0.04
"""How often a principle asks for nothing."""

NOISE = 0.25
"""How often a principle is cut into tokens at random, so that pieces of words that were never seen mean something."""

LIST_ONE = "List the traits of the last response."
LIST_TWO = "List the traits of A and of B."
"""Auxiliary requests: to name every trait teaches reading faster than verdicts do."""

Family = tuple[str, Direction]


class Weights(NamedTuple):
    """Loss weight of a token, by what it belongs to."""

    assistant: float = 2.0
    critique: float = 2.0
    meaning: float = 4.0
    verdict: float = 5.0
    revision: float = 2.0
    revision_start: float = 3.0
    """Where each of a revision's sentences begins, and where it ends: which of them comes next."""
    revision_edit: float = 5.0
    """Where a revision leaves a sentence out or puts one in."""
    rationale: float = 2.5
    choice: float = 6.0
    tied_choice: float = 2.0
    listing: float = 1.5


WEIGHTS = Weights()


def template_texts() -> list[str]:
    """Each request as the model reads it, around a placeholder."""
    prompts = load_prompts()
    turn = [{"role": role, "content": "."} for role in ("user", "assistant")]
    texts = [prompts.render(name, principle=".") for name in ("critique", "revise_directly", "score", "restate")]
    return [*texts, prompts.render("revise"), prompts.render("label", conversation=turn, a=".", b=".", principle=".")]


class Corpus:
    """Makes documents with one set of prompt templates."""

    def __init__(self, prompts: Prompts | None = None) -> None:
        self.prompts = prompts or load_prompts()

    def documents(self, rng: random.Random, shares: Shares = FIRST) -> Iterator[list[Conversation]]:
        """Documents about responses without end, of all kinds."""
        makers = (self.critic, self.labeler, self.assistant)
        while True:
            yield rng.choices(makers, shares)[0](rng)

    def assistant(self, rng: random.Random) -> list[Conversation]:
        """Several prompts, each answered by the base assistant."""
        made = []
        for _ in range(7):
            prompt = draw_prompt(rng, strange=STRANGE)
            response = text_of(compose(rng, prompt, base_traits(rng, prompt)))
            made.append((*_history(prompt), Turn("assistant", response, WEIGHTS.assistant)))
        return made

    def critic(self, rng: random.Random) -> list[Conversation]:
        """One response, criticised by several principles, revised, rated, and its traits listed.

        The response comes first, the rest in random order, for what does not fit into a row is left out.
        """
        prompt = draw_prompt(rng, strange=STRANGE)
        is_base = rng.random() < 0.65
        response = compose(rng, prompt, (base_traits if is_base else uniform_traits)(rng, prompt))
        said = Turn("assistant", text_of(response), WEIGHTS.assistant if is_base else 0.0)
        start = (*_history(prompt), said)
        traits = traits_of(prompt, response)
        made: list[Conversation] = []
        for trait, direction in _draw_families(rng, prompt, traits, 4):
            wording = principles.wording(rng, trait, direction)
            violated = teacher.is_violated(prompt, traits, trait, direction)
            found = teacher.critique(prompt, response, trait, direction)
            criticised = (
                *start,
                self._request("critique", wording),
                _judging(found, WEIGHTS.critique, (trait, direction), "violates" if violated else "follows"),
            )
            if rng.random() < (0.8 if violated else 0.3):
                revision = teacher.revise(rng, prompt, response, trait, direction)
                made.append(
                    (
                        *criticised,
                        Turn("user", self.prompts.render("revise")),
                        revising(response, revision),
                    )
                )
            else:
                made.append(criticised)
        if rng.random() < 0.35:
            made.append((*start, *self._direct_revision(rng, prompt, response)))
        if rng.random() < 0.35:
            made += [(*start, *self._rating(rng, prompt, response)) for _ in range(2)]
        if rng.random() < 0.5:
            listing = Turn("assistant", teacher.listing(traits), WEIGHTS.listing)
            made.append((*start, Turn("user", LIST_ONE), listing))
        rng.shuffle(made)
        return [start, *made]

    def _direct_revision(self, rng: random.Random, prompt: WorldPrompt, response: Response) -> Conversation:
        ((trait, direction),) = _draw_families(rng, prompt, traits_of(prompt, response), 1)
        wording = principles.wording(rng, trait, direction)
        revision = teacher.revise(rng, prompt, response, trait, direction)
        return (
            self._request("revise_directly", wording),
            revising(response, revision),
        )

    def _rating(self, rng: random.Random, prompt: WorldPrompt, response: Response) -> Conversation:
        ((trait, direction),) = _draw_families(rng, prompt, traits_of(prompt, response), 1)
        wording = principles.wording(rng, trait, direction)
        rated = teacher.score(prompt, response, trait, direction)
        return (
            self._request("score", wording),
            _judging(rated, WEIGHTS.critique, (trait, direction), rated[-1]),
        )

    def labeler(self, rng: random.Random) -> list[Conversation]:
        """One pair of responses, compared by several principles, and the traits of both listed."""
        prompt, pair = draw_pair(rng, strange=STRANGE)
        traits_a, traits_b = (traits_of(prompt, response) for response in pair)
        a, b = (text_of(response) for response in pair)
        asked = [asdict(message) for message in prompt.messages]
        made: list[Conversation] = []
        for trait, direction in _draw_contrasts(rng, prompt, traits_a, traits_b, 8):
            wording = principles.wording(rng, trait, direction)
            reason = teacher.rationale(traits_a, traits_b, trait, direction)
            weight = WEIGHTS.choice
            try:
                choice = teacher.better(prompt, traits_a, traits_b, trait, direction)
            except teacher.TieError:
                choice, weight = rng.choice("AB"), WEIGHTS.tied_choice
            request = self.prompts.render("label", conversation=asked, a=a, b=b, principle=wording)
            reply = _judging(f"{reason} {choice}", WEIGHTS.rationale, (trait, direction), choice, weight)
            made.append((Turn("user", request, principle=wording), reply))
        if rng.random() < 0.5:
            request = self.prompts.render("label", conversation=asked, a=a, b=b, principle=LIST_TWO)
            listing = f"A: {teacher.listing(traits_a)} B: {teacher.listing(traits_b)}"
            made.append((Turn("user", request), Turn("assistant", listing, WEIGHTS.listing)))
        rng.shuffle(made)
        return made

    def restater(self, rng: random.Random) -> list[Conversation]:
        """Several principles, each restated as the concept and direction that it comes to."""
        return [
            (
                self._request("restate", principles.wording(rng, *family)),
                Turn("assistant", teacher.restate(*family), WEIGHTS.meaning),
            )
            for family in rng.choices((*FAMILIES, NOTHING), k=8)
        ]

    def _request(self, template: str, wording: str) -> Turn:
        return Turn("user", self.prompts.render(template, principle=wording), principle=wording)


def _judging(reply: str, weight: float, family: Family, verdict: str, verdict_weight: float = WEIGHTS.verdict) -> Turn:
    """A reply that restates a principle and ends in a verdict: what the principle means and the verdict weigh more."""
    return Turn("assistant", reply, weight, ((teacher.restate(*family), WEIGHTS.meaning), (verdict, verdict_weight)))


def revising(response: Response, revision: Response) -> Turn:
    """A revised response. What is learned last is not its sentences, which are copied, but which of them to copy."""
    old, new = ([sentence.text for sentence in each] for each in (response, revision))
    follows = dict(zip((None, *old), (*old, None), strict=True))
    starts, at = [], 0
    for before, sentence in zip((None, *new), (*new, None), strict=True):
        is_edit = before not in follows or follows[before] != sentence
        starts.append((at, WEIGHTS.revision_edit if is_edit else WEIGHTS.revision_start))
        at += len(sentence) + 1 if sentence is not None else 0
    starts[-1] = (at - 1, starts[-1][1])
    return Turn("assistant", text_of(revision), WEIGHTS.revision, starts=tuple(starts))


def _history(prompt: WorldPrompt) -> Conversation:
    """The prompt's messages; an earlier answer in it is the base assistant's, so it is learned too."""
    return tuple(
        Turn(message.role, message.content, WEIGHTS.assistant if message.role == "assistant" else 0.0)
        for message in prompt.messages
    )


def draw_pair(
    rng: random.Random, *, held_out: bool = False, strange: float = 0.0
) -> tuple[WorldPrompt, tuple[Response, Response]]:
    """A prompt and two responses: unrelated ones, or a response and its revision, in random order."""
    prompt = draw_prompt(rng, held_out=held_out, strange=strange)
    draw = base_traits if rng.random() < 0.4 else uniform_traits
    first = second = compose(rng, prompt, draw(rng, prompt))
    if rng.random() < 0.4:
        ((trait, direction),) = _draw_families(rng, prompt, traits_of(prompt, first), 1)
        second = teacher.revise(rng, prompt, first, trait, direction)
    while text_of(second) == text_of(first):
        second = compose(rng, prompt, draw(rng, prompt))
    return prompt, ((first, second) if rng.random() < 0.5 else (second, first))


def _familiarity(prompt: WorldPrompt, family: Family) -> float:
    """How eagerly a principle is drawn.

    One whose trait exists on this kind of prompt alone is drawn more often than others, one that cannot apply less.
    """
    trait = family[0]
    if not teacher.applies(prompt, trait):
        return 0.4
    return 4.0 if trait in ONLY_ON else 2.0 if trait in ("refusal", "rudeness") else 1.0


def _draw_distinct(rng: random.Random, prompt: WorldPrompt, families: Sequence[Family], count: int) -> list[Family]:
    """Some of the families, each once; now and then the one that asks for nothing in place of one of them."""
    drawn: list[Family] = []
    left = list(families)
    while left and len(drawn) < count:
        if rng.random() < NOTHING_SHARE:
            drawn.append(NOTHING)
            continue
        family = rng.choices(left, [_familiarity(prompt, family) for family in left])[0]
        left.remove(family)
        drawn.append(family)
    return drawn


def _draw_families(rng: random.Random, prompt: WorldPrompt, traits: Traits, count: int) -> list[Family]:
    """Principles to judge a response by, about half of them violated."""
    broken = [family for family in FAMILIES if teacher.is_violated(prompt, traits, *family)]
    kept = [family for family in FAMILIES if family not in broken]
    violated = sum(rng.random() < 0.55 for _ in range(count))
    drawn = _draw_distinct(rng, prompt, broken, violated)
    return drawn + _draw_distinct(rng, prompt, kept, count - len(drawn))


def _draw_contrasts(rng: random.Random, prompt: WorldPrompt, a: Traits, b: Traits, count: int) -> list[Family]:
    """Principles to compare a pair by: those that tell the two apart first, some that do not."""
    telling = [family for family in FAMILIES if a[family[0]] != b[family[0]]]
    rest = [family for family in FAMILIES if family not in telling]
    drawn = _draw_distinct(rng, prompt, telling, sum(rng.random() < 0.8 for _ in range(count)))
    return drawn + _draw_distinct(rng, prompt, rest, min(2, count - len(drawn)))


def make_rows(seed: int, rows: int, length: int, tokenizer: Path, shares: Shares = FIRST) -> Rows:
    """Rows of training data, the same for the same arguments."""
    rng = random.Random(seed)
    encoder, corpus = Encoder(tokenizer, noise=NOISE, seed=seed), Corpus()
    return pack(corpus.documents(rng, shares), iter(lambda: corpus.restater(rng), []), encoder, rows, length)


def chat_tokens(messages: Sequence[Message], encoder: Encoder, *, reply: bool = True) -> list[int]:
    """Token ids of a conversation, with the start of the assistant's next turn where `reply` is set."""
    ids = [encoder.bos]
    for message in messages:
        ids += [encoder.role[message.role], *encoder.encode(message.content)[0], encoder.eos]
    return [*ids, encoder.role["assistant"]] if reply else ids
