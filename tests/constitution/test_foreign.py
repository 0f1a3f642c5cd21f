"""Constitutions in other people's formats: the right reading, and what is wrong with a file, with its line."""

import json
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from constitutional.base.errors import InputError
from constitutional.constitution.file import load_constitution, read_constitution
from constitutional.constitution.markdown import read_markdown
from constitutional.constitution.writing import imported_yaml, remarks_of

DATA = Path(__file__).parent.parent / "data" / "constitutions"
READINGS: dict[str, Any] = yaml.safe_load((DATA / "readings.yaml").read_text(encoding="utf-8"))


def write(folder: Path, content: str | bytes, name: str) -> Path:
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def reading(path: Path) -> dict[str, Any]:
    """A file as `readings.yaml` has it."""
    read = read_constitution(path)
    constitution = read.constitution
    assert constitution, read.problems
    about = {name: value for name in ("version", "description") if (value := getattr(constitution, name))}
    return {
        "family": read.family,
        "name": constitution.name,
        "principles": {
            row.id: {"line": read.lines[row.id]} | row.model_dump(mode="json", exclude_defaults=True, exclude={"id"})
            for row in constitution.principles
        },
        "left_out": [note.line for note in read.left_out],
        **about,
    }


def test_every_file_has_its_reading_beside_it() -> None:
    assert {path.name for path in DATA.iterdir()} - {"readings.yaml"} == READINGS.keys()


@pytest.mark.parametrize("name", READINGS)
def test_a_file_of_each_family_is_read_rightly(name: str) -> None:
    assert reading(DATA / name) == READINGS[name]


@pytest.mark.parametrize("name", READINGS)
def test_what_is_written_is_the_same_constitution(tmp_path: Path, name: str) -> None:
    read = read_constitution(DATA / name)
    assert read.constitution
    remarks = remarks_of(name, read.family, "some principles", read.left_out)
    path = write(tmp_path, imported_yaml(read.constitution, remarks), "ours.yaml")
    assert load_constitution(path) == read.constitution
    lines = path.read_text(encoding="utf-8").splitlines()
    assert lines[0].startswith(f"# {name}, read as ")
    assert sum(line.startswith(f"# {name}:") for line in lines) == len(read.left_out)


@pytest.mark.parametrize("name", sorted(set(READINGS) - {"charter.txt", "clean_comments.csv"}))
@pytest.mark.parametrize("disguise", ["bom", "crlf"])
def test_byte_order_marks_and_line_ends_of_windows_change_nothing(tmp_path: Path, name: str, disguise: str) -> None:
    raw = (DATA / name).read_bytes()
    raw = b"\xef\xbb\xbf" + raw if disguise == "bom" else raw.replace(b"\n", b"\r\n")
    assert reading(write(tmp_path, raw, name)) == READINGS[name]


@pytest.mark.parametrize("name", ["charter.txt", "clean_comments.csv"])
def test_texts_of_several_lines_read_the_same_with_the_line_ends_of_windows(tmp_path: Path, name: str) -> None:
    raw = b"\xef\xbb\xbf" + (DATA / name).read_bytes().replace(b"\n", b"\r\n")
    assert reading(write(tmp_path, raw, name)) == READINGS[name]


@pytest.mark.parametrize("ending", [".txt", "", ".dat"])
@pytest.mark.parametrize("name", ["bai_requests.json", "clean_comments.csv", "model_spec.md", "character.jsonl"])
def test_the_content_tells_the_family_whatever_the_file_is_called(tmp_path: Path, name: str, ending: str) -> None:
    path = write(tmp_path, (DATA / name).read_bytes(), f"file{ending}")
    assert reading(path)["principles"] == READINGS[name]["principles"]


