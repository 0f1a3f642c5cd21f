"""GRPO and RLOO, by TRL's trainers: several replies to each prompt, each compared with the others of its prompt.

Group relative policy optimisation (Shao et al. 2024, section 4.1) divides a reply's lead over its group's mean by the
group's deviation, and holds the policy to the SFT model in the loss. REINFORCE leave-one-out (Ahmadian et al. 2024,
section 3.2) takes the lead over the others' mean, and the divergence is part of the reward. Neither has a critic. Every
batch of replies is used for one step, so that no ratio is clipped. The rewards are described in `training/rewards.py`.
As in PPO some replies of every step are kept as `rollouts`; TRL tells the divergence of whole steps only.
"""

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self, TypeVar

from pydantic import Field, model_validator

from constitutional.base.errors import RunError
from constitutional.base.files import atomic_write, read_rows, write_rows
from constitutional.base.frozen import TECHNICAL
from constitutional.base.records import Prompt, Rollout
from constitutional.base.seeds import rng_of, seed_of
from constitutional.engines.chat import Tokenizer, end_tokens
from constitutional.stages.context import StageContext
from constitutional.stages.online import Inputs, hardly_counted, lacks_reward_model, nothing_learned, rewards_of
from constitutional.stages.summaries import OnlineSummary, last_of
from constitutional.training import metrics, rewards
from constitutional.training import trl as training
from constitutional.training.awaiting import begin
from constitutional.training.rewards import Aggregation, OnlineSettings, Reward, RewardFunction
from constitutional.training.rows import Row, chat, dataset, plain_messages, token_ids
from constitutional.training.saving import save_model

if TYPE_CHECKING:
    from transformers import PreTrainedModel
    from trl.trainer.grpo_trainer import GRPOTrainer
    from trl.trainer.rloo_trainer import RLOOTrainer

LOG = "training_log.jsonl"
T = TypeVar("T", bound="GRPOTrainer | RLOOTrainer")


class Settings(OnlineSettings, training.TrainingSettings):
    """What GRPO and RLOO have in common. The defaults suit a model of some million weights on a CPU.

    A prompt is too long if it leaves no room for `max_tokens` within `max_length`.
    """

    num_generations: int = Field(default=8, ge=2)
    """Replies to each prompt of a step."""
    learning_rate: float = Field(default=1.5e-4, gt=0)
    """Highest learning rate, after the warm-up (AdamW); about 1e-6 suits billions of weights."""
    epochs: float = Field(default=0.5, gt=0)
    """Passes over the prompts, rounded down to whole steps."""
    log_every: int = Field(default=5, ge=1)
    """Steps from one line of the training log to the next; a line says how far the policy has moved in its steps."""
    gradient_accumulation: Annotated[int, TECHNICAL] = Field(default=4, ge=1)
    """Forward passes, of batch_size replies, in one step of the optimizer."""

    @property
    def prompts_per_step(self) -> int:
        """Prompts in a step, each with `num_generations` replies."""
        return self.rows_per_step // self.num_generations

    @model_validator(mode="after")
    def _whole_groups(self) -> Self:
        replies = self.rows_per_step
        if replies % self.num_generations:
            raise ValueError(
                f"a step has batch_size · gradient_accumulation = {replies} replies, no multiple of num_generations, "
                f"which is {self.num_generations}; try batch_size={math.lcm(self.batch_size, self.num_generations)}"
            )
        return self


class GrpoSettings(Settings):
    """Group relative policy optimisation."""

    kind: Literal["grpo"] = "grpo"
    beta: float = Field(default=0.04, ge=0)
    """Weight of the KL from the SFT model in each token's loss (Shao et al. 2024)."""
    scale_rewards: Literal["group", "batch", "none"] = "group"
    """The deviation by which a reply's lead is divided; none is Dr. GRPO (Liu et al. 2025)."""

    @model_validator(mode="after")
    def _one_way_to_divide(self) -> Self:
        if self.aggregation == "normalize_then_sum" and self.scale_rewards != "group":
            raise ValueError(
                f"scale_rewards={self.scale_rewards} is about the sum of the rewards, and here each of them is divided "
                "by its own deviation; type algorithm.multi_objective_aggregation=sum_then_normalize, or "
                "algorithm.scale_rewards=group"
            )
        return self


class RlooSettings(Settings):
    """REINFORCE leave-one-out."""

    kind: Literal["rloo"] = "rloo"
    beta: float = Field(default=0.05, ge=0)
    """Penalty for a nat of KL from the SFT model, taken off a reply's reward."""
    normalize_advantages: bool = True
    """Divide the leads of a step by their deviation, so that the scale of rewards does not matter."""


# --- Prompts ---


