import json
from pathlib import Path
from typing import Any

import pytest

from constitutional.base.errors import ModelError
from constitutional.cli import main as cli
from constitutional.engines import models
from constitutional.engines.base import Completion, Request
from tests.cli.test_main import Judge
from tests.data.test_evaluation import FILES, HHH_438, ROWS, json_rows, written
from tests.judging.scripted_labeler import chances

LABELER = ("label.method=logprobs",)


@pytest.fixture
def judge(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> type[Judge]:
    """A labeler that prefers the longer response, and takes the last option of a question."""

    class LongerOrLast(Judge):
        def respond(self, request: Request) -> Completion:
            Judge.requests += 1
            if not request.choices:
                return Completion("Gladly.", "stop")
            if request.messages[-1].content == "Better:":
                return self.judge(request.messages[0].content)
            return chances(*[0.1] * (len(request.choices) - 1), 0.9)

    monkeypatch.setattr("constitutional.engines.models.LazyEngine", LongerOrLast)
    monkeypatch.setattr(Judge, "requests", 0)
    monkeypatch.chdir(tmp_path)
    return Judge


def evaluated(capsys: pytest.CaptureFixture[str], *words: str | Path) -> dict[str, Any]:
    """What `eval --json` prints."""
    assert cli.main(["eval", *map(str, words), *LABELER, "--json"]) == 0
    value = json.loads(capsys.readouterr().out)
    assert isinstance(value, dict)
    return value


def test_a_set_is_recognised_scored_and_never_asked_twice(
    judge: type[Judge], capsys: pytest.CaptureFixture[str]
) -> None:
    path = ROWS / FILES["hhh"]
    first = evaluated(capsys, path)
    assert (first["set"], first["rows"], first["rows_in_files"]) == ("hhh", 3, 3)
    (accuracy,) = first["metrics"]
    assert (accuracy["metric"], accuracy["value"], accuracy["n"]) == ("accuracy", pytest.approx(1 / 3), 3)
    assert accuracy["low"] < accuracy["value"] < accuracy["high"]
    # A labeler that prefers the longer one is right where the longer one is the good one.
    assert first["baselines"]["always the longer"]["value"] == accuracy["value"]
    assert first["baselines"]["random"] == {"value": 0.5, "low": None, "high": None, "n": 3}
    assert judge.requests == 6
    assert evaluated(capsys, "hhh", path) == first
    assert judge.requests == 6


def test_what_was_answered_before_a_failure_is_not_asked_again(
    judge: type[Judge], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    template = json_rows("truthful_qa")[0]
    path = written(tmp_path / "rows.jsonl", *(template | {"question": f"Question {number}?"} for number in range(40)))
    engine = models.LazyEngine

    class Fails(engine):  # type: ignore[misc,valid-type]
        def respond(self, request: Request) -> Completion:
            if Judge.requests == 24:
                raise ModelError("the model is gone")
            return super().respond(request)  # type: ignore[no-any-return]

        @property
        def weights(self) -> str:
            return "scripted:LongerOrLast"

    monkeypatch.setattr("constitutional.engines.models.LazyEngine", Fails)
    assert cli.main(["eval", str(path), *LABELER]) == 1
    assert "the model is gone" in capsys.readouterr().err
    monkeypatch.setattr("constitutional.engines.models.LazyEngine", engine)
    assert evaluated(capsys, path)["metrics"][0]["n"] == 40
    assert judge.requests == 40


@pytest.mark.usefixtures("judge")
def test_the_table_says_what_was_measured_and_what_blind_choices_get(capsys: pytest.CaptureFixture[str]) -> None:
    files = [str(ROWS / name) for name in ("hhh_helpful.jsonl", "hhh_honest.jsonl")]
    assert cli.main(["eval", *files, *LABELER]) == 0
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert lines[0].startswith("hhh: 4 rows from ")
    assert any(line.startswith("accuracy: honest 0.00%") for line in lines)
    assert any(line.startswith("mean of the subsets 16.67%") for line in lines)  # (1/3 + 0)/2
    assert any(line.startswith("always the longer 25.00%") for line in lines)


@pytest.mark.usefixtures("judge")
def test_a_single_prompt_is_counted_in_good_english(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = written(tmp_path / "rows.jsonl", *json_rows("reward_bench_2")[:-1])
    assert cli.main(["eval", str(path), *LABELER]) == 0
    said = capsys.readouterr().out
    assert "prompts of Ties without the other of the ids ref:N and tied:N, which have no margins: 1\n" in said


@pytest.mark.usefixtures("judge")
@pytest.mark.parametrize("name", FILES)
def test_every_set_goes_through_by_its_name(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    value = evaluated(capsys, name.replace("_", "-"), ROWS / FILES[name])
    assert value["set"] == name
    assert value["metrics"] or value["problems"]
    assert ("judge" in value) == (name in ("sycophancy_eval", "xstest", "strong_reject"))
    assert ("constitution" in value) == (name in ("hhh", "hhh_438", "judge_bench", "reward_bench_2"))


def test_a_limit_draws_rows_by_the_seed(judge: type[Judge], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    template = json_rows("truthful_qa")[0]
    path = written(tmp_path / "rows.jsonl", *(template | {"question": f"Question {number}?"} for number in range(30)))
    value = evaluated(capsys, path, "--limit", "5")
    assert (value["rows"], value["rows_in_files"], judge.requests) == (5, 30, 5)
    evaluated(capsys, path, "--limit", "8")
    assert judge.requests == 8  # which hold the five
    evaluated(capsys, path, "--limit", "5", "seed=1")
    assert judge.requests > 8


@pytest.mark.usefixtures("judge")
@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["hhh"], "no file"),
        (["none.jsonl"], "no such file"),
        (["--limit", "0", str(ROWS / FILES["hhh"])], "--limit 0"),
        (["bbq", str(ROWS / FILES["hhh"])], "rows of hhh; expected bbq"),
        ([str(ROWS / FILES["hhh"]), "label.methd=logprobs"], "label.methd"),
        ([str(ROWS / FILES["hhh"]), f"evaluate.refusal_phrases=[{'x' * 300}]", "seed=x"], "seed"),
    ],
)
def test_what_cannot_be_evaluated_is_wrong_use(
    words: list[str], problem: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["eval", *words]) == 2
    assert problem in capsys.readouterr().err


@pytest.mark.usefixtures("judge")
def test_a_wrong_row_ends_it_before_anything_is_asked(
    judge: type[Judge], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = json_rows("judge_bench")[0]
    path = written(tmp_path / "rows.jsonl", first, first | {"label": "C"})
    assert cli.main(["eval", str(path)]) == 2
    assert f"{path}:2: " in capsys.readouterr().err
    assert judge.requests == 0


@pytest.mark.usefixtures("judge")
@pytest.mark.skipif(not HHH_438.exists(), reason=f"the 438 comparisons are not at {HHH_438}; HHH_438=FILE names them")
def test_on_the_438_both_published_baselines_come_out_exactly_and_so_does_a_labeler_like_one(
    capsys: pytest.CaptureFixture[str],
) -> None:
    value = evaluated(capsys, HHH_438)
    found = value["baselines"]
    assert round(100 * found["always the first"]["value"], 2) == 52.05
    assert round(100 * found["always the longer"]["value"], 1) == 56.2
    (accuracy,) = value["metrics"]
    assert round(438 * accuracy["value"]) == 246


def test_the_sandboxs_model_as_a_labeler_that_does_not_reason_is_warned_of_with_what_to_type(
    judge: type[Judge], capsys: pytest.CaptureFixture[str]
) -> None:
    assert judge
    path = str(ROWS / FILES["hhh"])
    assert cli.main(["eval", path, "label.method=logprobs"]) == 0
    said = capsys.readouterr().err
    assert "labels well only after it has reasoned" in said
    assert "type label.method=rationale" in said
    assert "its own small world" in said
    assert cli.main(["eval", path, "label.method=votes"]) == 0
    said = capsys.readouterr().err
    assert "after it has reasoned" not in said
    assert "its own small world" in said
    assert cli.main(["eval", path, "labeler.path=organisation/model", "label.method=logprobs"]) == 0
    said = capsys.readouterr().err
    assert "after it has reasoned" not in said
    assert "its own small world" not in said


@pytest.mark.parametrize("command", ["eval", "check"])
def test_a_runs_name_is_refused_where_no_run_is_looked_at(
    judge: type[Judge], capsys: pytest.CaptureFixture[str], command: str
) -> None:
    assert judge.requests == 0
    file = {"eval": str(ROWS / FILES["hhh"]), "check": "sandbox_careful"}[command]
    assert cli.main([command, file, "name=first"]) == 2
    said = capsys.readouterr().err
    assert said.startswith("constitutional: name=first names a run, and this command makes none")
    assert "model.path=runs/NAME/08_dpo/policy" in said
    assert judge.requests == 0


def test_a_generator_of_the_users_own_is_what_is_measured(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    function = tmp_path / "mine.py"
    function.write_text('def answer(request):\n    return "I cannot help with that."\n')
    words = [f"generator.function={function}:answer", f"journal.path={tmp_path}/j.sqlite"]
    # The sandbox's model would judge what it cannot read.
    assert cli.main(["eval", str(ROWS / FILES["xstest"]), "generator=scripted", *words]) == 2
    assert "labeler.path=FOLDER" in capsys.readouterr().err
    words = ["engine=scripted", f"engine.function={function}:answer", "label.method=votes", words[1]]
    value = evaluated(capsys, ROWS / FILES["xstest"], *words)
    assert value["model"] == f"{function}:answer"
    refused = {metric["metric"]: metric["value"] for metric in value["metrics"]}
    assert set(refused.values()) == {1.0}
