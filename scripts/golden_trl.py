"""What the PPO trainer of TRL 1.12.0 computes on two fixed batches, for tests/test_ppo_golden.py to compare with.

TRL dropped PPO in 1.13, so this runs in an environment beside the project's:

    python3.11 -m venv trl112
    trl112/bin/pip install torch==2.13.0
    trl112/bin/pip install trl==1.12.0 transformers==5.17.0 accelerate==1.15.0 datasets==5.2.0
    trl112/bin/python scripts/golden_trl.py tests/training/ppo/trl_golden.json

TRL's own `PPOTrainer.train` runs on a tiny Llama, whose weights follow from a formula, as the replies do: how they are
drawn is all that is replaced. The numbers are those of train's own variables, looked at when it takes the means of a
micro-batch.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

VOCABULARY: Final = 2305
HIDDEN: Final = 8
PAD, EOS = 0, 2
PROMPTS: Final = [[1, 3 + row, *[20 + row] * (row % 3)] for row in range(8)]
WIDTH: Final = 6
LENGTHS: Final = [6, 1, 3, 7, 2, 5, 4, 7]  # with the end token; a 7 is cut off
TEMPERATURE: Final = 0.7


def fill(model: Any, seed: int) -> Any:  # noqa: ANN401
    """Give a model weights between −½ and ½ that look random and are the same everywhere; norms keep theirs."""
    import torch

    with torch.no_grad():
        for number, (_, weight) in enumerate(sorted(model.named_parameters())):
            if weight.dim() > 1:
                place = torch.arange(weight.numel(), dtype=torch.float64)
                wave = torch.sin(place * 12.9898 + (seed * 1000 + number) * 78.233) * 43758.5453
                weight.copy_((wave - wave.floor() - 0.5).view_as(weight))
    return model


def llama(kind: str, seed: int) -> Any:  # noqa: ANN401
    """A Llama of two layers; `kind` is CausalLM or SequenceClassification."""
    import transformers

    make_config: Any = transformers.LlamaConfig
    config = make_config(
        vocab_size=VOCABULARY,
        hidden_size=HIDDEN,
        intermediate_size=2 * HIDDEN,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=64,
        pad_token_id=PAD,
        bos_token_id=1,
        eos_token_id=EOS,
        num_labels=1,
        tie_word_embeddings=False,
    )
    return fill(getattr(transformers, f"LlamaFor{kind}")(config), seed)


def reply(prompt: list[int], length: int) -> list[int]:
    """The reply to a prompt: its tokens, and whatever is drawn after the end token."""
    tokens = [3 + (prompt[1] * 211 + place * 97) % (VOCABULARY - 3) for place in range(WIDTH)]
    if length <= WIDTH:
        tokens[length - 1] = EOS
    return tokens


def make_tokenizer() -> Any:  # noqa: ANN401
    """Of words t0, t1, …, of which only the special ones matter."""
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    make: Any = PreTrainedTokenizerFast
    words = Tokenizer(models.WordLevel({f"t{number}": number for number in range(VOCABULARY)}, "t3"))
    special = {"pad_token": f"t{PAD}", "bos_token": "t1", "eos_token": f"t{EOS}"}
    return make(tokenizer_object=words, padding_side="left", **special)


def some_weights(model: Any) -> dict[str, list[float]]:  # noqa: ANN401
    """A few of each tensor, spread over it."""
    return {name: each.flatten()[:: -(-each.numel() // 7)].tolist() for name, each in model.named_parameters()}


def run(lengths: list[int], settings: Mapping[str, Any]) -> dict[str, Any]:
    """One phase of TRL's trainer, with what it computed."""
    import numpy as np
    import torch
    from datasets import Dataset  # type: ignore[import-untyped]
    from trl.experimental.ppo import PPOConfig, PPOTrainer, ppo_trainer  # type: ignore[import-not-found]

    replies = {tuple(prompt): reply(prompt, length) for prompt, length in zip(PROMPTS, lengths, strict=True)}
    found: dict[str, Any] = {"micro_batches": [], "means": 0}
    masked_mean, masked_whiten = ppo_trainer.masked_mean, ppo_trainer.masked_whiten

    def drawn(model: Any, queries: Any, _: int, pad: int, __: Any) -> Any:  # noqa: ANN401
        own = [replies[tuple(token for token in query if token != pad)] for query in queries.tolist()]
        whole = torch.cat([queries, torch.tensor(own)], 1)
        logits = ppo_trainer.forward(model, whole, pad).logits[:, queries.shape[1] - 1 : -1]
        return whole, logits / (TEMPERATURE + 1e-7)

    def watched_whiten(values: Any, mask: Any, shift_mean: bool = True) -> Any:  # noqa: ANN401
        if shift_mean:
            found["raw_advantages"] = values.tolist()
        return masked_whiten(values, mask, shift_mean)

    def watched_mean(values: Any, mask: Any, axis: Any = None) -> Any:  # noqa: ANN401
        result = masked_mean(values, mask, axis)
        frame = sys._getframe(1)  # noqa: SLF001 - train computes its losses where no function can be called instead
        if frame.f_code.co_name != "train":
            return result
        found["means"] += 1
        if found["means"] % 4 == 0:  # the last of a micro-batch, that of the policy's clips
            local = frame.f_locals
            rollout = ("logprobs", "ref_logprobs", "values", "scores", "rewards", "advantages", "returns")
            found.update({name: local[name].tolist() for name in rollout})
            found["mask"] = (~local["padding_mask"]).tolist()
            found["value_mask"] = (~local["padding_mask_p1"]).tolist()
            found["query_responses"], found["prompt_width"] = local["query_responses"].tolist(), local["context_length"]
            numbers = ("new_logprobs", "vpred", "pg_loss", "vf_loss", "vf_clipfrac")
            micro_batch = {name: local[name].tolist() for name in numbers}
            micro_batch |= {"rows": local["micro_batch_inds"].tolist(), "pg_clipfrac": result.item()}
            found["micro_batches"].append(micro_batch)
        return result

    patched = {"batch_generation": drawn, "masked_whiten": watched_whiten, "masked_mean": watched_mean}
    original = {name: getattr(ppo_trainer, name) for name in patched}
    tokenizer = make_tokenizer()
    data = Dataset.from_dict({"input_ids": PROMPTS})
    policy, value_model = llama("CausalLM", 1), llama("SequenceClassification", 4)
    try:
        for name, function in patched.items():
            setattr(ppo_trainer, name, function)
        with tempfile.TemporaryDirectory() as folder:
            config = PPOConfig(
                output_dir=folder,
                use_cpu=True,
                bf16=False,
                report_to="none",
                save_strategy="no",
                gradient_checkpointing=False,
                dataloader_pin_memory=False,
                num_sample_generations=0,
                total_episodes=len(PROMPTS),
                num_mini_batches=1,
                response_length=WIDTH,
                temperature=TEMPERATURE,
                kl_coef=0.1,
                adam_epsilon=1e-5,
                **settings,
            )
            trainer = PPOTrainer(
                args=config,
                processing_class=tokenizer,
                model=policy,
                ref_model=llama("CausalLM", 2),
                reward_model=llama("SequenceClassification", 3),
                value_model=value_model,
                train_dataset=data,
                eval_dataset=data,
            )
            np.random.seed(0)  # noqa: NPY002 - train shuffles by this state, which it does not seed
            trainer.train()
    finally:
        for name, function in original.items():
            setattr(ppo_trainer, name, function)
    return found | {"policy": some_weights(policy), "critic": some_weights(value_model)}


def main() -> None:
    """Write the numbers."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("out", type=Path)
    out: Path = parser.parse_args().out
    import trl

    if trl.__version__ != "1.12.0":
        sys.exit(f"golden_trl.py: this is TRL {trl.__version__}; run it where 1.12.0 is installed, as its text says")
    # Some replies end, others are cut off; the learning rate is large, so that the later epochs are clipped.
    common = {"learning_rate": 0.002, "num_ppo_epochs": 3}
    uneven = {**common, "stop_token_id": EOS, "missing_eos_penalty": 1.0}
    uneven |= {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2}
    # Replies of one length, all in one micro-batch: what the whole trainer is compared on.
    even = {**common, "per_device_train_batch_size": len(PROMPTS), "gradient_accumulation_steps": 1}
    golden = {
        "uneven": run(LENGTHS, uneven),
        "whitened": run(LENGTHS, {**uneven, "whiten_rewards": True}),
        "even": run([WIDTH + 1] * len(PROMPTS), even),
    }
    out.write_text(json.dumps({"trl": trl.__version__, **golden}) + "\n")


if __name__ == "__main__":
    main()
