import random
import time
from pathlib import Path

import pytest

from constitutional.base.shipped import shipped
from constitutional.constitution.constitution import Constitution, Principle
from constitutional.constitution.file import load_constitution
from constitutional.constitution.lint_rules import RULES
from constitutional.judging.lint import Finding, headlines, lint_file
from constitutional.judging.understanding import PrincipleMeaning

SHOWN = "\n  examples: [{prompt: p, better: b, worse: w}]"


def lint(folder: Path, *texts: str) -> list[tuple[str, str]]:
    """The rules that a file of these principles, a, b, c, ..., breaks, each with what it says."""
    path = folder / "ours.yaml"
    entries = [f"- id: {chr(ord('a') + number)}\n  text: {text}{SHOWN}\n" for number, text in enumerate(texts)]
    path.write_text("principles:\n" + "".join(entries))
    return [(finding.rule, finding.message) for finding in lint_file(path).findings]


# Errors


def test_every_problem_of_a_file_is_an_error_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "ours.yaml"
    path.write_text("principles:\n- id: calm\n- id: calm\n  text: A.\n  wieght: 2\n")
    findings = lint_file(path).findings
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
    problem = "there is no such file; expected a text"
    assert lint_file(path).findings == [Finding(path, None, "error", "unreadable", problem)]
    assert str(lint_file(path).findings[0]) == f"{path}: error: {problem} [unreadable]"


def test_markdown_is_linted_with_its_lines(tmp_path: Path) -> None:
    path = tmp_path / "ours.md"
    path.write_text("# Ours\n\n- Be good.\n- Don't lecture people.\n")
    assert [(finding.line, finding.rule) for finding in lint_file(path).findings] == [
        (None, "no-examples"),
        (3, "unmeasurable"),
    ]


def test_paragraphs_that_are_no_principles_are_pointed_out_with_their_lines(tmp_path: Path) -> None:
    path = tmp_path / "ours.md"
    path.write_text(
        "# Ours\n\nAlways be kind.\n\n## Tone\n\nNever lecture\nanybody.\n\n- Be brief.\n\n"
        "## Values\n\nLoyal to users.\n\n### Honesty\n\nIt never lies.\n"
    )
    findings = [finding for finding in lint_file(path).findings if finding.rule == "no-principle"]
    assert [(finding.line, finding.severity) for finding in findings] == [(3, "note"), (7, "note"), (14, "warning")]
    for finding, words in zip(findings, ["description", "critic", "not read"], strict=True):
        assert words in finding.message
        assert "begin it with '- '" in finding.message
    path.write_text("Always be kind.\n\nNever lecture.\n")  # without a list or headings each is one
    assert [finding.rule for finding in lint_file(path).findings] == ["no-examples"]


@pytest.mark.parametrize(
    ("block", "kind"),
    [
        ("```yaml\nexample: no rule\n```", "code block"),
        ("~~~\n# no rule\n- at all\n~~~", "code block"),
        ("    indented code", "code block"),
        ("| a | b |\n|---|---|\n| 1 | 2 |", "table"),
        ("<details>\nMore.\n</details>", "block of HTML"),
        ("<!-- never closed\n- Be lost.", "block of HTML"),
    ],
)
@pytest.mark.parametrize(
    "before",
    [
        "# Rules\n\n- Be calm.\n- Be brief.\n\n",
        "# Rules\n\n- Be calm.\n- Be brief.\n\nThanks.\n\n",
        "## Be brief\n\nIt saves time.\n\n",
    ],
)
def test_a_block_that_is_no_text_joins_no_principle_and_is_said_not_to_be_read(
    tmp_path: Path, before: str, block: str, kind: str
) -> None:
    # Right behind a list an indented text is a paragraph of the last item.
    if block.startswith(" ") and before.endswith("- Be brief.\n\n"):
        before += "Thanks.\n\n"
    path = tmp_path / "ours.md"
    path.write_text(before)
    without = load_constitution(path).principles
    path.write_text(f"{before}{block}\n")
    assert load_constitution(path).principles == without
    warnings = [finding for finding in lint_file(path).findings if kind in finding.message]
    assert [(finding.line, finding.severity) for finding in warnings] == [(before.count("\n") + 1, "warning")]
    assert "is not read" in warnings[0].message