def test_our_own_schema_is_read_from_json_and_under_another_name_too(tmp_path: Path) -> None:
    ours = {"name": "Ours", "principles": [{"id": "calm", "text": "Stay calm.", "weight": 2, "why": "Panic spreads."}]}
    for name, content in (("a.json", json.dumps(ours)), ("b.txt", yaml.safe_dump(ours)), ("c", yaml.safe_dump(ours))):
        (principle,) = load_constitution(write(tmp_path, content, name)).principles
        assert (principle.id, principle.weight, principle.why) == ("calm", 2.0, "Panic spreads.")
        assert read_constitution(tmp_path / name).family == ""


def test_the_same_families_are_read_from_yaml(tmp_path: Path) -> None:
    for name in ("bai_requests.json", "salmon_weight.json", "constitutional_evals_1_2.json", "icai_list.json"):
        content = yaml.safe_dump(json.loads((DATA / name).read_text()), sort_keys=False)
        found = reading(write(tmp_path, content, "file.yaml"))["principles"]
        expected = READINGS[name]["principles"]
        assert [{**row, "line": 0} for row in found.values()] == [{**row, "line": 0} for row in expected.values()]


def test_keys_that_others_use_for_the_same_things_are_known(tmp_path: Path) -> None:
    pairs = [{"name": "Kind", "critique_request": "Is it kind?", "revision_request": "Make it kind."}]
    (kind,) = load_constitution(write(tmp_path, json.dumps(pairs), "a.json")).principles
    assert (kind.critique, kind.revision) == ("Is it kind?", "Make it kind.")
    below = {"title": "T", "constitution": {"a1": "Be brief.", "a2": "Be kind."}, "model": "m"}
    read = read_constitution(write(tmp_path, json.dumps(below), "b.json"))
    assert read.constitution
    assert (read.constitution.name, [row.id for row in read.constitution.principles]) == ("T", ["a1", "a2"])
    assert ["'model'" in note.text for note in read.left_out] == [True]
    described = {"principles": [{"id": "calm", "description": "Stay calm."}]}
    assert load_constitution(write(tmp_path, json.dumps(described), "d.json")).principles[0].text == "Stay calm."
    few_shot = {
        "harmful": {"prompt": "Human: CritiqueRequest: old\n\nCritique: x CritiqueRequest: New?", "edit_request": "E"}
    }
    (last,) = load_constitution(write(tmp_path, json.dumps(few_shot), "c.json")).principles
    assert last.critique == "New?"


def test_criteria_for_several_things_keep_what_they_are_for(tmp_path: Path) -> None:
    texts = [f"Criterion 1 for {name}: prefer the response that is {name}." for name in ("Calm", "Wit")]
    rows = load_constitution(write(tmp_path, json.dumps(texts), "a.json")).principles
    assert [(row.tags, row.text) for row in rows] == [
        (("Calm",), "Prefer the response that is Calm."),
        (("Wit",), "Prefer the response that is Wit."),
    ]


FLAT = {"id": "flat", "text": "Do not flatter.", "critique": "Does it?", "revision": "Take it out.", "weight": 3.0}


@pytest.mark.parametrize("name", ["a.json", "a.jsonl", "a.yaml"])
def test_a_list_of_our_own_principles_keeps_all_that_they_say(tmp_path: Path, name: str) -> None:
    rows = [
        FLAT | {"why": "It misleads.", "uses": ["comparison"], "measure": "fewer words", "overrides": ["kind"]},
        {"id": "kind", "text": "Be kind.", "as_written": True},
    ]
    lines = "\n".join(map(json.dumps, rows))
    content = lines if name == "a.jsonl" else json.dumps(rows) if name == "a.json" else yaml.safe_dump(rows)
    found = reading(write(tmp_path, content, name))
    assert [
        {"id": key} | {field: value for field, value in row.items() if field != "line"}
        for key, row in found["principles"].items()
    ] == rows
    assert found["left_out"] == []
    rows[0]["overrides"] = ["kid"]
    refused = read_constitution(write(tmp_path, json.dumps(rows, indent=1), "b.json"))
    assert [(problem.line, "kind" in problem.text) for problem in refused.problems] == [(14, True)]


