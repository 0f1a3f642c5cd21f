"""The conversations that a run begins with, for training and for evaluation: from the sandbox, or from a file."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BeforeValidator, Field, field_validator, model_validator

from constitutional.base.frozen import Frozen
from constitutional.base.records import Prompt, Split
from constitutional.base.shipped import shipped
from constitutional.constitution.constitution import Text
from constitutional.data.prompts import PromptSet, load_prompt_set
from constitutional.data.sources import DataFile, as_files, check_weights
from constitutional.sandbox.prompts import sandbox_prompt_set
from constitutional.stages.context import StageContext
from constitutional.stages.summaries import PromptsSummary


class SandboxPrompts(Frozen):
    """Prompts made up in the small test-bed's world."""

    kind: Literal["sandbox"] = "sandbox"
    train: Annotated[int, Field(ge=1)] = 250
    """Number of prompts to train on."""
    held_out: Annotated[int, Field(ge=2)] = 100
    """Number of further prompts to evaluate on; half of them are about topics that training never sees."""


class FilePrompts(Frozen):
    """Prompts from files."""

    kind: Literal["file"] = "file"
    path: Path | None
    """A file of prompts; `constitutional data FILE` says how it is read. Several are named in `prompts.files`. Or
    `everyday`, 200 prompts that are shipped."""
    files: Annotated[tuple[DataFile, ...], BeforeValidator(as_files)] = ()
    """Files in place of `path`: a list of names, or of {path: …, weight: …, columns: {…}}; also hf://… on the hub."""
    held_out: Annotated[int | None, Field(ge=0)] = None
    """Number of prompts to set aside for evaluation at least, those included whose row says "split": "held_out". null
    sets three tenths aside, 2 at least and 200 at most."""
    system: Text | None = None
    """A system message that is put before every prompt without one, such as "Answer in at most three sentences."."""
    held_out_share: float | None = Field(default=None, ge=0, lt=1)
    """Share of the prompts to set aside instead of a number, 0 to 1. Whether a prompt is set aside depends on it and on
    the seed alone, and stays so when files grow."""

    @model_validator(mode="before")
    @classmethod
    def _without_path(cls, values: object) -> object:
        return {"path": None, **values} if isinstance(values, dict) and values.get("files") else values

    @field_validator("path")
    @classmethod
    def _shipped(cls, path: Path | None) -> Path | None:
        if path is None or path.name != str(path) or path.exists():
            return path
        ours = shipped("prompts") / "sets" / f"{path}.txt"
        return ours if ours.is_file() else path

    @model_validator(mode="after")
    def _names_files(self) -> Self:
        if (self.path is None) == (not self.files):
            raise ValueError("path and files both name prompts, or neither does; give one of the two")
        check_weights(self.files)
        return self

    @property
    def sources(self) -> tuple[DataFile, ...]:
        """The files, wherever they are named."""
        return (DataFile(path=self.path),) if self.path is not None else self.files


Settings = SandboxPrompts | FilePrompts


def prompts_of(settings: Settings, seed: int) -> PromptSet:
    """The prompts that the settings name."""
    if isinstance(settings, SandboxPrompts):
        return PromptSet(sandbox_prompt_set(settings.train, settings.held_out, seed))
    return load_prompt_set(
        settings.sources, held_out=settings.held_out, seed=seed, share=settings.held_out_share, system=settings.system
    )


def run(settings: Settings, context: StageContext) -> None:
    """Write `prompts`, as they are read."""
    prompts, repeated, _ = prompts_of(settings, context.seed)
    splits: Counter[Split] = Counter()

    def noted() -> Iterator[Prompt]:
        for prompt in prompts:
            splits[prompt.split] += 1
            yield prompt

    context.write("prompts", noted())
    if repeated:
        many = f"this prompt, and {len(repeated) - 1} more," if len(repeated) > 1 else "this prompt"
        context.warn(str(repeated[0].error(f"{many} stands there before; each prompt is used once")))
    context.summarise(PromptsSummary(train=splits["train"], held_out=splits["held_out"], repeated=len(repeated)))