def prompt_rows(
    prompts: Sequence[Prompt], tokenizer: Tokenizer, settings: Settings, seed: int
) -> tuple[list[Row], int]:
    """The prompts that fit, as often as there are epochs, every pass in an order of its own; and how many do not fit.

    Drawn here and not by the trainer, so that passes go on where the last one ended, and whole steps come out.

    Raises:
        RunError: they do not make one step.
    """
    most = settings.max_length - settings.max_tokens
    fitting = [prompt for prompt in prompts if len(token_ids(tokenizer, chat(prompt.messages), ask=True)) <= most]
    wanted = round(settings.epochs * len(fitting))
    count = wanted - wanted % settings.prompts_per_step
    if not count:
        raise RunError(
            f"Nothing to train on: {len(prompts)} prompts, {len(fitting)} of at most {most} tokens, make no step of "
            f"{settings.prompts_per_step} in {settings.epochs:g} epochs; give more prompts, lower "
            "algorithm.batch_size or algorithm.gradient_accumulation, or raise algorithm.epochs or algorithm.max_length"
        )
    order: list[Prompt] = []
    while len(order) < count:
        drawn = rng_of(seed, "order", len(order))
        order += drawn.sample(fitting, len(fitting))
    rows = [
        {"prompt": plain_messages(tokenizer, chat(prompt.messages)), "prompt_id": prompt.id} for prompt in order[:count]
    ]
    return rows, len(prompts) - len(fitting)


# --- Rewards, and the replies that are kept ---