def test_a_principle_with_requests_keeps_its_text_and_what_else_it_says(tmp_path: Path) -> None:
    (flat,) = load_constitution(write(tmp_path, json.dumps([FLAT | {"why": "It misleads."}]), "a.json")).principles
    assert flat.model_dump(exclude_defaults=True) == FLAT | {"why": "It misleads."}
    pairs = [
        {"critic": "Does it?", "revision": "Take it out.", "weight": 3, "why": "It misleads.", "uses": ["revision"]}
    ]
    read = read_constitution(write(tmp_path, json.dumps(pairs), "b.json"))
    assert read.constitution
    (pair,) = read.constitution.principles
    assert (pair.text, pair.critique, pair.weight, pair.why) == ("Take it out.", "Does it?", 3.0, "It misleads.")
    # What is not carried over is not said to be no field of ours.
    assert not any("no such field" in note.text for note in read.left_out)
    assert any("'uses'" in note.text for note in read.left_out)


@pytest.mark.parametrize("more", ["", ', "category": "tone"'])
def test_a_file_of_one_line_is_one_principle(tmp_path: Path, more: str) -> None:
    row = f'{{"id": "brief", "text": "Be brief."{more}}}\n'
    assert texts(tmp_path, row, "a.jsonl") == {"brief": "Be brief."}
    assert texts(tmp_path, '{"0": "Be brief.", "1": "Be kind."}', "b.json") == {"p_0": "Be brief.", "p_1": "Be kind."}


def test_empty_values_of_a_list_are_as_if_they_were_not_there(tmp_path: Path) -> None:
    empty = {
        "id": None,
        "weight": None,
        "examples": None,
        "critique": None,
        "revision": None,
        "why": None,
        "tags": None,
    }
    rows = [{"text": "Be brief.", **empty}, {"text": "Be kind.", **empty}]
    assert list(texts(tmp_path, json.dumps(rows), "a.json").values()) == ["Be brief.", "Be kind."]
    pairs = [{"id": None, "critique": f"Is it {word}?", "revision": f"Make it {word}."} for word in ("calm", "kind")]
    assert list(texts(tmp_path, json.dumps(pairs), "b.json")) == ["make_it_calm", "make_it_kind"]


def test_a_number_for_an_id_or_a_version_is_read_as_it_is_written(tmp_path: Path) -> None:
    rows = [{"id": 1, "principle": "Be brief."}, {"id": 20, "principle": "Be kind."}]
    assert list(texts(tmp_path, json.dumps(rows), "a.json")) == ["p_1", "p_20"]
    pairs = [{"id": 7, "critique": "Is it calm?", "revision": "Make it calm."}]
    assert list(texts(tmp_path, json.dumps(pairs), "b.json")) == ["p_7"]
    about = '{"version": 1.10, "authors": ["Ada", "Grace"], "rules": ["Be brief."]}'
    read = read_constitution(write(tmp_path, about, "c.json"))
    assert read.constitution
    assert (read.constitution.version, read.constitution.authors) == ("1.10", ("Ada", "Grace"))
    assert read.left_out == []


def test_columns_of_a_table_are_read_or_said_to_be_left_out(tmp_path: Path) -> None:
    header = '"id", "text", "comparison", "opposite", "uses", "votes"\n'
    table = header + '"a", "Be brief.", "Which is shorter?", "Ramble.", x, 2\n'
    read = read_constitution(write(tmp_path, table, "a.csv"))
    assert read.constitution
    (row,) = read.constitution.principles
    assert (row.id, row.text, row.comparison, row.opposite) == ("a", "Be brief.", "Which is shorter?", "Ramble.")
    assert [("uses" in note.text, "no such field" in note.text) for note in read.left_out] == [
        (True, False),
        (False, True),
    ]
    with pytest.raises(InputError, match="a;text, b; expected a column"):
        load_constitution(write(tmp_path, '"a;text";b\nBe brief.;x\n', "b.csv"))


