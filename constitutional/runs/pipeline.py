"""The stage table: what a run consists of, read from top to bottom; what each stage needs, and what it makes.

`runner.py` runs it.
"""

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Final

from pydantic import BaseModel, ConfigDict, Field

from constitutional.base.records import Comparison, Judgement
from constitutional.data.prompts import PromptSet, load_prompt_set
from constitutional.judging import gold
from constitutional.runs.compose import FilePrompts, PpoSettings, RunConfig, SandboxPrompts
from constitutional.runs.context import TAGS, WHOLE
from constitutional.sandbox.prompts import sandbox_prompt_set
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
from constitutional.stages.context import StageContext
from constitutional.stages.report import gather

ROLLOUTS: Final = "rollouts"
"""Replies that were kept of a training online, for evaluation to score."""


def make_prompts(settings: SandboxPrompts | FilePrompts, context: StageContext) -> None:
    """The conversations that everything begins with, for training and for evaluation."""
    prompts, repeated, _ = prompts_of(settings, context.seed)
    context.write("prompts", prompts)
    context.note("train", sum(prompt.split == "train" for prompt in prompts))
    context.note("held_out", sum(prompt.split == "held_out" for prompt in prompts))
    context.note("repeated", len(repeated))
    if repeated and isinstance(settings, FilePrompts):
        what = "prompts that stand there" if len(repeated) > 1 else "prompt that stands there"
        said = f"is the first of {len(repeated)} {what} before; each prompt is used once"
        print(f"warning: {settings.path}:{repeated[0]}: {said}", file=sys.stderr)


def prompts_of(settings: SandboxPrompts | FilePrompts, seed: int) -> PromptSet:
    """The prompts that a configuration names."""
    if isinstance(settings, SandboxPrompts):
        return PromptSet(sandbox_prompt_set(settings.train, settings.held_out, seed), [], [])
    return load_prompt_set(settings.path, held_out=settings.held_out, seed=seed)


class Measuring(BaseModel):
    """What the evaluation depends on: its own settings, and how the labeler compares the models' replies."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    evaluate: evaluate.Settings
    label: label.Settings


def measure(settings: Measuring, context: StageContext) -> None:
    """Evaluate, with the labeler as judge: stages do not know each other, so they meet here.

    It judges by the principles that it labelled by: those that it misjudges would count against the models.
    """
    accuracies = context.read("labeler_accuracy", label.PrincipleAccuracy)
    constitution = label.trusted(context.constitution, accuracies, settings.label).constitution

    def judge(comparisons: Sequence[Comparison]) -> list[Judgement]:
        engine = context.engine("labeler")
        judged = label.label(comparisons, constitution, engine, context.prompts, settings.label, context.seed)
        return list(judged)

    evaluate.run(settings.evaluate, context, judge)


def measure_online(settings: Measuring, context: StageContext) -> None:
    """Evaluate, and score the replies that the policy gave while it was trained by what training could not see."""
    measure(settings, context)
    chosen = settings.evaluate
    gold.run(context, settings.label, at_most=chosen.gold_replies, reward_model=chosen.gold_reward_model)


def report_online(settings: gather.Settings, context: StageContext) -> None:
    """Report, with what the policy gave while it was trained."""
    gather.run(settings, context, online=True)


class Online(BaseModel):
    """What a training online by TRL depends on: its own settings, the labeler's where it rewards, users' functions."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    algorithm: Annotated[grpo.GrpoSettings | grpo.RlooSettings, Field(discriminator="kind")]
    label: label.Settings | None
    """None where the labeler is not asked, so that its settings do not matter."""
    sources: tuple[Path, ...]
    """Of users' functions; the stage's fingerprint holds what is in them."""


def _online(config: RunConfig) -> Online:
    chosen = config.algorithm
    assert isinstance(chosen, grpo.GrpoSettings | grpo.RlooSettings)
    asked = config.label if grpo.asks_labeler(chosen) else None
    return Online(algorithm=chosen, label=asked, sources=grpo.sources(chosen))


def train_online(settings: Online, context: StageContext) -> None:
    """Train by GRPO or RLOO; where the constitution rewards, by the principles that the labeler understands."""
    judge = None
    if settings.label is not None:
        accuracies = context.read("labeler_accuracy", label.PrincipleAccuracy)
        judge = grpo.Judge(label.trusted(context.constitution, accuracies, settings.label).constitution, settings.label)
    grpo.run(settings.algorithm, context, judge)


class Ppo(BaseModel):
    """What PPO depends on: its own settings, and those of the SFT examples where it goes on learning them."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    algorithm: PpoSettings
    sft: sft.Settings | None
    """None where the examples are not learned, so that their settings do not matter."""


def _ppo(config: RunConfig) -> Ppo:
    assert isinstance(config.algorithm, PpoSettings)
    return Ppo(algorithm=config.algorithm, sft=config.sft if config.algorithm.ptx_coef else None)


def train_ppo(settings: Ppo, context: StageContext) -> None:
    """Train by PPO, mixed with what SFT learned if that is asked for."""
    ppo.run(settings.algorithm, context, sft.learned(settings.sft, context) if settings.sft else ())


@dataclass(frozen=True)
class Stage:
    """One step of a run."""

    name: str
    settings: Callable[[RunConfig], BaseModel]
    needs: tuple[str, ...]
    """Earlier stages' artifacts, and what a run is given: models by role, the constitution, templates by file."""
    makes: tuple[str, ...]
    run: Callable[[Any, StageContext], None]
    trains: bool = False
    """Whether it wants the memory that the models in it hold."""
    reads_notes: bool = False
    """Whether it needs what every stage before it noted, beside their artifacts."""
    version: int = 1
    """To be raised when the stage makes something else of the same inputs."""


