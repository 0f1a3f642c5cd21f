"""Tests for telling prose from lists in plain text, and for what is no principle in a list."""

from pathlib import Path

import pytest

from constitutional.constitution.file import read_constitution
from constitutional.constitution.plain_text import is_prose, read_list

CHARTER = """\
HARBOUR ASSISTANT CHARTER
Adopted in Oslo, 3 March 2024

Preamble

We believe that machines which talk with people shape how people think. This text came out of two years of talks with
our customers. It was written by Ann and Bob.

Article 1. Honesty

The assistant must never state as fact what it does not know. Where it is unsure, it should say so in plain words. Truth
was the value named most often in our survey of 2,304 people.

Article 2. Respect

1. The assistant shall treat every user with respect, whatever their origin.
2. It must not flatter. It should not lec-
ture either.
3. Users may end a conversation at any time.

12

Article 3. Last words

This charter enters into force on 1 April 2024. The board shall review this charter every two years.
"""
BINDING = [
    "The assistant must never state as fact what it does not know.",
    "Where it is unsure, it should say so in plain words.",
    "The assistant shall treat every user with respect, whatever their origin.",
    "It must not flatter.",
    "It should not lecture either.",
]


def texts(content: str, tmp_path: Path) -> list[str]:
    """The principles of a file `rules.txt`."""
    path = tmp_path / "rules.txt"
    path.write_text(content)
    read = read_constitution(path)
    assert read.constitution is not None, "it has no mistakes"
    return [principle.text for principle in read.constitution.principles]


def test_a_short_charter_of_headings_and_cut_lines_is_prose(tmp_path: Path) -> None:
    assert texts(CHARTER, tmp_path) == BINDING


def test_a_charter_of_one_paragraph_a_line_is_prose(tmp_path: Path) -> None:
    paragraphs = [
        " ".join(part.replace("lec-\n", "lec").replace("2024\n", "2024 ").split()) for part in CHARTER.split("\n\n")
    ]
    assert texts("\n\n".join(paragraphs), tmp_path) == BINDING
    assert texts("\n".join(paragraphs), tmp_path) == BINDING


@pytest.mark.parametrize("between", ["\n", "\n\n"])
def test_short_commands_stay_a_list(between: str, tmp_path: Path) -> None:
    commands = [
        "Keep it short.",
        "Tell the truth.",
        "Be warm.",
        "Do not flatter the user.",
        "Say what you do not know.",
    ]
    assert texts(between.join(commands * 6), tmp_path)[:5] == commands


def test_commands_of_two_sentences_stay_a_list_below_headings() -> None:
    content = (
        "Honesty\nTell the truth, and say where you are unsure of it. Name your sources where you have some.\n"
        "Do not guess at numbers. Say that the number is not known to you.\n\n"
        "Kindness\nBe warm to those who ask for help. Do not flatter them.\n"
        "Keep the answer short. Leave out what nobody asked for.\n\n"
        "Article 3. Care\n\nPoint people in distress to those who can help. Listen before you advise them."
    )
    assert not is_prose(content)
    found = read_list(content)
    assert [entry.line for entry in found.entries] == [2, 3, 6, 7, 11]
    assert [(note.line, note.text) for note in found.left_out] == [
        (1, '"Honesty": a heading'),
        (5, '"Kindness": a heading'),
        (9, '"Article 3. Care": a heading'),
    ]


def test_principles_with_their_reasons_stay_a_list() -> None:
    lines = [
        "The assistant should not flatter. People need to know where they stand.",
        "The assistant must name its sources. The reader can then look them up.",
        "The assistant should answer in the language of the question. It is the one that the user reads best.",
    ]
    assert not is_prose("\n".join(lines * 3))


def test_numbers_of_pages_and_cut_sentences_are_no_principles_of_a_list() -> None:
    found = read_list(
        "Be brief.\nSay what you do not know, and do so before you\nsay what you know.\n\n7\n\nBe kind.\nNever lie.\n"
    )
    assert [(entry.line, entry.values["text"]) for entry in found.entries] == [
        (1, "Be brief."),
        (2, "Say what you do not know, and do so before you say what you know."),
        (7, "Be kind."),
        (8, "Never lie."),
    ]
    assert [(note.line, note.text) for note in found.left_out] == [(5, '"7": a number alone')]


def test_a_command_whose_full_stop_was_forgotten_is_no_heading() -> None:
    found = read_list("Be brief.\n\nKeep it short\n\nTell the truth.\n\nBe kind.\n")
    assert [entry.values["text"] for entry in found.entries] == [
        "Be brief.",
        "Keep it short",
        "Tell the truth.",
        "Be kind.",
    ]


@pytest.mark.parametrize("words", ["Never", "Don'ts", "The assistant must never", "Do not do any of the following"])
@pytest.mark.parametrize("colon", ["", ":"])
@pytest.mark.parametrize("end", ["", "."])
def test_lines_below_one_that_forbids_are_read_with_it_up_to_an_empty_line(words: str, colon: str, end: str) -> None:
    found = read_list(f"{words}{colon}\nReveal private data{end}\nNever lie{end}\n\nBe brief{end}\nBe kind{end}\n")
    assert (found.problems, found.about, found.left_out) == ([], {}, [])
    assert [(entry.line, entry.values["text"]) for entry in found.entries] == [
        (2, f"{words}: Reveal private data{end}"),
        (3, f"Never lie{end}"),
        (5, f"Be brief{end}"),
        (6, f"Be kind{end}"),
    ]


@pytest.mark.parametrize(
    "content", ["Never:\n\nReveal private data.\n", "Be kind.\nNever:\n", "Never:\nDo not:\nLie.\n"]
)
def test_a_line_that_forbids_nothing_directly_below_it_is_refused(tmp_path: Path, content: str) -> None:
    path = tmp_path / "rules.txt"
    path.write_text(content)
    read = read_constitution(path)
    assert read.constitution is None
    assert [problem.line for problem in read.problems] == [2 if content.startswith("Be") else 1]


def test_a_rule_that_begins_with_its_number_is_no_comment_and_no_title() -> None:
    found = read_list("# Our rules\n#1 rule: never lie\nBe brief.\nBe kind.\n")
    assert [entry.values["text"] for entry in found.entries] == ["#1 rule: never lie", "Be brief.", "Be kind."]


def test_a_wrapped_line_that_begins_with_principles_is_no_yaml(tmp_path: Path) -> None:
    assert texts("The assistant should follow all of these\nprinciples: honesty, care.\nNever lie.\n", tmp_path) == [
        "The assistant should follow all of these",
        "principles: honesty, care.",
        "Never lie.",
    ]
    assert texts("principles: [Be brief., Be kind.]\n", tmp_path) == ["Be brief.", "Be kind."]
    assert texts("principles:  # ours\r\n- Be brief.\r\n", tmp_path) == ["Be brief."]