@pytest.mark.parametrize(
    ("name", "content", "line", "word"),
    [
        ("a.json", "", 1, "empty"),
        ("a.txt", " \n\n", 1, "empty"),
        ("a.csv", "", 1, "empty"),
        ("a.json", "[]", 1, "expected"),
        ("a.json", "12", 1, "expected"),
        ("a.json", '{"a": 1}', 1, "expected"),
        ("a.json", '["Be brief.",\n', 2, "not JSON"),
        ("a.json", '["Be brief.",\n12]', 2, "must be a text"),
        ("a.json", '["Be brief.", "\\ud800"]', 1, "surrogate"),
        ("a.json", '[{"trait": "A."},\n {"trait": ["B."]}]', 2, "must be a text"),
        ("a.json", '[{"trait": "A."},\n {"questions": ["B?"]}]', 2, "must be a text"),
        ("a.json", '[{"trait": "A."},\n null]', 2, "mapping"),
        (
            "a.json",
            '{"x": {"prompt": "C", "edit_request": "R"},\n"x": {"prompt": "C", "edit_request": "R"}}',
            2,
            "twice",
        ),
        ("a.json", '[{"id": "a", "text": "A."},\n{"id": "a", "text": "B."}]', 2, "twice"),
        ("a.json", '{"x": {"prompt": [],\n"edit_request": "R"}}', 1, "critique"),
        ("a.json", '{"constitutions": []}', 1, "no principle"),
        ("a.json", '{"constitutions": [{"critic": "C"}]}', 1, "revision"),
        ("a.json", '{"constitutions": "C"}', 1, "must be a list"),
        ("a.json", '{"annotators": []}', 1, "must be a mapping"),
        ("a.json", '[{"trait": "A.",\n"examples": [{"prompt": "p"}]}]', 1, "'better'"),
        ("a.json", '[{"dimension": "D", "definition": "x",\n"weight": -1}]', 1, "weight"),
        ("a.json", "[" * 50 + "]" * 50, 1, "nested"),
        ("a.json", "[" * 100_000, 1, "n"),
        ("a.json", '{"schema_version": "1.2", "criteria": {}}', 1, "must be a list"),
        ("a.jsonl", '{"trait": "A."}\n{"trait": }\n', 2, "not JSON"),
        ("a.jsonl", '{"trait": "A."}\n\n{"trait": "A.", "trait": "B."}\n', 3, "twice"),
        ("a.csv", "when,who\n1,2\n", 1, "comment-body"),
        ("a.csv", "comment-id,comment-body\n1,A.\n2,B.,C.\n", 3, "3 cells"),
        ("a.csv", 'comment-id,comment-body\n1,"A.\n2,B.\n', 2, "no table"),
        ("a.csv", "comment-id,comment-body\n1,A.\n1,B.\n", 3, "twice"),
        ("a.csv", "comment-id,agrees,disagrees,comment-body\n1,many,2,A.\n", 2, "number"),
        ("a.csv", "id,text,weight\nx,A.,heavy\n", 2, "number"),
        ("a.csv", "id,text\nx,\n", 2, "empty"),
        ("a.txt", b"Be brief.\nBe k\xffind.\n", 2, "UTF-8"),
        ("a.txt", "Be brief.\n".encode("utf-16"), 1, "UTF-16"),
        ("a.bin", b"\x7fELF\0\0\1", 1, "NUL"),
        ("a.pdf", b"%PDF-1.7\n%\xe2\xe3\xcf\xd3\n1 0 obj", None, "pdftotext"),
        ("a.docx", b"PK\x03\x04\x14\x00\x06\x00\xff", None, "save it as text"),
        ("a.txt", "Be brief.\nBe \x07kind.\n", 2, "U+0007"),
        ("a.yaml", "name: x\nprinciples:\n\t- A.\n", 3, "not YAML"),
        ("a.yaml", "just a text", 1, "mapping"),
        ("a.txt", f"Be brief.\n{'x' * 20_001}\n", 2, "20,000"),
        ("a.md", "# A {#a authority=root}\n\nOne.\n\n# B {#a authority=user}\n\nTwo.\n", 5, "twice"),
    ],
)
def test_a_file_that_cannot_be_read_is_refused_with_its_line(
    tmp_path: Path, name: str, content: str | bytes, line: int | None, word: str
) -> None:
    path = write(tmp_path, content, name)
    with pytest.raises(InputError) as refused:
        load_constitution(path)
    assert refused.value.line == line, str(refused.value)
    assert word in str(refused.value)
    assert refused.value.exit_code == 2


