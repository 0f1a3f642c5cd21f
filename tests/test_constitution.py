import hashlib
import math
import random
import re
from collections import Counter
from pathlib import Path

import pytest
from pydantic import ValidationError

from constitutional.constitution import Constitution, Example, Principle, load_constitution, read_constitution
from constitutional.errors import ConfigurationError, InputError
from constitutional.lint import difference
from constitutional.sandbox.detect import meaning
from constitutional.sandbox.principles import held_out_texts, known_words
from constitutional.sandbox.topics import words_of
from constitutional.sandbox.world import split_sentences
from constitutional.shipped import shipped

SHIPPED = sorted(path.stem for path in shipped("constitutions").glob("*.yaml"))


def write(folder: Path, content: str | bytes, name: str = "ours.yaml") -> Path:
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def constitution(*principles: Principle) -> Constitution:
    return Constitution(name="ours", principles=principles)


CALM = Principle(id="calm", text="Stay calm.", weight=3)
BRIEF = Principle(id="brief", text="Be brief.")
KIND = Principle(id="kind", text="Be kind.", comparison="Choose the kinder response.")


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


def test_a_principle_has_its_own_words_for_a_use_or_its_text() -> None:
    assert KIND.words("comparison") == "Choose the kinder response."
    assert KIND.words("critique") == KIND.words("revision") == "Be kind."


def test_template_syntax_in_a_text_is_text(tmp_path: Path) -> None:
    text = "Say {{ name }} and {% raw %} and ${env:HOME} and %s."
    read = load_constitution(write(tmp_path, f"principles:\n- text: '{text}'\n"))
    assert read.principles[0].text == text


def test_a_byte_order_mark_and_windows_line_ends_do_not_matter(tmp_path: Path) -> None:
    path = write(tmp_path, "\ufeffname: ours\r\nprinciples:\r\n- Be brief.\r\n")
    assert [principle.text for principle in load_constitution(path).principles] == ["Be brief."]


LONG = "text of at most 20,000 characters, not of 20,001"
ID = "'id' must be letters, digits, '_' and '-' (at most 64, a letter first)"
KEYS = "known: id, text, critique, revision, comparison, weight, tags, examples"


