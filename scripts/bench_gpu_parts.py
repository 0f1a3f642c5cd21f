"""What bench_gpu.py measures: PPO, DPO, and generation, each on a model of its own, part by part."""

import importlib.util
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final

from scripts.bench_ppo_trainer import EOS, PAD, Sizes, conversations, layer_weights, make_model, make_tokenizer

REPETITIONS: Final = 2
"""Of generation; and steps of DPO beyond the first, which is not counted."""

REPLIES, BOTH = "tokens of replies", "tokens of prompts and replies"
"""What a token is that a speed counts."""

PPO_ARGUMENTS: Final[Mapping[str, Any]] = {
    "gradient_checkpointing": False,
    "temperature": 1.0,
    "gamma": 1.0,
    "lam": 0.95,
    "seed": 0,
    "kl_coef": 0.05,
    "kl_target": None,
    "kl_horizon": 10_000,
    "kl_loss_coef": 0.0,
    "reward_clip": None,
    "reward_weights": None,
    "ensemble_k": 0.0,
    "length_penalty": 0.0,
    "missing_eos_penalty": 0.0,
    "multi_objective_aggregation": "normalize_then_sum",
    "cliprange": 0.2,
    "cliprange_high": None,
    "cliprange_value": 0.2,
    "dual_clip": None,
    "importance_bound": 2.0,
    "vf_coef": 0.1,
    "entropy_coef": 0.0,
    "ptx_coef": 0.0,
    "max_grad_norm": 1.0,
    "whiten_rewards": False,
    "whiten_advantages": True,
    "loss_aggregation": "token_mean",
    "critic_learning_rate_factor": 10.0,
    "critic_warmup_steps": 0,
    "num_mini_batches": 1,
    "sample_steps": 10,
    "sample_size": 4,
    "save_steps": 10,
    "save_total_limit": 2,
    "report_to": (),
    "project": "constitutional",
    "run_name": "ppo",
}
"""The defaults of PPOConfig, which takes pydantic to make; a test compares."""


def ppo_arguments(sizes: Sizes, folder: str, *, gpu: bool) -> Any:  # noqa: ANN401
    """What PPOTrainer reads of a PPOConfig. One phase more than is measured, as the last one saves a checkpoint."""
    return SimpleNamespace(
        **PPO_ARGUMENTS,
        output_dir=folder,
        use_cpu=not gpu,
        bf16=gpu,
        total_episodes=sizes.batch * (sizes.phases + 1),
        per_device_train_batch_size=sizes.micro_batch,
        gradient_accumulation_steps=sizes.micro_batches,
        num_ppo_epochs=sizes.epochs,
        local_rollout_forward_batch_size=sizes.rollout_batch,
        max_prompt_length=sizes.prompts[1],
        response_length=sizes.response_length,
        learning_rate=1e-6,
        logging_steps=0,
    )


# --- What is counted ---


def forward_flops(sizes: Sizes, prompt: int, reply: int, *, head: bool) -> float:
    """Operations of one pass over a prompt with its reply, in tokens; with the head those of the reply's logits."""
    length = prompt + reply
    attention = 4 * sizes.layers * sizes.hidden * length * (length + 1) / 2
    logits = 2 * sizes.hidden * sizes.vocabulary * reply if head else 0
    return 2 * sizes.layers * layer_weights(sizes) * length + attention + logits


class Speed:
    """How fast a piece of work is, over its repetitions."""

    def __init__(self, found: dict[str, Any], peak_tflops: float, counted: str) -> None:
        self.found = found
        self.peak = peak_tflops * 1e12
        found |= {"counted": counted, "seconds": [], "tokens": []}
        self._flops: list[float] = []

    def add(self, seconds: float, tokens: float, flops: float) -> None:
        """Another repetition."""
        self.found["seconds"].append(seconds)
        self.found["tokens"].append(tokens)
        self._flops.append(flops)
        both = list(zip(self.found["tokens"], self._flops, self.found["seconds"], strict=True))
        self.found["tokens_per_s"] = statistics.median(tokens / taken for tokens, _, taken in both)
        self.found["share_of_peak"] = statistics.median(flops / taken / self.peak for _, flops, taken in both)


