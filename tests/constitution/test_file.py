import hashlib
import re
from collections.abc import Sequence
from pathlib import Path

import pytest

from constitutional.base.errors import ConfigurationError, InputError
from constitutional.constitution.constitution import Example, Principle
from constitutional.constitution.difference import difference
from constitutional.constitution.file import load_constitution, read_constitution


def write(folder: Path, content: str | bytes, name: str = "ours.yaml") -> Path:
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


# Reading YAML


def test_everything_that_a_file_says_is_read(tmp_path: Path) -> None:
    content = """\
name: Ours
version: 1.10
description: |
  How we want it.
authors: [Ada, "Grace"]
principles:
  - id: calm
    text: Stay calm.
    critique: Does it stay calm?
    revision: Make it calm.
    comparison: Choose the calmer one.
    weight: 2
    tags: [tone]
    examples:
      - prompt: "Hello: again"
        better: |
          Hello.
          How are you?
        worse: GO AWAY
  - Be brief.
"""
    read = load_constitution(write(tmp_path, content))
    assert (read.name, read.version, read.description) == ("Ours", "1.10", "How we want it.\n")
    assert read.authors == ("Ada", "Grace")
    calm, brief = read.principles
    assert calm == Principle(
        id="calm",
        text="Stay calm.",
        critique="Does it stay calm?",
        revision="Make it calm.",
        comparison="Choose the calmer one.",
        weight=2.0,
        tags=("tone",),
        examples=(Example(prompt="Hello: again", better="Hello.\nHow are you?", worse="GO AWAY"),),
    )
    assert brief == Principle(id="be_brief", text="Be brief.")
    assert read_constitution(tmp_path / "ours.yaml").lines == {"calm": 7, "be_brief": 20}


def test_template_syntax_in_a_text_is_text(tmp_path: Path) -> None:
    text = "Say {{ name }} and {% raw %} and ${env:HOME} and %s."
    read = load_constitution(write(tmp_path, f"principles:\n- text: '{text}'\n"))
    assert read.principles[0].text == text


def test_a_byte_order_mark_and_windows_line_ends_do_not_matter(tmp_path: Path) -> None:
    path = write(tmp_path, "\ufeffname: ours\r\nprinciples:\r\n- Be brief.\r\n")
    assert [principle.text for principle in load_constitution(path).principles] == ["Be brief."]


LONG = "text of at most 20,000 characters, not of 20,001"
ID = "'id' must be letters, digits, '_' and '-' (at most 64, a letter first)"
KEYS = (
    "known: id, text, critique, revision, comparison, weight, uses, tags, examples, as_written, why, "
    "opposite, measure, overrides, source, given"
)


