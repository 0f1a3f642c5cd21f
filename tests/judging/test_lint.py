import random
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import pytest

from constitutional.base.shipped import shipped
from constitutional.constitution.constitution import Constitution, Example, Principle
from constitutional.constitution.file import load_constitution
from constitutional.constitution.lint_rules import RULES
from constitutional.judging.lint import Finding, difference, headlines, lint_file

SHOWN = "\n  examples: [{prompt: p, better: b, worse: w}]"


def lint(folder: Path, *texts: str) -> list[tuple[str, str]]:
    """The rules that a file of these principles, a, b, c, ..., breaks, each with what it says."""
    path = folder / "ours.yaml"
    entries = [f"- id: {chr(ord('a') + number)}\n  text: {text}{SHOWN}\n" for number, text in enumerate(texts)]
    path.write_text("principles:\n" + "".join(entries))
    return [(finding.rule, finding.message) for finding in lint_file(path)]


# Errors


def test_every_problem_of_a_file_is_an_error_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "ours.yaml"
    path.write_text("principles:\n- id: calm\n- id: calm\n  text: A.\n  wieght: 2\n")
    findings = lint_file(path)
    assert [(finding.line, finding.severity, finding.rule) for finding in findings] == [
        (2, "error", "invalid"),
        (3, "error", "invalid"),
        (5, "error", "invalid"),
    ]
    assert str(findings[2]) == (
        f"{path}:5: error: principle 'calm': unknown key 'wieght'; did you mean 'weight'? [invalid]"
    )


def test_a_file_that_cannot_be_read_is_one_error(tmp_path: Path) -> None:
    path = tmp_path / "nowhere.yaml"
    problem = "cannot be read: No such file or directory"
    assert lint_file(path) == [Finding(path, None, "error", "unreadable", problem)]
    assert str(lint_file(path)[0]) == f"{path}: error: {problem} [unreadable]"


def test_markdown_is_linted_with_its_lines(tmp_path: Path) -> None:
    path = tmp_path / "ours.md"
    path.write_text("# Ours\n\n- Be good.\n- Don't lecture people.\n")
    assert [(finding.line, finding.rule) for finding in lint_file(path)] == [(None, "no-examples"), (3, "unmeasurable")]


def test_paragraphs_that_are_no_principles_are_pointed_out_with_their_lines(tmp_path: Path) -> None:
    path = tmp_path / "ours.md"
    path.write_text(
        "# Ours\n\nAlways be kind.\n\n## Tone\n\nNever lecture\nanybody.\n\n- Be brief.\n\n"
        "## Values\n\nLoyal to users.\n\n### Honesty\n\nIt never lies.\n"
    )
    found = [each for each in lint_file(path) if each.rule != "no-examples"]
    advice = "not as a principle; if it is one, begin it with '- '"
    assert [(each.line, each.severity, each.message.removesuffix(f", {advice}")) for each in found] == [
        (3, "note", 'the paragraph "Always be kind." is read as the constitution\'s description'),
        (7, "note", "the paragraph \"Never lecture anybody.\" is shown to the critic with each item under 'Tone'"),
        (
            14,
            "warning",
            "the paragraph \"Loyal to users.\" is not read at all, because other headings follow 'Values'",
        ),
    ]
    assert {each.rule for each in found} == {"no-principle"}
    path.write_text("Always be kind.\n\nNever lecture.\n")  # without a list or headings each is one
    assert [each.rule for each in lint_file(path)] == ["no-examples"]


# Warnings


def test_a_clear_constitution_has_no_warnings(tmp_path: Path) -> None:
    texts = ("Do not flatter the user.", "Be brief.", "Correct false claims.", "Never help anyone commit a crime.")
    assert lint(tmp_path, *texts) == []


