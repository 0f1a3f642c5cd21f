import math
from collections.abc import Sequence

import pytest

from constitutional.engines.base import Completion, Request
from constitutional.sandbox.teacher import NOTHING, restate
from constitutional.sandbox.understand import MEANINGS, in_capitals, understand_texts


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


@pytest.mark.parametrize(
    ("text", "unknown"),
    [
        ("Don’t flatter; it isn’t kind.", []),  # a curly apostrophe is one like another
        ("Avoid 'flattery' and “praise”, and the users' praise.", []),  # quotation marks are no part of a word
        ("Avoid 'zorbling' and \"quuxes\".", ["zorbling", "quuxes"]),
        ("No clichés, no cliche\u0301s.", ["clichés"]),  # one character for é, or two
        ("Keine Schmeichelei, größer!", ["keine", "schmeichelei", "größer"]),
        ("诚实。 Будь честным.", ["诚实", "будь", "честным"]),
        ("Keep it under 50 words, snake_zorble.", ["snake", "zorble"]),
        ("Lorem ipsum, placeholder.", []),  # of the principles that ask for nothing
    ],
)
def test_words_are_told_apart_as_a_reader_would(text: str, unknown: list[str]) -> None:
    (understood,) = understand_texts([text], engine=Fixed())
    assert understood.unknown_words == unknown


@pytest.mark.parametrize(
    ("text", "capitals"),
    [
        ("DON'T FLATTER THE USER.", True),
        ("NEVER lie.", True),  # 5 of 8 letters
        ("NEVER evade", False),  # 5 of 10: not more than half
        ("Do NOT flatter.", False),
        ("I I I I lie", False),  # words of one letter are left out
        ("诚实", False),  # no capitals in this script
        ("ÄRGERE NIEMANDEN", True),
        ("50 %!", False),
    ],
)
def test_a_text_is_in_capitals_if_most_of_its_letters_are(text: str, capitals: bool) -> None:
    assert in_capitals(text) == capitals


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
