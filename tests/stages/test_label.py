from pathlib import Path
from typing import Any

import pytest

from constitutional.base.errors import RunError
from constitutional.base.records import Judgement, Revision, RevisionStep
from constitutional.constitution.constitution import Principle
from constitutional.engines.base import Abilities, Completion, Request
from constitutional.engines.scripted import Rule, ScriptedEngine
from constitutional.stages import label, labeler_check
from constitutional.stages.label import Settings
from constitutional.stages.summaries import LabelerCheckSummary, LabelSummary
from tests.judging.scripted_labeler import (
    LONGER,
    SHORTER,
    TEMPLATES,
    comparison,
    constitution,
    likes_first,
    likes_longer,
)
from tests.tiny import OneStage


def stage(rule: Rule, *principles: Principle, **rows: list[Any]) -> OneStage:
    return OneStage(
        Path(),
        models={"critic": Path("a critic")},
        rows=rows,
        seed=1,
        constitution=constitution(*principles),
        prompts=TEMPLATES,
        engines={"labeler": ScriptedEngine(rule), "critic": ScriptedEngine(lambda _: "It asks to be so.")},
    )


def test_the_labeler_is_measured_in_a_stage_of_its_own() -> None:
    context = stage(likes_longer, LONGER, SHORTER)
    labeler_check.run(Settings(min_accuracy=0.7), context)
    assert [(row.accuracy, row.trusted) for row in context.rows["labeler_accuracy"]] == [(1.0, True), (0.0, False)]
    summary = context.summarised(LabelerCheckSummary)
    assert summary.left_out_principles == ("shorter",)
    assert (summary.canaries, summary.canaries_failed) == (6, 0)
    assert list(summary.warnings) == context.warnings
    # What was understood comes first, before the labeler is tried.
    assert context.lines[:2] == [
        "longer: understood as: It asks to be so.",
        "shorter: understood as: It asks to be so.",
    ]
    assert [(row.principle, row.meaning) for row in context.rows["meanings"]] == [
        ("longer", "It asks to be so."),
        ("shorter", "It asks to be so."),
    ]
    assert "principle 'shorter' is left out" in context.warnings[0]


def test_a_labeler_that_fails_the_canaries_ends_the_stage_that_measures_it() -> None:
    with pytest.raises(RunError, match="fails at 6 of 6"):
        labeler_check.run(Settings(), stage(lambda _: "Hm.", LONGER))


def test_a_labeler_that_is_trusted_with_no_principle_ends_the_stage_that_measures_it() -> None:
    context = stage(likes_longer, SHORTER)
    with pytest.raises(RunError, match=r"label\.min_accuracy"):
        labeler_check.run(Settings(min_accuracy=0.7), context)
    assert "principle 'shorter' is left out" in context.warnings[0]


def test_the_stage_labels_by_the_principles_that_were_found_to_be_judged_well() -> None:
    many = [comparison(question=f"Question {number}?") for number in range(4)]
    settings = Settings(principles="all", min_accuracy=0.7)
    check = stage(likes_longer, LONGER, SHORTER)
    labeler_check.run(settings, check)
    context = stage(
        likes_longer, LONGER, SHORTER, comparisons=list(many), labeler_accuracy=check.rows["labeler_accuracy"]
    )
    label.run(settings, context)
    assert [row.principle for row in context.rows["judgements"]] == ["longer"] * 4
    assert [row.comparison for row in context.rows["judgements"]] == [each.id for each in many]
    summary = context.summarised(LabelSummary)
    assert (summary.comparisons, summary.judgements) == (4, 4)
    assert (summary.unreadable, summary.too_long, summary.conflicts, summary.ties) == (0, 0, 0, 0)
    assert summary.position_bias == 0.5
    # Both orders, each with a reason and a choice, for the one principle; no example is judged again.
    assert context.engines["labeler"].count == 4 * 2 * 2


def test_what_cannot_be_read_is_too_long_conflicts_or_is_even_is_counted() -> None:
    def rule(request: Request) -> Completion | str:
        text = request.messages[0].content
        if "endless" in text:
            return Completion("", "too_long", reason="too long")
        return "Hm." if "unreadable" in text else likes_first(request)

    many = [
        comparison(question=question) for question in ("1?", "2?", "3?", "unreadable", "also unreadable", "endless")
    ]
    context = stage(rule, LONGER, comparisons=list(many), labeler_accuracy=[])
    label.run(Settings(), context)
    judgements: list[Judgement] = context.rows["judgements"]
    assert [row.p_a for row in judgements] == [pytest.approx(0.5)] * 3 + [None] * 3
    summary = context.summarised(LabelSummary)
    assert (summary.comparisons, summary.judgements) == (6, 6)
    # Too long is unreadable too; a labeler that keeps the position is even and in conflict.
    assert (summary.unreadable, summary.too_long, summary.conflicts, summary.ties) == (3, 1, 3, 3)
    assert summary.position_bias == 1.0


