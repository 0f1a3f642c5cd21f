"""One trainer of PPO, in a process of its own, for bench_ppo.py: this project's, or that of TRL 1.12.0.

    python scripts/bench_ppo_trainer.py ours|trl SIZES      sizes as JSON; the last line on stdout is what was measured

Outside the functions it imports nothing but the standard library, as TRL's environment has nothing of this project.
"""

import itertools
import json
import math
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

PAD, BOS, EOS = 0, 1, 2


@dataclass(frozen=True)
class Sizes:
    """What is trained, and on what."""

    hidden: int = 256
    layers: int = 4
    heads: int = 4
    key_value_heads: int = 4
    intermediate: int = 704
    vocabulary: int = 32_000
    prompts: tuple[int, int] = (32, 128)
    """Tokens of the shortest and of the longest; in between, all lengths are as likely."""
    response_length: int = 64
    reply_tokens: int | None = None
    """A reply's tokens on average, if it were never cut off; None: it ends nowhere."""
    micro_batch: int = 8
    micro_batches: int = 4
    rollout_batch: int = 32
    epochs: int = 4
    phases: int = 3
    """The first one is not counted."""

    @property
    def batch(self) -> int:
        """Replies in a phase, which is one mini-batch an epoch."""
        return self.micro_batch * self.micro_batches


# --- The same task for both ---


def conversations(sizes: Sizes) -> list[list[dict[str, str]]]:
    """One prompt for every reply that will be drawn; a token is a word."""
    import random

    draw = random.Random(0)
    shortest, longest = sizes.prompts
    lengths = [draw.randint(shortest, longest) - 1 for _ in range(sizes.batch * sizes.phases)]  # one is BOS
    words = [" ".join(f"w{draw.randrange(EOS + 1, sizes.vocabulary)}" for _ in range(length)) for length in lengths]
    return [[{"role": "user", "content": word}] for word in words]


def make_tokenizer(sizes: Sizes) -> Any:  # noqa: ANN401
    """Of words w3, w4, …; the template puts nothing but BOS before a prompt and EOS after a reply."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    special = {"pad_token": "<pad>", "bos_token": "<bos>", "eos_token": "<eos>"}
    words = [*special.values(), *(f"w{number}" for number in range(EOS + 1, sizes.vocabulary))]
    tokenizer = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, words[EOS + 1]))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    template = (
        "{{ bos_token }}{% for message in messages %} {{ message['content'] }}"
        "{% if message['role'] == 'assistant' %} {{ eos_token }}{% endif %}{% endfor %} "
    )
    make: Any = PreTrainedTokenizerFast
    return make(tokenizer_object=tokenizer, chat_template=template, padding_side="left", **special)


def make_model(sizes: Sizes, kind: str, seed: int) -> Any:  # noqa: ANN401
    """A Llama with random weights, for CausalLM or SequenceClassification.

    Its first embedding dimension says nothing of the token. Only the end token's logit looks at it, so that it comes to
    what gives replies their length.
    """
    import torch
    import transformers

    make_config: Any = transformers.LlamaConfig
    config = make_config(
        vocab_size=sizes.vocabulary,
        hidden_size=sizes.hidden,
        intermediate_size=sizes.intermediate,
        num_hidden_layers=sizes.layers,
        num_attention_heads=sizes.heads,
        num_key_value_heads=sizes.key_value_heads,
        max_position_embeddings=8192,
        pad_token_id=PAD,
        bos_token_id=BOS,
        eos_token_id=EOS,
        num_labels=1,
        tie_word_embeddings=False,
    )
    torch.manual_seed(seed)
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        model: Any = getattr(transformers, f"LlamaFor{kind}")(config)
    if kind == "CausalLM":
        with torch.no_grad():
            model.model.embed_tokens.weight[:, 0] = 1.0
            head = model.lm_head.weight
            head[:, 0] = 0.0
            head[EOS] = 0.0
            # After the last norm, that dimension is nearly √hidden, and the other logits nearly 0.
            logit = -20.0 if sizes.reply_tokens is None else math.log(sizes.vocabulary / sizes.reply_tokens)
            head[EOS, 0] = logit / math.sqrt(sizes.hidden)
    return model


def memory_mib() -> float:
    """The most that this process has had so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024  # Linux counts KiB


