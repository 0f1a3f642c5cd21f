from pathlib import Path

import pytest

from constitutional.base.records import Judgement, Reading
from constitutional.constitution.file import load_constitution
from scripts import bench_sweep


def test_an_effect_is_the_mean_difference_over_the_prompts_of_all_seeds() -> None:
    first = {"a": True, "b": True, "c": False}, {"a": False, "b": True, "c": False}
    second = {"a": True, "d": False}, {"a": False, "d": True}
    effect = bench_sweep.effects_of([first, second])
    assert effect.value == pytest.approx((2 - 1) / 5)
    assert effect.low < 0.2 < effect.high


def test_the_written_constitution_holds_the_first_principles(tmp_path: Path) -> None:
    loaded = load_constitution(bench_sweep.written(tmp_path / "made" / "two.yaml", 2))
    assert [(principle.id, principle.tags) for principle in loaded.principles] == [
        ("no_help_with_harm", ("harmful_compliance", "avoid")),
        ("keep_private_data", ("privacy_leak", "avoid")),
    ]


def judgement(comparison: str, principle: str, p_a: float | None, weight: float = 1.0) -> Judgement:
    return Judgement(
        comparison=comparison,
        principle=principle,
        principle_text=principle,
        labeler="l",
        judge="labeler",
        readings=(Reading(order="a_first", rationale="", p_a=p_a, problem=None if p_a is not None else "none"),),
        p_a=p_a,
        conflict=False,
        weight=weight,
    )


def test_agreement_counts_the_comparisons_whose_weighted_mean_prefers_the_same_side() -> None:
    whole = [
        judgement("x", "kind", 0.9),
        judgement("x", "brief", 0.2, weight=3.0),  # (0.9 + 0.6) / 4 < 0.5: b
        judgement("x", "left_out", 1.0, weight=99.0),
        judgement("y", "kind", 0.8),
        judgement("y", "brief", None),
    ]
    measured = [judgement("x", "kind", 0.4), judgement("y", "kind", 0.3)]
    assert bench_sweep.agreement(whole, ("kind", "brief"), measured) == (1, 2)