def test_what_a_file_holds_cannot_steer_a_terminal(tmp_path: Path) -> None:
    path = tmp_path / "ours.md"
    path.write_text("# Ours\n\nA \x1b[31mred aside.\n\n- Be brief.\n- Be \x1b[31mred.\n")
    findings = lint_file(path).findings
    assert {finding.line for finding in findings} == {3, 6}
    assert not any("\x1b" in str(finding) for finding in findings)


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


def test_opposites_are_no_duplicates(tmp_path: Path) -> None:
    assert lint(tmp_path, "Always lecture people.", "Never lecture people.") == []


@pytest.mark.parametrize("text", ["Be good.", "The response should be nice and appropriate.", "Give the best answer."])
def test_principles_that_nobody_can_measure_are_pointed_out(tmp_path: Path, text: str) -> None:
    message = "principle 'a' cannot be measured: say what an answer does, not that it is good"
    assert lint(tmp_path, text) == [("unmeasurable", message)]


def test_principles_in_other_languages_are_not_called_vague(tmp_path: Path) -> None:
    assert lint(tmp_path, "Antworte höflich.", "回答要简短。") == []


def test_principles_that_ask_for_several_things_are_pointed_out(tmp_path: Path) -> None:
    message = "principle 'a' has {}: a labeler weighs them as one; split it into several"
    five = "Sources matter. Dates matter too. Colors help. Prices do as well. Maps count."
    assert lint(tmp_path, five) == [("too-much", message.format("5 sentences"))]
    long = " ".join(f"word{number}" for number in range(81))
    assert lint(tmp_path, long) == [("too-much", message.format("81 words"))]
    assert lint(tmp_path, five.removesuffix(" Maps count.")) == []


@pytest.mark.parametrize(
    ("text", "one", "other"),
    [
        ("be polite, but do not flatter", "be polite", "do not flatter"),
        ("The response must be honest but must not lecture.", "The response must be honest", "must not lecture"),
        ("Name a source. When asked, be brief; and avoid flattery!", "Name a source", "When asked, be brief"),
        ("Keep answers short. It saves time. Never flatter.", "Keep answers short", "Never flatter"),
        ("Honesty: Never lie. Say when you are unsure.", "Honesty: Never lie", "Say when you are unsure"),
    ],
)
def test_a_principle_with_several_wishes_is_pointed_out(tmp_path: Path, text: str, one: str, other: str) -> None:
    ((rule, message),) = lint(tmp_path, f'"{text}"')
    assert rule == "several-wishes"
    assert f"('{one}', '{other}')" in message
    assert "split" in message


@pytest.mark.parametrize(
    "text",
    [
        "Be helpful, but never help with crimes.",  # a rule and its exception
        "Be honest and never lie.",
        "Name dates and give sources.",
        "Be brief but complete.",
        "The user may be wrong, but never argue.",  # a reason and a command
        "Do not flatter the user. It wastes their time.",  # a command and why
        "Keep answers short. Long answers bore people.",
        "Do not refuse harmless requests. A question about knives is about cooking.",
    ],
)
def test_a_principle_that_says_more_of_one_thing_is_one(tmp_path: Path, text: str) -> None:
    assert lint(tmp_path, f'"{text}"') == []


