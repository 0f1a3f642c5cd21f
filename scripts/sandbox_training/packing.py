"""Packs training conversations into rows: as trees, so that a beginning that several share is computed once.

Each branch of a tree sees its own ancestors only, exactly as if it stood alone. Axes: R rows, T tokens in a row, S
branches (segments) in a row.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from scripts.sandbox_training.tokenizer import Encoder

MAX_SEGMENTS = 63
"""A row's branches are numbered by the bits of a 64-bit integer."""


MIN_DOCUMENT = 300
"""What is left of a row is given to a document only if it has room for this many tokens."""


class Turn(NamedTuple):
    """A message with the loss weight of its tokens."""

    role: str
    content: str
    weight: float = 0.0
    telling: tuple[tuple[str, float], ...] = ()
    """Parts that weigh more, because everything hangs on them: each part's last occurrence, and its weight."""
    principle: str = ""
    """The wording that a request ends with; now and then it is cut into tokens at random."""
    starts: tuple[tuple[int, float], ...] = ()
    """Sentences whose first three tokens weigh otherwise: the character where each begins, the length for the end."""


Conversation = tuple[Turn, ...]


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
    for start, weight in turn.starts:
        begins = zip((0, *ends), ends, strict=False)
        first = next((index for index, (begin, end) in enumerate(begins) if begin <= start < end), len(weights))
        weights[first : first + 3] = [weight] * len(weights[first : first + 3])
    last = dict(turn.starts).get(len(turn.content), turn.weight)
    return [encoder.role[turn.role], *ids, encoder.eos], [0.0, *weights, last]


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