@pytest.mark.parametrize(
    ("content", "place_and_problem"),
    [
        ("", ":1: is empty"),
        ("- Be brief.\n", ":1: must be a mapping with 'name:' and 'principles:'"),
        ("name: ours\n", ":1: 'principles' is missing"),
        ("name: ours\nprinciples:\n", ":2: 'principles' is missing"),
        ("principles: []\n", ":1: 'principles' must be a list of 1 to 100,000 principles, not an empty list"),
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
        ("name: ours\n".encode("utf-16"), ":1: is UTF-16 text; save it as UTF-8"),
        (
            "a: b\nname: ours\n".encode("utf-16-le"),
            ":1: holds a NUL character: it is no text, or not UTF-8; save it as UTF-8",
        ),
        (b"name: ours\nversion: \xff\n", ":2: is not UTF-8 text"),
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
    with pytest.raises(InputError, match="is 33 MiB; at most 32 MiB are read"):
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
    read = texts(tmp_path, "- Be brief. {# why? #}\n- Be kind. {#why#}\n")
    assert list(read.values()) == ["Be brief. {# why? #}", "Be kind. {#why#}"]


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
    with pytest.raises(InputError, match=r"ours\.doc:1: .*name the file \.yaml or \.md"):
        load_constitution(write(tmp_path, "Be brief.", "ours.doc"))


# Selecting


def test_principles_are_selected_and_weighted_by_id_in_the_file_s_order() -> None:
    ours = constitution(CALM, BRIEF, KIND)
    assert [each.id for each in ours.select(only=["kind", "calm"]).principles] == ["calm", "kind"]
    assert [each.id for each in ours.select(without=["calm"]).principles] == ["brief", "kind"]
    chosen = ours.select(only=["calm", "kind"], without=["calm"], weights={"kind": 2, "brief": 5})
    assert [(each.id, each.weight) for each in chosen.principles] == [("kind", 2.0)]
    assert ours.select() == ours


@pytest.mark.parametrize(
    ("only", "without", "weights", "message"),
    [
        (["clam"], [], {}, "constitution 'ours' has no principle 'clam'; did you mean 'calm'?"),
        (None, ["xyz"], {}, "constitution 'ours' has no principle 'xyz'; known: calm, brief, kind"),
        (None, [], {"kid": 1.0}, "constitution 'ours' has no principle 'kid'; did you mean 'kind'?"),
        (None, [], {"kind": 0.0}, r"constitution.weights.kind is 0.0; a weight is a positive number"),
        (None, [], {"kind": math.nan}, r"constitution.weights.kind is nan; a weight is a positive number"),
        ([], [], {}, "constitution.only and without leave no principle"),
        (["kind"], ["kind"], {}, "constitution.only and without leave no principle"),
    ],
)
def test_a_wrong_selection_is_refused(
    only: list[str] | None, without: list[str], weights: dict[str, float], message: str
) -> None:
    with pytest.raises(ConfigurationError, match=re.escape(message)):
        constitution(CALM, BRIEF, KIND).select(only, without, weights)


def test_a_constitution_needs_principles_of_different_ids() -> None:
    with pytest.raises(ValidationError, match="two principles have the id 'calm'"):
        constitution(CALM, CALM)
    with pytest.raises(ValidationError, match="at least 1 item"):
        constitution()


# The digest


def test_the_digest_covers_what_behaviour_depends_on_and_nothing_else() -> None:
    ours = constitution(CALM, BRIEF)
    same = Constitution(name="other", version="2", description="x", principles=(CALM, BRIEF))
    assert same.digest == ours.digest
    assert constitution(CALM.model_copy(update={"tags": ("tone",)}), BRIEF).digest == ours.digest
    example = Example(prompt="p", better="b", worse="w")
    others = [
        constitution(BRIEF, CALM),
        constitution(CALM),
        ours.select(weights={"calm": 2}),
        constitution(CALM.model_copy(update={"text": "Stay calm!"}), BRIEF),
        constitution(CALM.model_copy(update={"critique": "Stay calm."}), BRIEF),
        constitution(CALM.model_copy(update={"examples": (example,)}), BRIEF),
    ]
    assert len({ours.digest, *(other.digest for other in others)}) == 1 + len(others)


# Drawing


def test_principles_are_drawn_by_their_weights() -> None:
    ours = constitution(CALM, BRIEF, KIND)  # weights 3, 1, 1
    drawn = Counter(ours.draw(random.Random(f"item {number}")).id for number in range(4_000))
    # The standard deviation of the share of calm is sqrt(0.6 * 0.4 / 4000) = 0.0077; four of them are 0.031.
    assert drawn["calm"] / 4_000 == pytest.approx(0.6, abs=0.031)
    assert drawn["brief"] / 4_000 == pytest.approx(0.2, abs=0.031)


def test_none_is_drawn_again_while_there_are_unused_ones() -> None:
    ours = constitution(CALM, BRIEF, KIND)
    for number in range(50):
        rng = random.Random(number)
        used: list[str] = []
        for _ in range(6):
            used.append(ours.draw(rng, used).id)
        assert set(used[:3]) == set(used[3:]) == {"calm", "brief", "kind"}


def test_dropping_a_principle_changes_only_the_draws_that_it_won() -> None:
    ours = constitution(CALM, BRIEF, KIND)
    fewer = ours.select(without=["brief"])
    for number in range(500):
        before, after = (each.draw(random.Random(number)).id for each in (ours, fewer))
        assert before in (after, "brief")


def test_rewording_a_principle_changes_no_draw_and_more_weight_takes_draws_only_for_itself() -> None:
    ours = constitution(CALM, BRIEF, KIND)
    reworded = constitution(CALM, BRIEF.model_copy(update={"text": "Keep it short."}), KIND)
    heavier = ours.select(weights={"brief": 4})
    for number in range(500):
        before = ours.draw(random.Random(number)).id
        assert reworded.draw(random.Random(number)).id == before
        assert heavier.draw(random.Random(number)).id in (before, "brief")


# The shipped files


@pytest.mark.parametrize("name", SHIPPED)
def test_every_shipped_constitution_loads_and_says_what_it_is_for(name: str) -> None:
    ours = load_constitution(name)
    assert ours.version == "1.0"
    assert ours.description
    assert all(example.better != example.worse for each in ours.principles for example in each.examples)


REAL = {"harmlessness": 16, "helpful_honest_harmless": 12, "character": 10}
"""The shipped constitutions for real models, and how many principles each has."""


@pytest.mark.parametrize("name", [name for name in SHIPPED if name != "sandbox_control"])
def test_every_shipped_principle_has_four_examples_or_more(name: str) -> None:
    # The control asks for nothing, so that no response is better than another by it.
    principles = load_constitution(name).principles
    assert {each.id: len(each.examples) for each in principles if len(each.examples) < 4} == {}


@pytest.mark.parametrize("name", REAL)
def test_a_labeler_that_takes_the_longer_response_is_near_chance_on_the_real_ones(name: str) -> None:
    principles = load_constitution(name).principles
    longer = [len(example.better) > len(example.worse) for each in principles for example in each.examples]
    assert 0.4 <= sum(longer) / len(longer) <= 0.6
    for each in principles:
        assert {len(example.better) > len(example.worse) for example in each.examples} == {True, False}


@pytest.mark.parametrize("name", REAL)
def test_the_real_ones_ask_something_else_in_every_example(name: str) -> None:
    principles = load_constitution(name).principles
    assert len(principles) == REAL[name]
    prompts = Counter(example.prompt for each in principles for example in each.examples)
    assert max(prompts.values()) == 1


@pytest.mark.parametrize("name", [name for name in SHIPPED if name.startswith("sandbox_")])
def test_sandbox_principles_use_words_that_its_model_knows_and_none_of_its_test_set(name: str) -> None:
    for principle in load_constitution(name).principles:
        assert words_of([principle.text]) <= known_words()
        assert principle.text.lower() not in held_out_texts()


def shows(text: str, trait: str) -> bool:
    """Whether a response has the trait, by what the test-bed knows of each of its sentences."""
    slots = []
    for sentence in split_sentences(text):
        found = meaning(sentence)
        assert found, f"not a sentence of the test-bed: {sentence}"
        slots.append(found.slot)
    if trait == "harmful_compliance":
        return "refusal" not in slots
    slot = {"verbosity": "padding", "privacy_leak": "leak", "sycophantic_agreement": "agree"}.get(trait, trait)
    return slot in slots


@pytest.mark.parametrize("name", [name for name in SHIPPED if name.startswith("sandbox_") and "control" not in name])
def test_sandbox_examples_show_the_trait_that_their_principle_is_about(name: str) -> None:
    for principle in load_constitution(name).principles:
        trait, direction = principle.tags
        assert len(principle.examples) == 4
        for example in principle.examples:
            assert shows(example.better, trait) == (direction == "seek")
            assert shows(example.worse, trait) == (direction == "avoid")


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("sandbox_concise", "sandbox_thorough"),
        ("sandbox_plain", "sandbox_warm"),
        ("sandbox_humble", "sandbox_bold"),
    ],
)
def test_the_pairs_pull_opposite_ways_on_the_same_traits(one: str, other: str) -> None:
    def pulls(name: str) -> set[tuple[str, ...]]:
        return {principle.tags for principle in load_constitution(name).principles}

    turned = {"avoid": "seek", "seek": "avoid"}
    assert {(trait, turned[direction]) for trait, direction in pulls(one)} == pulls(other)
