"""Replies by a rule, for tests and for trying things out without a model."""

from collections.abc import Callable, Sequence

from constitutional.engines.base import Completion, Request

Rule = Callable[[Request], Completion | str]


class ScriptedEngine:
    """Answers each request with what `rule` makes of it.

    Args:
        rule: returns the whole completion, or only the text of a reply. It should depend on nothing but the request.
        name: tells scripted engines with different rules apart: it is all that their identity is made of.
    """

    def __init__(self, rule: Rule, name: str = "scripted") -> None:
        self.rule = rule
        self.name = name
        self.count = 0
        """How many requests it has answered."""

    @property
    def identity(self) -> str:
        """`scripted:` and the name."""
        return f"scripted:{self.name}"

    def complete(self, requests: Sequence[Request]) -> list[Completion]:
        """One completion for each request, in order; a text ends at the request's first stop text, like a model's."""
        answers = []
        for request in requests:
            answer = self.rule(request)
            self.count += 1
            answers.append(_reply(answer, request) if isinstance(answer, str) else answer)
        return answers


def _reply(text: str, request: Request) -> Completion:
    if request.choices:
        raise ValueError(
            f"The rule gave the text {text!r} for a request with choices {request.choices}; "
            "it must return Completion('', 'choices', (a log-probability for each choice,))"
        )
    cut = min((text.index(stop) for stop in request.sampling.stop if stop in text), default=None)
    return Completion(text[:cut], "stop")
