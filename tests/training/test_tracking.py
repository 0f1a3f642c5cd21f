"""Trackers as their libraries offer them: modules that record calls, and the real ones where they are installed."""

import importlib.util
import json
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from pydantic import TypeAdapter, ValidationError

from constitutional.base.errors import ConfigurationError, RunError
from constitutional.runs.compose import compose
from constitutional.runs.pipeline import stages_of
from constitutional.runs.runner import fingerprint_of, ready
from constitutional.training.tracking import TrackedStage, TrackerName, Trackers, Tracking, check_installed


class Recorded:
    """What a tracker was told: the name of each call with its arguments."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, dict[str, Any]]] = []
        self.began = 0

    def names(self) -> list[str]:
        return [name for name, _ in self.calls]

    def of(self, name: str) -> list[dict[str, Any]]:
        return [arguments for called, arguments in self.calls if called == name]

    def add(self, name: str, /, **arguments: object) -> None:
        self.calls.append((name, arguments))


def fake_wandb(told: Recorded) -> Any:  # noqa: ANN401
    module: Any = ModuleType("wandb")

    def init(**arguments: object) -> SimpleNamespace:
        told.began += 1
        told.add("init", **arguments)
        return SimpleNamespace(
            id=arguments["id"] or f"id{told.began}",
            define_metric=lambda name, **others: told.add("define_metric", name=name, **others),
            log=lambda metrics: told.add("log", metrics=metrics),
            finish=lambda exit_code: told.add("finish", exit_code=exit_code),
        )

    module.init = init
    return module


def fake_trackio(told: Recorded) -> Any:  # noqa: ANN401
    module: Any = ModuleType("trackio")
    module.init = lambda *, project, name, resume, config, embed: told.add(
        "init", project=project, name=name, resume=resume, config=config, embed=embed
    )
    module.log = lambda metrics, step: told.add("log", metrics=metrics, step=step)
    module.finish = lambda: told.add("finish")
    return module


def fake_mlflow(told: Recorded) -> Any:  # noqa: ANN401
    module: Any = ModuleType("mlflow")

    def start_run(*, run_id: str | None, run_name: str | None, nested: bool) -> SimpleNamespace:
        told.began += 1
        told.add("start_run", run_id=run_id, run_name=run_name, nested=nested)
        return SimpleNamespace(info=SimpleNamespace(run_id=run_id or f"run{told.began}"))

    module.start_run = start_run
    module.active_run = lambda: None
    module.set_experiment = lambda name: told.add("set_experiment", name=name)
    module.set_tags = lambda tags: told.add("set_tags", tags=tags)
    module.log_params = lambda params: told.add("log_params", params=params)
    module.log_metrics = lambda metrics, step: told.add("log_metrics", metrics=metrics, step=step)
    module.end_run = lambda status: told.add("end_run", status=status)
    return module


FAKES = {"wandb": fake_wandb, "trackio": fake_trackio, "mlflow": fake_mlflow}


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> dict[str, Recorded]:
    recorded = {name: Recorded() for name in FAKES}
    for name, make in FAKES.items():
        module = make(recorded[name])
        module.__spec__ = ModuleSpec(name, None, origin=f"{name}.py")
        monkeypatch.setitem(sys.modules, name, module)
    for variable in ("WANDB_PROJECT", "MLFLOW_EXPERIMENT_NAME", "TENSORBOARD_LOGGING_DIR"):
        monkeypatch.delenv(variable, raising=False)
    return recorded


def tracking(folder: Path, *trackers: TrackerName, stage: str = "dpo") -> Tracking:
    told_of = TrackedStage("plain", stage, {"beta": 0.1, "lora": None}, folder)
    return Tracking(trackers, told_of, folder / "checkpoints" / "trackers.json")


def stopped_after(step: int, shown: Tracking) -> None:
    with shown:
        shown.begin(step)
        shown.log(step + 1, LINE)
        raise KeyboardInterrupt


LINE = {"loss": 0.5, "rewards/margins": 2.0, "grad_norm": None, "step": 5}


def test_a_stage_is_a_tracker_run_in_the_group_of_its_run(told: dict[str, Recorded], tmp_path: Path) -> None:
    with tracking(tmp_path, "wandb", "trackio", "mlflow") as shown:
        shown.begin(0)
        shown.log(5, LINE)
    (init,) = told["wandb"].of("init")
    assert (init["project"], init["group"], init["name"]) == ("constitutional", "plain", "dpo")
    assert (init["id"], init["resume"]) == (None, None)
    assert init["config"] == {"beta": 0.1, "lora": None}
    sent = {"train/loss": 0.5, "train/rewards/margins": 2.0, "train/global_step": 5}
    assert told["wandb"].of("log") == [{"metrics": sent}]
    assert told["wandb"].of("finish") == [{"exit_code": 0}]
    (init,) = told["trackio"].of("init")
    assert (init["project"], init["name"], init["resume"]) == ("plain", "dpo", "never")
    assert told["trackio"].of("log") == [{"metrics": sent, "step": 5}]
    assert told["mlflow"].of("set_experiment") == [{"name": "plain"}]
    assert told["mlflow"].of("start_run") == [{"run_id": None, "run_name": "dpo", "nested": False}]
    assert told["mlflow"].of("log_params") == [{"params": {"beta": "0.1", "lora": "null"}}]
    assert told["mlflow"].of("log_metrics") == [{"metrics": {"loss": 0.5, "rewards/margins": 2.0}, "step": 5}]
    assert told["mlflow"].of("end_run") == [{"status": "FINISHED"}]


def test_a_training_that_goes_on_goes_on_in_its_tracker_runs(told: dict[str, Recorded], tmp_path: Path) -> None:
    for step in (0, 4):
        with pytest.raises(KeyboardInterrupt):
            stopped_after(step, tracking(tmp_path, "wandb", "trackio", "mlflow"))
    first, second = told["wandb"].of("init")
    assert first["id"] is None
    assert (second["id"], second["resume"]) == ("id1", "allow")
    assert told["wandb"].of("finish") == [{"exit_code": 1}] * 2
    assert [init["resume"] for init in told["trackio"].of("init")] == ["never", "allow"]
    assert [start["run_id"] for start in told["mlflow"].of("start_run")] == [None, "run1"]
    assert len(told["mlflow"].of("log_params")) == 1
    assert told["mlflow"].of("end_run") == [{"status": "FAILED"}] * 2


def test_another_training_has_tracker_runs_of_its_own(told: dict[str, Recorded], tmp_path: Path) -> None:
    for folder in ("one", "other"):
        with tracking(tmp_path / folder, "wandb", "trackio") as shown:
            shown.begin(0)
    assert [init["id"] for init in told["wandb"].of("init")] == [None, None]
    assert [init["resume"] for init in told["trackio"].of("init")] == ["never", "never"]


def test_without_a_tracker_nothing_is_sent_or_written(told: dict[str, Recorded], tmp_path: Path) -> None:
    with tracking(tmp_path) as shown:
        shown.begin(0)
        shown.log(1, LINE)
    assert not any(recorded.calls for recorded in told.values())
    assert list(tmp_path.iterdir()) == []


def test_a_tracker_that_cannot_begin_is_named_with_its_reason(told: dict[str, Recorded], tmp_path: Path) -> None:
    def refuse(**_: object) -> None:
        raise ValueError("api_key not configured")

    sys.modules["wandb"].init = refuse  # type: ignore[attr-defined]
    with pytest.raises(RunError, match=r"report_to=wandb: dpo.*api_key not configured"):
        stopped_after(0, tracking(tmp_path, "mlflow", "wandb"))
    assert told["mlflow"].of("end_run") == [{"status": "FAILED"}]


def test_a_tracker_that_fails_later_is_left_out_and_the_training_goes_on(
    told: dict[str, Recorded], tmp_path: Path
) -> None:
    def refuse(metrics: object, step: int) -> None:
        raise ConnectionError(f"no route to host at step {step} for {metrics}")

    warnings: list[str] = []
    stage = TrackedStage("plain", "dpo", {}, tmp_path)
    with Tracking(("mlflow", "wandb"), stage, tmp_path / "trackers.json", warnings.append) as shown:
        shown.begin(0)
        sys.modules["mlflow"].log_metrics = refuse  # type: ignore[attr-defined]
        shown.log(1, LINE)
        shown.log(2, LINE)
    (warning,) = warnings
    assert "mlflow" in warning
    assert "no route to host" in warning
    assert len(told["wandb"].of("log")) == 2
    assert told["mlflow"].of("end_run") == [{"status": "FAILED"}]


def test_one_tracker_may_be_named_alone_and_none_is_an_empty_list() -> None:
    adapter: TypeAdapter[tuple[str, ...]] = TypeAdapter(Trackers)
    assert adapter.validate_python("wandb") == ("wandb",)
    assert adapter.validate_python(["wandb", "tensorboard"]) == ("wandb", "tensorboard")
    assert adapter.validate_python("none") == adapter.validate_python([]) == ()
    with pytest.raises(ValidationError, match="trackio"):
        adapter.validate_python("wandbb")


def test_a_tracker_that_is_not_installed_is_refused_before_anything_is_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "wandb").mkdir()  # where wandb keeps its runs: Python finds an empty package there
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    monkeypatch.delitem(sys.modules, "wandb", raising=False)
    importlib.invalidate_caches()
    missing: tuple[TrackerName, ...] = ("wandb", "mlflow")
    for tracker in missing:
        if tracker not in sys.modules:
            with pytest.raises(ConfigurationError, match=f"report_to names {tracker}.*pip install {tracker}"):
                check_installed([tracker])


def test_a_run_says_so_before_it_begins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(ConfigurationError, match="report_to names mlflow"):
        ready(compose(["report_to=mlflow"]))
    with pytest.raises(ConfigurationError, match="report_to"):
        compose(["report_to=[wandb,no_such]"])


def test_where_trainings_are_shown_makes_nothing_anew() -> None:
    silent, shown = compose([]), compose(["report_to=[wandb,tensorboard]"])
    assert shown.report_to == ("wandb", "tensorboard")
    assert silent.digest == shown.digest
    for one, other in zip(stages_of(silent), stages_of(shown), strict=True):
        assert fingerprint_of(one, 0, {}) == fingerprint_of(other, 0, {})


# --- The real libraries, where they are installed ---


def test_tensorboard_reads_what_was_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    monkeypatch.delenv("TENSORBOARD_LOGGING_DIR", raising=False)
    with tracking(tmp_path, "tensorboard") as shown:
        shown.begin(0)
        for step in (5, 10, 15):
            shown.log(step, {"loss": 1 / step, "step": step})
    with tracking(tmp_path, "tensorboard") as shown:  # goes on from the checkpoint of step 10
        shown.begin(10)
        for step in (15, 20):
            shown.log(step, {"loss": 2 / step, "step": step})
    events = accumulator.EventAccumulator(str(tmp_path / "tensorboard" / "dpo"))
    events.Reload()
    values = {event.step: event.value for event in events.Scalars("train/loss")}
    assert values == pytest.approx({5: 0.2, 10: 0.1, 15: 2 / 15, 20: 0.1})
    (tmp_path / "checkpoints" / "trackers.json").unlink()
    with tracking(tmp_path, "tensorboard") as shown:
        shown.begin(0)
    assert {path.name for path in (tmp_path / "tensorboard").iterdir()} == {"dpo", "dpo-2"}


@pytest.mark.filterwarnings("ignore")  # of the libraries that it uses
def test_mlflow_holds_what_was_sent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.delenv("MLFLOW_EXPERIMENT_NAME", raising=False)
    mlflow.set_tracking_uri(f"sqlite:///{tmp_path}/mlflow.db")
    for step in (0, 5):
        with tracking(tmp_path, "mlflow") as shown:
            shown.begin(step)
            shown.log(step + 5, {"loss": 0.5, "rewards/margins": 2.0})
    (experiment,) = mlflow.search_experiments(filter_string="name = 'plain'")
    (run,) = mlflow.MlflowClient().search_runs([experiment.experiment_id])
    assert (run.info.run_name, run.info.status) == ("dpo", "FINISHED")
    assert run.data.params == {"beta": "0.1", "lora": "null"}
    history = mlflow.MlflowClient().get_metric_history(run.info.run_id, "rewards/margins")
    assert [(metric.step, metric.value) for metric in history] == [(5, 2.0), (10, 2.0)]


def test_the_keys_of_tracker_runs_are_kept_among_the_checkpoints(told: dict[str, Recorded], tmp_path: Path) -> None:
    with tracking(tmp_path, "wandb", "mlflow") as shown:
        shown.begin(0)
    assert json.loads((tmp_path / "checkpoints" / "trackers.json").read_text()) == {"wandb": "id1", "mlflow": "run1"}
    assert told["wandb"].began == 1