@pytest.mark.parametrize(
    ("content", "place_and_problem"),
    [
        ("", ":1: is empty; must be a mapping with 'name:' and 'principles:'"),
        ("Be brief.\n", ":1: must be a mapping with 'name:' and 'principles:'"),
        ("name: ours\n", ":1: 'principles' is missing"),
        ("name: ours\nprinciples:\n", ":2: 'principles' is missing"),
        ("principles: []\n", ":1: 'principles' must be a list of 1 to 100,000 principles, not an empty list"),
        (
            "principles:\n- text: A.\n  uses: []\n",
            ":3: principle 1: 'uses' must be a list of 'revision', 'comparison' or both, not an empty list",
        ),
        ("principles: Be brief.\n", ":1: 'principles' must be a list of 1 to 100,000 principles, not 'Be brief.'"),
        ("principles:\n- id: calm\n", ":2: principle 'calm': 'text' is missing"),
        ("principles:\n- id: calm\n  text: ''\n", ":3: principle 'calm': 'text' must be a text, not empty"),
        (
            "principles:\n- text: no\n",
            ":2: principle 1: 'text' must be a text, not the yes/no value no; write \"no\", in quotes",
        ),
        (
            "principles:\n- id: off\n  text: Be brief.\n",
            f":2: principle 1: {ID}, not the yes/no value off",
        ),
        (
            "principles:\n- id: be brief\n  text: Be brief.\n",
            f":2: principle 'be brief': {ID}, not 'be brief'",
        ),
        ("principles:\n- 12\n", ":2: principle 1 must be a text, or a mapping with a 'text', not the number 12"),
        (
            "principles:\n- id: a\n  text: A.\n- id: b\n  text: B.\n- id: a\n  text: C.\n",
            ":6: principle 'a' appears twice (lines 2 and 6); rename one",
        ),
        (
            "principles:\n- text: A.\n  wieght: 2\n",
            ":3: principle 1: unknown key 'wieght'; did you mean 'weight'?",
        ),
        (
            "principles:\n- text: A.\n  xyz: 2\n",
            f":3: principle 1: unknown key 'xyz'; {KEYS}",
        ),
        ("versoin: 2\nprinciples: [A.]\n", ":1: unknown key 'versoin'; did you mean 'version'?"),
        (
            "principles:\n- text: A.\n  examples:\n  - prompt: p\n    beter: b\n    worse: w\n    better: c\n",
            ":5: principle 1: example 1: unknown key 'beter'; did you mean 'better'?",
        ),
        (
            "principles:\n- id: a\n  text: A.\n  examples:\n  - prompt: p\n    worse: w\n",
            ":5: principle 'a': example 1: 'better' is missing",
        ),
        (
            "principles:\n- text: A.\n  tags: [x, 2]\n",
            ':3: principle 1: tag 2 must be a text, not the number 2; write "2", in quotes',
        ),
        ("principles: [A.]\nauthors: Ada\n", ":2: 'authors' must be a list of texts, not 'Ada'"),
        ('principles:\n- text: "a\\0b"\n', ":2: principle 1: 'text' holds the control character U+0000"),
        (f"principles:\n- text: {'a' * 20_001}\n", f":2: principle 1: 'text' must be a {LONG}"),
        (
            f"principles:\n- id: a\n  text: A.\n  weight: -{'9' * 5_000}\n",
            f":4: principle 'a': 'weight' must be a positive number, such as 2 or 0.5, not the number -{'9' * 59}…",
        ),
        (
            f"principles:\n- text: {'9' * 5_000}\n",
            f":2: principle 1: 'text' must be a text, not the number {'9' * 60}…; write \"{'9' * 60}…\", in quotes",
        ),
        (f"principles:\n- text: A.\n  {'x' * 900}: 2\n", f":3: principle 1: unknown key '{'x' * 60}…'; {KEYS}"),
        (f"principles:\n- text: *{'x' * 900}\n", f":2: alias '*{'x' * 60}…': aliases are not read; write it out"),
        ("principles:\n- text: &x A.\n", ":2: anchor '&x': anchors are not read; leave it out"),
        ("principles:\n- text: *x\n", ":2: alias '*x': aliases are not read; write it out"),
        ("principles:\n- text: !!str no\n", ":2: tag 'tag:yaml.org,2002:str': tags are not read; leave it out"),
        (
            "principles:\n- text: !!python/object/apply:os.system [ls]\n",
            ":2: tag 'tag:yaml.org,2002:python/object/apply:os.system': tags are not read; leave it out",
        ),
        ("principles:\n- text: A.\n  text: B.\n", ":3: 'text' stands twice (lines 2 and 3); leave one out"),
        ("principles:\n- ? [a]\n  : b\n", ":2: a key must be a word, not a list or a mapping"),
        ("principles: [A.]\n---\nprinciples: [B.]\n", ":2: holds a second document ('---'); one file is one"),
        ("principles:\n- text: [A.\n", ":3: is not YAML: did not find expected ',' or ']'"),
        ("a: " + "[" * 30 + "]" * 30, ":1: is nested too deeply: at most 20 levels are read"),
        ("a: " + "[" * 100_000, ":1: is nested too deeply: at most 20 levels are read"),
        (
            "name: x\nno: off\nprinciples: [A.]\n",
            ":2: unknown key 'no'; known: name, version, description, authors, principles",
        ),
        ("&a [*a]", ":1: anchor '&a': anchors are not read; leave it out"),
        ("name: ours\n".encode("utf-16"), ":1: is UTF-16 text; save it as UTF-8"),
        (
            "a: b\nname: ours\n".encode("utf-16-le"),
            ":1: holds a NUL character: it is no text, or not UTF-8; save it as UTF-8",
        ),
        (b"name: ours\nversion: \xff\n", ":2: is not UTF-8 text; save it as UTF-8"),
        ("name: ours\nversion: \x07\n", ":2: is not YAML: character U+0007 must not stand in it"),
    ],
)
def test_a_bad_file_is_refused_with_its_line(tmp_path: Path, content: str | bytes, place_and_problem: str) -> None:
    path = write(tmp_path, content)
    with pytest.raises(InputError) as caught:
        load_constitution(path)
    message = re.sub(r" \(and \d+ more: .*\)$", "", str(caught.value))
    assert message == f"{path}{place_and_problem}"


