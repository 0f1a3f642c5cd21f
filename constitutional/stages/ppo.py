"""Proximal policy optimisation, from the SFT model (Bai et al. 2022, section 4.1).

The trainer is `training/ppo/trainer.py`. This stage hands it the training prompts and the rewards: by default the
reward models, whose scores are normalised and, for an ensemble, averaged less some deviations (Coste et al. 2024).
Episodes are single replies, rewarded at their last token, with a penalty for leaving the SFT model at every token.

Some replies of every phase are kept, as `rollouts`, with their reward and KL. Evaluation scores them later by measures
that the training could not see, which shows whether it over-optimised its reward (Gao et al. 2023).
"""

import json
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from constitutional.base.errors import RunError
from constitutional.base.files import atomic_write
from constitutional.base.frozen import TECHNICAL
from constitutional.base.records import Prompt, Rollout, SftExample
from constitutional.base.seeds import seed_of
from constitutional.engines.chat import load_tokenizer
from constitutional.engines.settings import VllmSettings
from constitutional.stages.context import StageContext
from constitutional.stages.online import (
    Inputs,
    hardly_counted,
    idle_priorities,
    lacks_reward_model,
    nothing_learned,
    rewards_of,
)
from constitutional.stages.summaries import OnlineSummary, last_of
from constitutional.training import metrics, processes
from constitutional.training.ppo.settings import PPOConfig, PPOSettings
from constitutional.training.rewards import OnlineSettings, Reward, RewardFunction, RewardModelSettings
from constitutional.training.rows import Row, chat, fitting, supervised_rows
from constitutional.training.trl import NetworkSettings, lora_config

if TYPE_CHECKING:
    from pathlib import Path

    from constitutional.training.ppo.trainer import PPOTrainer

LOG, SAMPLES = "training_log.jsonl", "samples.jsonl"
"""As the trainer calls them."""
NOT_THE_TRAINERS = {
    *("kind", "lora", "max_tokens", "rewards", "multi_objective_aggregation", "rollouts", "sampler", "sampler_memory"),
    *("batch_size", "gradient_accumulation"),
}
"""Settings that the trainer is told otherwise."""


class Settings(OnlineSettings, NetworkSettings, PPOSettings):
    """Proximal policy optimisation.

    The values suit a model of some million weights on a CPU. A field whose name differs from the trainer's has that as
    its alias.
    """

    kind: Literal["ppo"] = "ppo"
    episodes: int = Field(default=768, ge=1, serialization_alias="total_episodes")
    """Number of replies in all, rounded up to whole phases."""
    batch_size: Annotated[int, TECHNICAL] = Field(default=16, ge=1, serialization_alias="per_device_train_batch_size")
    """Replies in one forward and backward pass. It changes memory and speed, never the result; a small model on a CPU
    is faster with 16 than with 64, in half the memory."""
    gradient_accumulation: Annotated[int, TECHNICAL] = Field(
        default=4, ge=1, serialization_alias="gradient_accumulation_steps"
    )
    """Passes in one mini-batch, which is one step of the optimizer."""
    mini_batches: int = Field(default=2, ge=1, serialization_alias="num_mini_batches")
    """Mini-batches of a phase, whose replies are batch_size · gradient_accumulation · mini_batches."""
    epochs: int = Field(default=1, ge=1, serialization_alias="num_ppo_epochs")
    """Passes over the replies of a phase."""
    sampling_batch_size: Annotated[int, TECHNICAL] = Field(
        default=128, ge=1, serialization_alias="local_rollout_forward_batch_size"
    )
    """Replies that are drawn at once."""
    max_prompt_tokens: int = Field(default=1024, ge=1, serialization_alias="max_prompt_length")
    """Longer prompts are left out and counted."""
    learning_rate: float = Field(default=3e-4, gt=0)
    """The policy's learning rate at first; it falls to 0. About 1e-6 suits billions of weights."""
    critic_warmup: int = Field(default=0, ge=0, serialization_alias="critic_warmup_steps")
    """First phases, in which only the critic is trained; fewer than all."""
    checkpoint_every: Annotated[int, TECHNICAL] = Field(default=4, ge=1, serialization_alias="save_steps")
    """Phases from one checkpoint to the next."""

    DERIVED: ClassVar = ("rows_per_step",)

    @property
    def rows_per_step(self) -> int:
        """Replies in one step of the optimizer."""
        return self.batch_size * self.gradient_accumulation

    @model_validator(mode="after")
    def _policy_is_trained(self) -> Self:
        phases = math.ceil(self.episodes / (self.rows_per_step * self.mini_batches))
        if self.critic_warmup >= phases:
            raise ValueError(
                f"critic_warmup is {self.critic_warmup}, and {self.episodes} episodes make {phases} phases, so the "
                f"policy would stay as it is; set critic_warmup to at most {phases - 1}, or raise episodes"
            )
        return self


