"""What a stage asks of a model, and what it gets back, whichever backend answers.

A completion depends on its request alone (the seed is part of it), never on what else is asked at the same time, so
that it can be kept and used again.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import cached_property
from typing import Final, Literal, NamedTuple, Protocol

from constitutional.base.errors import ModelError
from constitutional.base.message import Message

Finish = Literal["stop", "length", "choices", "refusal", "too_long", "error"]
FAILED: Final = ("refusal", "too_long", "error")
"""Ends of a completion that has nothing to read."""


class Sampling(NamedTuple):
    """How a reply is sampled."""

    temperature: float = 1.0
    """Temperature at which the reply is sampled; 0 means greedy decoding."""
    top_p: float = 1.0
    max_tokens: int = 256
    stop: tuple[str, ...] = ()
    """The reply ends before the first of these texts, which is not part of it."""

    @classmethod
    def of(cls, temperature: float | None, top_p: float | None, max_tokens: int) -> "Sampling":
        """The same from settings, where None stands for 1."""
        return cls(1.0 if temperature is None else temperature, 1.0 if top_p is None else top_p, max_tokens)


class Request(NamedTuple):
    """A conversation to be answered, or, with `choices`, the texts whose probabilities are wanted as its continuation.

    If the last message is an assistant's, the reply goes on from it.
    """

    messages: tuple[Message, ...]
    sampling: Sampling = Sampling()
    seed: int = 0
    choices: tuple[str, ...] = ()
    schema: str = ""
    """A JSON schema, as text, that the reply must follow; only for engines with the ability `structured`."""


class Completion(NamedTuple):
    """A reply, or why there is none."""

    text: str
    """Empty if choices were asked about, and if there is no reply."""
    finish: Finish
    """Why it ended: the model ended it, it reached `max_tokens`, or choices were asked about; or the model's provider
    refused to answer, the request is longer than the model can read, or it cannot be answered for another reason."""
    choice_logprobs: tuple[float, ...] = ()
    """For each choice, the natural log-probability of its tokens."""
    reason: str = ""
    """Why there is no reply, in words; empty where there is one."""
    prompt_tokens: int = 0
    """Tokens that the model read; 0 where the engine does not count."""
    completion_tokens: int = 0
    """Tokens that the model wrote, its end and its reasoning included; of choices, the tokens of all of them."""
    cached_tokens: int = 0
    """Of the tokens that the model read, those that it had read before, for another request."""
    reasoning: str = ""
    """What a reasoning model thought before it replied, where the engine keeps that apart; no part of `text`."""
    bounded: tuple[bool, ...] = ()
    """For each choice, whether its log-probability is only an upper bound: it was not among the likeliest tokens that
    the server tells. Empty where all are exact."""

    @property
    def failed(self) -> bool:
        """Whether there is nothing to read."""
        return self.finish in FAILED

    @property
    def unspoken(self) -> bool:
        """Whether it was cut off in its thoughts, before the reply."""
        return self.finish == "length" and bool(self.reasoning) and not self.text.strip()

    @classmethod
    def of_error(cls, error: ModelError) -> "Completion":
        """The completion of a request that cannot be put to the model."""
        return cls("", "too_long" if isinstance(error, TooLongError) else "error", reason=str(error))


def without_thinking(role: str = "") -> str:
    """What to type where replies are cut off in the thoughts before them, beside a greater length.

    Args:
        role: who replies, where that may be another model than the one that is trained.
    """
    other = f" ({role}.template for a local model of its own)" if role else ""
    return f'"model.template={{enable_thinking: false}}"{other}, by which Qwen3 and others reply at once'


class TooLongError(ModelError):
    """A conversation is longer than the model can read."""


class Abilities(NamedTuple):
    """What an engine can do, which a run checks before it asks for anything."""

    choices: bool = True
    """It gives log-probabilities of choices."""
    prefill: bool = True
    """It goes on from an assistant's first words."""
    seeds: bool = True
    """The same request with the same seed gets the same reply."""
    structured: bool = False
    """It holds replies to a JSON schema."""


Ticket = tuple[int, ...]
"""Tells the requests of a session apart. It also says which are earlier: engines may answer those first."""


class Session(Protocol):
    """One caller's requests to an engine, and their answers as they finish. It belongs to one thread."""

    def submit(self, ticket: Ticket, request: Request) -> None:
        """Take a request; the engine may begin with it at once."""

    def collect(self, timeout_s: float | None = None) -> list[tuple[Ticket, Completion]]:
        """What has finished since the last call, in any order; empty where no request is outstanding.

        Args:
            timeout_s: how long to wait for a first answer; None waits until there is one. At 0 no work begins: only
                what has finished already is there. An engine that computes in this thread computes its next batch at
                any other number.

        Raises:
            ConstitutionalError: the engine cannot go on. It has no answer left that it could have given instead.
        """

    def close(self) -> None:
        """Give up what is outstanding."""


class Engine(ABC):
    """A model that answers; any number of threads may have sessions with it at the same time."""

    abilities: Abilities = Abilities()
    elsewhere: bool = False
    """Another process computes the answers, so that this one can do other work meanwhile."""
    room: int = 0
    """Requests that it has use for at the same time, where these are more than the stories of one machine ask."""

    @property
    @abstractmethod
    def weights(self) -> str:
        """A digest of the model itself, on which trainings depend: the same on every machine."""

    @property
    @abstractmethod
    def identity(self) -> str:
        """A digest of everything on the model's side that a completion depends on.

        Beside the weights these are the number format, the kind of device, the engine and its version, the tokenizer,
        and the chat template with all that it reads.
        """

    @abstractmethod
    def session(self) -> Session:
        """A new session."""

    def complete(self, requests: Sequence[Request]) -> list[Completion]:
        """One completion for each request, in order; waits for all of them."""
        session = self.session()
        try:
            for number, request in enumerate(requests):
                session.submit((number,), request)
            answers: dict[Ticket, Completion] = {}
            while len(answers) < len(requests):
                answers |= session.collect()
        finally:
            session.close()
        return [answers[number,] for number in range(len(requests))]


class ForwardingEngine(Engine):
    """Stands before another engine: what a subclass does not change is that engine's own, and read when it is needed.

    Args:
        engine: the other one.
    """

    def __init__(self, engine: Engine) -> None:
        self.engine = engine

    @cached_property
    def abilities(self) -> Abilities:  # type: ignore[override] # a server may have to be asked for them
        """The engine's own."""
        return self.engine.abilities

    @property
    def elsewhere(self) -> bool:  # type: ignore[override] # not set here
        """The engine's own."""
        return self.engine.elsewhere

    @property
    def room(self) -> int:  # type: ignore[override] # not set here
        """The engine's own."""
        return self.engine.room

    @property
    def weights(self) -> str:
        """The engine's own."""
        return self.engine.weights

    @property
    def identity(self) -> str:
        """The engine's own."""
        return self.engine.identity