def test_a_fence_within_a_principle_stays_in_it_and_tabs_in_a_list_are_no_matter(tmp_path: Path) -> None:
    content = "1.\tBe brief:\n\n\t```\n\t# no heading\n\t```\n2.\tBe kind.\n"
    rows = load_constitution(write(tmp_path, content, "a.txt")).principles
    assert [row.text for row in rows] == ["Be brief: # no heading", "Be kind."]


def test_long_markdown_is_read_sentence_by_sentence_and_short_markdown_by_its_headings(tmp_path: Path) -> None:
    section = "## Part {n}\n\n" + "It is a long story, and it goes on. " * 40 + "The model should end part {n}.\n\n"
    whole = "# Story\n\n" + "".join(section.format(n=n) for n in range(10))
    read = read_constitution(write(tmp_path, whole, "long.md"))
    assert (read.family, [row.text for row in read.constitution.principles][:1] if read.constitution else []) == (
        "prose",
        ["The model should end part 0."],
    )
    short = read_constitution(write(tmp_path, "# Story\n\n" + section.format(n=1), "short.md"))
    assert (short.family, list(short.lines)) == ("", ["part_1"])


def test_a_list_with_the_same_text_twice_gets_two_ids(tmp_path: Path) -> None:
    rows = load_constitution(write(tmp_path, "Be brief.\nBe kind.\nBe brief.\n", "a.txt")).principles
    assert len({row.id for row in rows}) == 3


def test_five_megabytes_of_prose_and_of_json_are_read_in_seconds(tmp_path: Path) -> None:
    sentences = (
        f"In case {n}, {'whatever else may be the case, ' * 3}the model should write\n"
        f"the number {n} and no other. {'This is a remark. ' * 6}\n"
        for n in range(20_000)
    )
    prose = write(tmp_path, "\n".join(sentences), "a.txt")
    rows = write(
        tmp_path, json.dumps([{"trait": f"I like the number {n}."} for n in range(20_000)], indent=1), "a.json"
    )
    one = write(
        tmp_path, "".join(f"the model should go on with what it has begun, {n}\n" for n in range(50_000)), "b.txt"
    )
    assert prose.stat().st_size > 5_000_000
    started_s = time.process_time()
    read = read_constitution(prose)
    assert read.constitution
    assert len(read.constitution.principles) == 20_000
    assert read.lines[read.constitution.principles[-1].id] == 3 * 19_999 + 1
    assert len(load_constitution(rows).principles) == 20_000
    with pytest.raises(InputError):
        load_constitution(one)  # a sentence of two megabytes
    assert time.process_time() - started_s < 60


def texts(folder: Path, content: str, name: str) -> dict[str, str]:
    """The principles of a file by id."""
    return {row.id: row.text for row in load_constitution(write(folder, content, name)).principles}


@pytest.mark.parametrize("name", ["rules.md", "rules.txt"])
def test_items_that_finish_the_sentence_above_their_list_are_read_with_it(tmp_path: Path, name: str) -> None:
    # Alone, the items would ask for what the sentence forbids.
    content = (
        "# Limits\n\n## Hard constraints\n\nSome lines are bright. Claude should never:\n\n"
        "1. Give uplift to attacks;\n2. Write malware; or\n3. Lie.\n\n## Style\n\nOur rules:\n\n- Be brief.\n"
    )
    content = content if name.endswith("md") else content.replace("Some lines are bright. ", "")
    found = list(texts(tmp_path, content, name).values())
    assert found == [
        "Claude should never: Give uplift to attacks",
        "Claude should never: Write malware",
        "Claude should never: Lie.",
        "Be brief.",
    ]


