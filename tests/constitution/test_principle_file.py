from pathlib import Path

import pytest

from constitutional.base.errors import InputError
from constitutional.constitution.principle_file import read_principles


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("p.txt", "# ours\n\nBe brief.\r\n  Don't flatter. \n"),
        ("p", "\ufeffBe brief.\nDon't flatter."),
        ("p.txt", "- Be brief.\n* Don't flatter.\n"),
        ("p.txt", " 1. Be brief.\n 2) Don't flatter.\n"),
        ("p.json", '["Be brief.", "Don\'t flatter."]'),
        ("p.json", '[{"text": "Be brief.", "weight": 2},\n "Don\'t flatter."]'),
        ("p.JSON", '\n[\n"Be brief."\n,{"text":"Don\'t flatter."}]\n'),
        ("p.yaml", "name: ours\nprinciples:\n- text: Be brief.\n- text: Don't flatter.\n  id: flattery\n"),
        ("p.yml", "principles: [Be brief., {text: Don't flatter.}]"),
    ],
)
def test_every_form_of_file_gives_the_principles_in_order(tmp_path: Path, name: str, content: str) -> None:
    path = tmp_path / name
    path.write_bytes(content.encode())
    assert read_principles(path) == ["Be brief.", "Don't flatter."]


def test_a_number_behind_the_mark_of_a_comment_begins_a_principle(tmp_path: Path) -> None:
    path = tmp_path / "p.txt"
    path.write_text("#1 rule: be brief.\n#ours\n #  2 more\n#1. Be rude.\n#2026-05 draft\n#2: don't flatter.\n")
    assert read_principles(path) == ["#1 rule: be brief.", "#2: don't flatter."]


ITEM = "a principle must be a non-empty text, or have a 'text' that is one"


@pytest.mark.parametrize(
    ("name", "content", "place_and_problem"),
    [
        ("p.txt", b"# only a remark\n\n", ":1: holds no principle"),
        ("p.txt", b"Be brief.\nDon\xb4t flatter.\n", ":2: is not UTF-8 text; save it as UTF-8"),
        ("p.json", b'["Be brief.",\n "Be kind."\n', ":3: is not JSON: Expecting ',' delimiter"),
        ("p.json", b'{"principles": []}', ':1: must be a list of principles, such as ["Don\'t flatter."]'),
        ("p.json", b'[\n  "Be brief.",\n  12\n]', f":3: {ITEM}"),
        ("p.json", b"[" + b"1" * 5000 + b"]", f":1: {ITEM}"),
        ("p.json", b'[\n  {"txt": "Be brief."}]', f":2: {ITEM}"),
        ("p.json", b'[{"text":\n  [1, "]"]},\n " "]', f":1: {ITEM}"),
        ("p.json", b"[]", ":1: holds no principle"),
        ("p.json", b"[" * 100_000, ":1: is nested too deeply to be a list of principles"),
        (
            "p.yaml",
            b"principles:\n  - text: Be brief.\n - text: x\n",
            ":3: is not YAML: did not find expected key",
        ),
        ("p.yaml", b"principles:\n  - text: a\x07b\n", ":2: is not YAML: character U+0007 must not stand in it"),
        ("p.yaml", b"principles:\n- text: Be brief.\n- text: 12\n", f":3: {ITEM}"),
        ("p.yaml", b"principles:\n- text: Be brief.\n- txt: Be kind.\n", f":3: {ITEM}"),
        ("p.yaml", b"principles:\n- no\n", f":2: {ITEM}"),
        ("p.yaml", b"name: ours\nprinciples: Be brief.\n", ":2: must have a list 'principles:'"),
        ("p.yaml", b"- Be brief.\n", ":1: must have a list 'principles:'"),
        ("p.yaml", b"", ":1: must have a list 'principles:'"),
        ("p.yaml", b"[" * 100_000, ":1: is nested too deeply: at most 20 levels are read"),
    ],
)
def test_a_bad_file_is_refused_with_its_line(tmp_path: Path, name: str, content: bytes, place_and_problem: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(InputError) as caught:
        read_principles(path)
    assert str(caught.value) == f"{path}{place_and_problem}"


def test_a_file_that_is_not_there_and_a_folder_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"nowhere\.txt: there is no such file"):
        read_principles(tmp_path / "nowhere.txt")
    with pytest.raises(InputError, match="is a folder"):
        read_principles(tmp_path)


@pytest.mark.parametrize(
    ("item", "word"),
    [
        ('"Be \\ud800 brief."', "surrogate pair"),
        ('"Be \\u0000 brief."', "NUL"),
        ('{"text": "Be brief.", "text": "Be long."}', "twice"),
        ('{"text": "Be brief.", "weight": NaN}', "NaN"),
        ('{"text": "Be brief.", "weight": 1e999}', "too large"),
    ],
)
def test_json_that_no_model_can_take_is_refused_with_its_line(tmp_path: Path, item: str, word: str) -> None:
    path = tmp_path / "mine.json"
    path.write_text(f'["Be kind.",\n\n {item}]')
    with pytest.raises(InputError, match=word) as caught:
        read_principles(path)
    assert str(caught.value).startswith(f"{path}:3: ")


def test_a_line_that_only_forbids_what_stands_below_it_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "candidates.txt"
    path.write_text("- Be brief.\nNever:\n- Reveal private data.\n")
    with pytest.raises(InputError, match=r"candidates\.txt:2: forbids nothing by itself"):
        read_principles(path)
