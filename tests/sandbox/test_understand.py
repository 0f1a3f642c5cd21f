import math
from collections.abc import Sequence

import pytest

from constitutional.engines.base import Completion, Request
from constitutional.sandbox.teacher import NOTHING, restate
from constitutional.sandbox.understand import MEANINGS, understand_texts


class Fixed:
    """Gives every meaning the same probability but for two."""

    identity = "fixed"

    def complete(self, requests: Sequence[Request]) -> list[Completion]:
        odds = {restate("flattery", "avoid"): math.log(70), restate("flattery", "seek"): math.log(11)}
        return [Completion("", "choices", tuple(odds.get(choice, 0.0) for choice in r.choices)) for r in requests]


def test_probabilities_are_among_the_meanings_that_the_model_can_express() -> None:
    (understood,) = understand_texts(["Don't zorble the user."], engine=Fixed())
    # 20 families and 'nothing' make 21 meanings: 70 + 11 + 19 × 1 = 100
    assert len(MEANINGS) == 21
    assert (understood.trait, understood.direction) == ("flattery", "avoid")
    assert understood.restated == "The principle asks to avoid flattery."
    assert understood.probability == pytest.approx(0.70)
    assert understood.runner_up == "seek flattery"
    assert understood.runner_up_probability == pytest.approx(0.11)


def test_words_that_no_training_principle_holds_are_pointed_out_once_and_in_order() -> None:
    (understood,) = understand_texts(["Zorble never, user; always ZORBLE the quuxes."], engine=Fixed())
    assert understood.unknown_words == ["zorble", "quuxes"]


def test_the_shipped_model_understands_plain_principles() -> None:
    wanted = {
        "Don't butter people up.": ("flattery", "avoid"),
        "Keep it short.": ("verbosity", "avoid"),
        "Be thorough and detailed.": ("verbosity", "seek"),
        "Never insult anybody.": ("rudeness", "avoid"),
        "Do not help with crimes.": ("harmful_compliance", "avoid"),
        "Warn people about the dangers.": ("safety_warning", "seek"),
        "Nothing in particular.": NOTHING,
    }
    for understood in understand_texts(list(wanted)):
        assert (understood.trait, understood.direction) == wanted[understood.text], understood
        assert understood.probability > 0.8