ALGORITHMS: Final[Mapping[str, Stage]] = {
    "dpo": Stage(
        "dpo",
        lambda config: config.algorithm,
        needs=("preferences", "sft_model"),
        makes=("policy",),
        run=dpo.run,
        trains=True,
    ),
    "ppo": Stage(
        "ppo",
        _ppo,
        needs=("prompts", "sft_model", "reward_model"),
        makes=("policy", ROLLOUTS),
        run=train_ppo,
        trains=True,
    ),
    **{
        # What else they need, their rewards say.
        kind: Stage(
            kind, _online, needs=("prompts", "sft_model"), makes=("policy", ROLLOUTS), run=train_online, trains=True
        )
        for kind in ("grpo", "rloo")
    },
}
"""What may make the policy, by the configuration's `algorithm.kind`. Whatever trains online also makes `rollouts`."""

STAGES: Final = (
    Stage("prompts", lambda config: config.prompts, needs=(), makes=("prompts",), run=make_prompts),
    # Before anything else is asked or trained: what the labeler misjudges, training amplifies.
    Stage(
        "labeler_check",
        lambda config: config.label,
        needs=("labeler", "constitution", "label.j2", "score.j2"),
        makes=("labeler_accuracy",),
        run=label.check,
    ),
    Stage(
        "critique_revise",
        lambda config: config.critique_revise,
        needs=("prompts", "base", "critic", "constitution", "critique.j2", "revise.j2", "revise_directly.j2"),
        makes=("revisions",),
        run=critique_revise.run,
        version=2,
    ),
    Stage(
        "sft",
        lambda config: config.sft,
        needs=("prompts", "revisions", "base"),
        makes=("sft_model",),
        run=sft.run,
        trains=True,
        version=2,
    ),
    Stage(
        "sample_pairs",
        lambda config: config.sample_pairs,
        needs=("prompts", "sft_model"),
        makes=("comparisons",),
        run=sample_pairs.run,
    ),
    Stage(
        "label",
        lambda config: config.label,
        needs=("comparisons", "labeler_accuracy", "labeler", "constitution", "label.j2", "score.j2"),
        makes=("judgements",),
        run=label.run,
    ),
    Stage(
        "mix",
        lambda config: config.mix,
        needs=("prompts", "comparisons", "judgements"),
        makes=("preferences",),
        run=mix.run,
        version=3,
    ),
    Stage(
        "reward",
        lambda config: config.reward,
        needs=("preferences", "sft_model"),
        makes=("reward_model",),
        run=reward.run,
        trains=True,
        version=2,
    ),
    ALGORITHMS["dpo"],
    Stage(
        "evaluate",
        lambda config: Measuring(evaluate=config.evaluate, label=config.label),
        needs=(
            *("prompts", "base", "sft_model", "policy", "labeler", "labeler_accuracy", "critic"),
            *("constitution", TAGS, "label.j2", "score.j2", "critique.j2", "restate.j2"),
        ),
        makes=("scores", "samples"),
        run=measure,
        version=2,
    ),
    Stage(
        "report",
        lambda config: config.report,
        needs=(
            *(
                "revisions",
                "sft_model",
                "comparisons",
                "judgements",
                "labeler_accuracy",
                "preferences",
                "reward_model",
                "policy",
            ),
            *("scores", "samples", WHOLE),
        ),
        makes=("report", gather.CONSTITUTION),
        run=gather.run,
        reads_notes=True,
        version=4,
    ),
)
"""The whole system, read from top to bottom; `stages_of` puts another algorithm in the place of DPO."""


def stages_of(config: RunConfig) -> tuple[Stage, ...]:
    """The stages of this configuration's run: with its algorithm, and the gold score where that trains online."""
    algorithm = ALGORITHMS[config.algorithm.kind]
    if isinstance(config.algorithm, grpo.Settings):
        algorithm = replace(algorithm, needs=(*algorithm.needs, *grpo.needs(config.algorithm)))
    elif isinstance(config.algorithm, PpoSettings):
        algorithm = replace(algorithm, needs=(*algorithm.needs, *ppo.needs(config.algorithm)))
    stages = {stage.name: stage for stage in STAGES} | {"dpo": algorithm}
    if trains_online(config):
        evaluated, reported = stages["evaluate"], stages["report"]
        stages["evaluate"] = replace(
            evaluated,
            needs=(*evaluated.needs, ROLLOUTS),
            makes=(*evaluated.makes, "gold"),
            run=measure_online,
        )
        stages["report"] = replace(reported, needs=("prompts", *reported.needs, ROLLOUTS, "gold"), run=report_online)
    return tuple(stages.values())


def trains_online(config: RunConfig) -> bool:
    """Whether the policy gives replies while it is trained, which are then scored and reported."""
    return ROLLOUTS in ALGORITHMS[config.algorithm.kind].makes
