"""Every setting of a run in one model, and the table of the groups that Hydra chooses them from.

Defaults, bounds and documentation stand in the `Settings` beside the code that uses them; here are only those of what
no stage owns.
"""

import hashlib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Self, get_args, get_origin

from pydantic import AfterValidator, BaseModel, Field, field_validator, model_validator

from constitutional.base.frozen import Frozen
from constitutional.base.records import LABELER
from constitutional.constitution.constitution import Text
from constitutional.data.comparisons import PAIRS
from constitutional.engines.settings import (
    Budget,
    HttpSettings,
    LocalSettings,
    ModelSettings,
    NoClusterSettings,
    RayClusterSettings,
    RoleSettings,
)
from constitutional.judging.labelling import Weight
from constitutional.runs.launch_settings import HereSettings, LaunchSettings
from constitutional.runs.outputs import SHARED
from constitutional.stages import (
    adopted,
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
    spotcheck,
)
from constitutional.stages.prompts import FilePrompts, SandboxPrompts
from constitutional.stages.report import gather
from constitutional.training.tracking import Trackers

JudgeName = Annotated[str, Field(pattern=r"^[A-Za-z_]\w*$")]
LONGEST_NAME: Final = 200
"""Bytes of a run's name; file systems allow 255 for a folder, and files beside it have the same name with an ending."""


def _a_folders_name(name: str) -> str:
    if not re.fullmatch(r"\w[\w.,=+-]*", name):
        raise ValueError("it names a folder: letters and digits of any script, _ and, but not at first, . , = + - only")
    if len(name.encode()) > LONGEST_NAME:
        raise ValueError(f"it is longer than {LONGEST_NAME} bytes")
    return name


class ConstitutionSettings(Frozen):
    """Which principles, and how heavy each is."""

    file: str = "sandbox_careful"
    """A file of principles (YAML or Markdown), or the name of a shipped one."""
    only: tuple[str, ...] | None = None
    """Ids of the principles to keep; null keeps all."""
    without: tuple[str, ...] = ()
    """Ids of principles to leave out."""
    weights: dict[str, Weight] = Field(default_factory=dict)
    """Weights by principle's id, instead of those in the file."""
    wordings: dict[str, Text] = Field(default_factory=dict)
    """Texts by principle's id, instead of those in the file."""
    as_written: tuple[str, ...] = ()
    """Ids of principles whose very words models are given. The sandbox's model is given others where it misreads."""


class JournalSettings(Frozen):
    """Where every answer of a model is kept, so that none is asked for twice."""

    path: Path | None = None
    """An SQLite file, which many runs may share; null is `journal.sqlite` beside the run folders."""

    @field_validator("path", mode="before")
    @classmethod
    def _a_file(cls, path: object) -> object:
        if "://" in str(path):
            raise ValueError("the journal is an SQLite file, such as runs/journal.sqlite, and no address")
        return path


class SweepSettings(Frozen):
    """How the jobs of a sweep are chosen, and which of them is best. A run depends on none of these."""

    over: Literal["principles", "weights", "wordings"] | None = None
    """What the jobs differ in, beside what is typed: it is read from the constitution that is chosen."""
    keep: Literal["others", "alone", "subsets"] = "others"
    """Over principles: all but one principle, one principle alone, or all subsets of a size."""
    size: Annotated[int, Field(ge=1)] = 2
    """Over subsets: the number of principles in a subset."""
    whole: bool = True
    """Over principles and wordings: whether one job has the constitution as it is, to compare with."""
    control: bool = False
    """Over principles: whether a job for each principle has the words of that principle in a random order."""
    principle: str | None = None
    """Over weights and wordings: the id of the principle."""
    values: tuple[Weight, ...] = (0.25, 0.5, 1, 2, 4)
    """Over weights: the weights of the principle."""
    file: Path | None = None
    """Over wordings: a file of texts, each of which replaces the text of the principle. One text a line, or JSON, YAML
    or Markdown, as `constitutional sandbox understand --file` reads them."""
    trials: Annotated[int, Field(ge=1)] | None = None
    """For a search by Optuna: the number of jobs. The settings to search are typed as KEY=interval(LOW,HIGH)."""
    batch: Annotated[int, Field(ge=1)] = 1
    """For a search: jobs that are chosen at once, so that a launcher can run them side by side."""
    objective: Literal["violations", "preferred"] = "violations"
    """Which job is best: the one with the lowest mean share of replies that violate a principle, or the one whose
    replies the labeler prefers most often to those of the base model."""
    over_refusal: Annotated[float, Field(ge=0, le=1)] | None = None
    """The largest share of harmless requests that the best job may refuse; null sets no bound."""