def make_trainer(
    inputs: Inputs[Settings],
    prompts: list[Prompt],
    context: StageContext,
    output: "Path",
    supervised: Sequence[Row] = (),
) -> "PPOTrainer":
    """The trainer for these prompts, and rows for `ptx_coef`; checkpoints, log and samples go into `output`."""
    import torch

    from constitutional.training.ppo.trainer import PPOTrainer

    settings, sampler = inputs.algorithm, None
    if settings.sampler == "vllm":
        from constitutional.training.ppo.vllm_sampler import VllmSampler

        longest = settings.max_prompt_tokens + settings.max_tokens
        sampler = VllmSampler(
            context.model("sft_model"), VllmSettings(memory=settings.sampler_memory, max_length=longest)
        )
    models = [reward for reward in settings.rewards if isinstance(reward, RewardModelSettings)]
    others = [reward for reward in settings.rewards if reward not in models]
    functions = rewards_of(others, context, inputs.labeler, several=False)
    gpu = torch.cuda.is_available()
    size, passes = processes.share_of(settings)
    args = PPOConfig(
        output_dir=str(output),
        seed=seed_of(context.seed, "ppo"),
        use_cpu=not gpu,
        bf16=gpu,
        logging_steps=0,
        response_length=settings.max_tokens,
        sample_steps=1,
        sample_size=settings.rollouts,
        reward_weights=[*(reward.weight for reward in models), *(reward.weight for reward in functions)],
        multi_objective_aggregation=inputs.aggregation,
        ensemble_k=sum(reward.ensemble_k for reward in models),  # of the only one, if there is one
        per_device_train_batch_size=size,
        gradient_accumulation_steps=passes,
        **settings.model_dump(by_alias=True, exclude=NOT_THE_TRAINERS),
    )
    return PPOTrainer(
        context.model("sft_model"),
        reward_model=context.model("reward_model") if models else None,
        args=args,
        train_dataset=[{"prompt": chat(prompt.messages), "prompt_id": prompt.id} for prompt in prompts],
        peft_config=lora_config(settings, "CAUSAL_LM"),
        reward_funcs=list(map(_named, functions)),
        ptx_dataset=supervised,
        sampler=sampler,
    )


def _named(reward: Reward) -> RewardFunction:
    """The function of a reward, under the name that the trainer logs it by."""
    setattr(reward.function, "__name__", reward.name)  # noqa: B010 - a function's, or an object's that is called as one
    return reward.function


def kept_rollouts(folder: "Path", prompts: list[Prompt]) -> list[Rollout]:
    """The replies that the trainer kept, phase by phase."""
    ids = {_key(chat(prompt.messages)): prompt.id for prompt in prompts}
    kls = {line["step"]: metrics.current(line)[metrics.KL] for line in _lines(folder / LOG)}
    return [
        Rollout(
            phase=line["step"],
            prompt=ids[_key(line["prompt"])],
            phase_kl=kls[line["step"]],
            **{name: line[name] for name in ("reply", "reward", "kl", "length", "truncated")},
        )
        for line in _lines(folder / SAMPLES)
    ]


def _key(conversation: list[dict[str, str]]) -> str:
    return json.dumps(conversation, sort_keys=True)


def _lines(path: "Path") -> list[dict[str, Any]]:
    # Not splitlines, which also splits at other characters that a reply may hold.
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]


def run(inputs: Inputs[Settings], context: StageContext) -> None:
    """Train on the prompts that may be trained on, from `sft_model`, and write `policy` and `rollouts`.

    With `ptx_coef`, on the SFT examples as well, as many of them in a step as there are replies. Where the reward model
    has no member, as no comparison was decided, the policy is the SFT model.
    """
    settings = inputs.algorithm
    prompts = [prompt for prompt in context.read("prompts", Prompt) if prompt.split == "train"]
    if not prompts:
        raise RunError("No prompt is left to train on: all of them are held out; give more, or set prompts.held_out")
    if lacks_reward_model(settings, context):
        nothing_learned(context)
        return
    for warning in (*hardly_counted(settings), idle_priorities(settings, context.constitution)):
        if warning:
            context.warn(warning)
    folder = context.output("checkpoints")
    supervised: Sequence[Row] = ()
    examples_left_out = 0
    if settings.ptx_coef and len(examples := context.stream("sft_examples", SftExample)):
        most = settings.max_prompt_tokens + settings.max_tokens
        fit, unfit = fitting(supervised_rows(examples), load_tokenizer(context.model("sft_model")), most)
        supervised = list(fit)
        examples_left_out = sum(unfit.values())
    elif settings.ptx_coef:
        context.warn("no draft was revised, so PPO-ptx has no supervised example to go on learning")
        settings = settings.model_copy(update={"ptx_coef": 0.0})
        inputs = inputs.model_copy(update={"algorithm": settings})
    trainer = make_trainer(inputs, prompts, context, folder, supervised)
    try:
        with context.tracking(settings) as tracking:
            first = trainer.begin(resume=True)
            tracking.begin(first)
            trainer.callbacks.append(lambda line: tracking.log(line["step"], line))
            for phase in context.progress(range(first, trainer.phases), trainer.phases - first, "ppo", "phases"):
                trainer.train_phase(phase)
    finally:
        if settings.sampler == "vllm":
            trainer.sampler.close()  # type: ignore[attr-defined]  # it is a VllmSampler
    trainer.save_model(context.output("policy"), context.warn)
    if not processes.is_main():
        return
    context.write("rollouts", kept_rollouts(folder, prompts))
    log = _lines(folder / LOG)
    atomic_write(context.output(LOG), (folder / LOG).read_bytes())
    context.summarise(
        OnlineSummary(
            prompts=len(trainer.prompts),
            replies=trainer.phases * trainer.batch_size,
            steps=trainer.phases,
            dropped={"too_long": trainer.too_long},
            examples=len(supervised),
            examples_left_out=examples_left_out,
            critic_share=trainer.networks.critic_share,
            last=last_of(log),
        )
    )
