"""What a stage is handed, and all it knows of a run: inputs by name, a place for outputs, models that answer."""

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from constitutional.base.records import Record

if TYPE_CHECKING:
    from constitutional.base.templates import Prompts
    from constitutional.constitution.constitution import Constitution
    from constitutional.engines.base import Engine
    from constitutional.engines.models import ModelSettings

R = TypeVar("R", bound=Record)
T = TypeVar("T")


class StageContext(Protocol):
    """One stage's view of a run."""

    @property
    def constitution(self) -> "Constitution":
        """As selected and weighted for this run."""
        ...

    @property
    def prompts(self) -> "Prompts":
        """The prompt templates."""
        ...

    @property
    def seed(self) -> int:
        """The run's seed; a stage derives its own from it."""
        ...

    def read(self, artifact: str, kind: type[R]) -> list[R]:
        """The rows of an artifact that an earlier stage wrote, such as `revisions`."""
        ...

    def write(self, artifact: str, rows: Iterable[Record]) -> int:
        """Write rows as this stage's `<artifact>.jsonl`, whole or not at all; returns how many."""
        ...

    def read_notes(self, stage: str) -> Mapping[str, Any]:
        """What an earlier stage noted with `note`; empty where it noted nothing."""
        ...

    def model(self, artifact: str) -> Path:
        """The folder of a model: `base`, or one that an earlier stage made (`sft_model`, `reward_model`, `policy`)."""
        ...

    def settings(self, role: str) -> "ModelSettings":
        """What the run says of a model that it is given (`base`, `critic`, `labeler`), its tokenizer for one."""
        ...

    def output(self, name: str) -> Path:
        """A path of that name in this stage's own folder, for a model or any other file; its parent exists."""
        ...

    def engine(self, role: str) -> "Engine":
        """A model that answers, through the journal: the roles `base`, `critic` and `labeler`, or a model artifact."""
        ...

    def release(self) -> None:
        """Give back the memory of the models that answered; they are loaded again when they are asked again."""
        ...

    def progress(self, items: Iterable[T], total: int, label: str) -> Iterator[T]:
        """The items, while a line on the terminal says how far this is."""
        ...

    def note(self, name: str, value: object) -> None:
        """Keep a number or small JSON value by this name in the stage's `summary.json`, for people and the report."""
        ...
