"""Proximal policy optimisation (Schulman et al. 2017) of a language model against reward models or functions.

As InstructGPT did it (Ouyang et al. 2022, section 3.5): a bandit, in which a reply is rewarded at its last token, and a
penalty for leaving the reference at every token. One phase is one batch of replies: draw them, score them, compute
log-probabilities and values (`rollout.py`), then some epochs of mini-batches (`update.py`). The mathematics is in
`math.py`.

Every process draws and scores its share of a batch and then gets the others', so that advantages, whitening,
mini-batches and denominators are those of the whole batch, however many processes there are; gradients are added up.
`accelerate launch --multi_gpu --num_processes 2 train.py` starts two, on CPUs too if the arguments say use_cpu=True.
With a configuration of accelerate's for FSDP2 weights, gradients and optimizer states of policy, critic and reference
are in shards (`shards.py`); where adapters are trained, every process holds all of it. Dropout is off, Adam's eps is
1e-5, the learning rate falls to 0.

    trainer = PPOTrainer("model", reward_model="reward", args=PPOConfig(output_dir="ppo"), train_dataset=prompts)
    trainer.train()
    trainer.save_model("ppo/policy")
"""

import hashlib
import json
import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from constitutional.base.errors import ConfigurationError, ModelError, UsageError
from constitutional.base.progress import Progress
from constitutional.base.seeds import rng_of, seed_of
from constitutional.base.text import without_thoughts
from constitutional.engines.base import Sampling
from constitutional.engines.chat import Tokenizer, end_tokens
from constitutional.engines.local import load_model
from constitutional.training.ppo import shards
from constitutional.training.ppo.checkpoint import (
    checkpoints,
    keep_lines,
    latest_checkpoint,
    read_checkpoint,
    remove_checkpoint,
    write_checkpoint,
)
from constitutional.training.ppo.log import describe, samples
from constitutional.training.ppo.networks import make_networks, side_by_side
from constitutional.training.ppo.rollout import (
    Episode,
    Response,
    RewardFunction,
    Rewards,
    RolloutBatch,
    Sampler,
    TransformersSampler,
    begin_functions,
    in_batches,
    load_reward_models,
    make_rollout,
    prompt_ids,
)
from constitutional.training.preflight import preflight
from constitutional.training.quiet import quiet_libraries
from constitutional.training.reward_model import load_reward_model
from constitutional.training.rows import Row, token_ids
from constitutional.training.saving import bit_sums, check_finite, check_moved, merged, write_model

if TYPE_CHECKING:
    import torch
    from peft import PeftConfig
    from transformers import PreTrainedModel

    from constitutional.training.ppo.settings import PPOConfig

    Model = PreTrainedModel | Path | str
    Callback = Callable[[Mapping[str, Any]], None]

LOG, SAMPLES = "training_log.jsonl", "samples.jsonl"


