from pathlib import Path

import pytest

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