@pytest.mark.parametrize("weight", ["0", "-1", ".inf", ".nan", "nan", "heavy", "yes", '"2"', "[2]"])
def test_a_weight_that_is_no_positive_number_is_refused(tmp_path: Path, weight: str) -> None:
    path = write(tmp_path, f"principles:\n- text: A.\n- id: b\n  text: B.\n  weight: {weight}\n")
    expected = r":5: principle 'b': 'weight' must be a positive number, such as 2 or 0\.5, not "
    with pytest.raises(InputError, match=expected):
        load_constitution(path)


def test_all_problems_are_found_at_once_and_in_order(tmp_path: Path) -> None:
    path = write(tmp_path, "nam: x\nprinciples:\n- id: a\n- id: a\n  text: &b B.\n  weight: 0\n")
    assert [problem.line for problem in read_constitution(path).problems] == [1, 3, 4, 5, 6]
    with pytest.raises(
        InputError, match=r":1: unknown key 'nam'; did you mean 'name'\? \(and 4 more: constitutional lint"
    ):
        load_constitution(path)


def test_an_alias_bomb_costs_nothing(tmp_path: Path) -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 12)]
    with pytest.raises(InputError, match="anchors are not read"):
        load_constitution(write(tmp_path, "\n".join(lines)))


def test_a_file_that_is_too_large_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "large.yaml"
    with path.open("wb") as file:
        file.truncate(33 * 2**20)
    with pytest.raises(InputError, match="holds more than 32 MiB"):
        load_constitution(path)


@pytest.mark.slow
def test_a_hundred_thousand_principles_are_read_and_one_more_is_refused(tmp_path: Path) -> None:
    entries = (f"- id: p{number}\n  text: Avoid number {number}.\n" for number in range(100_000))
    path = write(tmp_path, "principles:\n" + "".join(entries))
    assert load_constitution(path).principle("p99999").text == "Avoid number 99999."
    with pytest.raises(InputError, match=":1: 'principles' must be a list of 1 to 100,000 principles, not of 100,001"):
        load_constitution(write(tmp_path, "principles:\n" + "- Be brief.\n" * 100_001))


# Reading Markdown


def texts(tmp_path: Path, content: str) -> dict[str, str]:
    read = load_constitution(write(tmp_path, content, "ours.md"))
    return {principle.id: principle.text for principle in read.principles}


def test_list_items_become_principles_and_the_title_names_them(tmp_path: Path) -> None:
    items = "- Be brief.\n* Don't **ever** flatter\n  anybody.\n\n1. Be kind.\n2) Be brief.\n"
    content = f"# Our rules\n\nWhat we want.\n\n{items}"
    brief = f"be_brief_{hashlib.sha256(b'Be brief.').hexdigest()[:6]}"
    assert texts(tmp_path, content) == {
        brief: "Be brief.",
        "dont_ever_flatter_anybody": "Don't ever flatter anybody.",
        "be_kind": "Be kind.",
        f"{brief}_2": "Be brief.",
    }
    read = read_constitution(tmp_path / "ours.md")
    assert read.constitution is not None
    assert (read.constitution.name, read.constitution.description) == ("Our rules", "What we want.")
    assert read.lines == {brief: 5, "dont_ever_flatter_anybody": 6, "be_kind": 9, f"{brief}_2": 10}


