import pytest
from pydantic import ValidationError

from constitutional.constitution.constitution import Constitution, Principle
from constitutional.constitution.measures import MEASURES, rule_of


@pytest.mark.parametrize(
    ("name", "text", "count"),
    [
        ("words", "One two, three.", 3),
        ("list items", "You need:\n- flour\n  * water\n1. salt\n2) oil\na) time\nand 3. patience", 5),
        ("list items", "1.5 litres\n-5 degrees\n*bold* words", 0),
        ("questions", "Why? Really?! No.", 2),
        ("exclamation marks", "Wow!!! Great! Fine.", 2),
        ("refusals", "I’m sorry, but I can’t help with that.", 1),
        ("refusals", "Push a card into the gap.", 0),
        ("first person", "I'm sure my dog likes me as it is", 100 * 3 / 9),
        ("casual words", "Hey, don't go there", 50),
        ("casual words", "It is John's house", 0),
        ("formal words", "Therefore we require proof", 50),
        ("formal words", "", 0),
    ],
)
def test_what_is_counted(name: str, text: str, count: float) -> None:
    assert MEASURES[name].number_in(text) == pytest.approx(count)


@pytest.mark.parametrize(
    ("written", "words", "score"),
    [
        ("fewer words", 0, 10),
        ("less words", 60, 5.5),
        ("more words", 0, 1),
        ("More  Words", 60, 5.5),
        ("more words", 540, 1 + 9 * 0.9),
        ("at most 40 words", 40, 10),
        ("at most 40 words", 100, 5.5),
        ("at least 40 words", 40, 10),
        ("at least 60 words", 0, 5.5),
    ],
)
def test_a_score_goes_from_1_to_10_by_the_count(written: str, words: int, score: float) -> None:
    assert rule_of(written).score("word " * words) == pytest.approx(score)


def test_one_of_a_kind_is_understood_too() -> None:
    assert rule_of("at most 1 question") == rule_of("at most 1 questions")


@pytest.mark.parametrize("written", ["short", "fewer", "fewer letters", "at most words", "at most -3 words", ""])
def test_what_names_no_rule_is_refused_with_those_that_there_are(written: str) -> None:
    with pytest.raises(ValueError, match=r"must be 'more', 'fewer'.* of words, list items.*such as 'fewer words'"):
        rule_of(written)
    with pytest.raises(ValidationError):
        Principle(id="p", text="Be brief.", measure=written)


def test_a_measure_changes_what_labels_depend_on_and_no_measure_changes_nothing() -> None:
    plain = Constitution(name="c", principles=(Principle(id="p", text="Be brief."),))
    ruled = Constitution(name="c", principles=(Principle(id="p", text="Be brief.", measure="fewer words"),))
    assert plain.digest != ruled.digest
    assert plain.digest_for("comparison") != ruled.digest_for("comparison")
    assert plain.digest_for("revision") == ruled.digest_for("revision")
    assert "measure" not in plain.principles[0].model_dump()
    assert ruled.select(wordings={"p": "Be quick."}).principles[0].measure is None
