"""The stage table: what a run consists of, read from top to bottom; what each stage needs, and what it makes.

`runner.py` runs it.
"""

import difflib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel

from constitutional.base.errors import ConfigurationError
from constitutional.runs.context import COMPARISON, OTHERS, READER, REVISION, TAGS, WHOLE
from constitutional.runs.settings import RunConfig
from constitutional.stages import (
    adopted,
    critique_revise,
    dpo,
    evaluate,
    grpo,
    label,
    labeler_check,
    mix,
    online,
    ppo,
    prompts,
    reward,
    sample_pairs,
    sft,
    spotcheck,
)
from constitutional.stages.report import gather as report
from constitutional.training.rewards import OnlineSettings, RewardModelSettings


@dataclass(frozen=True)
class Stage:
    """One step of a run."""

    name: str
    settings: BaseModel
    """All settings that its output depends on."""
    needs: tuple[str, ...]
    """Earlier stages' artifacts, and what a run is given: models by role, the constitution, templates by file."""
    makes: tuple[str, ...]
    run: Callable[[Any, Any], None]
    """Called with the settings and the stage's context."""
    trains: bool = False
    """Whether the engines give their memory back before it runs."""
    seeded: bool = True
    """Whether what it makes depends on the run's seed."""
    reads_summaries: bool = False
    """Whether it needs the summaries of all stages before it, beside their artifacts, and the run's configuration."""
    version: int = 1
    """Raised when the stage makes something else of the same inputs, or when the default of a setting changes."""


def stages_of(config: RunConfig) -> tuple[Stage, ...]:
    """The whole system for this configuration, in running order."""
    trains_online = isinstance(config.algorithm, OnlineSettings)
    # What is trained on replies of its own has these replies scored and reported.
    rollouts, gold = (("rollouts",), ("gold",)) if trains_online else ((), ())
    judges = tuple(config.judges.values())
    # What answers elsewhere may give no log-probabilities; then it is asked for votes, which are drawn.
    asks_people = config.spotcheck.votes > 0
    elsewhere = any(judge.kind not in ("local", "vllm") for judge in (config.labeler, *config.panel.values()))
    # What the labeler reads beside a principle's words for comparison: its text and opposite, or its examples.
    contrast = ("contrast.j2",) if config.label.method == "contrast" else ()
    more_words = ("constitution", *contrast) if contrast or config.label.few_shot else ()
    return (
        Stage("prompts", config.prompts, needs=(), makes=("prompts",), run=prompts.run, version=3),
        # Before anything else is asked or trained: what the labeler misjudges, training amplifies.
        Stage(
            "labeler_check",
            config.label,
            needs=(*judges, "critic", READER, "constitution", TAGS, "label.j2", "score.j2", "restate.j2", *contrast),
            makes=("meanings", "labeler_accuracy"),
            run=labeler_check.run,
            seeded=False,
            version=7,
        ),
        Stage(
            "critique_revise",
            config.critique_revise,
            needs=("prompts", "generator", "critic", REVISION, "critique.j2", "revise.j2", "revise_directly.j2"),
            makes=("revisions",),
            run=critique_revise.run,
            seeded=config.critique_revise.rounds > 0 or config.critique_revise.temperature != 0,
            version=4,
        ),
        Stage(
            "sft",
            config.sft,
            needs=("prompts", "revisions", "base"),
            makes=("sft_model", "sft_examples"),
            run=sft.run,
            trains=True,
            version=3,
        ),
        Stage(
            "sample_pairs",
            config.sample_pairs,
            needs=("prompts", "sft_model", "base"),
            makes=("comparisons",),
            run=sample_pairs.run,
            version=3,
        ),
        Stage(
            "label",
            config.label,
            needs=(
                *("comparisons", "labeler_accuracy", *judges, COMPARISON, "label.j2", "score.j2", *more_words),
                *(("revisions",) if config.label.principles == "telling" else ()),
            ),
            makes=("judgements",),
            run=label.run,
            seeded=config.label.draws or elsewhere,
            version=6,
        ),
        *(
            (
                Stage(
                    "spotcheck",
                    config.spotcheck,
                    needs=("comparisons", "judgements", "constitution", TAGS)
                    if config.spotcheck.simulate
                    else ("comparisons", "judgements"),
                    makes=("spotchecks", "verdicts"),
                    run=spotcheck.run,
                    version=2,
                ),
            )
            if asks_people
            else ()
        ),
        Stage(
            "mix",
            config.mix,
            needs=("prompts", "comparisons", "judgements", *(("spotchecks", "verdicts") if asks_people else ())),
            makes=("preferences",),
            run=mix.run,
            version=5,
        ),
        Stage(
            "reward",
            config.reward,
            needs=("preferences", "sft_model"),
            makes=("reward_model",),
            run=reward.run,
            trains=True,
            version=3,
        ),
        _algorithm(config),
        Stage(
            "evaluate",
            evaluate.Inputs(
                evaluate=config.evaluate,
                label=config.label,
                labeler_rewards=online.asks_labeler(config.algorithm),
            ),
            needs=(
                *("prompts", "base", "sft_model", "policy", "labeler", "labeler_accuracy", "critic", "meanings"),
                *("constitution", TAGS, "label.j2", "score.j2", "critique.j2", *contrast, *rollouts),
                *((OTHERS, READER) if config.evaluate.left_out and config.evaluate.critiqued else ()),
            ),
            makes=("scores", "samples", "measurements", *gold),
            run=evaluate.run,
            version=12,
        ),
        Stage(
            "report",
            config.report,
            needs=(
                *("prompts", "meanings", "labeler_accuracy", "revisions", "sft_model", "comparisons", "judgements"),
                *(
                    "preferences",
                    "reward_model",
                    "policy",
                    *rollouts,
                    "scores",
                    "samples",
                    "measurements",
                    *gold,
                    *(("spotchecks", "verdicts") if asks_people else ()),
                    WHOLE,
                ),
            ),
            makes=("report", report.CONSTITUTION, "people"),
            run=report.run,
            reads_summaries=True,
            version=12,
        ),
    )