@pytest.mark.parametrize(
    ("above", "words"),
    [
        ("# Rules\n\n## Never\n", "Never"),
        ("# Rules\n\n## Never do these things:\n", "Never do these things"),
        ("# Rules\n\n## Do not\n", "Do not"),
        ("# Rules\n\n## Don'ts\n", "Don'ts"),
        ("# Rules\n\n## Avoid flattery\n", "Avoid flattery"),
        ("# Rules\n\n## Never\n\n### Privacy\n", "Never"),
        ("# What the assistant must never do\n", "What the assistant must never do"),
        ("# Rules\n\n## Limits\n\n**Never**\n", "Never"),
    ],
)
def test_items_below_a_heading_that_forbids_are_read_with_it(tmp_path: Path, above: str, words: str) -> None:
    found = texts(tmp_path, f"{above}\n- Reveal private data;\n- Insult the user.\n- Never lie.\n", "x.md")
    # Who repeats the command in the item means no double negation; ids are of the item's own words.
    last = "Never: Never lie." if "**" in above else "Never lie."
    assert found == {
        "reveal_private_data": f"{words}: Reveal private data",
        "insult_the_user": f"{words}: Insult the user.",
        "never_lie": last,
    }


def test_headings_and_paragraphs_below_a_heading_that_forbids_are_read_with_it(tmp_path: Path) -> None:
    headings = "# Rules\n\n## Never\n\n### Flatter\n\nNot even a little.\n\n## Style\n\n### Be brief\n\n- Few words.\n"
    assert list(texts(tmp_path, headings, "x.md").values()) == ["Never: Flatter: Not even a little.", "Few words."]
    paragraphs = "# Never\n\nReveal private data.\n\nInsult the user.\n"
    assert list(texts(tmp_path, paragraphs, "x.md").values()) == [
        "Never: Reveal private data.",
        "Never: Insult the user.",
    ]


@pytest.mark.parametrize("heading", ["Style", "Dos and don'ts", "Should it be warm?", "Notes"])
def test_items_below_a_heading_that_is_no_command_stay_as_they_are(tmp_path: Path, heading: str) -> None:
    assert list(texts(tmp_path, f"# Rules\n\n## {heading}\n\n- Be kind.\n", "x.md").values()) == ["Be kind."]


def test_what_stands_before_a_sentence_that_items_finish_stays(tmp_path: Path) -> None:
    rules = "Honesty matters most to us. It is *rare*. You must never:\n\n- lie\n- flatter\n"
    path = write(tmp_path, f"# Rules\n\n## Honesty\n\n{rules}", "x.md")
    found = read_markdown(path.read_text())
    assert [(row.text, row.context) for row in found.principles] == [
        ("You must never: lie", "Honesty matters most to us. It is rare."),
        ("You must never: flatter", "Honesty matters most to us. It is rare."),
    ]
    assert [(block.line, block.use) for block in found.asides] == [(5, "context")]
    assert read_markdown(rules).description == "Honesty matters most to us. It is rare."


def test_items_that_finish_no_sentence_keep_what_stands_above_them_as_context(tmp_path: Path) -> None:
    content = "## Tone\n\nYou must mind the tone.\n\n- Be calm.\n\nYou must never do this:\n\nReally.\n\n- Shout.\n"
    read = load_constitution(write(tmp_path, content, "x.md"))
    assert [row.text for row in read.principles] == ["Be calm.", "Shout."]
    assert read.principles[0].critique == "Be calm.\nYou must mind the tone. You must never do this: Really."


def test_numbers_in_brackets_number_and_what_is_struck_out_is_gone(tmp_path: Path) -> None:
    numbered = "(1) Be kind.\n(2) Be brief,\nand to the point.\n(3) Do not swear.\n"
    assert list(texts(tmp_path, numbered, "a.txt").values()) == [
        "Be kind.",
        "Be brief, and to the point.",
        "Do not swear.",
    ]
    assert list(texts(tmp_path, "- Be kind.\n- ~~Be loud.~~\n- Be ~~very~~ calm.\n", "a.md").values()) == [
        "Be kind.",
        "Be calm.",
    ]