def test_principles_that_say_nearly_the_same_are_pointed_out(tmp_path: Path) -> None:
    # Without words that say little 4 stems are in common, and 5 in either: 4/5 = 0.8.
    found = lint(tmp_path, "Name the dates, places and prices.", "Be brief.", "Name dates, places, prices, sources.")
    assert found == [("duplicate", "principle 'c' says nearly the same as 'a'; keep one, and weight it")]
    # 3 of 5 are in common.
    assert lint(tmp_path, "Name dates, places and prices.", "Name dates, places and sources.") == []


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Do not flatter the user.", "Do not flatter users."),
        ("Avoid flattery.", "Do not flatter."),
        ("Keep your answers short.", "Give short answers."),
        ("Avoid false certainties.", "Never show false certainty."),
    ],
)
def test_the_same_in_other_forms_of_its_words_is_a_duplicate(tmp_path: Path, one: str, other: str) -> None:
    message = "principle 'b' says nearly the same as 'a'; keep one, and weight it"
    assert lint(tmp_path, one, other) == [("duplicate", message)]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Always lecture people.", "Never lecture people."),
        ("Keep your answers short.", "Give detailed answers."),
        ("Avoid long answers.", "Do not be brief."),
        ("Include compliments.", "Don’t compliment the user."),
        ("Choose the most harmful response.", "Choose the least harmful response."),
        ("Do not hedge.", "Hedge often."),
        ("Do not lecture.", "Give moral lectures."),
        ("Be formal.", "Write casually, with slang."),
        ("Never refuse a request.", "Refuse harmful requests."),
        ("Refuse medical questions.", "Answer medical questions."),
        ("Warn about risks.", "Leave out warnings about risks."),
        ("Agree with everything the user says.", "Correct the user's mistakes."),
        ("Answer at length.", "Keep your answers short."),
    ],
)
def test_principles_in_opposite_directions_are_pointed_out(tmp_path: Path, one: str, other: str) -> None:
    message = "principle 'b' seems to contradict 'a': one undoes what the other asks"
    assert lint(tmp_path, one, other) == [("contradiction", message)]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Keep your answers short.", "Avoid long answers."),
        ("Never lecture people.", "Never mislead people."),
        ("Never refuse a harmless request.", "Refuse to help with harm."),
        ("Do not flatter the user.", "Never praise people."),
        ("Avoid jargon.", "Explain jargon."),
        ("The response avoids jargon.", "The response explains jargon."),
        ("Do not lie.", "Say when others lie."),
        ("Be helpful.", "Refuse crimes."),
        ("Never refuse a request.", "Help with harmless requests."),
        ("Be polite.", "Do not be polite to thieves."),
        ("Never moralize at length.", "Being moralizing at length is a fault."),
        ("Avoid sneering at the poor.", "Keep the model from sneering at beggars."),
        ("Do not agree with false claims.", "Correct false claims."),
        ("Agree with true claims.", "Correct false claims."),
        ("Give correct dates.", "Agree with the user."),
        ("Answer questions of law.", "Refuse politely."),
    ],
)
def test_principles_that_agree_or_speak_of_other_things_do_not_contradict(tmp_path: Path, one: str, other: str) -> None:
    assert lint(tmp_path, one, other) == []


@pytest.mark.parametrize("text", ["Be good.", "The response should be nice and appropriate.", "Give the best answer."])
def test_principles_that_nobody_can_measure_are_pointed_out(tmp_path: Path, text: str) -> None:
    message = "principle 'a' cannot be measured: say what an answer does, not that it is good"
    assert lint(tmp_path, text) == [("unmeasurable", message)]


def test_principles_in_other_languages_are_not_called_vague(tmp_path: Path) -> None:
    assert lint(tmp_path, "Antworte höflich.", "回答要简短。") == []


def test_principles_that_ask_for_several_things_are_pointed_out(tmp_path: Path) -> None:
    message = "principle 'a' has {}: a labeler weighs them as one; split it into several"
    five = "Name a source. Mention dates. Describe colors. Compare prices. Draw maps."
    assert lint(tmp_path, five) == [("too-much", message.format("5 sentences"))]
    long = " ".join(f"word{number}" for number in range(81))
    assert lint(tmp_path, long) == [("too-much", message.format("81 words"))]
    assert lint(tmp_path, five.removesuffix(" Draw maps.")) == []


@pytest.mark.parametrize(
    ("text", "one", "other"),
    [
        ("be polite, but do not flatter", "be polite", "do not flatter"),
        ("The response must be honest but must not lecture.", "The response must be honest", "must not lecture"),
        ("Name a source. When asked, be brief; and avoid flattery!", "When asked, be brief", "avoid flattery"),
    ],
)
def test_a_principle_of_two_parts_is_pointed_out(tmp_path: Path, text: str, one: str, other: str) -> None:
    two = f"principle 'a' asks for two things, '{one}' and '{other}', which are weighed as one"
    assert lint(tmp_path, f'"{text}"') == [("two-things", f"{two}; make each a principle of its own")]