class PPOTrainer:
    """Trains a policy from its own replies.

    Args:
        model: the language model to start from, or its folder.
        ref_model: the model that it is held to; if none is given, the model before training.
        reward_model: a model for sequence classification with one label, a folder of one or of an ensemble, a reward
            function, or a list of these. Models are an ensemble, one reward; each function is another.
        value_model: the critic, such as one that was saved; if none is given, a reward model that reads the same
            tokens, or the model with a head of 0.
        args: how to train.
        train_dataset: rows with a conversational `prompt`; other columns go to the reward functions.
        processing_class: the model's tokenizer, if it is not the one in its folder.
        peft_config: train adapters on one backbone, which serves policy, reference and critic.
        reward_processing_class: the tokenizer of reward models in memory, if it is not the model's.
        reward_funcs: reward functions, with TRL's signature.
        gold_fn: a reward function that is only logged, to show whether the reward is over-optimised.
        ptx_dataset: rows with `prompt` and `completion`, for `ptx_coef`.
        callbacks: called with every line of the log and its `tokens_per_s`, which the log does not hold.
        sampler: draws the replies, in place of the model itself.
    """

    def __init__(  # noqa: PLR0913, PLR0917 - as TRL's trainers are called
        self,
        model: "Model",
        ref_model: "Model | None" = None,
        reward_model: "Model | RewardFunction | Sequence[Model | RewardFunction] | None" = None,
        value_model: "Model | None" = None,
        args: "PPOConfig | None" = None,
        train_dataset: Iterable[Mapping[str, Any]] = (),
        processing_class: Tokenizer | None = None,
        peft_config: "PeftConfig | None" = None,
        reward_processing_class: Tokenizer | None = None,
        *,
        reward_funcs: Sequence[RewardFunction] = (),
        gold_fn: RewardFunction | None = None,
        ptx_dataset: Iterable[Mapping[str, Any]] = (),
        callbacks: "Sequence[Callback]" = (),
        sampler: Sampler | None = None,
    ) -> None:
        import torch
        from transformers import set_seed

        from constitutional.training.ppo.math import AdaptiveKL
        from constitutional.training.ppo.update import Learner

        quiet_libraries()
        self._progress = Progress()
        self.args = args or _default_config()
        self.accelerator = _accelerator(self.args)
        set_seed(self.args.seed)
        self.in_shards = self.accelerator.distributed_type.value == "FSDP" and peft_config is None
        # What is to be in shards comes to the device layer by layer.
        place = torch.device("cpu") if self.in_shards else self.accelerator.device
        policy, self.processing_class = _policy(model, processing_class, place, peft_config)
        preflight(self.processing_class, policy)
        self.pad: int = self.processing_class.pad_token_id
        sources: Sequence[Any] = reward_model if isinstance(reward_model, list | tuple) else [reward_model]
        models = [
            member
            for source in sources
            if source is not None and not _is_function(source)
            for member in load_reward_models(source, reward_processing_class or self.processing_class, place)
        ]
        functions: list[Any] = [*filter(_is_function, sources), *reward_funcs]
        normalise = self.args.multi_objective_aggregation == "normalize_then_sum"
        self.rewards = Rewards(models, functions, self.args.reward_weights, normalise=normalise)
        self.gold_fn = gold_fn
        self._preparing = [function.prepare for function in functions if hasattr(function, "prepare")]
        ours = self.processing_class.get_vocab()
        readers = (
            member for member in models if member.tokenizer.get_vocab() == ours and hasattr(member.model, "score")
        )
        if ref_model is not None and ref_model is model and not isinstance(model, str | Path):
            raise UsageError(
                "PPOTrainer: ref_model is the model that is trained, so the KL would always be 0; leave ref_model out, "
                "which takes a copy of it"
            )
        reference = _policy(ref_model, self.processing_class, policy.device)[0] if ref_model is not None else None
        critic: Any = load_reward_model(Path(value_model))[0] if isinstance(value_model, str | Path) else value_model
        critic = None if critic is None else critic.float()
        set_seed(self.args.seed)  # again, as loading a reward model seeds by 0, for what is drawn from here on
        shard = self._shard if self.in_shards else None
        self.networks = make_networks(policy, reference, critic, next(readers, None), peft_config, shard)
        if self.in_shards:
            for member in models:
                self._shard(member.model, [member.model.base_model])  # the head is read without a pass through it
        self.value_model_given = value_model is not None
        if self.args.gradient_checkpointing:
            self.networks.use_gradient_checkpointing()
        self.ends = frozenset(end_tokens(self.processing_class, policy.config, policy.generation_config))
        self.sampler = sampler or TransformersSampler(
            self.ends, self.pad, batch_size=self.args.local_rollout_forward_batch_size, bf16=self.args.bf16
        )
        self._read_data(train_dataset, ptx_dataset)
        self.learner = Learner(self.networks, self.accelerator, self.args, self.pad, self.supervised)
        self.batch_size = self.learner.mini_batch_size * self.args.num_mini_batches
        self.phases = math.ceil(self.args.total_episodes / self.batch_size)
        if self.args.critic_warmup_steps >= self.phases:
            raise ConfigurationError(
                f"PPOTrainer: {self.args.critic_warmup_steps} of {self.phases} phases train the critic alone, "
                "so the policy would stay as it is; lower critic_warmup, or raise the number of episodes"
            )
        self._untrained = self._bit_sums()
        self.kl = AdaptiveKL(self.args.kl_coef, self.args.kl_target, self.args.kl_horizon)
        self.callbacks = list(callbacks)
        self.history: list[dict[str, Any]] = []
        """The lines of the log that this process wrote."""

    def _shard(self, network: Any, roots: Sequence[Any]) -> None:  # noqa: ANN401
        shards.shard(network, roots, self.accelerator.device, bf16=self.args.bf16)

    def _bit_sums(self) -> list[int]:
        """Of the policy's weights; of parts those of all processes."""
        from accelerate.utils import gather_object  # type: ignore[import-untyped]

        sums = bit_sums(map(shards.own, self.networks.policy_weights.values()))
        return list(gather_object(sums)) if self.in_shards else sums

    def _read_data(self, train_dataset: Iterable[Mapping[str, Any]], ptx_dataset: Iterable[Mapping[str, Any]]) -> None:
        rows = [dict(row) for row in train_dataset]
        ids = [prompt_ids(self.processing_class, row) for row in rows]
        kept = [number for number, prompt in enumerate(ids) if len(prompt) <= self.args.max_prompt_length]
        if not kept:
            raise UsageError(
                f"PPOTrainer: of {len(rows)} prompts in train_dataset none has at most max_prompt_length="
                f"{self.args.max_prompt_length} tokens; give prompts, or raise it"
            )
        self.rows, self.prompts = [rows[number] for number in kept], [ids[number] for number in kept]
        self.too_long = len(rows) - len(kept)
        """Prompts that were left out."""
        self.supervised = [self._supervised(dict(row)) for row in ptx_dataset]
        data = {"prompts": self.prompts, "ptx_dataset": self.supervised}
        self.digests = {name: hashlib.sha256(json.dumps(ids).encode()).hexdigest() for name, ids in data.items()}
        if bool(self.supervised) != bool(self.args.ptx_coef):
            raise UsageError(
                f"PPOTrainer: ptx_coef is {self.args.ptx_coef}, and ptx_dataset has {len(self.supervised)} rows; "
                "give both or neither"
            )

    def _supervised(self, row: Row) -> tuple[list[int], list[int]]:
        prompt = prompt_ids(self.processing_class, row)
        reply = token_ids(self.processing_class, row["prompt"] + row["completion"])[len(prompt) :]
        end = next((place for place, token in enumerate(reply) if token in self.ends), len(reply) - 1)
        return prompt, reply[: end + 1]

    # --- The loop ---

    def train(self, resume_from_checkpoint: bool | str | Path | None = None) -> None:
        """Train all phases; True goes on from the latest checkpoint in the output folder, if there is one.

        Raises:
            ConfigurationError: a checkpoint is of another training, or there is one that nobody asked to go on from.
            ModelError: a gradient or a weight is no number, or the policy has not moved.
        """
        from constitutional.training.tracking import TrackedStage, Tracking, check_installed

        check_installed(self.args.report_to)
        output, settings = Path(self.args.output_dir), self.args.model_dump(mode="json")
        stage = TrackedStage(self.args.project, self.args.run_name, settings, output)
        trackers = self.args.report_to if self.accelerator.is_main_process else ()
        with Tracking(trackers, stage, output / "trackers.json", self._progress.say) as tracking:
            first = self.begin(resume_from_checkpoint)
            tracking.begin(first)
            for phase in range(first, self.phases):
                self.train_phase(phase)
                tracking.log(phase + 1, self.history[-1] if self.accelerator.is_main_process else {})

    def train_phase(self, phase: int) -> None:
        """One phase; call it for the phases from `begin()` to `phases`, in order."""
        started = time.monotonic()
        try:
            rollout = self._roll_out(phase)
        except BaseException:
            for function in self.rewards.functions:
                if hasattr(function, "stop"):
                    function.stop()
            raise
        rate: float = self.args.learning_rate * (1 - phase / self.phases)
        line: dict[str, Any] = {"step": phase + 1, "episode": (phase + 1) * self.batch_size, "learning_rate": rate}
        line |= describe(rollout, self.rewards, self.kl.coefficient)
        line |= self.learner.update(rollout, phase, rate)
        for weights in (self.networks.policy_weights, self.networks.critic_weights):
            check_finite(map(shards.own, weights.values()), "PPO", phase + 1)
        if phase + 1 == self.phases:
            check_moved(self._untrained, self._bit_sums(), "PPO", self.phases)
        self.kl.update(line["objective/kl"], self.batch_size)
        self._log(phase, line, int(rollout.mask.sum()) / (time.monotonic() - started))
        if phase % self.args.sample_steps == 0 and self.accelerator.is_main_process:
            prompts = [self.rows[row]["prompt"] for row in self._rows(phase)[: self.args.sample_size]]
            self._append(SAMPLES, [{"step": phase + 1, **sample} for sample in samples(rollout, self.rewards, prompts)])
        if (phase + 1) % self.args.save_steps == 0 or phase + 1 == self.phases:
            self._save(phase + 1)

    # --- 1. Rollout: replies, rewards, advantages ---

    def _roll_out(self, phase: int) -> RolloutBatch:
        """Draw, score and read the batch's replies, this process its share, and put all shares together."""
        from accelerate.utils import gather_object

        rows = self._rows(phase)
        order = sorted(range(self.batch_size), key=lambda row: len(self.prompts[rows[row]]))
        own = sorted(order[self.accelerator.process_index :: self.accelerator.num_processes])
        share = self._episodes(phase, own, [rows[row] for row in own])
        episodes: list[Episode] = sorted(gather_object(share), key=lambda episode: episode.row)
        prompts = [self.prompts[row] for row in rows]
        return make_rollout(prompts, episodes, self.rewards, self.args, self.kl.coefficient)

    def _rows(self, phase: int) -> list[int]:
        """The batch's rows of the data, which is passed over again and again, in a new order every time."""

        def orders() -> Iterable[int]:
            for epoch in range(first // len(self.rows), (first + self.batch_size - 1) // len(self.rows) + 1):
                yield from rng_of(self.args.seed, "order", epoch).sample(range(len(self.rows)), len(self.rows))

        first = phase * self.batch_size
        start = first % len(self.rows)
        return list(islice(orders(), start, start + self.batch_size))

    def _episodes(self, phase: int, own: list[int], rows: list[int]) -> list[Episode]:
        import torch
        from transformers import TrainerState

        seeds = [seed_of(self.args.seed, "reply", phase, row) for row in own]
        prompts, data = [self.prompts[row] for row in rows], [self.rows[row] for row in rows]
        replies = self._draw(phase, prompts, seeds, data)
        ids = [reply.ids for reply in replies]
        texts = [str(self.processing_class.decode(row_ids, skip_special_tokens=True)) for row_ids in ids]
        spoken = list(map(without_thoughts, texts))  # functions get what TRL would give them
        functions = [*self.rewards.functions, *filter(None, [self.gold_fn])]
        state = TrainerState(global_step=phase, is_world_process_zero=self.accelerator.is_main_process)
        numbers_of_functions = begin_functions(functions, data, texts, ids, state)
        with torch.no_grad(), self.accelerator.autocast():
            read = self._read(prompts, replies)
            members = self.rewards.members(data, spoken)
        numbers = numbers_of_functions()
        gold = numbers.pop() if self.gold_fn else [None] * len(own)
        rewards = [list(row) for row in zip(*numbers, strict=True)] if numbers else [[] for _ in own]
        columns = (own, replies, spoken, *zip(*read, strict=True), members, rewards, gold)
        return [Episode(*values) for values in zip(*columns, strict=True)]

    def _draw(self, phase: int, prompts: list[list[int]], seeds: list[int], data: list[Row]) -> list[Response]:
        """Replies of the policy as it is now; reward functions may prepare for a reply as soon as it is there.

        Raises:
            ModelError: the sampler draws with other weights.
        """
        sampling = Sampling(self.args.temperature, max_tokens=self.args.response_length)
        with self.networks.acting("policy") as policy, shards.whole(policy):
            self.sampler.sync(policy, phase)
            replies: dict[int, Response] = {}
            for place, reply in self.sampler.sample(prompts, seeds, sampling):
                replies[place] = reply
                if self._preparing:
                    text = self.processing_class.decode(reply.ids, skip_special_tokens=True)
                    for prepare in self._preparing:
                        prepare([data[place]["prompt"]], [[{"role": "assistant", "content": text}]])
        if old := {reply.version for reply in replies.values()} - {phase}:
            raise ModelError(
                f"PPOTrainer: {type(self.sampler).__name__} drew replies of phase {phase} with the weights of phase "
                f"{min(old)}; its sync() has to take over the policy's weights"
            )
        return [replies[place] for place in range(len(prompts))]

    def _read(self, prompts: list[list[int]], replies: list[Response]) -> list[tuple[list[float], ...]]:
        """For each reply its tokens' log-probabilities, the reference's, values and entropies, in micro-batches."""
        read: list[tuple[list[int], tuple[torch.Tensor, ...]]] = []
        size = self.args.per_device_train_batch_size
        lengths = [len(prompt) + len(reply.ids) for prompt, reply in zip(prompts, replies, strict=True)]
        for batch in in_batches(range(len(prompts)), lengths.__getitem__, size):
            ids = [prompts[row] for row in batch], [replies[row].ids for row in batch]
            padded = side_by_side(*ids, self.pad, self.accelerator.device)
            policy = self.networks.logprobs(padded, self.args.temperature, entropy=True)
            assert policy.entropy is not None
            reference = self.networks.logprobs(padded, self.args.temperature, "reference").logprobs
            read.append((batch, (policy.logprobs, reference, self.networks.values(padded), policy.entropy)))
        measured: dict[int, tuple[list[float], ...]] = {}
        for batch, columns in read:  # once all is on its way, as this waits for the device
            for row, *numbers in zip(batch, *(column.tolist() for column in columns), strict=True):
                measured[row] = tuple(column[: len(replies[row].ids)] for column in numbers)
        return [measured[row] for row in range(len(prompts))]

    # --- 2. What is written ---

    def _log(self, phase: int, line: dict[str, Any], speed: float) -> None:
        if not self.accelerator.is_main_process:
            return
        # Without the speed, since the same training writes the same file.
        self._append(LOG, [line])
        self.history.append(line)
        for callback in self.callbacks:
            callback(line | {"tokens_per_s": speed})
        every = self.args.logging_steps
        if every and (phase % every == 0 or phase + 1 == self.phases):
            kl, length = line["objective/kl"], line["completions/mean_length"]
            summary = f"reward {line['reward']:.3f}, KL {kl:.3f}, {length:.0f} tokens a reply"
            self._progress.say(f"ppo: phase {phase + 1} of {self.phases}, {summary}, {speed:.0f} tokens/s")

    def _append(self, name: str, lines: list[dict[str, Any]]) -> None:
        with (Path(self.args.output_dir) / name).open("a", encoding="utf-8") as file:
            file.writelines(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)

    def save_model(self, folder: str | Path, warn: Callable[[str], None] | None = None) -> None:
        """Write the policy, adapters merged, with its tokenizer, and read it again to compare.

        `warn` is told where the weights hold little of what adapters learned; standard error is, without it.
        """
        import copy

        if not self.networks.shared:
            write_model(self.networks.in_one_piece("policy"), self.processing_class, Path(folder))
        elif self.accelerator.is_main_process:
            with self.networks.acting("policy") as model:
                # Of a copy, as merging takes the adapters away, with which the training may go on.
                whole = merged(copy.deepcopy(model), warn or self._progress.say)
            write_model(whole, self.processing_class, Path(folder))
        self.accelerator.wait_for_everyone()

    def save_value_model(self, folder: str | Path) -> None:
        """Write the critic, for `value_model=…` or AutoModelForSequenceClassification, with the policy's tokenizer.

        A value is the model's score plus `value_offset` in its configuration.
        """
        if self.in_shards or self.accelerator.is_main_process:
            critic = self.networks.value_model()
            critic.config.get_text_config().pad_token_id = self.pad  # by it the head finds a text's last token
            write_model(critic, self.processing_class, Path(folder))
        self.accelerator.wait_for_everyone()

    # --- 3. Checkpoints ---

    def begin(self, resume: bool | str | Path | None) -> int:
        """The first phase to train, with everything as it was before it; `resume` is as for `train`."""
        output = Path(self.args.output_dir)
        output.mkdir(parents=True, exist_ok=True)
        latest = latest_checkpoint(output)
        folder = latest if resume is True else Path(resume) if resume else None
        if latest is not None and not resume:
            raise ConfigurationError(
                f"{latest}: there is a training in this folder already; call train(resume_from_checkpoint=True) to go "
                "on with it, or give another output_dir"
            )
        state = (
            read_checkpoint(folder, self.networks, self.learner.optimizers, self._identity())
            if folder
            else {"phase": 0}
        )
        phase: int = state["phase"]
        self.kl.coefficient = state.get("kl_coefficient", self.kl.coefficient)
        if self.accelerator.is_main_process:
            for name in (LOG, SAMPLES):
                keep_lines(output / name, phase)
        self.accelerator.wait_for_everyone()
        return phase

    def _identity(self) -> dict[str, Any]:
        """What a training must have in common with the one whose checkpoint it goes on from."""
        from constitutional.training.ppo.settings import TECHNICAL

        apart = {*TECHNICAL, "multi_objective_aggregation"}
        settings = {name: value for name, value in self.args.model_dump().items() if name not in apart}
        others: dict[str, Any] = {
            "normalised rewards": self.rewards.normalise or None,  # as checkpoints without it have it
            "mini_batch_size": self.learner.mini_batch_size,
            "rewards": self.rewards.names,
            "reward_models": [[model.mean, model.deviation] for model in self.rewards.models],
            "lora": self.networks.shared,
            "value_model given": self.value_model_given,
            "value_offset": self.networks.offset,
        }
        return settings | others | self.digests

    def _save(self, phase: int) -> None:
        state = {"phase": phase, "kl_coefficient": self.kl.coefficient, "training": self._identity()}
        output = Path(self.args.output_dir)
        write_checkpoint(output / f"checkpoint-{phase}", self.networks, self.learner.optimizers, state)
        if self.accelerator.is_main_process:
            for old in checkpoints(output)[: -self.args.save_total_limit]:
                remove_checkpoint(old)
        self.accelerator.wait_for_everyone()


def _default_config() -> "PPOConfig":
    from constitutional.training.ppo.settings import PPOConfig

    return PPOConfig(output_dir="ppo")


def _accelerator(args: "PPOConfig") -> Any:  # noqa: ANN401
    import torch
    from accelerate import Accelerator  # type: ignore[import-untyped]
    from accelerate.utils import DistributedType
    from torch.distributed.fsdp import CPUOffloadPolicy

    # Apple's GPUs have no numbers of 64 bits, in which replies are drawn.
    on_cpu = args.use_cpu or not torch.cuda.is_available()
    accelerator = Accelerator(cpu=on_cpu, mixed_precision="bf16" if args.bf16 else "no")
    plugin = getattr(accelerator.state, "fsdp_plugin", None)
    kinds = {DistributedType.NO, DistributedType.MULTI_CPU, DistributedType.MULTI_GPU, DistributedType.FSDP}
    others = plugin and (plugin.fsdp_version != 2 or isinstance(plugin.cpu_offload, CPUOffloadPolicy))
    if accelerator.distributed_type not in kinds or others:
        raise ConfigurationError(
            f"PPOTrainer: accelerate is configured for {accelerator.distributed_type.value}, and PPO trains by plain "
            "data parallelism or by FSDP of version 2 without offloading; run `accelerate config` again and choose one"
        )
    return accelerator


def _policy(
    model: "Model", tokenizer: Tokenizer | None, device: "torch.device", adapters: object = None
) -> tuple[Any, Tokenizer]:
    """A language model, from its folder or as it is, on the device, and its tokenizer."""
    if isinstance(model, str | Path):
        # Weights that are trained are kept in 32 bits; under LoRA on a GPU the frozen ones are in bfloat16.
        dtype = "auto" if adapters is not None and device.type == "cuda" else "float32"
        loaded, own = load_model(model, dtype=dtype, device=str(device))
        return loaded, tokenizer or own
    if tokenizer is None:
        raise UsageError("PPOTrainer: a model in memory comes without its tokenizer; give processing_class=…")
    moved: Any = model
    moved = moved.to(device)
    # Loaded as it is, nearly every model is in bfloat16, whose steps are larger than an update.
    return moved if adapters is not None else moved.float(), tokenizer


def _is_function(source: object) -> bool:
    return callable(source) and not hasattr(source, "config")
