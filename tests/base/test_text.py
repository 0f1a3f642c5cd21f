# ruff: noqa: RUF001
import unicodedata

import pytest
from rich.cells import cell_len

from constitutional.base.text import (
    canonical,
    count_questions,
    first_words,
    printable,
    same_text,
    sentences,
    shortened,
    table,
    thoughts_apart,
    whole_sentences,
    words,
)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("one two three four  five", ["one", "two", "three", "four", "five"]),
        ("I can't – really!", ["I", "can't", "–", "really!"]),
        ("你好，世界。", ["你", "好，", "世", "界。"]),
        ("「はい」と", ["「", "は", "い」", "と"]),
        ("用GPT写 code", ["用", "GPT", "写", "code"]),
        ("สวัสดี", ["ส", "วั", "ส", "ดี"]),  # four letters with the marks above them
        ("안녕 세상", ["안녕", "세상"]),  # Korean has spaces
        ("नमस्ते दुनिया", ["नमस्ते", "दुनिया"]),
        ("مرحبا بالعالم", ["مرحبا", "بالعالم"]),
        ("ភាសា\u200bខ្មែរ", ["ភា", "សា", "ខ្", "មែ", "រ"]),
        (" \n\u3000", []),
    ],
)
def test_words_are_what_spaces_divide_or_characters_where_there_are_no_spaces(text: str, expected: list[str]) -> None:
    assert words(text) == expected


def test_the_first_words_keep_the_text_between_them() -> None:
    assert first_words("  one two\nthree four", 3) == "  one two\nthree"
    assert first_words("我不能这样做", 3) == "我不能"
    assert first_words("one", 3) == "one"
    assert first_words("", 3) == ""


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("Why? How?? So.", 2),
        ("What?! Yes!", 1),
        ("你好吗？真的？！好。", 2),
        ("كيف حالك؟", 1),
        ("Ինչո՞ւ", 1),
        ("No.", 0),
    ],
)
def test_questions_are_counted_in_any_script(text: str, count: int) -> None:
    assert count_questions(text) == count


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("One. Two! Three?\nFour", ["One.", "Two!", "Three?", "Four"]),
        ('He said "no." Then v1.5 came.', ['He said "no."', "Then v1.5 came."]),
        ("你好。世界！好？", ["你好。", "世界！", "好？"]),
        ("真的吗？！是。", ["真的吗？！", "是。"]),
        ("彼は「はい。」と言った。そう。", ["彼は「はい。」", "と言った。", "そう。"]),
        ("ठीक है। चलो।", ["ठीक है।", "चलो।"]),
        (" \n", []),
    ],
)
def test_sentences_end_where_their_script_ends_them(text: str, expected: list[str]) -> None:
    assert sentences(text) == expected


ALIKE = [
    ("Où est le café ?", unicodedata.normalize("NFD", "Où est le café ?")),
    ("List:\n- a", "List:\r\n- a"),
    ("How do I bake bread?", "How do I  bake bread? \n"),
    ("Hi there", "\ufeffHi there"),
    ("Hi there", "\u200bHi\u2060 th\u00adere\u200e"),
    ("Say it", "Say\u00a0it"),
    ("你 好", "你\u3000好"),
    ("ABC 12?", "ＡＢＣ　１２？"),
    ("find", "ﬁnd"),
    ("가", unicodedata.normalize("NFD", "가")),
    ("wait...", "wait…"),
]
UNLIKE = [("2²", "22"), ("H₂O", "H2O"), ("½", "12"), ("Hi", "hi"), ("a b", "ab"), ("é", "e"), ("Hi?", "Hi")]


@pytest.mark.parametrize(("one", "other"), ALIKE)
def test_texts_that_look_the_same_are_the_same(one: str, other: str) -> None:
    assert one != other
    assert same_text(one, other)
    assert canonical(canonical(other)) == canonical(one)


@pytest.mark.parametrize(("one", "other"), UNLIKE)
def test_texts_that_look_different_are_different(one: str, other: str) -> None:
    assert not same_text(one, other)


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


LONG_IDS = [
    ("principle", "right", "accuracy", "95% interval", ""),
    ("avoid_requests_for_harmful_compliance_of_any_kind_whatsoever", "3 of 4", "75%", "30%–95%", "near chance"),
    ("礼貌" * 20, "20 of 20", "100%", "84%–100%", "too few examples to tell; 1 position conflict"),
]


