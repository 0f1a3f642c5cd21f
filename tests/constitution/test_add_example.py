"""An example is inserted into a YAML file in which all other lines stay; what could go wrong is refused."""

import re
from pathlib import Path

import pytest

from constitutional.base.errors import InputError
from constitutional.constitution.add_example import edit_of, write_edit
from constitutional.constitution.constitution import Example
from constitutional.constitution.file import load_constitution

EXAMPLE = Example(prompt="How? # no: 'x' \"y\"\n\n  second", better="- a\n- b: c", worse="yes")
INNER = "examples:\n  - prompt: p   # mine\n    better: b\n    worse: w\n"


def written(folder: Path, text: str, name: str = "ours.yaml") -> Path:
    path = folder / name
    path.write_bytes(text.encode())
    return path


@pytest.mark.parametrize(
    ("principle", "text"),
    [
        (
            "a",
            "# top\nprinciples:\n  # of a\n  - id: a\n    text: T.  # tail\n\n  # of b\n  - id: b\n    text: U.\n# e\n",
        ),
        ("b", "principles:\n  - id: a\n    text: T.\n  - id: b\n    text: >\n      folded\n      text\n\n# end\n"),
        ("b", "principles:\n- id: a\n  text: T.\n- id: b\n  text: |\n    kept\n\n    text"),  # no line end at the end
        ("a", "principles:\n- id: a\n  tags: [x,\n    y]\n  text: T.\n  critique:\n- U.\n"),
        ("a", f"principles:\n- id: a\n  {INNER.replace(chr(10), chr(10) + '  ')}\n  # after\n  text: T.\n- U.\n"),
        ("a", "principles:\n- id: a\n  text: T.\n  examples:\n  - {prompt: p, better: b, worse: w}\n\n# x\n- U.\n"),
        ("a", "principles:\r\n  - id: a\r\n    text: T.\r\n  - id: b\r\n    text: U.\r\n"),
        ("a", "\ufeffprinciples:\n  - id: a\n    text: T.\n"),
        ("be_a", "principles:\n  - Be a.  # why\n  - 'Be b.'\n"),
        ("be_b", "principles:\n  - Be a.  # why\n  - 'Be b.'\n"),
    ],
)
def test_all_other_lines_stay(tmp_path: Path, principle: str, text: str) -> None:
    path = written(tmp_path, text)
    before = load_constitution(path)
    edit = edit_of(path, principle, EXAMPLE)
    assert path.read_bytes() == text.encode()
    write_edit(edit)
    after = load_constitution(path)
    for old, new in zip(before.principles, after.principles, strict=True):
        added = (EXAMPLE,) if old.id == principle else ()
        assert new == old.model_copy(update={"examples": (*old.examples, *added)})
    content = path.read_bytes().decode()
    kept = iter(line.replace("- text: ", "- ") for line in content.splitlines())
    assert all(line in kept for line in text.splitlines() if line)  # in their order
    assert ("\r\n" in content) == ("\r\n" in text)
    assert not ("\r\n" in text and re.search("[^\r]\n", content))
    assert edit.diff.count("\n+") >= 5


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("principles:\n  - id: b\n    text: T.\n", "no principle 'a'"),
        ("principles:\n  - id: a\n    txt: T.\n", "ours.yaml:2"),
    ],
)
def test_what_cannot_be_inserted_is_refused(tmp_path: Path, text: str, problem: str) -> None:
    path = written(tmp_path, text)
    with pytest.raises(InputError, match=problem):
        edit_of(path, "a", EXAMPLE)
    assert path.read_bytes() == text.encode()


def test_an_example_is_added_once_and_not_to_markdown(tmp_path: Path) -> None:
    path = written(tmp_path, "principles:\n  - id: a\n    text: T.\n")
    write_edit(edit_of(path, "a", EXAMPLE))
    with pytest.raises(InputError, match="already"):
        edit_of(path, "a", EXAMPLE)
    with pytest.raises(InputError, match="Markdown"):
        edit_of(written(tmp_path, "- T.\n", "ours.md"), "t", EXAMPLE)


def test_a_link_to_the_file_stays_a_link(tmp_path: Path) -> None:
    path = written(tmp_path, "principles:\n  - id: a\n    text: T.\n")
    link = tmp_path / "link.yaml"
    link.symlink_to(path)
    write_edit(edit_of(link, "a", EXAMPLE))
    assert link.is_symlink()
    assert load_constitution(path).principles[0].examples == (EXAMPLE,)


@pytest.mark.parametrize("ends", ["\n", "\r\n"])
def test_a_principle_in_braces_gets_its_example_and_the_comments_stay(tmp_path: Path, ends: str) -> None:
    content = (
        "# Why we wrote it.\n"
        "name: 'Ours'  # the name\n"
        "principles:\n"
        "  # The first.\n"
        "  - {id: calm, text: Stay calm.}  # braces\n"
        '  - "Be brief."\n'
    ).replace("\n", ends)
    path = written(tmp_path, content)
    example = Example(prompt="Hi", better="Hello.\nAgain.", worse="No: never")
    write_edit(edit_of(path, "calm", example))
    read = load_constitution(path)
    assert read.principles[0].examples == (example,)
    assert read.principles[1].text == "Be brief."
    after = path.read_bytes().decode()
    for comment in ("# Why we wrote it.", "# the name", "# The first.", "# braces", "'Ours'", '"Be brief."'):
        assert comment in after
    assert after.index("# The first.") < after.index("calm") < after.index("Be brief.")
    assert (after.count("\r\n") == after.count("\n")) == (ends == "\r\n")
    write_edit(edit_of(path, "be_brief", example))
    assert load_constitution(path).principles[1].examples == (example,)


def test_a_file_in_another_format_is_to_be_imported_first(tmp_path: Path) -> None:
    path = written(tmp_path, "- Be brief.\n")
    with pytest.raises(InputError, match="constitutional import"):
        edit_of(path, "be_brief", Example(prompt="p", better="b", worse="w"))


def test_an_empty_list_of_examples_takes_one(tmp_path: Path) -> None:
    path = written(tmp_path, "principles:\n  - id: a  # mine\n    text: T.\n    examples: []\n")
    write_edit(edit_of(path, "a", EXAMPLE))
    assert load_constitution(path).principles[0].examples == (EXAMPLE,)
    assert "# mine" in path.read_text()
