"""Replies by a rule, for tests and for trying things out without a model."""

from collections.abc import Callable
from typing import Final

from constitutional.base.text import sound
from constitutional.engines.base import Abilities, Completion, Engine, Request, Ticket

AT_A_TIME: Final = 8
"""Answers that are handed on together, which is the most that a kill can lose: a user's function may take long."""
Rule = Callable[[Request], Completion | str]


class ScriptedEngine(Engine):
    """Answers each request with what `rule` makes of it.

    Args:
        rule: returns the whole completion, or only the text of a reply. It should depend on nothing but the request.
        name: tells scripted engines with different rules apart: it is all that their identity is made of.
        abilities: what the rule can answer.
        at_a_time: answers that are handed on together.
    """

    def __init__(
        self, rule: Rule, name: str = "scripted", abilities: Abilities | None = None, at_a_time: int = AT_A_TIME
    ) -> None:
        self.rule = rule
        self.name = name
        self.abilities = abilities or Abilities()
        self.at_a_time = at_a_time
        self.count = 0
        """How many requests it has answered."""

    @property
    def weights(self) -> str:
        """`scripted:` and the name."""
        return f"scripted:{self.name}"

    @property
    def identity(self) -> str:
        """The same: a rule knows of no machine."""
        return self.weights

    def session(self) -> "ScriptedSession":
        """A new session."""
        return ScriptedSession(self)

    def answer(self, request: Request) -> Completion:
        """The completion; a text ends at the request's first stop text, like a model's."""
        answer = self.rule(request)
        self.count += 1
        return _reply(answer, request) if isinstance(answer, str) else answer._replace(text=sound(answer.text))


class ScriptedSession:
    """Answers what is waiting, in its order, a few at a time."""

    def __init__(self, engine: ScriptedEngine) -> None:
        self._engine = engine
        self._waiting: dict[Ticket, Request] = {}
        self._failure: BaseException | None = None

    def submit(self, ticket: Ticket, request: Request) -> None:
        """Take a request."""
        self._waiting[ticket] = request

    def collect(self, timeout_s: float | None = None) -> list[tuple[Ticket, Completion]]:
        """The answers to all that is waiting; where the rule fails, those before it, and the failure the next time."""
        answers: list[tuple[Ticket, Completion]] = []
        if self._failure is not None:
            raise self._failure
        for ticket in sorted(self._waiting)[: self._engine.at_a_time] if timeout_s != 0 else ():
            try:
                completion = self._engine.answer(self._waiting[ticket])
            except BaseException as error:
                if not answers:
                    raise
                self._failure = error
                break
            del self._waiting[ticket]
            answers.append((ticket, completion))
        return answers

    def close(self) -> None:
        """Forget what is waiting."""
        self._waiting.clear()


def _reply(text: str, request: Request) -> Completion:
    if request.choices:
        raise ValueError(
            f"The rule gave the text {text!r} for a request with choices {request.choices}; "
            "it must return Completion('', 'choices', (a log-probability for each choice,))"
        )
    cut = min((text.index(stop) for stop in request.sampling.stop if stop in text), default=None)
    return Completion(sound(text[:cut]), "stop")
