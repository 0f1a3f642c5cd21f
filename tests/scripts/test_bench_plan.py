from pathlib import Path

import pytest

from scripts.bench_plan import compare


@pytest.mark.slow
def test_what_is_planned_is_what_a_stage_takes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = ["answering", "sft", "dpo_adapters", "ppo"]
    rows = compare(["llama"], names, 0.5, tmp_path)
    assert [row["case"] for row in rows] == names
    for row in rows:
        # Of so small a model what Python itself needs for a training is some of it.
        assert row["ratio"] == pytest.approx(1, abs=0.15), row
        assert row["measured"] > 2**28
    assert len(capsys.readouterr().out.splitlines()) == len(names)