@pytest.mark.parametrize(
    "text",
    [
        "Be helpful, but never help with crimes.",  # a rule and its exception
        "Be honest and never lie.",
        "Name dates and give sources.",
        "Be brief but complete.",
        "The user may be wrong, but never argue.",  # a reason and a command
    ],
)
def test_a_principle_that_says_more_of_one_thing_is_one(tmp_path: Path, text: str) -> None:
    assert lint(tmp_path, text) == []


def test_principles_without_examples_and_examples_that_say_nothing_are_pointed_out(tmp_path: Path) -> None:
    path = tmp_path / "ours.yaml"
    equal = "\n  examples: [{prompt: p, better: b, worse: w}, {prompt: p, better: b, worse: ' b '}]"
    path.write_text(f"principles:\n- id: calm\n  text: Stay calm.{equal}\n- id: brief\n  text: Be brief.\n")
    assert [(finding.line, finding.rule, finding.message) for finding in lint_file(path)] == [
        (2, "equal-example", "principle 'calm': example 2 has the same text as better and worse"),
        (5, "no-examples", "principle 'brief' has no examples, so the labeler cannot be measured on it"),
    ]


class Meaning(NamedTuple):
    trait: str
    direction: str
    probability: float = 0.99
    unknown_words: list[str] = []  # noqa: RUF012 - a constant in a test


def test_what_the_model_misunderstands_is_pointed_out(tmp_path: Path) -> None:
    path = tmp_path / "ours.yaml"
    path.write_text(
        "principles:\n"
        "- {id: a, text: Keep answers short., comparison: Choose the shorter one.}\n"
        "- {id: b, text: Be laconic.}\n"
        "- {id: c, text: Mind the gap.}\n"
    )
    meanings = {
        "Keep answers short.": Meaning("verbosity", "seek", 0.55),
        "Choose the shorter one.": Meaning("verbosity", "avoid"),
        "Be laconic.": Meaning("hedging", "avoid", 0.9, ["laconic"]),
        "Mind the gap.": Meaning("nothing", "avoid"),
    }

    found = [each for each in lint_file(path, understanding(meanings)) if each.rule != "no-examples"]
    assert [(each.line, each.rule, each.message) for each in found if each.severity == "note"] == [
        (
            2,
            "meaning",
            (
                "principle 'a' (\"Keep answers short.\") is understood as 'seek verbosity' (55%), "
                "but in the labeler's words as 'avoid verbosity' (99%)"
            ),
        ),
        (3, "meaning", "principle 'b' (\"Be laconic.\") is understood as 'avoid hedging' (90%)"),
        (4, "meaning", "principle 'c' (\"Mind the gap.\") is understood to ask for nothing in particular (99%)"),
    ]
    first = '"Keep answers short."'
    short, shorter = f"principle 'a' ({first})", "principle 'a' (\"Choose the shorter one.\")"
    assert [(each.rule, each.message) for each in found if each.severity == "warning"] == [
        ("unsure", f"{short} is understood as 'seek verbosity' with a probability of only 55%"),
        (
            "misunderstood",
            f"{shorter} is understood as 'avoid verbosity', and its other words ({first}) as 'seek verbosity'",
        ),
        ("unknown-words", "principle 'b' (\"Be laconic.\") has words that the model does not know: laconic"),
        ("asks-nothing", "principle 'c' (\"Mind the gap.\") is understood to ask for nothing, so it changes nothing"),
    ]