class RunConfig(Frozen):
    """Everything that a run depends on, apart from the files that it names."""

    name: Annotated[str, AfterValidator(_a_folders_name)] = "first"
    """The run's folder in `folder`: letters and digits of any script, and _ . , = + -"""
    folder: Path = Path("runs")
    """Where run folders are."""
    until: str | None = None
    """The last stage to run, such as reward; null runs them all. The same command without it goes on from there."""
    seed: Annotated[int, Field(ge=0, le=2**32 - 1)] = 0
    """All randomness comes from the seed. NumPy, torch and TRL take whole numbers in this range."""
    templates: Path | None = None
    """A folder of prompt templates that replace the shipped ones of the same name."""
    constitution: ConstitutionSettings = ConstitutionSettings()
    report_to: Trackers = ()
    """Trackers that show the trainings while they go on: trackio, wandb, mlflow, tensorboard, one or a list of them.
    Each is installed on its own (pip install wandb) and has a tracker run for each stage, under the run's name. Without
    any, nothing is sent; what a run makes is the same."""
    understanding: Literal["warn", "strict"] = "warn"
    """Where the critic's reading of a principle is doubtful, a run warns, or it ends before anything is trained."""
    launch: LaunchSettings = HereSettings()
    """Where stages are made that train or hold a model in memory."""
    model: ModelSettings = ModelSettings()
    generator: RoleSettings = LocalSettings()
    """The model that drafts the responses which are revised. Where it is vLLM, vLLM also answers for the model that is
    trained and for what becomes of it."""
    critic: RoleSettings = LocalSettings()
    """The model that critiques and revises."""
    labeler: RoleSettings = LocalSettings()
    """The model that compares responses. Alone it compares the models' replies in the evaluation, too."""
    panel: dict[JudgeName, RoleSettings] = Field(default_factory=dict)
    """More models that compare the same responses, by names of your own: panel.second=http panel.second.url=URL. Their
    judgements are averaged with the labeler's by `label.weights`."""
    cluster: Annotated[NoClusterSettings | RayClusterSettings, Field(discriminator="kind")] = NoClusterSettings()
    """Where the models answer that no server does. It changes no result."""
    prompts: Annotated[SandboxPrompts | FilePrompts, Field(discriminator="kind")] = SandboxPrompts()
    journal: JournalSettings = JournalSettings()
    budget: Budget = Budget()
    """The most that all roles of the run may ask together, however often it is started. `generator.budget`,
    `critic.budget` and `labeler.budget` bound one role."""
    critique_revise: critique_revise.Settings
    sft: sft.Settings
    sample_pairs: sample_pairs.Settings
    label: label.Settings
    spotcheck: spotcheck.Settings
    """Which of the labeler's comparisons people look at."""
    mix: mix.Settings
    reward: reward.Settings
    algorithm: Annotated[
        dpo.Settings | ppo.Settings | grpo.GrpoSettings | grpo.RlooSettings | adopted.Settings,
        Field(discriminator="kind"),
    ]
    """What makes the policy; `pipeline.py` has a stage for each kind."""
    evaluate: evaluate.Settings
    report: gather.Settings

    @model_validator(mode="after")
    def _settings_go_together(self) -> Self:
        # This is checked here because the stage that reads the file may begin hours later.
        people = (self.mix.human, self.mix.verdicts, self.spotcheck.votes or None)
        if self.mix.human_ratio and people == (None, None, None):
            raise ValueError(f"mix.human has no value yet; type mix.human=FILE, {PAIRS}")
        clamp, margin = self.label.clamp, self.mix.margin
        if clamp and all(mix.within_margin(end, margin) for end in clamp) and self.mix.human_ratio != 1:
            low, high = clamp
            raise ValueError(
                f"label.clamp keeps every probability from {low:g} to {high:g}, and mix.margin={margin:g} leaves out "
                f"what is less than {margin:g} from 0.5: no label could become a preference; type mix.margin=0"
            )
        judges = {LABELER: self.labeler, **{f"panel.{name}": judge for name, judge in self.panel.items()}}
        for role, judge in judges.items():
            if self.label.method == "contrast" and isinstance(judge, HttpSettings) and judge.endpoint == "chat":
                raise ValueError(
                    f"label.method=contrast asks how likely whole responses are, which {role}.endpoint=chat does not "
                    f"tell; type label.method=rationale, or {role}.endpoint=completions {role}.tokenizer=FOLDER"
                )
        if self.journal_file.is_dir():
            raise ValueError(f"journal.path={self.journal_file} is a folder; type journal.path=FILE")
        return self

    @model_validator(mode="after")
    def _judges_have_names_of_their_own(self) -> Self:
        if LABELER in self.panel:
            raise ValueError(f"panel.{LABELER} has the labeler's own name; type another, such as panel.second")
        judges = (LABELER, *self.panel)
        if unknown := [name for name in self.label.weights if name not in judges]:
            raise ValueError(
                f"label.weights.{unknown[0]} is the weight of no judge; the judges are {', '.join(judges)}; type "
                f"label.weights.{judges[-1]}=VALUE, or panel.{unknown[0]}=PRESET for a judge of this name"
            )
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
        step, size, epochs = algorithm.prompts_per_step, algorithm.num_generations, algorithm.epochs
        if isinstance(self.prompts, SandboxPrompts) and (prompts := round(epochs * self.prompts.train)) < step:
            smaller = f"algorithm.batch_size={size} algorithm.gradient_accumulation={prompts or self.prompts.train}"
            raise ValueError(
                f"prompts.train={self.prompts.train} is too few: algorithm.epochs={epochs:g} passes over them are "
                f"{prompts} prompts, and a step has {step}; type prompts.train={round(step / epochs) + 1}, or for a "
                f"small trial {'' if prompts else 'algorithm.epochs=1 '}{smaller}"
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

    @property
    def judges(self) -> dict[str, str]:
        """The role of every judge by its name, the labeler first."""
        return {LABELER: LABELER, **{name: f"panel.{name}" for name in self.panel}}

    @property
    def digest(self) -> str:
        """SHA-256 of all settings, but for the last stage to run, and where stages are made, shown and answered for."""
        told = {"until", "understanding", "report_to", "launch", "cluster"}
        return hashlib.sha256(self.model_dump_json(exclude=told).encode()).hexdigest()

    @property
    def outputs_folder(self) -> Path:
        """Where what stages made is kept, shared by the runs of a folder."""
        return self.folder / SHARED


def models_in(annotation: Any) -> list[type[BaseModel]]:  # noqa: ANN401 - whatever a field may be annotated with
    """The settings models that a field may hold: one, the members of a union, or those that a list may hold."""
    if hasattr(annotation, "model_fields"):
        return [annotation]
    return [model for part in get_args(annotation) for model in models_in(part)]


def _presets(models: Sequence[type[BaseModel]]) -> dict[str, type[BaseModel]]:
    """A group's models by the preset that holds their defaults, one for each kind."""
    kinds = [f"_{model.model_fields['kind'].default}" if len(models) > 1 else "" for model in models]
    return {f"schema{kind}": model for kind, model in zip(kinds, models, strict=True)}


ROLES: Final = ("generator", "critic", LABELER)
"""All choose among the presets of the group `engine`, and so do the judges in `panel`."""
GROUPS: Final[Mapping[str, Mapping[str, type[BaseModel]]]] = {
    "engine" if name in (*ROLES, "panel") else name: _presets(models)
    for name, field in RunConfig.model_fields.items()
    if (models := models_in(field.annotation))
}


def every_key() -> list[str]:
    """The dotted name of every setting, the settings of all options included."""
    keys = [*RunConfig.model_fields, *(f"sweep.{name}" for name in SweepSettings.model_fields)]
    for group, field in RunConfig.model_fields.items():
        for model in models_in(field.annotation) if group != "panel" else ():
            for name, inner in model.model_fields.items():
                keys.append(f"{group}.{name}")
                if get_origin(inner.annotation) is not tuple:
                    nested = models_in(inner.annotation)
                    keys += [f"{group}.{name}.{key}" for part in nested for key in part.model_fields]
    return list(dict.fromkeys(keys))