def now() -> float:
    """Seconds, once the device has done all that it was given."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.monotonic()


# --- Parts: each fills in what it finds as it finds it ---


def ppo(sizes: Sizes, peak: float, found: dict[str, Any]) -> None:
    """Some phases of PPOTrainer, the first of which is not counted."""
    import torch

    from constitutional.training.ppo.trainer import PPOTrainer

    gpu = torch.cuda.is_available()
    with tempfile.TemporaryDirectory() as folder:
        trainer: Any = PPOTrainer(
            make_model(sizes, "CausalLM", 0),
            reward_model=make_model(sizes, "SequenceClassification", 1),
            args=ppo_arguments(sizes, folder, gpu=gpu),
            train_dataset=[{"prompt": each} for each in conversations(sizes)],
            processing_class=make_tokenizer(sizes),
        )
        seconds: dict[str, float] = {}
        rows: list[tuple[int, int]] = []

        def watch(owner: object, method: str, part: str) -> None:
            own = getattr(owner, method)

            def watched(*args: Any, **named: Any) -> Any:  # noqa: ANN401
                start = now()
                result = own(*args, **named)
                seconds[part] = seconds.get(part, 0.0) + now() - start
                if method == "_draw":
                    rows.extend((len(prompt), len(reply.ids)) for prompt, reply in zip(args[1], result, strict=True))
                return result

            setattr(owner, method, watched)

        watch(trainer, "_draw", "rollout")
        watch(trainer, "_read", "scoring")
        watch(trainer.rewards, "members", "scoring")
        watch(trainer.learner, "update", "update")
        counted = {
            "rollout": "tokens of replies",
            **dict.fromkeys(("scoring", "update"), BOTH),
        }
        speeds = {part: Speed(found.setdefault(part, {}), peak, what) for part, what in counted.items()}
        found["phase_s"] = []
        trainer.begin(None)
        for phase in range(sizes.phases):
            seconds.clear()
            rows.clear()
            start = now()
            trainer.train_phase(phase)
            if phase == 0:
                continue
            found["phase_s"].append(now() - start)
            whole, drawn = sum(map(sum, rows)), sum(reply for _, reply in rows)
            policy, critic = (
                sum(forward_flops(sizes, prompt, reply, head=head) for prompt, reply in rows) for head in (True, False)
            )
            speeds["rollout"].add(seconds["rollout"], drawn, policy)
            speeds["scoring"].add(seconds["scoring"], whole, 2 * policy + 2 * critic)
            speeds["update"].add(seconds["update"], sizes.epochs * whole, 3 * sizes.epochs * (policy + critic))


Pair = tuple[list[int], list[int], list[int]]
"""A prompt, the chosen reply and the rejected one."""


def pairs(sizes: Sizes) -> list[Pair]:
    """As many as the steps of DPO take."""
    import random

    draw = random.Random(0)
    shortest, longest = sizes.prompts

    def text(length: int) -> list[int]:
        return [draw.randrange(EOS + 1, sizes.vocabulary) for _ in range(length)]

    count = sizes.batch // 2 * (REPETITIONS + 1)
    lengths = [draw.randint(shortest, longest) for _ in range(count)]
    return [(text(length), text(sizes.response_length), text(sizes.response_length)) for length in lengths]


def read_once(sizes: Sizes, rows: Sequence[Pair]) -> tuple[int, float]:
    """The tokens of both conversations of all pairs, and the operations of a pass over them."""
    lengths = [(len(prompt), len(reply)) for prompt, *replies in rows for reply in replies]
    return sum(map(sum, lengths)), sum(forward_flops(sizes, *each, head=True) for each in lengths)


def dpo(sizes: Sizes, peak: float, found: dict[str, Any]) -> None:
    """Some steps of DPO, the first of which is not counted; a step has half as many pairs as a phase of PPO replies."""
    if importlib.util.find_spec("trl"):
        found["by"] = "TRL's DPOTrainer with this project's soft labels"
        _dpo_by_trl(sizes, peak, found)
    else:
        found["by"] = "the loss of DPO over PPO's forward pass, as trl is not installed"
        _dpo_by_hand(sizes, peak, found)


def _dpo_by_trl(sizes: Sizes, peak: float, found: dict[str, Any]) -> None:
    from transformers import PrinterCallback, TrainerCallback

    from constitutional.stages.dpo import Settings, soft_dpo_trainer
    from constitutional.training.rows import on_disk

    tokenizer = make_tokenizer(sizes)
    texts = pairs(sizes)

    def turn(role: str, ids: list[int]) -> list[dict[str, str]]:
        return [{"role": role, "content": tokenizer.decode(ids)}]

    rows = [
        {
            "prompt": turn("user", prompt[1:]),  # the template puts a token before it
            "chosen": turn("assistant", chosen[1:]),  # and one behind these
            "rejected": turn("assistant", rejected[1:]),
            "probability": 1.0,
            "weight": 1.0,
        }
        for prompt, chosen, rejected in texts
    ]
    longest = sizes.prompts[1] + sizes.response_length
    settings = Settings(
        epochs=1,
        batch_size=sizes.micro_batch // 2,
        gradient_accumulation=sizes.micro_batches,
        max_length=max(16, longest),
        learning_rate=1e-6,
        log_every=1,
    )
    update = Speed(found.setdefault("update", {}), peak, BOTH)
    # Rows come in an order of the trainer's, so a step counts for the mean of all.
    tokens, flops = (total / (REPETITIONS + 1) for total in read_once(sizes, texts))
    ends: list[float] = []

    class Clock(TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:  # noqa: ANN401
            ends.append(now())
            if len(ends) > 1:
                update.add(ends[-1] - ends[-2], tokens, 3 * flops)

    with tempfile.TemporaryDirectory() as folder:
        kept = on_disk(rows, Path(folder) / "rows")
        trainer = soft_dpo_trainer(make_model(sizes, "CausalLM", 0), tokenizer, kept, settings, Path(folder), 0)
        trainer.args.save_strategy = "no"
        trainer.remove_callback(PrinterCallback)
        trainer.add_callback(Clock())
        trainer.train()


def _dpo_by_hand(sizes: Sizes, peak: float, found: dict[str, Any]) -> None:
    import torch
    from torch.nn.functional import logsigmoid

    from constitutional.training.ppo.networks import Sequences, response_logprobs, side_by_side

    policy, beta, gpu = make_model(sizes, "CausalLM", 0), 0.1, torch.cuda.is_available()
    optimizer = torch.optim.AdamW(policy.parameters(), lr=1e-6, fused=True)
    texts, size = pairs(sizes), sizes.micro_batch // 2

    def padded(first: int) -> Sequences:
        prompts, chosen, rejected = zip(*texts[first : first + size], strict=True)
        return side_by_side(prompts * 2, chosen + rejected, PAD, policy.device)

    def logps(first: int) -> torch.Tensor:
        with torch.autocast(policy.device.type, torch.bfloat16, enabled=gpu):
            return response_logprobs(policy, padded(first), 1.0).logprobs.sum(1)

    starts = range(0, len(texts), size)
    reading = Speed(found.setdefault("reference", {}), peak, BOTH)
    with torch.no_grad():
        logps(0)
        start = now()
        reference = {first: logps(first) for first in starts}
        reading.add(now() - start, *read_once(sizes, texts))
    update = Speed(found.setdefault("update", {}), peak, BOTH)
    per_step = sizes.batch // 2
    for step in range(REPETITIONS + 1):
        start, losses = now(), []
        for first in starts[step * sizes.micro_batches : (step + 1) * sizes.micro_batches]:
            chosen, rejected = (logps(first) - reference[first]).chunk(2)
            loss = -logsigmoid(beta * (chosen - rejected)).mean() / sizes.micro_batches
            loss.backward()  # type: ignore[no-untyped-call] # of torch
            losses.append(loss.detach())
        torch.nn.utils.clip_grad_norm_(policy.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        end = now()
        found.setdefault("losses", []).append(float(torch.stack(losses).sum()))
        if step:
            tokens, flops = read_once(sizes, texts[step * per_step : (step + 1) * per_step])
            update.add(end - start, tokens, 3 * flops)


Way = Callable[[Sequence[list[int]], int], list[int]]
"""Answers prompts with at most so many tokens, and tells how many each reply has."""


def compare(ways: Mapping[str, Way], sizes: Sizes, peak: float, found: dict[str, Any]) -> None:
    """Answer the same prompts in several ways, in turns, after a few tokens of each that are not counted."""
    prompts, most = [prompt for prompt, _, _ in pairs(sizes)][: sizes.batch], sizes.response_length
    speeds = {name: Speed(found.setdefault(name, {}), peak, REPLIES) for name in ways}
    for way in ways.values():
        way(prompts[:2], 4)
    for _ in range(REPETITIONS):
        for name, way in ways.items():
            start = now()
            lengths = way(prompts, most)
            seconds = now() - start
            each = zip(prompts, lengths, strict=True)
            flops = sum(forward_flops(sizes, len(prompt), length, head=True) for prompt, length in each)
            speeds[name].add(seconds, sum(lengths), flops)


def half_precision(sizes: Sizes) -> Any:  # noqa: ANN401
    """A policy as engines load it: in bfloat16 on a GPU."""
    import torch

    model = make_model(sizes, "CausalLM", 0).eval()
    return model.to(torch.bfloat16) if torch.cuda.is_available() else model


def generation(sizes: Sizes, peak: float, found: dict[str, Any]) -> None:
    """The engine's decoder, PPO's sampler, and transformers' `generate`."""
    import torch
    from transformers import GenerationConfig

    from constitutional.engines.base import Sampling
    from constitutional.engines.decoding import Continuation, Decoder
    from constitutional.training.ppo.rollout import TransformersSampler, in_batches

    model = half_precision(sizes)

    def decoder(prompts: Sequence[list[int]], most: int) -> list[int]:
        rows = [Continuation(prompt, Sampling(max_tokens=most), seed) for seed, prompt in enumerate(prompts)]
        longest_first = sorted(rows, key=lambda row: -len(row.prompt))
        Decoder(model, {EOS}, PAD).write(longest_first, sizes.rollout_batch, lambda _: None)
        return [len(row.ids) for row in rows]

    def sampler(prompts: Sequence[list[int]], most: int) -> list[int]:
        drawing = TransformersSampler(frozenset({EOS}), PAD, batch_size=sizes.rollout_batch)
        drawing.sync(model, 0)
        drawn = dict(drawing.sample(prompts, range(len(prompts)), Sampling(max_tokens=most)))
        return [len(drawn[row].ids) for row in range(len(prompts))]

    def transformers(prompts: Sequence[list[int]], most: int) -> list[int]:
        settings: Any = GenerationConfig  # without types
        sampled = settings(do_sample=True, top_k=0, max_new_tokens=most, pad_token_id=PAD, eos_token_id=EOS)
        lengths: dict[int, int] = {}
        for batch in in_batches(range(len(prompts)), lambda row: len(prompts[row]), sizes.rollout_batch):
            rows = [prompts[row] for row in batch]
            width = max(map(len, rows))
            ids = torch.tensor([[PAD] * (width - len(row)) + row for row in rows], device=model.device)
            with torch.no_grad():
                written = model.generate(ids, attention_mask=(ids != PAD).long(), generation_config=sampled)
            lengths |= dict(zip(batch, (written[:, width:] != PAD).sum(1).tolist(), strict=True))
        return [lengths[row] for row in range(len(prompts))]

    compare({"decoder": decoder, "sampler": sampler, "transformers": transformers}, sizes, peak, found)


def vllm(sizes: Sizes, peak: float, found: dict[str, Any]) -> None:
    """The same prompts by vLLM, as PPO draws with it."""
    if not importlib.util.find_spec("vllm"):
        found["left_out"] = "vllm is not installed"
        return
    from constitutional.engines.base import Sampling
    from constitutional.engines.settings import VllmSettings
    from constitutional.training.ppo.vllm_sampler import VllmSampler

    with tempfile.TemporaryDirectory() as folder:
        half_precision(sizes).save_pretrained(folder)
        make_tokenizer(sizes).save_pretrained(folder)
        longest = sizes.prompts[1] + sizes.response_length
        drawing = VllmSampler(Path(folder), VllmSettings(memory=0.5, max_length=longest))
        drawing.version = 0

        def by_vllm(prompts: Sequence[list[int]], most: int) -> list[int]:
            drawn = dict(drawing.sample(prompts, range(len(prompts)), Sampling(max_tokens=most)))
            return [len(drawn[row].ids) for row in range(len(prompts))]

        try:
            compare({"vllm": by_vllm}, sizes, peak, found)
        finally:
            drawing.close()
