import math
from collections.abc import Sequence

import pytest

from constitutional.engines.base import Completion, Request, TooLongError
from constitutional.sandbox.principles import free_principles
from constitutional.sandbox.teacher import NOTHING, restate
from constitutional.sandbox.understand import MEANINGS, Understanding, doubts, in_capitals, understand_texts


class Fixed:
    """Gives every meaning the same probability but for two."""

    identity = "fixed"

    def complete(self, requests: Sequence[Request]) -> list[Completion]:
        odds = {restate("flattery", "avoid"): math.log(70), restate("flattery", "seek"): math.log(11)}
        return [Completion("", "choices", tuple(odds.get(choice, 0.0) for choice in r.choices)) for r in requests]


def understand_one(text: str) -> Understanding:
    (understood,) = understand_texts([text], engine=Fixed())
    assert understood is not None
    return understood


def test_probabilities_are_among_the_meanings_that_the_model_can_express() -> None:
    understood = understand_one("Don't zorble the user.")
    # 20 families and 'nothing' make 21 meanings: 70 + 11 + 19 × 1 = 100
    assert len(MEANINGS) == 21
    assert (understood.trait, understood.direction) == ("flattery", "avoid")
    assert understood.restated == "The principle asks to avoid flattery."
    assert understood.probability == pytest.approx(0.70)
    assert understood.runner_up == "seek flattery"
    assert understood.runner_up_probability == pytest.approx(0.11)


def test_words_that_no_training_principle_holds_are_pointed_out_once_and_in_order() -> None:
    understood = understand_one("Zorble never, user; always ZORBLE the quuxes.")
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
    understood = understand_one(text)
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
        assert understood is not None
        assert (understood.trait, understood.direction) == wanted[understood.text], understood
        assert understood.probability > 0.8


def read_as(text: str, meaning: str) -> list[str]:
    """What is doubtful where a text is read as such a meaning for certain."""
    direction, trait = meaning.split()
    return doubts(Understanding(text, trait, direction, "", 0.99, "avoid refusal", 0.01, []))


@pytest.mark.parametrize(
    ("text", "meaning", "phrase"),
    [
        ("Keep it short and get to the point.", "seek verbosity", "get to the point"),
        ("Short answers please.", "seek verbosity", "short answers"),
        ("Never flatter the user.", "seek flattery", "never"),
        ("Please don't curry favor with compliments.", "seek flattery", "don't"),
        ("Avoid flattery.", "seek flattery", "avoid"),
        ("No flattery, please.", "seek flattery", "no"),
        ("Don't zorble anybody.", "seek flattery", "don't"),
        ("The response should not flatter the user.", "seek flattery", "not"),
        ("Answer without verbosity.", "seek verbosity", "without"),
        ("Be rude.", "avoid rudeness", "be rude"),
        ("Be thorough.", "avoid verbosity", "thorough"),
        ("Share other people's secrets.", "avoid privacy_leak", "other people's secrets"),
        # What is read as it is meant:
        ("Keep it short and get to the point.", "avoid verbosity", None),
        ("Never flatter the user.", "avoid flattery", None),
        ("Do not hold back on flattery.", "seek flattery", None),
        ("Never be brief.", "seek verbosity", None),
        ("Less flattery.", "avoid flattery", None),
        ("I am tired of flattery.", "avoid flattery", None),
        ("Be polite.", "avoid rudeness", None),
        ("Zorble the quuxes.", "seek flattery", None),
        ("Keep other people's secrets.", "avoid privacy_leak", None),
        ("Guard people's secrets.", "avoid privacy_leak", None),
        ("Keep personal details confidential.", "avoid privacy_leak", None),
    ],
)
def test_words_that_say_the_opposite_of_what_is_read_are_pointed_out(
    text: str, meaning: str, phrase: str | None
) -> None:
    doubtful = [sentence for sentence in read_as(text, meaning) if "opposite" in sentence]
    assert bool(doubtful) == (phrase is not None)
    assert all(repr(phrase) in sentence for sentence in doubtful)


def test_a_trait_that_can_only_be_avoided_is_said_to_be_so() -> None:
    assert "no principle that asks for it" in read_as("Be rude.", "avoid rudeness")[0]
    assert "no principle that asks for it" not in read_as("Be thorough.", "avoid verbosity")[0]


def test_a_warning_says_how_to_word_what_is_meant() -> None:
    assert '"Avoid flattery."' in read_as("Never flatter.", "seek flattery")[0]
    assert '"Aim for verbosity."' in read_as("Be thorough.", "avoid verbosity")[0]


def test_free_wordings_that_are_read_rightly_are_hardly_ever_warned_of() -> None:
    wordings = free_principles()
    warned = [wording for wording in wordings if read_as(wording["text"], f"{wording['direction']} {wording['trait']}")]
    opposite = {"avoid": "seek", "seek": "avoid"}
    turned = [
        wording
        for wording in wordings
        if read_as(wording["text"], f"{opposite[wording['direction']]} {wording['trait']}")
    ]
    assert len(warned) <= 1
    assert len(turned) >= 11


class Narrow(Fixed):
    """Reads 100 characters, and keeps how many were asked at once."""

    def __init__(self) -> None:
        self.sizes: list[int] = []

    def complete(self, requests: Sequence[Request]) -> list[Completion]:
        self.sizes.append(len(requests))
        if any(len(request.messages[0].content) > 100 for request in requests):
            raise TooLongError("too long")
        return super().complete(requests)


def test_a_text_that_is_too_long_is_none_and_the_others_are_answered() -> None:
    understood = understand_texts(["Be kind.", "Be kind. " * 50, "Be calm."], engine=Narrow())
    assert [understanding and understanding.text for understanding in understood] == ["Be kind.", None, "Be calm."]


def test_many_texts_are_asked_in_batches_with_progress(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("constitutional.base.progress.LOG_EVERY_S", 0.0)
    monkeypatch.setattr("constitutional.base.progress.FIRST_AFTER_S", 0.0)
    engine = Narrow()
    assert len(understand_texts(["Be kind."] * 150, engine=engine)) == 150
    assert engine.sizes == [64, 64, 22]
    assert "understood as: 100%" in capsys.readouterr().err
