"""Several labelers judge the same comparisons."""

from pathlib import Path
from typing import Any

import pytest

from constitutional.base.errors import RunError
from constitutional.base.records import Judgement
from constitutional.constitution.constitution import Principle
from constitutional.engines.base import Completion, Request
from constitutional.engines.scripted import Rule, ScriptedEngine
from constitutional.judging.agreement import agreements, disagreement
from constitutional.judging.labelling import LabelSettings, combine
from constitutional.stages import label, labeler_check
from constitutional.stages.report import figures
from constitutional.stages.report.cautions import cautions
from constitutional.stages.report.data import FEW, Provenance, RunReport
from constitutional.stages.report.gather import labeler_quality, panel_of
from constitutional.stages.summaries import LabelerCheckSummary, LabelSummary
from tests.judging.scripted_labeler import (
    LONGER,
    SHORTER,
    TEMPLATES,
    chances,
    comparison,
    constitution,
    judgement,
    likes_first,
    likes_longer,
    shown,
)
from tests.tiny import OneStage

PAIRS = [comparison(question=f"Question {number}?") for number in range(4)]
NOTHING_KNOWN = Provenance(constitution="", version="", digest="", principles={}, versions={}, identities={})
ALL = LabelSettings(principles="all", method="logprobs")


def likes_shorter(request: Request) -> Completion | str:
    a, b = shown(request)
    return chances(0.6, 0.4) if len(a) < len(b) else chances(0.4, 0.6)


def stage(first: Rule, second: Rule, *principles: Principle, **rows: list[Any]) -> OneStage:
    return OneStage(
        Path(),
        models={"critic": Path("a critic")},
        rows={"comparisons": list(PAIRS), "revisions": [], **rows},
        seed=1,
        constitution=constitution(*principles),
        prompts=TEMPLATES,
        engines={
            "labeler": ScriptedEngine(first, "first"),
            "panel.second": ScriptedEngine(second, "second"),
            "critic": ScriptedEngine(lambda _: "It asks to be so."),
        },
    )


def labelled(context: OneStage, settings: LabelSettings) -> list[Judgement]:
    labeler_check.run(settings, context)
    context.said = None
    label.run(settings, context)
    return context.rows["judgements"]


def test_every_judge_judges_the_same_comparisons_by_the_same_principle_and_counts_by_its_weight() -> None:
    settings = LabelSettings(method="logprobs", weights={"second": 3.0}, max_canary_failures=1)
    heavy = LONGER.model_copy(update={"weight": 2.0})
    rows = labelled(stage(likes_longer, likes_shorter, heavy, SHORTER), settings)
    assert [row.judge for row in rows] == ["labeler", "second"] * 4
    assert [row.comparison for row in rows] == [pair.id for pair in PAIRS for _ in range(2)]
    assert [row.principle for row in rows[::2]] == [row.principle for row in rows[1::2]]
    assert [row.labeler for row in rows[:2]] == ["scripted:first logprobs", "scripted:second logprobs"]
    assert [row.weight for row in rows[:2]] == [1.0, 3.0]
    # b is longer: 0.2 of the first, 0.6 of the second, which counts three times.
    assert combine(rows[:2]) == pytest.approx((0.2 + 3 * 0.6) / 4)
    with_all = labelled(stage(likes_longer, likes_shorter, heavy), settings.model_copy(update={"principles": "all"}))
    assert [row.weight for row in with_all[:2]] == [2.0, 6.0]


def test_a_panel_changes_nothing_in_the_labelers_own_judgements() -> None:
    alone = stage(likes_longer, likes_shorter, LONGER, SHORTER)
    del alone.engines["panel.second"]
    settings = LabelSettings(method="logprobs", max_canary_failures=1)
    both = labelled(stage(likes_longer, likes_shorter, LONGER, SHORTER), settings)
    assert [row.model_dump_json() for row in both[::2]] == [row.model_dump_json() for row in labelled(alone, settings)]


