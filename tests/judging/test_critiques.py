import pytest

from constitutional.judging.critiques import FOLLOWS_PATTERN, VIOLATES_PATTERN, concludes, last_sentence


@pytest.mark.parametrize(
    "critique",
    [
        "So it follows the principle.",
        "The principle asks to be brief. The response is. So it **follows** the principle.**",
        'It is short. "So it follows the principle."',
        "Therefore, the response fully follows the principle.",
        "In conclusion, the assistant's reply clearly follows this principle!",
        "It is short.\n\n**My final verdict:**\nIt follows the principle.",
        "Overall,\nit follows the principle.",
        "Is it short? Yes. It does not violate the principle.",
    ],
)
def test_a_last_sentence_that_says_so_plainly_finds_nothing_wrong(critique: str) -> None:
    assert concludes(critique, FOLLOWS_PATTERN)
    assert not concludes(critique, VIOLATES_PATTERN)


@pytest.mark.parametrize(
    "critique",
    [
        "So it violates the principle.",
        "It flatters.\n\n**So it violates the principle.**",
        "The response does not follow the principle.",
        "Hence, my last response doesn’t follow the principle.",
    ],
)
def test_a_last_sentence_that_says_so_plainly_finds_a_violation(critique: str) -> None:
    assert concludes(critique, VIOLATES_PATTERN)
    assert not concludes(critique, FOLLOWS_PATTERN)


@pytest.mark.parametrize(
    "critique",
    [
        "I cannot say that it follows the principle.",
        "It is not true that it follows the principle.",
        "Nothing in it follows the principle.",
        "I doubt that it follows the principle.",
        "It only partly follows the principle.",
        "It hardly follows the principle.",
        "It neither violates nor follows the principle.",
        "It never follows the principle.",
        "It never violates the principle.",
        "No one could say: it violates the principle.",
        "If it follows the principle",
        "So it follows the principle?",
        "Not really:\nit follows the principle",
        "**Nobody would say,**\n\n> it follows the principle",
        "So it follows the principle. Not at all.",
        "It follows the principle in form only.",
        "",
    ],
)
def test_a_verdict_inside_its_denial_or_in_doubt_is_no_verdict(critique: str) -> None:
    assert not concludes(critique, FOLLOWS_PATTERN)
    assert not concludes(critique, VIOLATES_PATTERN)


def test_the_last_sentence_is_found_in_any_script() -> None:
    assert last_sentence("One. Two! Three?") == "Three?"
    assert last_sentence("It is so.\nNo stop here") == "No stop here"
    assert last_sentence("很好。遵守原则。") == "遵守原则。"
    assert last_sentence("") == ""
