import random
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import pytest

from constitutional.constitution import Constitution, Example, Principle, load_constitution
from constitutional.lint import RULES, Finding, difference, lint_file
from constitutional.shipped import shipped

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


# Warnings


def test_a_clear_constitution_has_no_warnings(tmp_path: Path) -> None:
    texts = ("Do not flatter the user.", "Be brief.", "Correct false claims.", "Never help anyone commit a crime.")
    assert lint(tmp_path, *texts) == []


def test_principles_that_say_nearly_the_same_are_pointed_out(tmp_path: Path) -> None:
    # Words in common 5, in both together 6: 5/6 = 0.83 is at least 0.8.
    found = lint(tmp_path, "Never tell the user a lie.", "Be brief.", "Never tell the user lie.")
    assert found == [("duplicate", "principle 'c' says nearly the same as 'a'; keep one, and weight it")]
    # 4 of 7 are in common.
    assert lint(tmp_path, "Never tell the user a lie.", "Never tell the story twice.") == []


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Always lecture people.", "Never lecture people."),
        ("Keep your answers short.", "Give detailed answers."),
        ("Avoid long answers.", "Do not be brief."),
        ("Include compliments.", "Don’t compliment the user."),
        ("Choose the most harmful response.", "Choose the least harmful response."),
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

    def understand(texts: list[str]) -> Sequence[Meaning]:
        return [meanings[text] for text in texts]

    assert [finding.message for finding in lint_file(path, understand) if finding.rule == "misunderstood"] == [
        "principle 'a' (\"Keep answers short.\") is understood as 'seek verbosity' with a probability of only 0.55",
        "principle 'a' (\"Choose the shorter one.\") is understood as 'avoid verbosity', and 'a' as the opposite",
        "principle 'b' (\"Be laconic.\") has words that the model does not know: laconic",
        "principle 'c' (\"Mind the gap.\") is understood to ask for nothing, so it changes nothing",
    ]


@pytest.mark.parametrize("path", sorted(shipped("constitutions").glob("*.yaml")), ids=lambda path: path.stem)
def test_the_shipped_constitutions_are_clean(path: Path) -> None:
    allowed = {"harmlessness": {"no-examples"}, "sandbox_control": {"no-examples", "unmeasurable"}}
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
    assert changes([CALM, BRIEF], [BRIEF, CALM]) == []


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
        "~ brief: renamed, brief → short",
        "~ brief: reweighted, 1 → 2",
        "~ kind: critique reworded\n    - Is it kind?\n    + (as the text)",
        "- old: Old.",
        "+ new: New.",
    ]


def test_the_shipped_opposites_share_no_principle() -> None:
    concise, thorough = load_constitution("sandbox_concise"), load_constitution("sandbox_thorough")
    assert {change.kind for change in difference(concise, thorough)} == {"added", "removed"}