def test_telling_comparisons_are_judged_by_what_the_drafts_violated() -> None:
    long, short = "A long answer to it.", "Hm."
    many = [comparison(long, short, f"Question {number}?") for number in range(8)]
    many += [comparison(short, "So.", "Another question?")]  # both are short
    step = RevisionStep(principle="longer", principle_text="", critique="No.", found_nothing=False, revision=long)
    revisions = [Revision(prompt=row.prompt, draft=short, steps=(step,)) for row in many]

    def rule(request: Request) -> Completion | str:
        if not request.choices and request.messages[-1].content.startswith("Rate"):
            return f"Score: {9 if request.messages[-2].content == long else 2}"
        return likes_longer(request)

    context = stage(rule, LONGER, SHORTER, comparisons=list(many), labeler_accuracy=[], revisions=revisions)
    label.run(Settings(principles="telling"), context)
    judgements: list[Judgement] = context.rows["judgements"]
    assert [(row.comparison, row.principle) for row in judgements] == [(row.id, "longer") for row in many[:8]]
    summary = context.summarised(LabelSummary)
    assert (summary.comparisons, summary.judgements, summary.unrated) == (9, 8, 0)
    assert context.warnings == []


def test_a_labeler_that_rates_nothing_is_warned_of() -> None:
    context = stage(lambda _: "Hm.", LONGER, comparisons=[comparison()], labeler_accuracy=[], revisions=[])
    label.run(Settings(principles="telling"), context)
    assert context.rows["judgements"] == []
    summary = context.summarised(LabelSummary)
    assert (summary.rated, summary.unrated) == (0, 2)
    assert "no score to 2 of 2 responses" in context.warnings[0]
    assert "label.principles=one" in summary.problem


@pytest.mark.parametrize(
    ("structured", "remedy"), [(True, "type labeler.structured=no"), (False, "type label.max_tokens=512")]
)
def test_where_replies_are_cut_off_the_warning_says_what_to_type(structured: bool, remedy: str) -> None:
    def rule(_: Request) -> Completion:
        return Completion('{"reasoning": "Score: 9 Score: 9', "length")

    abilities = Abilities(choices=False, prefill=False, structured=structured)
    rows = {"comparisons": [comparison()], "labeler_accuracy": [], "revisions": []}
    context = stage(rule, LONGER, **rows)
    context.engines["labeler"] = ScriptedEngine(rule, abilities=abilities)
    label.run(Settings(principles="telling"), context)
    assert "no score to 2 of 2 responses" in context.warnings[0]
    assert "cut off at 256 tokens (2 of 2)" in context.warnings[0]
    assert remedy in context.warnings[0]
    assert remedy in context.summarised(LabelSummary).problem
    voted = stage(rule, LONGER, **rows)
    voted.engines["labeler"] = ScriptedEngine(rule, abilities=abilities)
    label.run(Settings(), voted)
    assert "no readable answer in 1 of 1" in voted.warnings[0]
    assert remedy in voted.warnings[0]
    assert remedy in voted.summarised(LabelSummary).problem


def test_where_the_labeler_is_cut_off_in_its_thoughts_the_warning_says_how_to_end_these() -> None:
    context = stage(lambda _: Completion("", "length", reasoning="Hm."), LONGER, comparisons=[comparison()])
    context.rows |= {"labeler_accuracy": [], "revisions": []}
    label.run(Settings(), context)
    (warning,) = context.warnings
    assert "cut off at 256 tokens, while the model thought" in warning
    assert 'type label.max_tokens=512, or "model.template={enable_thinking: false}" (labeler.template for' in warning


def test_where_responses_are_to_be_scored_the_labeler_tries_that_on_the_examples_first() -> None:
    def rule(request: Request) -> Completion | str:
        if not request.choices and request.messages[-1].content.startswith("Rate"):
            return Completion("Score: 9 Score: 9", "length")
        return likes_longer(request)

    context = stage(rule, LONGER)
    labeler_check.run(Settings(principles="telling"), context)
    (warning,) = context.warnings
    assert "no score to 1 of 1 examples" in warning
    assert "type label.max_tokens=512" in warning
    assert context.summarised(LabelerCheckSummary).warnings == (warning,)
    for principles, able in (("one", rule), ("telling", likes_longer)):
        unwarned = stage(able, LONGER)
        labeler_check.run(Settings.model_validate({"principles": principles}), unwarned)
        assert unwarned.warnings == []


def test_comparisons_that_priorities_settle_are_counted_and_said() -> None:
    first = LONGER.model_copy(update={"overrides": ("shorter",)})
    many = [comparison(question=f"Question {number}?") for number in range(3)]

    def rule(request: Request) -> Completion | str:
        longer = likes_longer(request)
        if not isinstance(longer, str) or "Prefer the longer." in request.messages[-1].content:
            return longer
        return longer[:-1] + ("B" if longer.endswith("A") else "A")

    context = stage(rule, SHORTER, first, comparisons=list(many), labeler_accuracy=[])
    label.run(Settings(principles="all", method="votes", votes=1), context)
    summary = context.summarised(LabelSummary)
    assert (summary.judgements, summary.settled, summary.overridden) == (6, 3, 3)
    assert any("3 comparisons" in line and "overrides" in line for line in context.lines)
    assert context.warnings == []


def test_priorities_that_cannot_decide_are_warned_of() -> None:
    first = LONGER.model_copy(update={"overrides": ("shorter",)})
    context = stage(likes_longer, first, SHORTER, comparisons=[comparison()], labeler_accuracy=[])
    label.run(Settings(principles="one"), context)
    (warning,) = context.warnings
    assert "label.principles=all" in warning
    plain = stage(likes_longer, LONGER, SHORTER, comparisons=[comparison()], labeler_accuracy=[])
    label.run(Settings(principles="one"), plain)
    assert plain.warnings == []