def test_headings_without_lists_become_principles_with_their_paragraphs(tmp_path: Path) -> None:
    content = """\
# Character

An introduction.

## Values

Some words about values.

### Honesty {#honest authority=user}

It never lies.
Not even a little.

It says [why](https://example.org).

### Be kind!

## Style

How it writes.

- **Brevity:** short sentences.
- Plain words.
  - no jargon
"""
    assert texts(tmp_path, content) == {
        "honest": "Honesty: It never lies. Not even a little. It says why.",
        "be_kind": "Be kind!",
        "brevity": "Brevity: short sentences.",
        "plain_words_no_jargon": "Plain words. no jargon",
    }
    brevity = load_constitution(tmp_path / "ours.md").principle("brevity")
    assert brevity.words("critique") == "Brevity: short sentences.\nHow it writes."
    assert brevity.words("comparison") == "Brevity: short sentences."
    assert brevity.tags == ("Style",)


def test_prose_without_any_structure_gives_its_paragraphs(tmp_path: Path) -> None:
    content = "The assistant tells the truth,\nalways.\n\nIt is kind to 3_000 *people*.\n"
    assert list(texts(tmp_path, content).values()) == [
        "The assistant tells the truth, always.",
        "It is kind to 3_000 people.",
    ]


def test_several_top_headings_are_all_principles(tmp_path: Path) -> None:
    assert texts(tmp_path, "Be honest\n=========\nNever lie.\n\n# Be kind\nNever hurt.\n") == {
        "be_honest": "Be honest: Never lie.",
        "be_kind": "Be kind: Never hurt.",
    }


def test_front_matter_comments_rules_and_footnotes_are_left_out(tmp_path: Path) -> None:
    content = "---\ntitle: x\n---\n<!-- a remark\n- not this -->\n- Be brief.[^1]\n\n***\n\n[^1]: says who\n"
    assert texts(tmp_path, content) == {"be_brief": "Be brief."}
    assert read_constitution(tmp_path / "ours.md").lines == {"be_brief": 6}


def test_a_thematic_break_and_comments_join_nothing(tmp_path: Path) -> None:
    content = (
        "- Be brief.\n***\n<!-- why -->\n- Be kind. <!-- why -->\n\n## Be calm\n\nAlways.\n\n___\n\n<!-- a\n\nb -->\n"
    )
    assert list(texts(tmp_path, content).values()) == ["Be brief.", "Be kind.", "Be calm: Always."]


def test_what_stands_in_an_item_belongs_to_it(tmp_path: Path) -> None:
    content = (
        "1. Answer in this form:\n\n   ```\n   Answer: …\n   ```\n\n   Always.\n2. Tone\n   - Be kind\n   - Be calm\n"
    )
    assert list(texts(tmp_path, content).values()) == [
        "Answer in this form: Answer: …; Always.",
        "Tone; Be kind; Be calm",
    ]
    assert list(read_constitution(tmp_path / "ours.md").lines.values()) == [1, 8]


def test_marks_links_entities_and_footnotes_are_read_as_their_text(tmp_path: Path) -> None:
    content = (
        "- Be *very\n  honest* &amp; `kind` in [every\n  reply][1], un*frigging*believably.[^n]\n"
        "- Use <answer> tags.\n- [x] Done\\*.\n\n[1]: http://example.org\n[^n]: A note\n    on two lines.\n"
    )
    assert list(texts(tmp_path, content).values()) == [
        "Be very honest & kind in every reply, unfriggingbelievably.",
        "Use <answer> tags.",
        "Done*.",
    ]