class Recorder:
    """The rewards of a training; keeps some replies of every step, with their rewards, in one file a step.

    A step that is made again after a kill writes its file again, with the same replies.
    """

    def __init__(
        self,
        counted: Sequence[Reward],
        penalties: Sequence[Reward],
        checkpoints: Path,
        keep: int,
        aggregation: Aggregation = "sum_then_normalize",
    ) -> None:
        self.aggregation: Aggregation = aggregation if len(counted) > 1 else "sum_then_normalize"
        """How the rewards become one; penalties are normalised as well where several rewards are."""
        self.counted = counted
        self.penalties = penalties
        self.rewards = (*counted, *penalties)
        self.checkpoints = checkpoints
        self.folder = checkpoints / "rollouts"
        self.keep = keep
        self._numbers: dict[str, Sequence[float | None]] = {}
        """By reward, the numbers of the step's replies. The trainer calls one function after the other; all are asked
        for at the first call, so that those that wait for others wait at the same time."""

    def functions(self) -> list[RewardFunction]:
        """The reward functions, as the trainer is to call them."""
        return [self._recorded(reward) for reward in self.rewards]

    def _recorded(self, reward: Reward) -> RewardFunction:
        def call(**columns: Any) -> Sequence[float | None]:  # noqa: ANN401 - TRL's and the dataset's
            if not self._numbers:
                names, functions = [reward.name for reward in self.rewards], [row.function for row in self.rewards]
                self._numbers = dict(zip(names, begin(functions, columns)(), strict=True))
            numbers = self._numbers[reward.name]
            if reward is self.rewards[-1]:
                if columns["trainer_state"].is_world_process_zero:
                    self._write(columns)
                self._numbers = {}
            return numbers

        call.__name__ = reward.name  # TRL logs by it
        return call

    def _write(self, columns: Mapping[str, Any]) -> None:
        phase, count = columns["trainer_state"].global_step + 1, len(columns["completions"])
        every = max(1, count // self.keep)
        chosen = range(0, count, every)[: self.keep]  # spread over the prompts, whose replies stand together
        rows = [
            Rollout(
                phase=phase,
                prompt=columns["prompt_id"][index],
                reply=rewards.reply_text(columns["completions"][index]),
                reward=total,
                kl=None,
                phase_kl=None,
                length=len(columns["completion_ids"][index]),
                truncated=any(self._numbers[penalty.name][index] for penalty in self.penalties),
            )
            for index in chosen
            if (total := self._total(index)) is not None
        ]
        self.folder.mkdir(parents=True, exist_ok=True)
        write_rows(self.folder / f"{phase:08d}.jsonl", rows)

    def _total(self, index: int) -> float | None:
        """A reply's rewards by their weights, before penalties; None where no reward has a number for it."""
        numbers = [(reward.weight, self._numbers[reward.name][index]) for reward in self.counted]
        known = [weight * number for weight, number in numbers if number is not None]
        return math.fsum(known) if known else None


def kept_rollouts(folder: Path, steps: int, log: Sequence[Mapping[str, Any]]) -> Iterator[Rollout]:
    """The replies that were kept, step by step; a line of `log` tells the divergence of the steps since the last."""
    for step in range(1, steps + 1):
        kl = next((line[metrics.KL] for line in log if line["step"] >= step), None)
        for rollout in read_rows(folder / f"{step:08d}.jsonl", Rollout):
            yield rollout.model_copy(update={"phase_kl": kl})


# --- Training ---


def online_trainer(
    model: "PreTrainedModel",
    tokenizer: Tokenizer,
    rows: list[Row],
    settings: GrpoSettings | RlooSettings,
    recorder: Recorder,
    seed: int,
) -> "GRPOTrainer | RLOOTrainer":
    """TRL's trainer over the rows in their order; the reference is `model` before training."""
    one_pass = settings.model_copy(update={"epochs": 1.0})  # the rows hold as many as there are to be

    def arguments(kind: Callable[..., Any], **own: object) -> Any:  # noqa: ANN401 - TRL's, of either kind
        def without_length(*, max_length: int, **others: object) -> Any:  # noqa: ANN401, ARG001
            return kind(**others)  # the prompts were measured beforehand; TRL has no such argument here

        return training.trl_arguments(
            without_length,
            one_pass,
            recorder.checkpoints,
            seed,
            num_generations=settings.num_generations,
            temperature=settings.temperature,
            max_completion_length=settings.max_tokens,
            beta=settings.beta,
            reward_weights=[reward.weight for reward in recorder.rewards],
            shuffle_dataset=False,
            disable_dropout=True,  # as replies are drawn without it, and a ratio is to be of one policy
            **vllm_arguments(settings),
            **own,
        )

    shared: dict[str, Any] = {
        "reward_funcs": recorder.functions(),
        "train_dataset": dataset(rows),
        "processing_class": tokenizer,
        "peft_config": training.lora_config(settings, "CAUSAL_LM"),
    }
    if isinstance(settings, GrpoSettings):
        from trl.trainer.grpo_config import GRPOConfig
        from trl.trainer.grpo_trainer import GRPOTrainer

        own = {"scale_rewards": settings.scale_rewards, "multi_objective_aggregation": recorder.aggregation}
        grpo = GRPOTrainer(model, args=arguments(GRPOConfig, **own), **shared)
        return _aggregated(_synchronised(grpo), recorder.aggregation, len(recorder.counted))
    from trl.trainer.rloo_config import RLOOConfig
    from trl.trainer.rloo_trainer import RLOOTrainer

    normalised = arguments(RLOOConfig, normalize_advantages=settings.normalize_advantages)
    rloo = RLOOTrainer(model, args=normalised, **shared)
    return _compared(_aggregated(_synchronised(rloo), recorder.aggregation, len(recorder.counted)))


def vllm_arguments(settings: Settings) -> dict[str, Any]:
    """TRL's arguments for replies that vLLM draws in the process of the training."""
    if settings.sampler == "transformers":
        return {}
    return {
        "use_vllm": True,
        "vllm_mode": "colocate",
        "vllm_gpu_memory_utilization": settings.sampler_memory,
        "vllm_max_model_length": settings.max_length,
    }


def _synchronised(trainer: T) -> T:
    """The trainer; on a CPU vLLM takes over all weights at once, as it packs them and has no place for single ones."""
    import torch

    generation: Any = getattr(trainer, "vllm_generation", None)
    if generation is not None and not torch.cuda.is_available():
        from constitutional.engines.vllm_child import take_over

        def sync_weights() -> None:
            take_over(generation.llm.llm_engine, generation._iter_named_params())  # noqa: SLF001 - no other gives them

        generation.sync_weights = sync_weights
    return trainer


def _aggregated(trainer: T, aggregation: Aggregation, counted: int) -> T:
    """The trainer, RLOO with rewards that are normalised as they are in TRL's GRPO, and both with a true share.

    TRL's RLOO adds rewards as they are; what it logs of them stays what the reward functions gave. A reply that none of
    the first `counted` rewards has a number for teaches nothing: its penalties, which are the others, fall away too, as
    TRL counts a missing number as 0 beside one that is there.
    """
    from constitutional.training.groups import normalised, share_alike, weighted_sum

    own: Any = trainer
    group, is_rloo = own.args.num_generations, type(trainer).__name__ == "RLOOTrainer"
    calculate, generate = own._calculate_rewards, own._generate_and_score_completions  # noqa: SLF001 - nothing else gives them
    given: list[Any] = []

    def calculate_and_keep(*args: Any, **options: Any) -> Any:  # noqa: ANN401 - TRL's
        rewards = calculate(*args, **options)  # (B, K), of all processes
        unscored = rewards[:, :counted].isnan().all(1, keepdim=True)
        given[:] = [rewards.masked_fill(unscored, math.nan)]
        return normalised(given[0], group) if is_rloo and aggregation == "normalize_then_sum" else given[0]

    def generate_and_log(*args: Any, **options: Any) -> Any:  # noqa: ANN401 - TRL's
        output = generate(*args, **options)
        (rewards,) = given
        weights = own.reward_weights.to(rewards.device)
        counted = normalised(rewards, group) if aggregation == "normalize_then_sum" else rewards
        totals = weighted_sum(rewards, weights)
        numbers = {metrics.ALIKE: share_alike(weighted_sum(counted, weights), group)}
        columns = {"reward": totals}
        columns |= {f"rewards/{name}/mean": rewards[:, index] for index, name in enumerate(own.reward_func_names)}
        if is_rloo and aggregation == "normalize_then_sum":
            for name, column in columns.items():
                known = column[~column.isnan()]
                numbers[name] = float(known.mean())
                numbers["reward_std" if name == "reward" else f"{name.removesuffix('mean')}std"] = float(known.std())
        for name, number in numbers.items():
            own._metrics["train"][name][-1] = number  # noqa: SLF001 - there is no other place
        return output

    vars(trainer)["_calculate_rewards"] = calculate_and_keep
    vars(trainer)["_generate_and_score_completions"] = generate_and_log
    return trainer


def _compared(trainer: "RLOOTrainer") -> "RLOOTrainer":
    """The trainer, which logs the mismatch as TRL's GRPO does; TRL's RLOO leaves out vLLM's log-probabilities."""
    import torch

    generation: Any = getattr(trainer, "vllm_generation", None)
    if generation is None:
        return trainer
    generation.logprobs = 0  # of the tokens that were drawn alone
    generate, compute = generation.generate, trainer._get_per_token_logps_and_entropies  # noqa: SLF001 - no other tells
    drawn: list[Any] = []

    def generate_and_keep(*args: Any, **options: Any) -> Any:  # noqa: ANN401 - TRL's
        results = generate(*args, **options)
        drawn.extend(results[2])
        return results

    def compute_and_compare(model: Any, ids: Any, attended: Any, kept: int, *args: Any, **options: Any) -> Any:  # noqa: ANN401 - TRL's
        results = compute(model, ids, attended, kept, *args, **options)
        if drawn:  # the first time after replies were drawn: by the policy that drew them
            ours = results[0][attended[:, -kept:].bool()]
            theirs = [math.nan if number is None else number for reply in drawn for (number,) in reply]
            mismatch = (ours - torch.tensor(theirs, device=ours.device)).abs()
            for name, number in (("mean", mismatch.nanmean()), ("max", mismatch.nan_to_num().max())):
                logged = trainer._metrics["train"][f"{metrics.MISMATCH}/{name}"]  # noqa: SLF001 - where GRPO puts it
                logged.append(float(number))
            drawn.clear()
        return results

    generation.generate = generate_and_keep
    vars(trainer)["_get_per_token_logps_and_entropies"] = compute_and_compare
    return trainer


def run(inputs: Inputs[GrpoSettings | RlooSettings], context: StageContext) -> None:
    """Train on the prompts that may be trained on, from `sft_model`, and write `policy` and `rollouts`.

    Where the reward model has no member, as no comparison was decided, the policy is the SFT model.
    """
    settings = inputs.algorithm
    if lacks_reward_model(settings, context):
        nothing_learned(context)
        return
    for warning in hardly_counted(settings):
        context.warn(warning)
    prompts = [prompt for prompt in context.read("prompts", Prompt) if prompt.split == "train"]
    counted = rewards_of(settings.rewards, context, inputs.labeler, several=True)
    model, tokenizer = training.load_policy(context.model("sft_model"), settings)
    seed = seed_of(context.seed, settings.kind)
    rows, too_long = prompt_rows(prompts, tokenizer, settings, seed)
    ends = set(end_tokens(tokenizer, model.config, model.generation_config))
    penalties = [rewards.cut_off(ends, settings.missing_eos_penalty)]
    checkpoints = context.output("checkpoints")
    recorder = Recorder(counted, penalties, checkpoints, settings.rollouts, inputs.aggregation)
    trainer = online_trainer(model, tokenizer, rows, settings, recorder, seed)
    checkpoints.mkdir(exist_ok=True)
    with context.task(settings.kind, unit="steps") as task, context.tracking(settings) as tracking:
        fitted = training.fit(
            trainer, log=checkpoints / LOG, label=settings.kind, task=task, tracking=tracking, warn=context.warn
        )
    lines = [json.loads(line) for line in (checkpoints / LOG).read_text().splitlines()]
    log = [metrics.with_kl_of_replies(line) for line in lines]
    atomic_write(context.output(LOG), "".join(f"{json.dumps(line)}\n" for line in log).encode())
    context.write("rollouts", kept_rollouts(recorder.folder, fitted.steps, log))
    save_model(trainer, context.output("policy"), context.warn)
    context.summarise(
        OnlineSummary(
            prompts=len(prompts) - too_long,
            replies=fitted.rows * settings.num_generations,
            steps=fitted.steps,
            dropped={"too_long": too_long},
            last=last_of(log),
        )
    )
