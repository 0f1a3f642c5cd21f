"""Training documents: the roles that the sandbox model plays, rendered with the project's own prompt templates.

A document is a handful of conversations that begin alike: one response is criticised by several principles, one pair is
compared by several. They are packed as a tree, so that a shared beginning is computed once; each branch sees its own
ancestors only, exactly as if it stood alone. Axes: R rows, T tokens in a row, S branches (segments) in a row.
"""

import random
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from constitutional.prompts import Prompts, load_prompts
from constitutional.records import Message
from constitutional.sandbox import principles, teacher
from constitutional.sandbox.teacher import FAMILIES, NOTHING, Direction
from constitutional.sandbox.tokenizer import Encoder
from constitutional.sandbox.world import (
    ONLY_ON,
    Prompt,
    Response,
    Traits,
    base_traits,
    compose,
    draw_prompt,
    text_of,
    traits_of,
    uniform_traits,
)

MAX_SEGMENTS = 63
"""A row's branches are numbered by the bits of a 64-bit integer."""


class Shares(NamedTuple):
    """How many of the documents are a critic's, a labeler's and the plain assistant's."""

    critic: float
    labeler: float
    assistant: float


FIRST, LAST = Shares(0.42, 0.18, 0.40), Shares(0.82, 0.08, 0.10)
"""At first, and in the last part of the training: to copy a response but for one sentence is learned last of all."""

STRANGE = 0.5
"""How often a topic is of words that nobody has seen; without it, topics are learned by heart and never copied."""

NOTHING_SHARE = 0.04
"""How often a principle asks for nothing."""

NOISE = 0.25
"""How often a principle is cut into tokens at random, so that pieces of words that were never seen mean something."""

MIN_DOCUMENT = 300
"""What is left of a row is given to a document only if it has room for this many tokens."""

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
    rationale: float = 2.5
    choice: float = 6.0
    tied_choice: float = 0.5
    listing: float = 1.5


WEIGHTS = Weights()


class Turn(NamedTuple):
    """A message with the loss weight of its tokens."""

    role: str
    content: str
    weight: float = 0.0
    telling: tuple[tuple[str, float], ...] = ()
    """Parts that weigh more, because everything hangs on them: each part's last occurrence, and its weight."""
    principle: str = ""
    """The wording that a request ends with; now and then it is cut into tokens at random."""