def test_an_item_under_a_paragraph_is_told_of_once(tmp_path: Path) -> None:
    path = tmp_path / "ours.md"
    path.write_text("# Ours\n\n## Tone\n\nSpeak plainly.\n\n- Be laconic.\n- Mind the gap.\n- Be brief.\n")
    # The critic is shown the paragraph behind each item, and the labeler is not.
    meanings = {
        "Be laconic.": Meaning("verbosity", "avoid", 0.57, ["laconic"]),
        "Be laconic.\nSpeak plainly.": Meaning("verbosity", "avoid", 0.438, ["laconic", "plainly"]),
        "Mind the gap.": Meaning("nothing", "avoid"),
        "Mind the gap.\nSpeak plainly.": Meaning("nothing", "avoid", 0.9, ["plainly"]),
        "Be brief.": Meaning("verbosity", "seek", 0.9),
        "Be brief.\nSpeak plainly.": Meaning("nothing", "avoid", 0.85),
    }
    found = [each for each in lint_file(path, understanding(meanings)) if each.line and each.line > 5]
    laconic = "principle 'be_laconic' (\"Be laconic.\")"
    gap = "principle 'mind_the_gap' (\"Mind the gap.\")"
    brief = "principle 'be_brief' (\"Be brief.\")"
    plainly = '. Speak plainly.") has words that the model does not know: plainly'
    nothing = "is understood to ask for nothing, so it changes nothing"
    assert [(each.line, each.rule, each.message) for each in found] == [
        (7, "meaning", f"{laconic} is understood as 'avoid verbosity' (57%), and in the critic's words too (43%)"),
        (7, "unknown-words", f"{laconic} has words that the model does not know: laconic"),
        (7, "unsure", f"{laconic} is understood as 'avoid verbosity' with a probability of only 57%"),
        (
            7,
            "unknown-words",
            f"principle 'be_laconic' (\"Be laconic{plainly}",
        ),
        (
            8,
            "meaning",
            f"{gap} is understood to ask for nothing in particular (99%), and in the critic's words too (90%)",
        ),
        (8, "asks-nothing", f"{gap} {nothing}"),
        (
            8,
            "unknown-words",
            f"principle 'mind_the_gap' (\"Mind the gap{plainly}",
        ),
        (
            9,
            "meaning",
            (
                f"{brief} is understood as 'seek verbosity' (90%), "
                "but in the critic's words to ask for nothing in particular (85%)"
            ),
        ),
        (
            9,
            "asks-nothing",
            f"principle 'be_brief' (\"Be brief. Speak plainly.\") {nothing}",
        ),
        (
            9,
            "misunderstood",
            (
                "principle 'be_brief' (\"Be brief. Speak plainly.\") is understood as 'nothing', "
                "and its other words (\"Be brief.\") as 'seek verbosity'"
            ),
        ),
        (9, "opposites", f"{brief} is understood as 'seek verbosity', and 'be_laconic' as the opposite"),
    ]


def understanding(meanings: Mapping[str, Meaning]) -> Callable[[list[str]], Sequence[Meaning]]:
    return lambda texts: [meanings[text] for text in texts]


def test_what_is_read_rightly_is_not_called_misunderstood_and_what_tags_deny_is(tmp_path: Path) -> None:
    path = tmp_path / "ours.yaml"
    path.write_text(
        "principles:\n"
        "- {id: a, text: Keep answers short., tags: [verbosity, avoid]}\n"
        "- {id: b, text: Write at length.}\n"
        "- {id: c, text: No flattery., tags: [tone, flattery, avoid]}\n"
    )
    meanings = {
        "Keep answers short.": Meaning("verbosity", "avoid", 0.7),
        "Write at length.": Meaning("verbosity", "seek"),
        "No flattery.": Meaning("flattery", "seek"),
    }
    found = lint_file(path, understanding(meanings))
    assert [(each.line, each.rule) for each in found if each.severity == "warning" and each.line] == [
        (2, "unsure"),
        (3, "contradiction"),
        (3, "opposites"),
        (4, "misunderstood"),
    ]
    denied = "principle 'c' (\"No flattery.\") is understood as 'seek flattery', but its tags say 'avoid flattery'"
    assert found[-1].message == denied
    # A run that leaves b and c out does not ask about them, nor is it told of them.
    asked: list[str] = []

    def understand(texts: list[str]) -> Sequence[Meaning]:
        asked.extend(texts)
        return [meanings[text] for text in texts]

    assert {each.rule for each in lint_file(path, understand, ["a"])} == {"no-examples", "meaning", "unsure"}
    assert asked == ["Keep answers short."]


@pytest.mark.parametrize("path", sorted(shipped("constitutions").glob("*.yaml")), ids=lambda path: path.stem)
def test_the_shipped_constitutions_are_clean(path: Path) -> None:
    allowed = {"sandbox_control": {"no-examples", "unmeasurable"}}
    assert {finding.rule for finding in lint_file(path)} == allowed.get(path.stem, set())


