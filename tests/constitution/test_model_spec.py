"""What the OpenAI Model Spec's Markdown may hold beside the file in `tests/data/constitutions`."""

from pathlib import Path

import pytest

from constitutional.constitution.constitution import Example
from constitutional.constitution.file import ReadConstitution, read_constitution
from constitutional.constitution.model_spec import is_model_spec


def read(folder: Path, content: str) -> ReadConstitution:
    path = folder / "spec.md"
    path.write_text(content)
    return read_constitution(path)


def examples(folder: Path, fence: str) -> tuple[tuple[Example, ...], list[str]]:
    content = f"# Be kind {{#kind authority=user}}\n\nReplies are kind.\n\n**Example**: one\n\n~~~xml\n{fence}\n~~~\n"
    found = read(folder, content)
    assert found.constitution
    assert found.constitution.principles[0].text == "Be kind: Replies are kind."
    return found.constitution.principles[0].examples, [note.text for note in found.left_out]


USER = "<user>\nHi\n</user>\n"
GOOD = "<assistant> <!-- GOOD -->\nHello!\n</assistant>\n"
BAD = "<assistant> <!-- BAD -->\nWhat?\n</assistant>\n"
PLAIN = Example(prompt="Hi", better="Hello!", worse="What?")


@pytest.mark.parametrize(
    "fence",
    [
        f"{USER}<comparison>\n{GOOD}{BAD}</comparison>",
        f"{USER}<comparison>\n{BAD}{GOOD}</comparison>",
        f"{USER}<comparison>\n<!-- GOOD -->\n<assistant>\nHello!\n</assistant>\n{BAD}</comparison>",
        (
            f"{USER}<comparison>\n<assistant>\n<!-- GOOD -->\nHello!\n</assistant>\n"
            "<assistant><!--bad-->What?</assistant>\n</comparison>"
        ),
        f"{USER}{GOOD}{BAD}",  # no comparison around them
        f"{USER}<comparison>\n{GOOD}{BAD}",  # never closed
    ],
)
def test_marks_stand_in_any_order_and_place(tmp_path: Path, fence: str) -> None:
    assert examples(tmp_path, fence) == ((PLAIN,), [])


def test_reasons_within_marks_are_kept(tmp_path: Path) -> None:
    good = "<assistant> <!-- GOOD: warm,\nand &quot;short&quot; -->\nHello!\n</assistant>\n"
    bad = "<assistant> <!-- BAD[#kind][x]: cold -->\nWhat?\n</assistant>\n"
    (example,), notes = examples(tmp_path, f"{USER}<comparison>\n{good}{bad}</comparison>")
    assert example.why is not None
    assert example.why.startswith('GOOD: warm, and "short"; BAD')
    assert "cold" in example.why
    assert notes == []


@pytest.mark.parametrize(
    ("fence", "word"),
    [
        (f"{USER}<comparison>\n{GOOD}</comparison>", "GOOD reply only"),
        (f"{USER}<comparison>\n{BAD}</comparison>", "BAD reply only"),
        (f"{USER}<assistant>\nHello!\n</assistant>", "compares nothing"),
        (
            f"{USER}<comparison>\n<assistant>\nA\n</assistant>\n<assistant>\nB\n</assistant>\n</comparison>",
            "compares nothing",
        ),
        (f"<comparison>\n{GOOD}{BAD}</comparison>", "no message"),
        ("print('code')", "compares nothing"),
    ],
)
def test_what_gives_no_example_is_said(tmp_path: Path, fence: str, word: str) -> None:
    found, (note,) = examples(tmp_path, fence)
    assert found == ()
    assert word in note
    assert "'one'" in note


def test_each_bad_reply_makes_an_example_and_a_reply_without_a_mark_is_said(tmp_path: Path) -> None:
    more = "<assistant> <!-- BAD -->\nGo.\n</assistant>\n<assistant>\nHm.\n</assistant>\n"
    found, notes = examples(tmp_path, f"{USER}<comparison>\n{GOOD}{BAD}{more}</comparison>")
    assert [example.worse for example in found] == ["What?", "Go."]
    assert len(notes) == 1
    assert "1 reply without a mark" in notes[0]