def test_of_a_judge_that_cannot_be_read_the_stage_says_so() -> None:
    context = stage(likes_longer, lambda _: "Hm.", LONGER, labeler_accuracy=[])
    label.run(LabelSettings(method="rationale"), context)
    (warning,) = context.warnings
    assert "judge 'second'" in warning
    assert "no readable answer in 4 of 4" in warning
    assert "does not end with" in warning
    assert any("no comparison has preferences of several" in line for line in context.lines)
    assert context.summarised(LabelSummary).problem == ""  # of the labeler there is none


def test_a_principle_that_a_judge_misjudges_is_judged_by_the_others() -> None:
    settings = ALL.model_copy(update={"min_accuracy": 0.7})
    context = stage(likes_longer, likes_shorter, LONGER, SHORTER)
    rows = labelled(context, settings)
    assert {(row.judge, row.principle) for row in rows} == {("labeler", "longer"), ("second", "shorter")}
    accuracies = context.rows["labeler_accuracy"]
    assert [(row.judge, row.principle, row.trusted) for row in accuracies] == [
        *(("labeler", "longer", True), ("labeler", "shorter", False)),
        *(("second", "longer", False), ("second", "shorter", True)),
    ]
    assert any("left to others" in warning and "'second'" in warning for warning in context.warnings)


def test_nothing_is_left_out_that_one_judge_is_trusted_with() -> None:
    context = stage(likes_longer, likes_shorter, LONGER, SHORTER)
    labeler_check.run(ALL.model_copy(update={"min_accuracy": 0.7}), context)
    assert context.summarised(LabelerCheckSummary).left_out_principles == ()
    telling = stage(likes_longer, likes_shorter, LONGER, SHORTER)
    labeler_check.run(LabelSettings(method="logprobs", principles="telling", min_accuracy=0.7), telling)
    assert telling.summarised(LabelerCheckSummary).left_out_principles == ("shorter",)  # the labeler scores by it


def test_the_labeler_has_to_be_trusted_with_something_and_another_judge_need_not() -> None:
    settings = ALL.model_copy(update={"min_accuracy": 0.7})
    with pytest.raises(RunError, match="min_accuracy"):
        labeler_check.run(settings, stage(likes_shorter, likes_longer, LONGER))
    context = stage(likes_longer, likes_shorter, LONGER)
    assert {row.judge for row in labelled(context, settings)} == {"labeler"}
    assert any("'second'" in warning and "nothing" in warning for warning in context.warnings)


def test_a_judge_that_fails_the_canaries_is_named() -> None:
    with pytest.raises(RunError, match="judge 'second' fails at 6 of 6"):
        labeler_check.run(ALL, stage(likes_longer, likes_shorter, LONGER))


def test_where_a_principle_has_to_tell_the_labeler_scores_and_all_judge() -> None:
    def scores(request: Request) -> Completion | str:
        if not request.choices and request.messages[-1].content.startswith("Rate"):
            return f"It is so. Score: {min(10, len(request.messages[-2].content))}"
        return likes_longer(request)

    settings = LabelSettings(method="logprobs", principles="telling", max_canary_failures=1)
    # The second judge would fail on a question for a score, which shows no two responses.
    rows = labelled(stage(scores, likes_shorter, LONGER), settings)
    assert [row.judge for row in rows] == ["labeler", "second"] * 4


def test_the_stage_says_on_how_many_comparisons_the_judges_differ() -> None:
    context = stage(likes_longer, likes_shorter, LONGER)
    labelled(context, ALL.model_copy(update={"max_canary_failures": 1.0}))
    assert any("4 of 4" in line for line in context.lines)
    same = stage(likes_longer, likes_longer, LONGER)
    labelled(same, ALL)
    assert any("0 of 4" in line for line in same.lines)


def by(judge: str, *p_a: float | None) -> list[Judgement]:
    rows = [judgement(p, name=f"c{number}") for number, p in enumerate(p_a)]
    return [row.model_copy(update={"judge": judge}) for row in rows]


