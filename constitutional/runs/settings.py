"""Every setting of a run in one model, and the table of the groups that Hydra chooses them from.

Defaults, bounds and documentation stand in the `Settings` beside the code that uses them; here are only those of what
no stage owns.
"""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Self, get_args, get_origin

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from constitutional.data.comparisons import PAIRS
from constitutional.engines.models import LocalSettings, ModelSettings
from constitutional.stages import (
    critique_revise,
    dpo,
    evaluate,
    grpo,
    label,
    mix,
    ppo,
    reward,
    sample_pairs,
    sft,
)
from constitutional.stages.prompts import FilePrompts, SandboxPrompts
from constitutional.stages.report import gather

_FROZEN = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)
Weight = Annotated[float, Field(gt=0)]
LONGEST_NAME: Final = 200
"""Bytes of a run's name; file systems allow 255 for a folder, and files beside it have the same name with an ending."""


def _a_folders_name(name: str) -> str:
    if not re.fullmatch(r"\w[\w.,=+-]*", name):
        raise ValueError(
            "it names a folder: letters and digits of any script and _ . , = + - only, and none of . , = + - at first"
        )
    if len(name.encode()) > LONGEST_NAME:
        raise ValueError(f"it is longer than {LONGEST_NAME} bytes")
    return name


class ConstitutionSettings(BaseModel):
    """Which principles, and how heavy each is."""

    model_config = _FROZEN

    file: str = "sandbox_careful"
    """A file of principles (YAML or Markdown), or the name of a shipped one."""
    only: tuple[str, ...] | None = None
    """Ids of the principles to keep; null keeps all."""
    without: tuple[str, ...] = ()
    """Ids of principles to leave out."""
    weights: dict[str, Weight] = Field(default_factory=dict)
    """Weights by principle's id, instead of those in the file."""


class JournalSettings(BaseModel):
    """Where every answer of a model is kept, so that none is asked for twice."""

    model_config = _FROZEN

    path: Path | None = None
    """An SQLite file, which many runs may share; null is `journal.sqlite` beside the run folders."""
    batch_size: Annotated[int, Field(ge=1)] = 256
    """Requests that are asked and committed together: the most that a kill can lose."""


class DpoSettings(dpo.Settings):
    """Direct preference optimisation."""

    kind: Literal["dpo"] = "dpo"


class PpoSettings(ppo.Settings):
    """Proximal policy optimisation against the reward model."""

    kind: Literal["ppo"] = "ppo"


