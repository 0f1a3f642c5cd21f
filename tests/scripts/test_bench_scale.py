from pathlib import Path

import pytest

from constitutional.base import shards
from constitutional.base.records import Comparison, Judgement, Preference
from constitutional.runs.runner import load_run
from constitutional.stages.report import gather
from scripts import bench_scale


def test_the_slope_is_that_of_a_line_through_the_logarithms() -> None:
    assert bench_scale.slope([10, 100, 1000], [0.2, 2.0, 20.0]) == pytest.approx(1)
    assert bench_scale.slope([10, 1000], [1.0, 10_000.0]) == pytest.approx(2)
    # Least squares through (0, 0), (1, 1), (2, 1): Σ(x − 1)(y − 2/3) / Σ(x − 1)² = (2/3 + 1/3) / 2
    assert bench_scale.slope([1, 10, 100], [1.0, 10.0, 10.0]) == pytest.approx(0.5)


def test_a_run_of_the_benchmark_goes_through_its_stages_in_shards(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shards, "LARGE", 5)
    monkeypatch.setattr(bench_scale, "AT_A_TIME", 3)
    measured = bench_scale.go(bench_scale.begun(tmp_path / "12", 12))
    assert {f"{name} {unit}" for name in bench_scale.MEASURED for unit in ("seconds", "cpu", "bytes")} < set(measured)
    again = bench_scale.go(tmp_path / "12")  # all of which is done
    assert {name: value for name, value in again.items() if name != "seconds" and not name.startswith("check")} == {
        name: value for name, value in measured.items() if name != "seconds" and not name.startswith("check")
    }
    store = load_run(tmp_path / "12" / "runs" / "scale")
    pairs, judgements = store.read("comparisons", Comparison), store.read("judgements", Judgement)
    assert store.artifact("comparisons").is_dir()
    assert len(pairs) == len(judgements) == 12
    for pair, judgement in zip(pairs, judgements, strict=True):
        a, b = (int(text.split("Answer ")[1].rstrip(".")) for text in (pair.a, pair.b))
        assert judgement.comparison == pair.id
        assert judgement.p_a is not None
        assert (judgement.p_a > 0.5) == (a > b)
    # Every judgement is clear, so that all but those of held-out prompts are trained on.
    assert len(store.read("preferences", Preference)) == 12
    looks = {what for what, _ in bench_scale.look(tmp_path / "12")}
    assert looks == {"show an item", "show a principle", "show words", "the report"}
    report = gather.gather(gather.Settings(), bench_scale.OfPairs(store, tmp_path / "12"))
    assert report.labeler is not None
    assert sum(row.judged for row in report.labeler.principles) == 12
    assert sum(report.sources.values()) == 12
