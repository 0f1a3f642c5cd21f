"""Shows a training in the trackers that its user names in `report_to`: trackio, wandb, mlflow, tensorboard.

A stage is a tracker run, and the stages of a run stand together: as a project of trackio, a group of wandb, an
experiment of mlflow, a folder of tensorboard. Metrics have the names that TRL's users know, as transformers sends them:
`train/loss` over `train/global_step`, and `loss` in mlflow. Nothing is sent unless a tracker is named; its own
environment variables say where to (WANDB_PROJECT, WANDB_MODE, MLFLOW_TRACKING_URI, TRACKIO_SPACE_ID and so on).
"""

import importlib.util
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Annotated, Any, Final, Literal, NamedTuple, Protocol, Self

from pydantic import BeforeValidator

from constitutional.base.errors import ConfigurationError, RunError
from constitutional.base.files import at_home, atomic_write

TrackerName = Literal["trackio", "wandb", "mlflow", "tensorboard"]


def _as_list(trackers: object) -> object:
    """One name is a list of one, and `none` an empty one, as in transformers."""
    if isinstance(trackers, str):
        return () if trackers == "none" else (trackers,)
    return trackers


Trackers = Annotated[tuple[TrackerName, ...], BeforeValidator(_as_list)]
"""Names of trackers, each once."""


def check_installed(trackers: Iterable[TrackerName]) -> None:
    """Refuse a tracker that is not installed, before anything is asked or trained.

    Raises:
        ConfigurationError: names it, and what to type.
    """
    for tracker in trackers:
        spec = importlib.util.find_spec(tracker)
        # A folder of that name, such as the one in which wandb keeps its runs, looks like a package without a file.
        if spec is None or spec.origin is None:
            raise ConfigurationError(
                f"report_to names {tracker}, which is not installed; type pip install {tracker}, or leave it out of "
                "report_to"
            )


class TrackedStage(NamedTuple):
    """What trackers are told of a training."""

    run: str
    """The name of the run, under which its stages stand together."""
    stage: str
    """The name of the tracker run."""
    settings: Mapping[str, Any]
    folder: Path
    """The run's folder, for trackers that write files."""


