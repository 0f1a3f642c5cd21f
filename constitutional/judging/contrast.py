"""Which response is likelier under a principle: labels without a verdict to read, and without an order of responses.

    s(y) = (log π(y | x, principle) − log π(y | x, its opposite, or nothing)) / (words of y + 5)
    P(a is better) = σ(k · (s(a) − s(b)) / scale)

(DLMA, arXiv 2402.11907, section 3.1, takes the difference without dividing by the length; RLCD, arXiv 2307.12950, draws
the responses themselves from two such prompts.) The principle stands in the system message. Both responses are put to
the model in one request for each of the two prompts, which gives the log-probabilities of the tokens behind those that
the responses share. The five words more, of which nothing is known, keep an answer of a word or two from being ahead
by chance. k makes the probabilities as sure as the labeler is often right on the principle's examples: `calibrated`
finds it, and at 0 the labeler is no better than chance.
"""

import math
from collections.abc import Sequence
from typing import Final, NamedTuple

from constitutional.base.errors import ModelError
from constitutional.base.records import Comparison, Message
from constitutional.base.stats import sigmoid
from constitutional.base.templates import Prompts
from constitutional.base.text import words
from constitutional.constitution.constitution import Principle
from constitutional.engines.base import Completion, Request

UNKNOWN: Final = 5
"""Words that are added to the length of either response."""
OTHERS: Final = 2
"""As many examples as this, at most, the examples of other principles count."""
SCALE: Final = 0.1
"""Nats a word by which a response must be ahead for a probability of 0.73, before calibration."""
MOST_SHARPNESS: Final = 1000.0


class Contrast(NamedTuple):
    """By how much each response is likelier under the principle, in nats a word."""

    a: float
    b: float

    @property
    def lead(self) -> float:
        """Of a over b."""
        return self.a - self.b


def requests(comparison: Comparison, principle: Principle, templates: Prompts) -> list[Request]:
    """What is asked: how likely both responses are under the principle, and under what goes against it."""
    choices = (comparison.a, comparison.b)
    wishes = (wish_of(principle), principle.opposite)
    return [
        Request(
            _under(comparison.prompt.messages, wish and templates.render("contrast", principle=wish)), choices=choices
        )
        for wish in wishes
    ]


def wish_of(principle: Principle) -> str:
    """What the system message says of a principle: its text, as its words for comparison ask about two responses."""
    return principle.with_reason(principle.text)


def _under(messages: tuple[Message, ...], wish: str | None) -> tuple[Message, ...]:
    """A conversation whose system message ends with the wish; `engines/chat.py` knows templates that have none."""
    if not wish:
        return messages
    if messages[0].role == "system":
        return (Message("system", f"{messages[0].content}\n\n{wish}"), *messages[1:])
    return (Message("system", wish), *messages)


def contrast(comparison: Comparison, answers: Sequence[Completion], weights: str) -> Contrast | None:
    """What the answers to the two requests come to; None where one has no log-probabilities, or only bounds of them.

    Raises:
        ModelError: the engine gave another number of them; `weights` names it.
    """
    under, against = answers
    if any(len(answer.choice_logprobs) != 2 for answer in answers):
        raise ModelError(
            f"{weights}: gave no log-probabilities of whole responses, which label.method=contrast needs; type "
            "label.method=votes"
        )
    if any(answer.bounded and any(answer.bounded) for answer in answers):
        return None
    texts = (comparison.a, comparison.b)
    a, b = (
        (under.choice_logprobs[index] - against.choice_logprobs[index]) / (len(words(text)) + UNKNOWN)
        for index, text in enumerate(texts)
    )
    return Contrast(a, b) if math.isfinite(a) and math.isfinite(b) else None


def probability(found: Contrast, sharpness: float) -> float:
    """The probability that a is better."""
    return sigmoid(sharpness * found.lead / SCALE)


def calibrated(p_correct: Sequence[float], others: Sequence[float] = ()) -> float:
    """The k ≥ 0 that makes probabilities of known answers likeliest, when log-odds are multiplied by it.

    It maximises Σ w·log σ(k·l) over the log-odds l of the right answers, and of two made-up ones of their mean size,
    one right and one wrong, without which a few examples that are all right would make k infinite (as Platt 1999
    smooths his targets). 1 where there is no example.

    Args:
        p_correct: probabilities of the right answers to the principle's own examples, each of weight 1.
        others: the same of other principles, which together weigh as much as `OTHERS` examples, or as they are.
    """
    weights = [1.0] * len(p_correct) + [min(1.0, OTHERS / len(others)) for _ in others]
    odds = [math.log(p / (1 - p)) for p in (min(max(p, 1e-12), 1 - 1e-12) for p in (*p_correct, *others))]
    if not any(odds):
        return 1.0
    size = math.fsum(weight * abs(value) for weight, value in zip(weights, odds, strict=True)) / math.fsum(weights)
    weights += [1.0, 1.0]
    odds += [size, -size]
    low, high = 0.0, MOST_SHARPNESS
    for _ in range(60):  # the slope falls with k
        middle = (low + high) / 2
        slope = math.fsum(
            weight * value * sigmoid(-middle * value) for weight, value in zip(weights, odds, strict=True)
        )
        low, high = (middle, high) if slope > 0 else (low, middle)
    return low
