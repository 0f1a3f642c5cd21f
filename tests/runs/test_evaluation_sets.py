"""Public evaluation sets in a run."""

from pathlib import Path

import pytest

from constitutional.base.errors import InputError
from constitutional.judging.scores import Measurement, Score
from constitutional.runs.compose import compose
from tests.data.test_evaluation import FILES, ROWS, json_rows, written
from tests.scripted_run import World, configured, constitution, go


def test_a_run_measures_its_models_on_sets_and_makes_nothing_else_anew(tmp_path: Path) -> None:
    constitution(tmp_path)
    go(configured(tmp_path), World())
    sets = f"evaluate.sets=[{ROWS / FILES['truthful_qa']},{ROWS / FILES['hhh']}]"
    world = World()
    store, said = go(configured(tmp_path, sets), world)
    assert [line.split(":")[0] for line in said if ": running" in line] == ["09 evaluate", "10 report"]
    scores = {(score.model, score.measure): score for score in store.read("scores", Score)}
    for model in ("base", "sft_model", "policy"):
        assert scores[model, "set_accuracy/truthful_qa"].n == 2
        assert scores[model, "set_accuracy/hhh"].n == 3
    assert list(scores["policy", "set_accuracy/hhh"].changes) == ["base", "sft_model"]
    assert "set_accuracy/hhh" in {row.measure for row in store.read("measurements", Measurement)}
    (page,) = store.folder.glob("*_report/report.html")
    text = page.read_text(encoding="utf-8")
    assert "Evaluation sets" in text
    assert "Accuracy, on truthful qa" in text
    again = World()
    _, said = go(configured(tmp_path), again)  # back to the settings without sets
    assert again.asked == []
    assert not any(": running" in line and "evaluate" in line for line in said)


def test_a_wrong_row_of_a_set_is_told_before_the_run_begins(tmp_path: Path) -> None:
    constitution(tmp_path)
    first = json_rows("truthful_qa")[0]
    path = written(tmp_path / "rows.jsonl", first, first | {"label": 5})
    with pytest.raises(InputError, match="label") as caught:
        go(configured(tmp_path, f"evaluate.sets=[{path}]"), World())
    assert str(caught.value).startswith(f"{path}:2: ")
    assert not (tmp_path / "runs" / "first").exists()


def test_sets_may_be_names_on_the_hub() -> None:
    config = compose(["evaluate.sets=[hf://organisation/name:test,rows.jsonl]"])
    assert config.evaluate.sets == ("hf://organisation/name:test", Path("rows.jsonl"))
