"""Proximal policy optimisation against the reward model, from the SFT model (Bai et al. 2022, section 4.1).

The trainer is `constitutional/ppo.py`, which says what it does; this stage hands it the training prompts and the reward
models, whose scores are normalised and, of an ensemble, averaged less some deviations (Coste et al. 2024). Its episodes
are single replies, rewarded at their last token, with a penalty for leaving the SFT model at every token.

Some replies of every phase are kept, as `rollouts`, with their reward and KL. Evaluation scores them later by what the
training could not see, so that a proxy that was over-optimised is found out (Gao et al. 2023).
"""

import json
import shutil
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from constitutional.base.errors import RunError
from constitutional.base.files import atomic_write
from constitutional.base.records import Prompt, Rollout, SftExample
from constitutional.base.seeds import seed_of
from constitutional.engines.chat import load_tokenizer
from constitutional.stages.context import StageContext
from constitutional.stages.online import nothing_learned
from constitutional.stages.summaries import LastPhase, OnlineSummary
from constitutional.training.ppo.checkpoint import checkpoints, remove_checkpoint
from constitutional.training.reward_model import has_members
from constitutional.training.rewards import OnlineSettings
from constitutional.training.rows import Row, chat, fitting, supervised_rows
from constitutional.training.trl import LoraSettings, lora_config

if TYPE_CHECKING:
    from pathlib import Path

    from constitutional.training.ppo.trainer import PPOTrainer

LOG, SAMPLES = "training_log.jsonl", "samples.jsonl"
"""As the trainer calls them."""


class Settings(OnlineSettings):
    """How the policy is trained. The defaults suit a model of some million weights on a CPU."""

    episodes: int = Field(default=768, ge=1)
    """Replies in all, rounded up to whole phases; 768 by default."""
    batch_size: int = Field(default=16, ge=1)
    """Replies in one forward and backward pass: memory and speed, never the result; 16 by default, which is faster
    than 64 for a small model on a CPU and takes half the memory."""
    gradient_accumulation: int = Field(default=4, ge=1)
    """Passes in one mini-batch, which is one step of the optimizer; 4 by default."""
    mini_batches: int = Field(default=2, ge=1)
    """Mini-batches of a phase, whose replies are batch_size · gradient_accumulation · mini_batches; 2 by default."""
    epochs: int = Field(default=1, ge=1)
    """Passes over the replies of a phase; 1 by default."""
    sampling_batch_size: int = Field(default=128, ge=1)
    """Replies that are drawn at once; 128 by default."""
    max_prompt_tokens: int = Field(default=1024, ge=1)
    """Longer prompts are left out and counted; 1024 by default."""
    learning_rate: float = Field(default=3e-4, gt=0)
    """Of the policy at first; it falls to 0. 3e-4 by default, about 1e-6 for billions of weights."""
    critic_learning_rate_factor: float = Field(default=10.0, gt=0)
    """The critic's learning rate is so many times the policy's; 10 by default."""
    critic_warmup: int = Field(default=0, ge=0)
    """First phases, in which only the critic is trained; 0 by default."""
    kl_coef: float = Field(default=0.05, ge=0)
    """What a nat of KL from the SFT model costs, in deviations of the reward; 0.05 by default."""
    kl_target: float | None = Field(default=None, gt=0)
    """KL in nats for each reply to which the coefficient is led; null, the default, leaves it fixed."""
    kl_horizon: float = Field(default=10_000, gt=0)
    """Episodes in which a coefficient that is led adapts; 10,000 by default."""
    ensemble_k: float = Field(default=0.0, ge=0)
    """Deviations among several reward models that are taken off their mean; 0 by default."""
    reward_clip: float | None = Field(default=None, gt=0)
    """Rewards are held within ± this many deviations; null, the default, leaves them."""
    length_penalty: float = Field(default=0.0, ge=0)
    """Taken for each token of a reply, in deviations of the reward; 0 by default."""
    gamma: float = Field(default=1.0, ge=0, le=1)
    """Discount of a reward for each token that it is away; 1 by default."""
    lam: float = Field(default=0.95, ge=0, le=1)
    """λ of the generalised advantage estimates (Schulman et al. 2016); 0.95 by default."""
    cliprange: float = Field(default=0.2, gt=0)
    """How far from 1 the ratio of new to old probability counts; 0.2 by default."""
    cliprange_high: float | None = Field(default=None, gt=0)
    """The same upwards, if it differs; null by default."""
    cliprange_value: float = Field(default=0.2, gt=0)
    """How far from the old value a new one counts; 0.2 by default."""
    vf_coef: float = Field(default=0.1, gt=0)
    """Weight of the critic's loss; 0.1 by default."""
    entropy_coef: float = Field(default=0.0, ge=0)
    """Weight of a bonus for entropy; 0 by default."""
    ptx_coef: float = Field(default=0.0, ge=0)
    """Weight of the loss on the SFT model's own examples, beside that of the replies (PPO-ptx, Ouyang et al. 2022,
    equation 2), so that what it learned there is kept; 0 by default."""
    whiten_rewards: bool = False
    """Divide the rewards of a phase by their deviation; off by default."""
    whiten_advantages: bool = True
    """Bring the advantages of a phase to mean 0 and deviation 1; on by default."""
    loss_aggregation: Literal["token_mean", "seq_mean_token_sum", "seq_mean_token_mean"] = "token_mean"
    """How the losses of tokens are put together; token_mean by default."""
    lora: LoraSettings | None = None
    """Low-rank adapters instead of all weights; none by default. They are merged into the weights that are saved."""
    gradient_checkpointing: bool = False
    """Compute activations again in the backward pass: less memory, about a fifth slower; off by default."""
    checkpoint_every: int = Field(default=4, ge=1)
    """Phases from one checkpoint to the next; 4 by default."""