class RunConfig(BaseModel):
    """Everything that a run depends on, apart from the files that it names."""

    model_config = _FROZEN

    name: Annotated[str, AfterValidator(_a_folders_name)] = "first"
    """The run's folder in `folder`: letters and digits of any script, and _ . , = + -"""
    folder: Path = Path("runs")
    """Where run folders are."""
    fresh: bool = False
    """Delete what a run folder of that name holds, and begin anew."""
    until: str | None = None
    """The last stage to run, such as reward; null runs them all. The same command without it goes on from there."""
    seed: Annotated[int, Field(ge=0, le=2**32 - 1)] = 0
    """All randomness comes from the seed. NumPy, torch and TRL take whole numbers in this range."""
    templates: Path | None = None
    """A folder of prompt templates that replace the shipped ones of the same name."""
    constitution: ConstitutionSettings = ConstitutionSettings()
    model: ModelSettings = ModelSettings()
    critic: LocalSettings = LocalSettings()
    """The model that critiques and revises."""
    labeler: LocalSettings = LocalSettings()
    """The model that compares responses."""
    prompts: Annotated[SandboxPrompts | FilePrompts, Field(discriminator="kind")] = SandboxPrompts()
    journal: JournalSettings = JournalSettings()
    critique_revise: critique_revise.Settings
    sft: sft.Settings
    sample_pairs: sample_pairs.Settings
    label: label.Settings
    mix: mix.Settings
    reward: reward.Settings
    algorithm: Annotated[DpoSettings | PpoSettings | grpo.GrpoSettings | grpo.RlooSettings, Field(discriminator="kind")]
    """What makes the policy; `pipeline.ALGORITHMS` has a stage for each kind."""
    evaluate: evaluate.Settings
    report: gather.Settings

    @model_validator(mode="after")
    def _people_are_named(self) -> Self:
        # This is checked here because the stage that reads the file may begin hours later.
        if self.mix.human_share and self.mix.human is None and self.mix.verdicts is None:
            raise ValueError(f"mix.human has no value yet; type mix.human=FILE, {PAIRS}")
        return self

    @model_validator(mode="after")
    def _a_judgement_can_decide(self) -> Self:
        clamp, margin = self.label.clamp, self.mix.margin
        if clamp and all(mix.within_margin(end, margin) for end in clamp) and self.mix.human_share != 1:
            low, high = clamp
            raise ValueError(
                f"label.clamp keeps every probability from {low:g} to {high:g}, and mix.margin={margin:g} leaves out "
                f"what is less than {margin:g} from 0.5: no label could become a preference; type mix.margin=0"
            )
        return self

    @model_validator(mode="after")
    def _the_journal_is_a_file(self) -> Self:
        if self.journal_file.is_dir():
            raise ValueError(f"journal.path={self.journal_file} is a folder; type journal.path=FILE")
        return self

    @model_validator(mode="after")
    def _a_step_can_be_filled(self) -> Self:
        algorithm = self.algorithm
        if not isinstance(algorithm, grpo.Settings):
            return self
        if algorithm.max_tokens >= algorithm.max_length:
            raise ValueError(
                f"algorithm.max_tokens={algorithm.max_tokens} leaves no room for a prompt within algorithm.max_length="
                f"{algorithm.max_length}; type algorithm.max_length={algorithm.max_tokens + 1024}"
            )
        step = algorithm.prompts_per_step
        if isinstance(self.prompts, SandboxPrompts) and round(algorithm.epochs * self.prompts.train) < step:
            raise ValueError(
                f"prompts.train={self.prompts.train} is too few: algorithm.epochs={algorithm.epochs:g} passes make no "
                f"step of {step} prompts; type prompts.train={round(step / algorithm.epochs) + 1}"
            )
        return self

    @property
    def run_folder(self) -> Path:
        """Where this run's artifacts are."""
        return self.folder / self.name

    @property
    def journal_file(self) -> Path:
        """The journal, shared by the runs of a folder unless it says otherwise."""
        return self.journal.path or self.folder / "journal.sqlite"

    def identity(self) -> dict[str, object]:
        """What a run folder is bound to: every setting that its results depend on, by its dotted name.

        Without people's verdicts: they are on the run's own comparisons, so they can only come later. And without the
        constitution's file: what it says is in the fingerprint of every stage that reads it, so a run goes on with an
        edited copy as it does with the edited file.
        """
        apart = dict.fromkeys(("name", "folder", "fresh", "until", "journal", "report"), True)
        parts = {"mix": {"verdicts": True}, "constitution": {"file": True}}
        return dict(_flat(self.model_dump(mode="json", exclude={**apart, **parts})))


GROUPS: Final[Mapping[str, Mapping[str, type[BaseModel]]]] = {
    "constitution": {"schema": ConstitutionSettings},
    "model": {"schema": ModelSettings},
    "engine": {"schema": LocalSettings},
    "prompts": {"schema_sandbox": SandboxPrompts, "schema_file": FilePrompts},
    "journal": {"schema": JournalSettings},
    "critique_revise": {"schema": critique_revise.Settings},
    "sft": {"schema": sft.Settings},
    "sample_pairs": {"schema": sample_pairs.Settings},
    "label": {"schema": label.Settings},
    "mix": {"schema": mix.Settings},
    "reward": {"schema": reward.Settings},
    "algorithm": {
        "schema_dpo": DpoSettings,
        "schema_ppo": PpoSettings,
        "schema_grpo": grpo.GrpoSettings,
        "schema_rloo": grpo.RlooSettings,
    },
    "evaluate": {"schema": evaluate.Settings},
    "report": {"schema": gather.Settings},
}
TOP: Final = ("name", "folder", "fresh", "until", "seed", "templates")
"""The settings that are in no group."""


def every_key() -> list[str]:
    """The dotted name of every setting, the settings of all options included."""
    keys = list(RunConfig.model_fields)
    for group, field in RunConfig.model_fields.items():
        for model in models_in(field.annotation):
            for name, inner in model.model_fields.items():
                keys.append(f"{group}.{name}")
                if get_origin(inner.annotation) is not tuple:
                    nested = models_in(inner.annotation)
                    keys += [f"{group}.{name}.{key}" for part in nested for key in part.model_fields]
    return list(dict.fromkeys(keys))


def models_in(annotation: Any) -> list[type[BaseModel]]:  # noqa: ANN401 - whatever a field may be annotated with
    """The settings models that a field may hold: one, the members of a union, or those that a list may hold."""
    if hasattr(annotation, "model_fields"):
        return [annotation]
    return [model for part in get_args(annotation) for model in models_in(part)]


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, object]]:
    for name, value in values.items():
        if isinstance(value, dict) and value:
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value