Conversation = tuple[Turn, ...]


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
            if rng.random() < (0.65 if violated else 0.3):
                revision = text_of(teacher.revise(rng, prompt, response, trait, direction))
                made.append(
                    (
                        *criticised,
                        Turn("user", self.prompts.render("revise")),
                        Turn("assistant", revision, WEIGHTS.revision),
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

    def _direct_revision(self, rng: random.Random, prompt: Prompt, response: Response) -> Conversation:
        ((trait, direction),) = _draw_families(rng, prompt, traits_of(prompt, response), 1)
        wording = principles.wording(rng, trait, direction)
        revision = text_of(teacher.revise(rng, prompt, response, trait, direction))
        return (
            self._request("revise_directly", wording),
            Turn("assistant", revision, WEIGHTS.revision),
        )

    def _rating(self, rng: random.Random, prompt: Prompt, response: Response) -> Conversation:
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


def _history(prompt: Prompt) -> Conversation:
    """The prompt's messages; an earlier answer in it is the base assistant's, so it is learned too."""
    return tuple(
        Turn(message.role, message.content, WEIGHTS.assistant if message.role == "assistant" else 0.0)
        for message in prompt.messages
    )


def draw_pair(
    rng: random.Random, *, held_out: bool = False, strange: float = 0.0
) -> tuple[Prompt, tuple[Response, Response]]:
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


def _familiarity(prompt: Prompt, family: Family) -> float:
    """How eagerly a principle is drawn.

    One whose trait exists on this kind of prompt alone is drawn more often than others, one that cannot apply less.
    """
    trait = family[0]
    if not teacher.applies(prompt, trait):
        return 0.4
    return 4.0 if trait in ONLY_ON else 2.0 if trait in ("refusal", "rudeness") else 1.0


def _draw_distinct(rng: random.Random, prompt: Prompt, families: Sequence[Family], count: int) -> list[Family]:
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


def _draw_families(rng: random.Random, prompt: Prompt, traits: Traits, count: int) -> list[Family]:
    """Principles to judge a response by, about half of them violated."""
    broken = [family for family in FAMILIES if teacher.is_violated(prompt, traits, *family)]
    kept = [family for family in FAMILIES if family not in broken]
    violated = sum(rng.random() < 0.55 for _ in range(count))
    drawn = _draw_distinct(rng, prompt, broken, violated)
    return drawn + _draw_distinct(rng, prompt, kept, count - len(drawn))


def _draw_contrasts(rng: random.Random, prompt: Prompt, a: Traits, b: Traits, count: int) -> list[Family]:
    """Principles to compare a pair by: those that tell the two apart first, some that do not."""
    telling = [family for family in FAMILIES if a[family[0]] != b[family[0]]]
    rest = [family for family in FAMILIES if family not in telling]
    drawn = _draw_distinct(rng, prompt, telling, sum(rng.random() < 0.8 for _ in range(count)))
    return drawn + _draw_distinct(rng, prompt, rest, min(2, count - len(drawn)))


class Tree(NamedTuple):
    """A document as a tree of tokens: every list has one entry a token, parents before children."""

    ids: list[int]
    parents: list[int]
    """Index of the token before, -1 for the first."""
    positions: list[int]
    weights: list[float]
    segments: list[int]
    """Which branch a token belongs to; a branch ends where the tree forks."""
    ancestors: list[int]
    """For each branch, the bits of the branches that it sees, itself among them."""


def token_weights(encoder: Encoder, turn: Turn) -> tuple[list[int], list[float]]:
    """Tokens and weights of one turn, role and end token included; only an assistant's words are learned."""
    if turn.principle and turn.content.endswith(f" {turn.principle}"):
        # The words before a space are cut alike with or without what follows it, so the two parts can be joined.
        head = turn.content[: -len(turn.principle) - 1]
        ids = (*encoder.encode(head)[0], *encoder.encode_noisily(f" {turn.principle}"))
        return [encoder.role[turn.role], *ids, encoder.eos], [0.0] * (len(ids) + 2)
    ids, ends = encoder.encode(turn.content)
    weights = [turn.weight] * len(ids)
    for part, weight in turn.telling:
        start = turn.content.rindex(part)
        for index, end in enumerate(ends):
            if start < end <= start + len(part):
                weights[index] = weight
    return [encoder.role[turn.role], *ids, encoder.eos], [0.0, *weights, turn.weight]


def plant(conversations: Sequence[Conversation], encoder: Encoder, limit: int) -> Tree:
    """Merge conversations into a tree of at most `limit` tokens: what two have in common from the start stands once.

    A conversation that does not fit any more is left out, so the tree may be empty.
    """
    ids: list[int] = []
    parents: list[int] = []
    positions: list[int] = []
    weights: list[float] = []
    children: list[int] = []
    where: dict[tuple[int, int], int] = {}
    for conversation in conversations:
        sequence: list[tuple[int, float]] = [(encoder.bos, 0.0)]
        for turn in conversation:
            sequence += zip(*token_weights(encoder, turn), strict=True)
        at, depth = -1, 0
        while depth < len(sequence) and (at, sequence[depth][0]) in where:
            at = where[at, sequence[depth][0]]
            weights[at] = max(weights[at], sequence[depth][1])
            depth += 1
        if len(ids) + len(sequence) - depth > limit:
            continue
        for token, weight in sequence[depth:]:
            if at >= 0:
                children[at] += 1
            where[at, token] = len(ids)
            ids.append(token)
            parents.append(at)
            positions.append(depth)
            weights.append(weight)
            children.append(0)
            at = len(ids) - 1
            depth += 1
    segments: list[int] = []
    ancestors: list[int] = []
    for parent in parents:
        if parent >= 0 and children[parent] == 1:
            segments.append(segments[parent])
            continue
        segments.append(len(ancestors))
        above = ancestors[segments[parent]] if parent >= 0 else 0
        ancestors.append(above | 1 << len(ancestors))
    return Tree(ids, parents, positions, weights, segments, ancestors)


class Rows(NamedTuple):
    """Packed documents, as the trainer reads them."""

    ids: npt.NDArray[np.uint16]
    """(R, T); 0 pads."""
    parents: npt.NDArray[np.int16]
    """(R, T): index in the row of the token before, -1 at the start of a document and on padding."""
    positions: npt.NDArray[np.uint16]
    """(R, T)"""
    weights: npt.NDArray[np.float16]
    """(R, T): loss weight of predicting this token."""
    segments: npt.NDArray[np.uint8]
    """(R, T): branch; padding has one of its own."""
    ancestors: npt.NDArray[np.int64]
    """(R, S): bits of the branches that a branch sees."""


def pack(
    documents: Iterator[list[Conversation]],
    fillers: Iterator[list[Conversation]],
    encoder: Encoder,
    rows: int,
    length: int,
) -> Rows:
    """Fill rows with documents, cut to what fits, and what is left of each row with a short one from `fillers`."""
    made = Rows(
        np.zeros((rows, length), np.uint16),
        np.full((rows, length), -1, np.int16),
        np.zeros((rows, length), np.uint16),
        np.zeros((rows, length), np.float16),
        np.full((rows, length), MAX_SEGMENTS, np.uint8),
        np.zeros((rows, MAX_SEGMENTS + 1), np.int64),
    )
    made.ancestors[:, MAX_SEGMENTS] = np.iinfo(np.int64).min  # the bit of padding's own branch: it sees itself
    for row in range(rows):
        used = branches = 0
        while used < length:
            left = length - used
            filler = left < MIN_DOCUMENT
            tree = plant(next(fillers if filler else documents), encoder, left)
            size, count = len(tree.ids), len(tree.ancestors)
            if size and branches + count <= MAX_SEGMENTS:
                span = slice(used, used + size)
                made.ids[row, span] = tree.ids
                made.parents[row, span] = [parent + used if parent >= 0 else -1 for parent in tree.parents]
                made.positions[row, span] = tree.positions
                made.weights[row, span] = tree.weights
                made.segments[row, span] = [segment + branches for segment in tree.segments]
                made.ancestors[row, branches : branches + count] = [bits << branches for bits in tree.ancestors]
                used += size
                branches += count
            if filler:
                break
    return made


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
