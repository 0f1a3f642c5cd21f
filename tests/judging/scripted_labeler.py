"""Comparisons, and labelers that judge them by a rule."""

import math
import re
from collections.abc import Iterable

from constitutional.base.records import Comparison, Judgement, Message, Prompt, Reading
from constitutional.base.templates import load_prompts
from constitutional.constitution.constitution import Constitution, Example, Principle
from constitutional.engines.base import Completion, Request
from constitutional.engines.scripted import Rule, ScriptedEngine
from constitutional.judging.labeler import ORDERS, SCORES
from constitutional.judging.labelling import LabelSettings, label

TEMPLATES = load_prompts()
SHORT, LONG = "No.", "No, because it would hurt someone."
CALM = Principle(id="calm", text="Prefer the calm answer.")
EXAMPLES = tuple(Example(prompt=f"Question {n}?", better=f"A long answer to {n}.", worse="Hm.") for n in range(3))
LONGER = Principle(id="longer", text="Prefer the longer.", examples=EXAMPLES)
SHORTER = Principle(
    id="shorter",
    text="Prefer the shorter.",
    examples=tuple(Example(prompt=each.prompt, better=each.worse, worse=each.better) for each in EXAMPLES),
)


def constitution(*principles: Principle) -> Constitution:
    return Constitution(name="test", principles=principles or (CALM,))


def comparison(a: str = SHORT, b: str = LONG, question: str = "May I?") -> Comparison:
    return Comparison(prompt=Prompt(messages=(Message("user", question),)), a=a, b=b, model="m")


def shown(request: Request) -> tuple[str, str]:
    """The responses that a labeler sees as (A) and (B)."""
    found = re.search(r"\n\(A\) (.*)\n\n\(B\) (.*)\n\nCompare the responses", request.messages[0].content, re.DOTALL)
    assert found
    return found[1], found[2]


def chances(*probabilities: float) -> Completion:
    return Completion("", "choices", tuple(math.log(p) if p else -math.inf for p in probabilities))


def likes_first(request: Request) -> Completion | str:
    return chances(0.9, 0.1) if request.choices else "I looked at both. Better: A"


def likes_longer(request: Request) -> Completion | str:
    """Whatever the method."""
    if request.choices == SCORES:
        length = len(request.messages[-3].content)  # response, request, "Score:"
        return chances(*(0.91 if score == (9 if length > 10 else 2) else 0.01 for score in range(1, 11)))
    if not request.choices and request.messages[-1].content.startswith("Rate"):
        return "It has some length. Score: 5"
    if request.choices not in ((), (" A", " B")):  # whole responses, which are as likely as they are long
        return Completion("", "choices", tuple(len(text) * len(request.messages) for text in request.choices))
    a, b = shown(request)
    if request.choices:
        return chances(0.8, 0.2) if len(a) > len(b) else chances(0.2, 0.8)
    return f"I counted. Better: {'A' if len(a) > len(b) else 'B'}"


def judged(
    rule: Rule, settings: LabelSettings, comparisons: Iterable[Comparison] = (comparison(),), *principles: Principle
) -> list[Judgement]:
    return list(label(comparisons, constitution(*principles), ScriptedEngine(rule), TEMPLATES, settings, seed=1))


def judgement(p_a: float | None, weight: float = 1.0, name: str = "c") -> Judgement:
    readings = tuple(
        Reading(order=order, rationale="", p_a=p_a, problem=None if p_a is not None else "unreadable")
        for order in ORDERS
    )
    return Judgement(
        comparison=name, principle="p", principle_text="", labeler="", readings=readings, p_a=p_a, weight=weight
    )