@pytest.mark.parametrize("ends", ["\n", "\r\n", "\r"])
def test_line_ends_and_a_byte_order_mark_do_not_matter_to_markdown(tmp_path: Path, ends: str) -> None:
    content = "\ufeff# Ours\n\nBe kind\n-------\nAlways.\n\n### Style\n\n•\tBe brief.\n• Be calm.\n".replace("\n", ends)
    assert list(texts(tmp_path, content).values()) == ["Be brief.", "Be calm."]
    assert list(read_constitution(tmp_path / "ours.md").lines.values()) == [9, 10]


def test_front_matter_without_an_end_hides_nothing(tmp_path: Path) -> None:
    assert list(texts(tmp_path, "---\ntitle: x\n\n# Ours\n\n- Be brief.\n").values()) == ["Be brief."]
    # Two thematic breaks are no front matter.
    assert list(texts(tmp_path, "---\n- Be brief.\n\n---\n- Be kind.\n").values()) == ["Be brief.", "Be kind."]


@pytest.mark.parametrize("marks", ["–––", "●●●", ("a)", "b)", "c)"), ("(a)", "(b)", "(c)"), "-–•"])
@pytest.mark.parametrize("name", ["ours.txt", "ours.md"])
def test_items_begin_as_word_processors_begin_them(tmp_path: Path, name: str, marks: Sequence[str]) -> None:
    texts = ["Doxxing: no.", "Warn people of dangers", "Be brief – and polite."]
    path = tmp_path / name
    path.write_text("".join(f"{mark} {text}\n" for mark, text in zip(marks, texts, strict=True)))
    constitution = read_constitution(path).constitution
    assert constitution is not None
    assert [principle.text for principle in constitution.principles] == texts


def test_headings_and_items_in_a_fence_are_none(tmp_path: Path) -> None:
    assert list(texts(tmp_path, "- Be brief.\n\n```\n# Not this\n- nor this\n```\n\n- Be kind.\n").values()) == [
        "Be brief.",
        "Be kind.",
    ]


def test_ids_of_other_scripts_are_never_empty_and_never_collide(tmp_path: Path) -> None:
    content = (
        "# 规则\n## 诚实\n从不说谎。\n## 简洁 {#简洁}\n简短。\n## 诚实\n承认错误。\n## 规则1\n甲。\n## 准则1\n乙。\n"
    )
    ids = list(texts(tmp_path, content))
    assert len(set(ids)) == 5
    assert all(re.fullmatch("[A-Za-z][A-Za-z0-9_-]{0,63}", name) for name in ids)


@pytest.mark.parametrize(
    "deep",
    [
        "> " * 20_000 + "x",
        "".join("  " * level + "- x\n" for level in range(200)),
        "*a " * 5_000 + "b* " * 5_000,
        "[" * 20_000,
    ],
)
def test_deep_nesting_in_markdown_neither_fails_nor_is_lost_without_a_word(tmp_path: Path, deep: str) -> None:
    read = read_constitution(write(tmp_path, f"- Be brief.\n\n# Two\n\n{deep}\n", "ours.md"))
    told = [aside for aside in read.asides if "levels deep" in aside.kind]
    assert len(told) == (1 if deep.lstrip().startswith((">", "-")) else 0)


def test_template_syntax_and_other_scripts_survive_markdown(tmp_path: Path) -> None:
    read = texts(tmp_path, "- Say {{ name }} in snake_case_words.\n- 诚实。\n- Höflich sein.\n- 12 words.\n")
    assert list(read.values()) == ["Say {{ name }} in snake_case_words.", "诚实。", "Höflich sein.", "12 words."]
    # The Chinese text has no Latin letter, so its id is a digest; an id must begin with a letter.
    assert re.fullmatch(r"p_[0-9a-f]{8}", list(read)[1])
    assert list(read)[2:] == ["hoflich_sein", "p_12_words"]


def test_ids_stay_when_other_principles_come_and_go(tmp_path: Path) -> None:
    before = texts(tmp_path, "- Be brief.\n- Be kind.\n- Be honest.\n")
    after = texts(tmp_path, "## Style\n- Be honest.\n- Be kind.\n- Be calm.\n")
    assert {key: before[key] for key in ("be_kind", "be_honest")} == {
        key: after[key] for key in ("be_kind", "be_honest")
    }


