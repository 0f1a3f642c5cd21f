"""What a stage asks of a model, and what it gets back, whichever backend answers.

A completion depends on its request alone (the seed is part of it), never on what else is asked at the same time, so
that it can be kept and used again.
"""

from collections.abc import Sequence
from typing import Literal, NamedTuple, Protocol

from constitutional.base.errors import ModelError
from constitutional.base.records import Message


class Sampling(NamedTuple):
    """How a reply is sampled."""

    temperature: float = 1.0
    """Temperature at which the reply is sampled; 0 means greedy decoding."""
    top_p: float = 1.0
    max_tokens: int = 256
    stop: tuple[str, ...] = ()
    """The reply ends before the first of these texts, which is not part of it."""


class Request(NamedTuple):
    """A conversation to be answered, or, with `choices`, the texts whose probabilities are wanted as its continuation.

    If the last message is an assistant's, the reply goes on from it.
    """

    messages: tuple[Message, ...]
    sampling: Sampling = Sampling()
    seed: int = 0
    choices: tuple[str, ...] = ()


class Completion(NamedTuple):
    """A reply."""

    text: str
    """Empty if choices were asked about."""
    finish: Literal["stop", "length", "choices"]
    """Why it ended: the model ended it, it reached `max_tokens`, or nothing was generated."""
    choice_logprobs: tuple[float, ...] = ()
    """For each choice, the natural log-probability of its tokens."""


class TooLongError(ModelError):
    """A request is longer than the model can read. Nothing of the list that it stood in was asked."""


class Engine(Protocol):
    """A model that answers."""

    @property
    def identity(self) -> str:
        """A digest of everything on the model's side that a completion depends on: weights, tokenizer, template."""
        ...

    def complete(self, requests: Sequence[Request]) -> list[Completion]:
        """One completion for each request, in order."""
        ...


def complete_fitting(engine: Engine, requests: Sequence[Request]) -> list[Completion | None]:
    """One completion for each request, in order; None for one that is longer than the model can read.

    Nothing tells which of a list is too long, so the list is halved until it stands alone. Where it is halved depends
    on the requests alone, so that a run that was killed and goes on asks with the same neighbours.
    """
    if not requests:
        return []
    try:
        return list(engine.complete(requests))
    except TooLongError:
        if len(requests) == 1:
            return [None]
    middle = len(requests) // 2
    return [*complete_fitting(engine, requests[:middle]), *complete_fitting(engine, requests[middle:])]