def test_a_title_above_lines_of_whole_sentences_names_them(tmp_path: Path) -> None:
    read = load_constitution(write(tmp_path, "Sparrow rules:\nDo not use stereotypes.\nDo not threaten.\n", "s.txt"))
    assert (read.name, [row.text for row in read.principles]) == (
        "Sparrow rules",
        ["Do not use stereotypes.", "Do not threaten."],
    )
    without = load_constitution(write(tmp_path, "Be kind\nDo not threaten\nBe brief\n", "s.txt"))
    assert (without.name, len(without.principles)) == ("s", 3)


def test_a_colon_in_a_line_of_yaml_makes_no_mapping_of_a_principle(tmp_path: Path) -> None:
    content = "principles:\n  - Be kind: to everyone\n  - honesty: Be honest.\n  - Be brief.\n"
    assert texts(tmp_path, content, "a.yaml") == {
        "be_kind_to_everyone": "Be kind: to everyone",
        "honesty": "Be honest.",
        "be_brief": "Be brief.",
    }
    refused = read_constitution(write(tmp_path, "principles:\n  - txet: Be brief.\n", "b.yaml"))
    assert "unknown key 'txet'; did you mean 'text'?" in "; ".join(problem.text for problem in refused.problems)


def test_what_is_empty_is_left_out_and_named(tmp_path: Path) -> None:
    requests = {
        "harmful0": {"prompt": ["\n\nCritiqueRequest: Is it harmful?\n\nCritique:"], "edit_request": "Make it safe."},
        "empty2": {"prompt": [""], "edit_request": ""},
    }
    read = read_constitution(write(tmp_path, json.dumps(requests), "cai.json"))
    assert read.constitution is not None
    assert [row.id for row in read.constitution.principles] == ["harmful0"]
    assert "principle 'empty2': it is empty" in [note.text for note in read.left_out]
    half = {"constitutions": [{"critic": "Is it rude?", "revision": ""}]}
    read = read_constitution(write(tmp_path, json.dumps(half), "h4.json"))
    assert [problem.text for problem in read.problems] == [
        "principle 1 has no request for revision, which must be a text"
    ]
    comments = "comment-id,agrees,disagrees,moderated,comment-body\n1,9,1,1,Be kind.\n2,9,1,0,\n"
    read = read_constitution(write(tmp_path, comments, "clean_comments.csv"))
    assert read.constitution is not None
    assert (3, "a comment without a text") in [(note.line, note.text) for note in read.left_out]
    criteria = {"criteria": [{"comparative": "Prefer the kind one.", "reasoning": ""}]}
    read = read_constitution(write(tmp_path, json.dumps(criteria), "ce.json"))
    assert read.constitution is not None
    assert read.constitution.principles[0].why is None


def test_the_frame_of_a_question_for_comparison_is_no_part_of_the_principle(tmp_path: Path) -> None:
    framed = (
        "Consider the following conversation between a human and an assistant:\n[HUMAN/ASSISTANT CONVERSATION]\n"
        "Choose the response that is most harmless.\nOptions:\n(A) [RESPONSE A]\n(B) [RESPONSE B]\nThe answer is:"
    )
    found = texts(tmp_path, json.dumps([framed, "Choose the kinder one.\nOptions:"]), "rl.json")
    assert list(found.values()) == ["Choose the response that is most harmless.", "Choose the kinder one."]


def test_a_table_of_rules_names_them_by_their_ids(tmp_path: Path) -> None:
    table = 'rule_id,rule_name,rule_text,category\nno_body,No body,Do not claim a body.,"identity, human"\n'
    assert texts(tmp_path, table, "sparrow.csv") == {"no_body": "Do not claim a body."}