class TrackerRun(Protocol):
    """A tracker run that is going on."""

    key: str
    """By it a training that was interrupted finds the tracker run again."""

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Send the metrics of a step."""

    def finish(self, failed: bool) -> None:
        """End the tracker run."""


class _Trackio:
    def __init__(self, stage: TrackedStage, key: str | None, _: int) -> None:
        import trackio

        self._trackio = trackio
        resume = "never" if key is None else "allow"
        trackio.init(project=stage.run, name=stage.stage, resume=resume, config=dict(stage.settings), embed=False)
        self.key = stage.stage

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        self._trackio.log(_as_transformers(metrics, step), step=step)

    def finish(self, failed: bool) -> None:  # noqa: ARG002 - it knows no failed runs
        self._trackio.finish()


class _Wandb:
    def __init__(self, stage: TrackedStage, key: str | None, _: int) -> None:
        import wandb

        project = os.environ.get("WANDB_PROJECT", "constitutional")
        names = {"project": project, "group": stage.run, "name": stage.stage, "job_type": stage.stage}
        self._run = wandb.init(**names, id=key, resume=None if key is None else "allow", config=dict(stage.settings))
        self._run.define_metric("train/global_step")
        self._run.define_metric("*", step_metric="train/global_step", step_sync=True)
        self.key = str(self._run.id)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        self._run.log(_as_transformers(metrics, step))

    def finish(self, failed: bool) -> None:
        self._run.finish(exit_code=int(failed))


class _Mlflow:
    def __init__(self, stage: TrackedStage, key: str | None, _: int) -> None:
        import mlflow

        self._mlflow = mlflow
        mlflow.set_experiment(os.environ.get("MLFLOW_EXPERIMENT_NAME") or stage.run)
        nested = mlflow.active_run() is not None
        run = mlflow.start_run(run_id=key, run_name=None if key else stage.stage, nested=nested)
        self.key = run.info.run_id
        if key is None:  # parameters cannot be changed, and a resumed training may have other technical ones
            mlflow.set_tags({"group": stage.run, "stage": stage.stage})
            mlflow.log_params({name: json.dumps(value) for name, value in stage.settings.items()})

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        self._mlflow.log_metrics(dict(metrics), step=step)

    def finish(self, failed: bool) -> None:
        self._mlflow.end_run("FAILED" if failed else "FINISHED")


class _Tensorboard:
    def __init__(self, stage: TrackedStage, key: str | None, step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        chosen = os.environ.get("TENSORBOARD_LOGGING_DIR")
        parent = at_home(chosen) / stage.run if chosen else stage.folder / "tensorboard"
        self.key = key or _unused(parent, stage.stage)
        # What was written beyond the checkpoint from which the training goes on is made again.
        purge_step = None if key is None else step + 1
        self._writer: Any = SummaryWriter(parent / self.key, purge_step=purge_step)
        if key is None:
            self._writer.add_text("settings", json.dumps(stage.settings, indent=2))

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        for name, number in metrics.items():
            self._writer.add_scalar(f"train/{name}", number, step)
        self._writer.flush()

    def finish(self, failed: bool) -> None:  # noqa: ARG002 - it knows no failed runs
        self._writer.close()


def _unused(parent: Path, name: str) -> str:
    """The name, or with a number where the folder has a run of that name: a stage that is made anew is another."""
    number, free = 1, name
    while (parent / free).exists():
        number += 1
        free = f"{name}-{number}"
    return free


def _as_transformers(metrics: Mapping[str, float], step: int) -> dict[str, float]:
    return {**{f"train/{name}": number for name, number in metrics.items()}, "train/global_step": step}


_OPENED_BY: Final[Mapping[TrackerName, Callable[[TrackedStage, str | None, int], TrackerRun]]] = {
    "trackio": _Trackio,
    "wandb": _Wandb,
    "mlflow": _Mlflow,
    "tensorboard": _Tensorboard,
}


class Tracking:
    """A training in all trackers that are named; without any it does nothing.

    Args:
        trackers: what to show it in.
        stage: what they are told of it.
        memory: a file among the checkpoints, which keeps by what a training that goes on finds its tracker runs again.
        warn: told where a tracker fails later on; the training then goes on without it.
    """

    def __init__(
        self,
        trackers: Iterable[TrackerName],
        stage: TrackedStage,
        memory: Path,
        warn: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._trackers = tuple(trackers)
        self._stage = stage
        self._memory = memory
        self._warn = warn
        self._runs: dict[TrackerName, TrackerRun] = {}

    def begin(self, step: int) -> None:
        """Begin the tracker runs, or go on with those that an earlier start of this training began.

        Args:
            step: the step of the checkpoint from which the training goes on; 0 without one.

        Raises:
            RunError: a tracker cannot begin, as where it cannot reach its server.
        """
        if not self._trackers:
            return
        keys: dict[str, str] = json.loads(self._memory.read_text()) if self._memory.exists() else {}
        for tracker in self._trackers:
            try:
                self._runs[tracker] = _OPENED_BY[tracker](self._stage, keys.get(tracker), step)
            except Exception as error:
                raise RunError(
                    f"report_to={tracker}: {self._stage.stage} cannot be shown there: {error}; set it up as its manual "
                    "says, or leave it out of report_to, and start again"
                ) from error
            keys[tracker] = self._runs[tracker].key
        self._memory.parent.mkdir(parents=True, exist_ok=True)
        atomic_write(self._memory, json.dumps(keys).encode())

    def log(self, step: int, line: Mapping[str, Any]) -> None:
        """Send the numbers of a line of the training's log."""
        metrics = {
            name: number
            for name, number in line.items()
            if isinstance(number, int | float) and not isinstance(number, bool) and name != "step"
        }
        for tracker, run in list(self._runs.items()):
            with self._surviving(tracker):
                run.log(step, metrics)

    @contextmanager
    def _surviving(self, tracker: TrackerName) -> Iterator[None]:
        """Go on without a tracker that fails: what it shows is worth less than the training."""
        try:
            yield
        except Exception as error:  # noqa: BLE001 - whatever a tracker raises
            with suppress(Exception):  # or the next stage would be a part of this one
                self._runs.pop(tracker).finish(failed=True)
            self._warn(f"{tracker} failed, and the training is no longer shown there: {error}")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        for tracker, run in list(self._runs.items()):
            with self._surviving(tracker):
                run.finish(failed=kind is not None)
        self._runs.clear()


NOT_TRACKED: Final = Tracking((), TrackedStage("", "", {}, Path()), Path())
"""Shows nothing."""
