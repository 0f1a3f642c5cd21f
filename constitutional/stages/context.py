"""What a stage is handed, and all it knows of a run: inputs by name, a place for outputs, models that answer."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypeVar

from constitutional.base.frozen import Frozen
from constitutional.base.records import Record
from constitutional.stages.summaries import Summary

if TYPE_CHECKING:
    from pydantic import BaseModel

    from constitutional.base.progress import Task
    from constitutional.base.shards import Row, RowStream
    from constitutional.base.templates import Prompts
    from constitutional.constitution.constitution import Constitution
    from constitutional.engines.base import Engine
    from constitutional.engines.settings import EngineSettings, ModelSettings
    from constitutional.engines.spending import Calls
    from constitutional.training.tracking import Tracking

R = TypeVar("R", bound=Record)
S = TypeVar("S", bound=Summary)
T = TypeVar("T")


class StageForecast(Frozen):
    """What a stage is expected to ask, from what a handful of items took."""

    stage: str
    done: bool = False
    """It was finished before, so that it asks nothing."""
    trains: bool = False
    """It trains, and how long that takes is not forecast."""
    calls: int = 0
    """Requests, those that the journal answers included."""
    held: int | None = None
    """Of these, requests that the journal answers; None where nobody knows before the models are trained."""
    prompt_tokens: int = 0
    """Tokens read for the requests that a model answers."""
    completion_tokens: int = 0
    """Tokens written for them."""
    cost: float = 0.0
    """Their cost, in the currency of the prices."""
    seconds: float | None = None
    """Time for them, where they take as long as the handful's did, now or in an earlier forecast; None where the
    journal answered all of the handful's."""


class StageRecord(NamedTuple):
    """What is known of a finished stage, for the report."""

    summary: Summary
    logs: Mapping[str, Sequence[Mapping[str, float]]]
    """Lines of its training logs: one log, or one for each member of an ensemble, by name. Empty where it trains
    nothing."""
    calls: "Calls"
    """What it asked of models."""
    versions: Mapping[str, str]
    """Of the packages that made it."""
    seconds: float = 0.0
    """From its last start to its end."""
    forecast: "StageForecast | None" = None
    """What it was expected to ask, by a dry run; None where there was none."""


class RunView(Protocol):
    """A run, for reading: all that the report needs."""

    @property
    def name(self) -> str:
        """The run's name."""

    @property
    def constitution(self) -> "Constitution":
        """As selected and weighted for this run."""

    @property
    def seed(self) -> int:
        """The run's seed; a stage derives its own from it."""

    @property
    def folder(self) -> Path:
        """The run's folder, to name it."""

    def has(self, artifact: str) -> bool:
        """Whether this stage needs the artifact: `rollouts` and `gold` are there after an online training alone."""

    def read(self, artifact: str, kind: type[R]) -> list[R]:
        """The rows of an artifact that an earlier stage wrote, such as `revisions`."""

    def stream(self, artifact: str, kind: type[R]) -> "RowStream[R]":
        """The rows of an artifact, to be iterated over: where they are many, they are read anew and never all held."""

    def summary(self, kind: type[S]) -> S | None:
        """What the earlier stage that writes such a summary said; None if this run has no such stage."""

    def records(self) -> Mapping[str, StageRecord]:
        """The finished stages before this one by name, in running order."""

    def configuration(self) -> Mapping[str, Any]:
        """The resolved configuration as JSON values."""

    def digests(self) -> Mapping[str, str]:
        """Digests of what the run is given, by name: models by role, the constitution, templates by file."""


class StageContext(RunView, Protocol):
    """One stage's view of a run."""

    @property
    def prompts(self) -> "Prompts":
        """The prompt templates."""

    @property
    def judges(self) -> Mapping[str, str]:
        """The role of every judge by its name: `labeler`, then those of the panel (`second`: `panel.second`)."""

    def write(self, artifact: str, rows: "Iterable[Row]") -> int:
        """Write rows as an artifact of this stage, whole or not at all; returns how many.

        They are written as they come: `<artifact>.jsonl`, or of many rows a folder of shards (`base/shards.py`).
        """

    def summarise(self, summary: Summary) -> None:
        """Keep the stage's summary; every stage calls this once."""

    def model(self, artifact: str) -> Path:
        """The folder of a model: `base`, or one that an earlier stage made (`sft_model`, `reward_model`, `policy`)."""

    @property
    def base(self) -> "ModelSettings":
        """What the run says of the model that is trained, its tokenizer for one."""

    def settings(self, role: str) -> "EngineSettings":
        """What the run says of a model that it is given: `base`, `generator`, `critic` or `labeler`."""

    def output(self, name: str) -> Path:
        """A path of that name in this stage's own folder, for a model or any other file; its parent exists."""

    def engine(self, role: str) -> "Engine":
        """A model that answers, through the journal: `base`, `generator`, `critic`, a judge's role, or an artifact."""

    def tracking(self, settings: "BaseModel", part: str = "") -> "Tracking":
        """What shows a training of these settings in the trackers of `report_to`; a context manager, which ends them.

        `part` tells a stage's trainings apart, such as `-1`.
        """

    def release(self) -> None:
        """Give the memory of all models back; one that is asked again is loaded again."""

    def progress(self, items: Iterable[T], total: int, label: str, unit: str = "rows") -> Iterator[T]:
        """The items, while the terminal shows how far this is."""

    def task(self, label: str, total: int = 0, unit: str = "rows") -> "Task":
        """Work that tells how far it is, on the terminal; a context manager, which ends it."""

    def say(self, line: str) -> None:
        """Tell the user on the terminal, in a line that stays."""

    def warn(self, message: str) -> None:
        """Tell the user on the terminal, as a warning of this stage."""