def test_a_second_comparison_goes_on_from_the_good_reply_to_the_first(tmp_path: Path) -> None:
    again = "<user>\nAgain\n</user>\n"
    found, _ = examples(
        tmp_path, f"{USER}<comparison>\n{GOOD}{BAD}</comparison>\n{again}<comparison>\n{GOOD}{BAD}</comparison>"
    )
    assert [example.prompt for example in found] == ["Hi", "User: Hi\n\nAssistant: Hello!\n\nUser: Again"]


def test_messages_of_several_roles_are_written_out_and_tags_of_others_stay(tmp_path: Path) -> None:
    said = (
        '<system>\nBe <b>brief</b>.\n</system>\n<assistant recipient="browser">\nopen()\n</assistant>\n'
        '<tool name="browser">\nA &amp; B\n</tool>\n'
    )
    (example,), _ = examples(tmp_path, f"{said}<comparison>\n{GOOD}{BAD}</comparison>")
    assert example.prompt == "System: Be <b>brief</b>.\n\nAssistant: open()\n\nTool: A & B"


def test_authorities_are_an_order_of_priority_over_the_levels_that_there_are(tmp_path: Path) -> None:
    levels = {"a": "root", "b": "root", "c": "developer", "d": "guideline", "e": "guideline"}
    content = "".join(f"# {name} {{#{name} authority={level}}}\n\nText.\n\n" for name, level in levels.items())
    found = read(tmp_path, content).constitution
    assert found
    assert {row.id: row.overrides for row in found.principles} == {
        "a": ("c",),
        "b": ("c",),
        "c": ("d", "e"),
        "d": (),
        "e": (),
    }
    assert found.overridden_by["d"] == ("a", "b", "c")
    assert [row.tags for row in found.principles] == [(level,) for level in levels.values()]


def test_an_id_that_needs_mending_is_mended_where_it_is_overridden_too(tmp_path: Path) -> None:
    content = "# A {#1.a authority=root}\n\nSee [?](#no.harm).\n\n# B {#no.harm authority=user}\n\nDo b.\n"
    found = read(tmp_path, content).constitution
    assert found
    assert {row.id: (row.text, row.overrides) for row in found.principles} == {
        "p_1_a": ("A: See “B”.", ("no_harm",)),
        "no_harm": ("B: Do b.", ()),
    }


def test_too_many_priorities_are_left_out_and_said(tmp_path: Path) -> None:
    content = "".join(f"# {n} {{#p{n} authority={('root', 'user')[n % 2]}}}\n\nText.\n\n" for n in range(400))
    found = read(tmp_path, content)
    assert found.constitution
    assert not any(row.overrides for row in found.constitution.principles)
    assert any("40,000 pairs" in note.text for note in found.left_out)


def test_commentary_ends_where_its_indentation_does_and_may_hold_blank_lines_and_fences(tmp_path: Path) -> None:
    content = (
        "# A {#a authority=root}\n\nFirst.\n\n"
        '!!! meta "Commentary"\n    Not this.\n\n    ~~~\n    # nor this {#no authority=root}\n    ~~~\n\nSecond.\n'
    )
    found = read(tmp_path, content)
    assert found.constitution
    assert [row.text for row in found.constitution.principles] == ["A: First. Second."]
    assert [note.line for note in found.left_out] == [5]


def test_text_behind_an_example_without_a_fence_is_not_lost(tmp_path: Path) -> None:
    found = read(tmp_path, "# A {#a authority=root}\n\n**Example**: a promise\nthat goes on\n\nThis is a rule.\n")
    assert found.constitution
    assert found.constitution.principles[0].text == "A: This is a rule."
    assert [(note.line, "a promise that goes on" in note.text) for note in found.left_out] == [(3, True)]


def test_a_document_of_another_kind_with_one_such_heading_is_read_as_before() -> None:
    assert not is_model_spec("# Ours\n\n## Honesty {#honest authority=user}\n\nA.\n\n## Kind\n\nB.\n\n## Calm\n\nC.\n")
    assert not is_model_spec("```\n# A {#a authority=root}\n```\n")
    assert is_model_spec("# Over all\n\n## Honesty {#honest authority=user}\n\nA.\n\n## More\n\nB.\n")