def make_trainer(
    settings: Settings, prompts: list[Prompt], context: StageContext, output: "Path", supervised: Sequence[Row] = ()
) -> "PPOTrainer":
    """The trainer over these prompts, and rows for `ptx_coef`; checkpoints, log and samples go into a folder."""
    import torch

    from constitutional.training.ppo.settings import PPOConfig
    from constitutional.training.ppo.trainer import PPOTrainer

    gpu = torch.cuda.is_available()
    of_same_name = set(PPOConfig.__dataclass_fields__) & set(Settings.model_fields)
    same = {name: getattr(settings, name) for name in of_same_name - {"reward_clip"}}
    args = PPOConfig(
        output_dir=str(output),
        seed=seed_of(context.seed, "ppo"),
        use_cpu=not gpu,
        bf16=gpu,
        total_episodes=settings.episodes,
        per_device_train_batch_size=settings.batch_size,
        gradient_accumulation_steps=settings.gradient_accumulation,
        num_mini_batches=settings.mini_batches,
        num_ppo_epochs=settings.epochs,
        local_rollout_forward_batch_size=settings.sampling_batch_size,
        max_prompt_length=settings.max_prompt_tokens,
        response_length=settings.max_tokens,
        critic_warmup_steps=settings.critic_warmup,
        reward_clip=float("inf") if settings.reward_clip is None else settings.reward_clip,
        logging_steps=0,
        sample_steps=1,
        sample_size=settings.rollouts,
        save_steps=settings.checkpoint_every,
        **same,
    )
    return PPOTrainer(
        context.model("sft_model"),
        reward_model=context.model("reward_model"),
        args=args,
        train_dataset=[{"prompt": chat(each.messages)} for each in prompts],
        peft_config=lora_config(settings, "CAUSAL_LM"),
        ptx_dataset=supervised,
    )


def kept_rollouts(folder: "Path", prompts: list[Prompt]) -> list[Rollout]:
    """The replies that the trainer kept, phase by phase."""
    ids = {_key(chat(each.messages)): each.id for each in prompts}
    kls = {line["step"]: line["kl"] for line in _lines(folder / LOG)}
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
    # Not splitlines: a reply may hold other characters that it takes for ends of lines.
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]


def run(settings: Settings, context: StageContext) -> None:
    """Train on the prompts that may be trained on, from `sft_model`, and write `policy` and `rollouts`.

    With `ptx_coef`, on the SFT examples as well, as many of them in a step as there are replies. Where the reward model
    has no member, as no comparison was decided, the policy is the SFT model.
    """
    prompts = [each for each in context.read("prompts", Prompt) if each.split == "train"]
    if not prompts:
        raise RunError("No prompt is left to train on: all of them are held out; give more, or set prompts.held_out")
    if not has_members(context.model("reward_model")):
        nothing_learned(context)
        return
    folder = context.output("checkpoints")
    supervised: Sequence[Row] = ()
    examples_too_long = 0
    if settings.ptx_coef and (examples := supervised_rows(context.read("sft_examples", SftExample))):
        most = settings.max_prompt_tokens + settings.max_tokens
        supervised, examples_too_long = fitting(examples, load_tokenizer(context.model("sft_model")), most)
    elif settings.ptx_coef:
        context.warn("no draft was revised, so PPO-ptx has no supervised example to go on learning")
        settings = settings.model_copy(update={"ptx_coef": 0.0})
    trainer = make_trainer(settings, prompts, context, folder, supervised)
    first = trainer.begin(resume=True)
    for phase in context.progress(range(first, trainer.phases), trainer.phases - first, "phases of PPO"):
        trainer.train_phase(phase)
    trainer.save_model(context.output("policy"))
    context.write("rollouts", kept_rollouts(folder, prompts))
    log = _lines(folder / LOG)
    atomic_write(context.output(LOG), (folder / LOG).read_bytes())
    for each in checkpoints(folder):  # the oldest first: what a kill leaves is the newest, with its log
        remove_checkpoint(each)
    shutil.rmtree(folder)
    context.summarise(
        OnlineSummary(
            prompts=len(trainer.prompts),
            replies=trainer.phases * trainer.batch_size,
            steps=trainer.phases,
            dropped={"too_long": trainer.too_long},
            examples=len(supervised),
            examples_too_long=examples_too_long,
            critic_share=trainer.networks.critic_share,
            last=LastPhase(**{name: log[-1][name] for name in LastPhase.model_fields}),
        )
    )