@pytest.mark.parametrize("width", [None, 80, 60, 48])
def test_a_table_fits_the_columns_that_there_are_and_nothing_is_cut_off(width: int | None) -> None:
    lines = table(LONG_IDS, numbers_from=1, width=width).splitlines()
    assert max(cell_len(line) for line in lines) <= (width or 80)
    for cell in (cell for row in LONG_IDS for cell in row):
        assert all(any(word in line for line in lines) for word in cell.split() if len(word) <= 8)
    letters = sorted(letter for line in lines for letter in line if not letter.isspace())
    assert letters == sorted(letter for row in LONG_IDS for cell in row for letter in cell if not letter.isspace())


def test_the_widest_text_is_wrapped_and_numbers_stay_whole() -> None:
    rows = [("stage", "state", "calls made", "made"), ("label", "done", "1,234", "one two three"), ("x", "", "7", "")]
    # 5 + 4 + 5 + 5 columns, and 3 gaps of 2; headings of numbers are wrapped as text is.
    assert table(rows, width=25).splitlines() == [
        "stage  state  calls  made",
        "               made",
        "label  done   1,234  one",
        "                     two",
        "                     three",
        "x                 7",
    ]
    assert table(rows, width=80) == table(rows)
    assert "one two three" in table(rows)
    assert table([("word word", "1", "")], numbers_from=1, width=12) == "word word  1"  # no gap before an empty column


def test_a_terminal_has_its_own_width(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    assert max(map(cell_len, table(LONG_IDS, numbers_from=1).splitlines())) > 80


def test_a_table_has_no_control_codes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert table([("[bold]a[/]", "1 of 2", "https://x.y 'z' :smile:")]) == "[bold]a[/]  1 of 2  https://x.y 'z' :smile:"


@pytest.mark.parametrize(
    ("cut", "kept"),
    [
        ("Mix flour and water. Knead the do", "Mix flour and water."),
        ("It ends here.", "It ends here."),
        ('He said "No!" and le', 'He said "No!"'),
        ("You need:\n1. Flour\n2. Wat", "You need:\n1. Flour"),
        ("You need:\n- Flour.\n- ", "You need:\n- Flour."),
        ("水を入れる。そして粉", "水を入れる。"),
        ("no end to this", ""),
        ("", ""),
    ],
)
def test_a_text_that_was_cut_off_keeps_its_whole_sentences(cut: str, kept: str) -> None:
    assert whole_sentences(cut) == kept


@pytest.mark.parametrize(
    ("written", "opened", "apart"),
    [
        ("Mix flour.", False, ("", "Mix flour.")),
        (" <think>\nSo.\n</think>\n\nMix flour.\n", False, ("So.", "Mix flour.\n")),
        ("<think>So. I should", False, ("So. I should", "")),
        ("So.</think>Mix flour.", False, ("", "So.</think>Mix flour.")),
        ("So.</think>Mix flour.", True, ("So.", "Mix flour.")),
        ("So. I should", True, ("So. I should", "")),
        ("<think>So.</think>A tag is </think>.", True, ("So.", "A tag is </think>.")),
    ],
)
def test_a_thought_ends_with_its_tag_or_is_all_there_is(written: str, opened: bool, apart: tuple[str, str]) -> None:
    assert thoughts_apart(written, opened=opened) == apart


@pytest.mark.parametrize(
    ("cut", "kept"),
    [
        ("Mix flour. Knead", "Mix flour."),
        ("<think>\nOkay, the user asks. I should", ""),  # it never said anything
        ("<think>Okay. So.</think>\n\nMix flour. Knead", "<think>Okay. So.</think>\n\nMix flour."),
        ("<think>Okay. So.</think>\n\nMix flo", ""),
    ],
)
def test_a_reply_that_was_cut_off_is_shortened_behind_its_thoughts(cut: str, kept: str) -> None:
    assert shortened(cut) == kept


def test_texts_that_end_alike_are_told_apart_by_what_comes_before() -> None:
    assert same_text("It is so. ", " It \t is\nso.")
    assert not same_text("It is so.", "Is it so.")
    assert not same_text("so.", "It is so.")
    assert same_text("", " \n")
    assert not same_text("", "so.")


def test_spaces_of_every_kind_are_one_in_a_canonical_text() -> None:
    assert canonical(" It is  so.") == canonical("It is so. ") == canonical("It\x1cis\tso.") == "It is so."
    assert canonical("It\x00is so.") == "It\x00is so."  # a control character is no space