def outline(config: RunConfig) -> tuple[Stage, ...]:
    """The stages by name and order; users' reward functions are not loaded, so no fingerprint can be made of it."""
    chosen = config.algorithm
    if isinstance(chosen, OnlineSettings):
        chosen = chosen.model_copy(update={"rewards": (RewardModelSettings(),)})
    return stages_of(config.model_copy(update={"algorithm": chosen}))


def up_to(until: str | None, stages: Sequence[Stage]) -> Sequence[Stage]:
    """The stages up to the last one to run; all of them where that is None.

    Raises:
        ConfigurationError: there is no such stage.
    """
    names = [stage.name for stage in stages]
    if until is not None and until not in names:
        near = next(iter(difflib.get_close_matches(until, names, n=1)), "null")
        raise ConfigurationError(f'until is "{until}", but should be one of {", ".join(names)}; type until={near}')
    return stages[: names.index(until) + 1] if until else stages


def _algorithm(config: RunConfig) -> Stage:
    """The stage that makes the policy; one that trains online also makes `rollouts`, which evaluation scores."""
    chosen = config.algorithm
    if isinstance(chosen, adopted.Settings):
        return Stage("adopted", chosen, needs=("sft_model",), makes=("policy",), run=adopted.run, seeded=False)
    if isinstance(chosen, dpo.Settings):
        scored = ("reward_model",) if chosen.margin == "reward_model" else ()
        needs = ("preferences", "sft_model", *scored)
        return Stage("dpo", chosen, needs=needs, makes=("policy",), run=dpo.run, trains=True, version=2)
    makes = ("policy", "rollouts")
    inputs = online.Inputs.of(chosen, config.label)
    needs = ("prompts", "sft_model", *online.needs(chosen))
    if isinstance(chosen, ppo.Settings):
        examples = ("sft_examples",) if chosen.ptx_coef else ()
        return Stage("ppo", inputs, needs=(*needs, *examples), makes=makes, run=ppo.run, trains=True, version=3)
    return Stage(chosen.kind, inputs, needs=needs, makes=makes, run=grpo.run, trains=True, version=4)