def test_agreement_is_cohens_kappa_over_what_both_prefer() -> None:
    # Common are c0 to c4: they agree on a, a, b and b, and differ once; a has 2/5 of one, 3/5 of the other. By chance
    # they would agree on 2/5 · 3/5 + 3/5 · 2/5 = 12/25: kappa is (4/5 − 12/25) / (13/25) = 8/13.
    first = by("labeler", 0.9, 0.8, 0.1, 0.2, 0.4, 0.5, 0.9)
    second = by("second", 0.9, 0.6, 0.1, 0.3, 0.7, 0.9, None)
    (pair,) = agreements([*first, *second])
    assert pair.judges == ("labeler", "second")
    assert [
        (same, judgement.comparison) for same, judgement in zip((True,) * 4 + (False,), first, strict=False)
    ] == pair.same
    assert pair.kappa == pytest.approx(8 / 13)
    assert disagreement([*first, *second]) == [False, False, False, False, True]


def test_there_is_no_kappa_where_both_always_prefer_one_name_and_no_pair_without_common_preferences() -> None:
    assert agreements([*by("labeler", 0.9, 0.8), *by("second", 0.7, 0.6)])[0].kappa is None
    assert agreements([*by("labeler", 0.9, 0.5), *by("second", 0.5, 0.9)]) == []
    assert agreements(by("labeler", 0.9)) == []


def test_judges_that_keep_the_position_have_no_preference() -> None:
    context = stage(likes_first, likes_longer, LONGER)
    rows = labelled(context, ALL.model_copy(update={"max_canary_failures": 1.0}))
    assert agreements(rows) == []


def test_the_report_shows_every_judge_apart_and_how_far_they_agree() -> None:
    context = stage(likes_longer, likes_shorter, LONGER, SHORTER)
    settings = ALL.model_copy(update={"max_canary_failures": 1.0})
    rows = labelled(context, settings)
    accuracies = context.rows["labeler_accuracy"]
    quality = labeler_quality(context.constitution, accuracies, rows, PAIRS)
    assert [row.accuracy and row.accuracy.value for row in quality.principles] == [1.0, 0.0]
    assert [row.judged for row in quality.principles] == [4, 4]
    assert quality.method.startswith("logprobs")
    panel = panel_of(context.constitution, accuracies, rows, PAIRS)
    assert panel is not None
    (second,) = panel.judges.values()
    assert [row.accuracy and row.accuracy.value for row in second.principles] == [0.0, 1.0]
    assert {name: (share.right, share.n) for name, share in panel.split.items()} == {
        "longer": (4, 4),
        "shorter": (4, 4),
    }
    assert [(pair.judges, pair.same.right, pair.same.n) for pair in panel.pairs] == [(("labeler", "second"), 0, 8)]
    page = RunReport(name="first", scores=(), wanted={}, labeler=quality, panel=panel, provenance=NOTHING_KNOWN)
    titles = [figure.title for figure in figures.labeler(page)]
    assert any("“second”" in title for title in titles)
    assert any("differ" in title for title in titles)
    assert any("judges prefer different responses" in caution for caution in cautions(page)) == (FEW <= 8)
    assert panel_of(context.constitution, accuracies[:2], rows[::2], PAIRS) is None


def test_bounds_are_counted_and_told_in_words() -> None:
    def bounding(_: Request) -> Completion:
        return Completion("", "choices", (0.0, -3.0), bounded=(False, True))

    context = stage(bounding, likes_longer, LONGER)
    rows = labelled(context, ALL.model_copy(update={"max_canary_failures": 1.0}))
    assert context.summarised(LabelSummary).bounded == 4
    quality = labeler_quality(context.constitution, context.rows["labeler_accuracy"], rows, PAIRS)
    assert quality.bounded == 4
    page = RunReport(name="first", scores=(), wanted={}, labeler=quality, provenance=NOTHING_KNOWN)
    assert "only a bound" in next(iter(figures.labeler(page))).note
