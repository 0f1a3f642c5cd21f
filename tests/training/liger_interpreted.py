"""Liger's kernels on a CPU, by Triton's interpreter. A program, as Triton is told by a variable before it is loaded.

Trains a tiny model by each stage, with the kernels and without, and prints what came of it: a line of JSON for a stage.
"""

import json
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from torch import Tensor

STAGES = ("sft", "reward", "dpo")


def mend_interpreter() -> None:
    """Give the interpreter what Liger's kernels need and only a compiler has: floats as arguments, and libdevice."""
    import numpy as np
    import triton.language as tl
    from liger_kernel.ops import geglu, rms_norm
    from triton.runtime import interpreter

    converted = interpreter._implicit_cvt

    def convert(argument: Any) -> Any:  # noqa: ANN401
        if type(argument) is not float:
            return converted(argument)
        return tl.tensor(interpreter.TensorHandle(np.array([argument], dtype=np.float32), tl.float32), tl.float32)

    def by_numpy(function: Callable[[Any], Any]) -> Callable[[Any], Any]:
        def call(x: Any) -> Any:  # noqa: ANN401
            values = function(x.handle.data).astype(x.handle.data.dtype)
            return tl.tensor(interpreter.TensorHandle(values, x.handle.dtype), x.type)

        return call

    interpreter._implicit_cvt = convert
    rms_norm.rsqrt = by_numpy(lambda x: 1 / np.sqrt(x))
    geglu.tanh = by_numpy(np.tanh)


class Trained(NamedTuple):
    """What a training came to."""

    losses: list[float]
    by_liger: list[str]
    """Layers that compute by Liger's kernels, by their classes in transformers."""
    before: "Mapping[str, Tensor]"
    after: "Mapping[str, Tensor]"
    """The weights as they were saved."""


def train(stage: str, model: Path, folder: Path, *, kernels: bool) -> Trained:
    """Two steps, of which the second is one of a changed model."""
    from safetensors.torch import load_file

    from constitutional.stages import dpo, reward, sft
    from constitutional.training.reward_model import load_reward_model
    from constitutional.training.rows import on_disk
    from constitutional.training.saving import save_model
    from constitutional.training.trl import fit, load_policy

    def turn(role: str, text: str) -> list[dict[str, str]]:
        return [{"role": role, "content": text}]

    common: dict[str, Any] = {"epochs": 1, "batch_size": 2, "learning_rate": 0.01, "warmup": 0, "log_every": 1}
    common["use_liger_kernel"] = kernels
    pairs: list[dict[str, Any]] = [
        {"prompt": turn("user", "A?"), "chosen": turn("assistant", yes), "rejected": turn("assistant", no)}
        | {"probability": 0.9, "weight": 1.0}
        for yes, no in (("One.", "No text."), ("Two texts.", "Is."), ("Is it?", "To."))
    ]
    if stage == "sft":
        pairs = [{"prompt": row["prompt"], "completion": row["chosen"]} for row in pairs]
    rows = on_disk(pairs, folder / "rows")
    trainer: Any
    if stage == "sft":
        policy, tokenizer = load_policy(model, sft.Settings(**common))
        trainer = sft.sft_trainer(policy, tokenizer, rows, sft.Settings(**common), folder, 0)
    elif stage == "reward":
        policy, tokenizer = load_reward_model(model, new_head=True)
        trainer = reward.soft_reward_trainer(policy, tokenizer, rows, reward.Settings(**common), folder, 0)
    else:
        policy, tokenizer = load_policy(model, dpo.Settings(**common))
        trainer = dpo.soft_dpo_trainer(policy, tokenizer, rows, dpo.Settings(**common), folder, 0)
    before = {name: weight.clone() for name, weight in policy.state_dict().items()}
    fit(trainer, log=folder / "log.jsonl", label=stage)
    save_model(trainer, folder / "model", print)
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    parts: list[Any] = list(policy.modules())
    by_liger = {type(part).__name__ for part in parts if part.forward.__module__.startswith("liger_kernel")}
    losses = [line["loss"] for line in lines if "loss" in line]
    return Trained(losses, sorted(by_liger), before, load_file(folder / "model/model.safetensors"))


def furthest(first: "Mapping[str, Tensor]", second: "Mapping[str, Tensor]") -> float:
    """The largest difference of a weight; what one of them alone has is tied to another."""
    return max(float((weight - second[name]).abs().max()) for name, weight in first.items() if name in second)


def main(model: Path, folder: Path) -> None:
    """Print what each stage comes to."""
    mend_interpreter()
    for stage in STAGES:
        # With the kernels first, as they are to leave nothing behind.
        by_liger = train(stage, model, folder / f"{stage}_liger", kernels=True)
        plain = train(stage, model, folder / f"{stage}_plain", kernels=False)
        found = {
            "stage": stage,
            "losses": [by_liger.losses, plain.losses],
            "layers": [by_liger.by_liger, plain.by_liger],
            "weights": [sorted(by_liger.after), sorted(plain.after)],
            "moved": furthest(plain.before, plain.after),
            "apart": furthest(by_liger.after, plain.after),
        }
        print(json.dumps(found), flush=True)


if __name__ == "__main__":
    assert os.environ["TRITON_INTERPRET"] == "1"
    main(Path(sys.argv[1]), Path(sys.argv[2]))