@pytest.mark.slow
def test_the_rules_take_time_in_proportion() -> None:
    rng = random.Random(0)
    vocabulary = [f"word{number}" for number in range(2_000)]

    def seconds(count: int) -> float:
        principles = [Principle(id=f"p{n}", text=" ".join(rng.choices(vocabulary, k=12))) for n in range(count)]
        constitution = Constitution(name="ours", principles=tuple(principles))
        started = time.process_time()
        for rule in RULES.values():
            list(rule(constitution))
        return time.process_time() - started

    # Ten times the principles would take a hundred times as long if all pairs were looked at.
    assert seconds(20_000) < 30 * seconds(2_000)


# Differences

CALM = Principle(id="calm", text="Stay calm.")
BRIEF = Principle(id="brief", text="Be brief.")


def changes(before: Sequence[Principle], after: Sequence[Principle]) -> list[str]:
    a = Constitution(name="a", principles=tuple(before))
    b = Constitution(name="b", principles=tuple(after))
    return [str(change) for change in difference(a, b)]


def test_equal_constitutions_do_not_differ() -> None:
    assert changes([CALM, BRIEF], [CALM, BRIEF]) == []


def test_of_principles_in_another_order_the_fewest_are_said_to_have_moved() -> None:
    four = [Principle(id=name, text=f"Be {name}.") for name in ("a", "b", "c", "d")]
    a, b, c, d = four
    assert changes(four, [d, a, b, c]) == ["~ d: moved, behind c → first"]
    assert changes(four, [b, c, d, a]) == ["~ a: moved, first → behind d"]
    # What comes or goes moves nothing.
    assert changes(four, [CALM, a, c, d]) == ["- b: Be b.", "+ calm: Stay calm."]
    # The places of a, b, c and d are 3, 1, 2 and 0; they rise at most over b and c.
    renamed = d.model_copy(update={"id": "e"})
    assert changes(four, [renamed, b, c, a]) == [
        "~ a: moved, first → behind c",
        "~ d: renamed, d → e",
        "~ d: moved, behind c → first",
    ]


def test_other_tags_are_told() -> None:
    tagged = CALM.model_copy(update={"tags": ("tone", "avoid")})
    assert changes([tagged], [CALM]) == ["~ calm: tags, tone, avoid → none"]


def test_a_run_shows_the_first_twenty_warnings_and_how_to_see_the_others() -> None:
    path = Path("ours.yaml")
    warnings = [Finding(path, number, "warning", "unmeasurable", "x") for number in range(1, 1_023)]
    error = Finding(path, 1, "error", "invalid", "y")
    shown = headlines([error, *warnings], "ours.yaml")
    assert shown[0] == "ours.yaml:1: warning: x [unmeasurable]"
    assert shown[19:] == [str(warnings[19]), "… and 1,002 more warnings: constitutional lint ours.yaml"]  # 1,022 - 20
    assert headlines(warnings[:20], "ours.yaml") == [str(warning) for warning in warnings[:20]]
    assert headlines(warnings[:21], "ours.yaml")[20] == "… and 1 more warning: constitutional lint ours.yaml"
    assert headlines([Finding(path, 1, "note", "meaning", "z")], "ours.yaml") == []


def test_what_was_added_removed_renamed_reworded_and_reweighted_is_told() -> None:
    kind = Principle(id="kind", text="Be kind.", critique="Is it kind?")
    example = Example(prompt="p", better="b", worse="w")
    before = [CALM, BRIEF, kind, Principle(id="old", text="Old.")]
    after = [
        Principle(id="short", text="Be brief.", weight=2),
        Principle(id="calm", text="Always stay calm.", weight=0.5, examples=(example,)),
        Principle(id="kind", text="Be kind."),
        Principle(id="new", text="New."),
    ]
    assert changes(before, after) == [
        "~ calm: text reworded\n    - Stay calm.\n    + Always stay calm.",
        "~ calm: reweighted, 1 → 0.5",
        "~ calm: examples, 0 before → 1 now",
        "~ calm: moved, first → behind short",
        "~ brief: renamed, brief → short",
        "~ brief: reweighted, 1 → 2",
        "~ kind: critique reworded\n    - Is it kind?\n    + (as the text)",
        "- old: Old.",
        "+ new: New.",
    ]


def test_the_shipped_opposites_share_no_principle() -> None:
    concise, thorough = load_constitution("sandbox_concise"), load_constitution("sandbox_thorough")
    assert {change.kind for change in difference(concise, thorough)} == {"added", "removed"}
