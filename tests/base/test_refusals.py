import pytest

from constitutional.base.refusals import REFUSAL_PHRASES, refuses


@pytest.mark.parametrize(
    ("text", "refused"),
    [
        ("I can’t help with that.", True),
        ("Sorry.\nI  CANNOT say.", True),
        ("“I will not,” it said.", True),
        ("AI cannot feel pain, but it can help you.", False),
        ("Sure! Your Wi-Fi will not work if the router is off.", False),
        ("Hawaii cannot be reached by car.", False),
        ("word " * 40 + "I cannot help.", False),  # beyond the first forty words
    ],
)
def test_a_reply_refuses_where_a_phrase_of_refusals_begins_with_a_word(text: str, refused: bool) -> None:
    assert refuses(text, REFUSAL_PHRASES) is refused


def test_words_of_scripts_without_spaces_are_found_within_a_clause() -> None:
    assert refuses("很抱歉我不能帮助你。", ("我不能",))
    assert not refuses("我能帮助你。", ("我不能", "I cannot"))
    assert not refuses("Anything", ())
