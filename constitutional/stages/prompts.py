"""The conversations that a run begins with, for training and for evaluation: from the sandbox, or from a file."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from constitutional.base.frozen import Frozen
from constitutional.data.prompts import PromptSet, load_prompt_set
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
    """Prompts from a file."""

    kind: Literal["file"] = "file"
    path: Path
    """One prompt a line: text (.txt), or JSON (.jsonl) that is a text, {"prompt": …} or {"messages": […]}."""
    held_out: Annotated[int, Field(ge=0)] = 200
    """Number of prompts to set aside for evaluation at least, those included whose line says "split": "held_out"."""


Settings = SandboxPrompts | FilePrompts


def prompts_of(settings: Settings, seed: int) -> PromptSet:
    """The prompts that the settings name."""
    if isinstance(settings, SandboxPrompts):
        return PromptSet(sandbox_prompt_set(settings.train, settings.held_out, seed), [], [])
    return load_prompt_set(settings.path, held_out=settings.held_out, seed=seed)


def run(settings: Settings, context: StageContext) -> None:
    """Write `prompts`."""
    prompts, repeated, _ = prompts_of(settings, context.seed)
    context.write("prompts", prompts)
    if repeated and isinstance(settings, FilePrompts):
        many = f"this prompt, and {len(repeated) - 1} more," if len(repeated) > 1 else "this prompt"
        context.warn(f"{settings.path}:{repeated[0]}: {many} stands there before; each prompt is used once")
    train = sum(prompt.split == "train" for prompt in prompts)
    context.summarise(PromptsSummary(train=train, held_out=len(prompts) - train, repeated=len(repeated)))