@pytest.mark.parametrize("name", ["ours.md", "ours.yaml"])
def test_ids_of_texts_that_begin_alike_stay_when_the_first_of_them_goes(tmp_path: Path, name: str) -> None:
    items = [f"- Choose the response that is the most {word}.\n" for word in ("honest", "careful", "polite")]
    head = "" if name.endswith(".md") else "principles:\n"
    before = load_constitution(write(tmp_path, head + "".join(items), name))
    after = load_constitution(write(tmp_path, head + "".join(items[1:]), name))
    assert [str(change) for change in difference(before, after)] == [
        f"- {before.principles[0].id}: Choose the response that is the most honest."
    ]
    assert re.fullmatch("choose_the_response_that_is_the_[0-9a-f]{6}", before.principles[0].id)


def test_where_a_file_breaks_a_line_does_not_change_an_id(tmp_path: Path) -> None:
    other = "- Choose the response that is the least rude.\n"
    one = load_constitution(write(tmp_path, f"{other}- Choose the response that is the most calm.\n", "ours.md"))
    two = load_constitution(write(tmp_path, f"{other}- Choose the response\n  that is the most calm.\n", "ours.md"))
    assert two.principles == one.principles


def test_an_item_s_id_can_be_given_and_stays_when_its_words_change(tmp_path: Path) -> None:
    content = "- Be calm. {#Keep-Calm}\n- Be brief. {#brief}\n  - no filler\n1. Be kind. {#2.1 authority=user}\n"
    assert texts(tmp_path, content) == {
        "Keep-Calm": "Be calm.",
        "brief": "Be brief. no filler",
        "p_2_1": "Be kind.",  # an id begins with a letter
    }
    assert list(texts(tmp_path, content.replace("Be calm", "Never shout"))) == ["Keep-Calm", "brief", "p_2_1"]


def test_an_id_that_prose_gives_twice_is_refused_with_both_lines(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"ours\.md:3: principle 'calm' appears twice \(lines 1 and 3\); rename one$"):
        texts(tmp_path, "- Be calm. {#calm}\n- Be brief.\n- Stay calm. {#calm}\n")


def test_a_template_s_remark_at_the_end_of_an_item_is_text(tmp_path: Path) -> None:
    read = texts(tmp_path, "- Be brief. {# why? #}\n- Be kind. {#why#}\n- Be calm. \\{#why}\n")
    assert list(read.values()) == ["Be brief. {# why? #}", "Be kind. {#why#}", "Be calm. {#why}"]


def test_a_text_in_prose_that_is_too_long_is_refused_with_its_line(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=f"ours\\.md:2: principle '{'a' * 48}': 'text' must be a {LONG}"):
        texts(tmp_path, f"- Be brief.\n- {'a' * 20_001}\n")
    assert len(texts(tmp_path, f"- {'a' * 20_000}\n")) == 1


def test_prose_whose_texts_are_all_wrong_is_not_also_said_to_hold_too_few(tmp_path: Path) -> None:
    read = read_constitution(write(tmp_path, f"# Ours\n\n- {'a' * 20_001}\n", "ours.md"))
    assert [problem.line for problem in read.problems] == [3]


def test_a_document_without_text_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"ours\.md:1: holds no principle; write them as a list"):
        texts(tmp_path, "# Title only\n\n---\n")


# Finding files


def test_a_shipped_constitution_is_found_by_its_name() -> None:
    assert load_constitution("harmlessness").name == "Harmlessness"


def test_an_unknown_name_is_answered_with_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="no shipped constitution of that name; did you mean 'harmlessness'"):
        load_constitution("harmlesness")
    with pytest.raises(ConfigurationError, match="is a folder"):
        load_constitution(tmp_path)
    with pytest.raises(ConfigurationError, match="name is empty; type the name of a file or of a shipped one"):
        load_constitution("")
    assert load_constitution(write(tmp_path, "Be brief.", "ours.doc")).principles[0].text == "Be brief."