@pytest.mark.parametrize(
    ("content", "one", "other"),
    [
        ("- Never lie. Keep answers short.\n", "Never lie", "Keep answers short"),
        ("- Tone:\n  - Be kind\n  - Avoid jargon\n", "Tone: Be kind", "Avoid jargon"),
        ("Never lie. Keep answers short.\n", "Never lie", "Keep answers short"),
        ("## Honesty\n\nNever lie.\n\nKeep answers short.\n", "Honesty: Never lie", "Keep answers short"),
    ],
)
def test_wishes_that_markdown_puts_into_one_principle_are_pointed_out(
    tmp_path: Path, content: str, one: str, other: str
) -> None:
    path = tmp_path / "ours.md"
    path.write_text(content)
    messages = [finding.message for finding in lint_file(path).findings if finding.rule == "several-wishes"]
    assert len(messages) == 1
    assert f"('{one}', '{other}')" in messages[0]


@pytest.mark.parametrize("syntax", ["{{ name }}", "{% raw %}", "${env:HOME}"])
def test_template_syntax_is_pointed_out(tmp_path: Path, syntax: str) -> None:
    ((rule, message),) = lint(tmp_path, f"'Greet {syntax} by name.'")
    assert rule == "template-syntax"
    assert f"'{syntax}'" in message


def test_principles_without_examples_and_examples_that_say_nothing_are_pointed_out(tmp_path: Path) -> None:
    path = tmp_path / "ours.yaml"
    equal = "\n  examples: [{prompt: p, better: b, worse: w}, {prompt: p, better: b, worse: ' b '}]"
    path.write_text(f"principles:\n- id: calm\n  text: Stay calm.{equal}\n- id: brief\n  text: Be brief.\n")
    assert [(finding.line, finding.rule, finding.message) for finding in lint_file(path).findings] == [
        (2, "equal-example", "principle 'calm': example 2 has the same text as better and worse"),
        (5, "no-examples", "principle 'brief' has no examples, so the labeler cannot be measured on it"),
    ]


def test_several_principles_without_examples_are_one_warning(tmp_path: Path) -> None:
    path = tmp_path / "ours.yaml"
    example = "\n  examples: [{prompt: p, better: b, worse: w}]"
    rule = "- {text: Be short., measure: fewer words}\n"  # which needs no examples
    path.write_text(f"principles:\n- text: Stay calm.{example}\n- text: Be brief.\n- text: Be kind.\n{rule}")
    assert [finding.message for finding in lint_file(path).findings] == [
        "principles 'be_brief', 'be_kind' have no examples, so the labeler cannot be measured on them"
    ]


def test_what_a_model_understood_comes_first_and_its_warnings_have_lines(tmp_path: Path) -> None:
    path = tmp_path / "ours.yaml"
    path.write_text("principles:\n- {id: a, text: Be brief.}\n- {id: b, text: Mind the gap.}\n")
    asked: list[str] = []

    def understand(constitution: Constitution) -> list[PrincipleMeaning]:
        asked.extend(principle.id for principle in constitution.principles)
        return [
            PrincipleMeaning(principle=principle.id, words=principle.text, meaning="be short", warnings=("odd",))
            for principle in constitution.principles
        ]

    result = lint_file(path, understand)
    assert result.understood == ["a: understood as: be short", "b: understood as: be short"]
    found = [(finding.line, finding.severity, finding.message) for finding in result.findings if finding.line]
    assert found == [
        (2, "warning", "principle 'a' (\"Be brief.\"): odd"),
        (3, "warning", "principle 'b' (\"Mind the gap.\"): odd"),
    ]
    assert asked == ["a", "b"]
    # A run that leaves b out does not ask about it.
    assert lint_file(path, understand, ["a"]).understood == ["a: understood as: be short"]
    assert asked == ["a", "b", "a"]


@pytest.mark.parametrize("path", sorted(shipped("constitutions").glob("*.yaml")), ids=lambda path: path.stem)
def test_the_shipped_constitutions_are_clean(path: Path) -> None:
    allowed = {"sandbox_control": {"no-examples", "unmeasurable"}}
    assert {finding.rule for finding in lint_file(path).findings} == allowed.get(path.stem, set())


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