def rates(ends: Sequence[float], tokens: Sequence[int]) -> list[float]:
    """Tokens a second of all phases but the first, from when each ended and what it drew."""
    return [drawn / (end - start) for drawn, start, end in zip(tokens[1:], ends, ends[1:], strict=False)]


# --- One trainer, in a process of its own ---


def train_trl(sizes: Sizes, folder: str) -> dict[str, Any]:
    """Some phases of TRL 1.12.0's trainer."""
    from datasets import Dataset  # type: ignore[import-untyped]
    from transformers import TrainerCallback
    from trl.experimental.ppo import PPOConfig, PPOTrainer, ppo_trainer  # type: ignore[import-not-found]

    before, ends, cpu_ends, tokens = memory_mib(), list[float](), list[float](), list[int]()

    class Clock(TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:  # noqa: ANN401
            ends.append(time.monotonic())
            cpu_ends.append(time.process_time())

    truncate = ppo_trainer.truncate_response

    def counted(stop: int, pad: int, responses: Any) -> Any:  # noqa: ANN401
        truncated = truncate(stop, pad, responses)
        tokens.append(int((truncated != pad).sum()))
        return truncated

    ppo_trainer.truncate_response = counted
    tokenizer = make_tokenizer(sizes)
    asked = [tokenizer.apply_chat_template(each, add_generation_prompt=True) for each in conversations(sizes)]
    data = Dataset.from_dict({"input_ids": [each["input_ids"] for each in asked]})
    args = PPOConfig(
        output_dir=folder,
        use_cpu=True,
        bf16=False,
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
        gradient_checkpointing=False,
        dataloader_pin_memory=False,
        num_sample_generations=0,
        total_episodes=sizes.batch * sizes.phases,
        per_device_train_batch_size=sizes.micro_batch,
        gradient_accumulation_steps=sizes.micro_batches,
        num_mini_batches=1,
        num_ppo_epochs=sizes.epochs,
        local_rollout_forward_batch_size=sizes.rollout_batch,
        response_length=sizes.response_length,
        stop_token_id=EOS,
        temperature=1.0,
        learning_rate=1e-6,
    )
    trainer = PPOTrainer(
        args=args,
        processing_class=tokenizer,
        model=make_model(sizes, "CausalLM", 0),
        ref_model=make_model(sizes, "CausalLM", 0),
        reward_model=make_model(sizes, "SequenceClassification", 1),
        value_model=make_model(sizes, "SequenceClassification", 1),
        train_dataset=data,
        eval_dataset=data,
        callbacks=[Clock()],
    )
    trainer.train()
    per_phase = sizes.batch // sizes.rollout_batch
    drawn = [sum(tokens[first : first + per_phase]) for first in range(0, len(tokens), per_phase)]
    return {
        "tokens_per_s": rates(ends, drawn),
        "tokens_per_cpu_s": rates(cpu_ends, drawn),
        "tokens": drawn,
        "peak_mib": memory_mib(),
        "before_mib": before,
    }


def watched(function: Callable[..., Any], seconds: list[float]) -> Callable[..., Any]:
    """The function, which writes down the time that it takes, the device's work included."""
    import torch

    def now() -> float:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return time.monotonic()

    def run(*args: Any, **named: Any) -> Any:  # noqa: ANN401
        start = now()
        found = function(*args, **named)
        seconds.append(now() - start)
        return found

    return run


def train_ours(sizes: Sizes, folder: str) -> dict[str, Any]:
    """Some phases of this project's trainer, and how long each part of the counted ones took."""
    import accelerate  # type: ignore[import-untyped]  # noqa: F401 - it belongs to what stands in memory before
    import torch
    import transformers  # noqa: F401

    from constitutional.training.ppo.settings import PPOConfig
    from constitutional.training.ppo.trainer import PPOTrainer

    gpu = torch.cuda.is_available()
    before, ends, cpu_ends, tokens = memory_mib(), list[float](), list[float](), list[int]()

    def clock(line: Mapping[str, Any]) -> None:
        ends.append(time.monotonic())
        cpu_ends.append(time.process_time())
        tokens.append(round(line["completions/mean_length"] * sizes.batch))

    args = PPOConfig(
        output_dir=folder,
        use_cpu=not gpu,
        bf16=gpu,
        total_episodes=sizes.batch * sizes.phases,
        per_device_train_batch_size=sizes.micro_batch,
        gradient_accumulation_steps=sizes.micro_batches,
        num_ppo_epochs=sizes.epochs,
        local_rollout_forward_batch_size=sizes.rollout_batch,
        response_length=sizes.response_length,
        learning_rate=1e-6,
        logging_steps=0,
    )
    trainer = PPOTrainer(
        model=make_model(sizes, "CausalLM", 0),
        ref_model=make_model(sizes, "CausalLM", 0),
        reward_model=make_model(sizes, "SequenceClassification", 1),
        value_model=make_model(sizes, "SequenceClassification", 1),
        args=args,
        train_dataset=[{"prompt": each} for each in conversations(sizes)],
        processing_class=make_tokenizer(sizes),
        callbacks=[clock],
    )
    sampling, updating = list[float](), list[float]()
    # mypy: replaced on purpose.
    trainer._draw = watched(trainer._draw, sampling)  # type: ignore[method-assign] # noqa: SLF001
    trainer.learner.update = watched(trainer.learner.update, updating)  # type: ignore[method-assign]
    trainer.train()  # its one checkpoint comes after the last end
    phases = [end - start for start, end in itertools.pairwise(ends)]
    parts = {
        "drawing": sampling[1:],
        "scoring": [a - b - c for a, b, c in zip(phases, sampling[1:], updating[1:], strict=True)],
        "updating": updating[1:],
    }
    prompt_tokens = sum(map(len, trainer.prompts)) // sizes.phases
    peak = torch.cuda.max_memory_allocated() / 2**20 if gpu else memory_mib()
    return {
        "tokens_per_s": rates(ends, tokens),
        "tokens_per_cpu_s": rates(cpu_ends, tokens),
        "tokens": tokens,
        "peak_mib": peak,
        "before_mib": 0.0 if gpu else before,
        "parts": parts,
        "flops": flops(sizes, prompt_tokens, statistics.fmean(tokens[1:])),
        "device": torch.cuda.get_device_name() if gpu else "CPU",
    }


def flops(sizes: Sizes, prompt_tokens: float, reply_tokens: float) -> dict[str, float]:
    """What each part of a phase must compute: two operations for each weight and token, six where it is trained.

    Attention's own products are left out, and so is the head at prompts, which nobody needs.
    """
    critic = 2 * sizes.layers * layer_weights(sizes) * (prompt_tokens + reply_tokens)
    policy = critic + 2 * sizes.hidden * sizes.vocabulary * reply_tokens
    # Scoring is policy, reference, critic and reward model, forwards.
    return {
        "drawing": policy,
        "scoring": 2 * policy + 2 * critic,
        "updating": 3 * sizes.epochs * (policy + critic),
    }


def layer_weights(sizes: Sizes) -> int:
    """Weights of a layer's seven maps; those of its norms are not counted."""
    key_values = sizes.hidden * sizes.key_value_heads // sizes.heads
    return 2 * sizes.hidden * (sizes.hidden + key_values) + 3 * sizes.hidden * sizes.intermediate


def main() -> None:
    """Run one trainer."""
    trainer, known = sys.argv[1], json.loads(sys.argv[2])
    sizes = Sizes(**known | {"prompts": tuple(known["prompts"])})
    with tempfile.TemporaryDirectory() as folder:
        found = (train_trl if trainer == "trl" else train_ours)(sizes, folder)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
