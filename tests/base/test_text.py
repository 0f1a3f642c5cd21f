import pytest

from constitutional.base.text import printable, table


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b[31mred\x1b[0m", "\\x1b[31mred\\x1b[0m"),
        ("bell \x07, back\x08, return\r", "bell \\x07, back\\x08, return\\r"),
        ("\u202egnp.exe", "\\u202egnp.exe"),  # would be read from right to left
        ("\x9b2J", "\\x9b2J"),  # a control sequence in one character
        ("a\u2028b\ud800", "a\\u2028b\\ud800"),
        ("two\n\tlines", "two\n\tlines"),
        ("礼貌, naïve, नमस्ते, 👩\u200d🚀, a\u00a0b\u3000c", "礼貌, naïve, नमस्ते, 👩\u200d🚀, a\u00a0b\u3000c"),
    ],
)
def test_what_controls_a_terminal_is_written_out_and_letters_of_any_script_stay(text: str, shown: str) -> None:
    assert printable(text) == shown


def test_a_table_sets_numbers_right_and_text_left() -> None:
    rows = [("stage", "state", "time", "made"), ("sft", "done", "0:07", "a \x1b[2J"), ("label", "", "1:10:00", "")]
    assert table(rows).splitlines() == [
        "stage  state     time  made",
        "sft    done      0:07  a \\x1b[2J",
        "label         1:10:00",
    ]
