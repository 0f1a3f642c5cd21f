"""What a training came to: whether its weights moved and are numbers, and how they are saved.

A model is saved whole or not at all, and read again to compare, bit for bit.
"""

import os
import shutil
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from constitutional.base.errors import ModelError
from constitutional.engines.chat import Tokenizer
from constitutional.training import processes

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel, Trainer


ENOUGH: Final = 0.9
"""The share of what adapters learned that the merged weights have to hold for a training to say nothing of it."""


def bit_sums(weights: "Iterable[Tensor]") -> list[int]:
    """For each tensor the sum of its numbers' bits, which changes if they do; much cheaper than a copy."""
    import torch

    return [int(_bits(weight).sum(dtype=torch.int64)) for weight in weights]


def _bits(tensor: "Tensor") -> "Tensor":
    import torch

    whole = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    return tensor.detach().contiguous().view(whole[tensor.element_size()])


def check_finite(weights: "Iterable[Tensor]", label: str, step: int) -> None:
    """Refuse weights that are no numbers.

    Raises:
        ModelError: one is NaN or infinite.
    """
    import torch

    # A sum in 64 bits is finite if all of its numbers are; it needs no memory for a mask.
    if not all(bool(torch.isfinite(weight.detach().sum(dtype=torch.float64))) for weight in weights):
        raise ModelError(
            f"{label}: the loss is nan after step {step}, as weights have become infinite or no numbers; "
            "lower learning_rate"
        )


def check_moved(before: list[int], after: list[int], label: str, steps: int) -> None:
    """Refuse a training that changed nothing.

    Args:
        before: `bit_sums` of the weights before the training.
        after: those of the same weights after it.
        label: begins the message.
        steps: how many steps it had.

    Raises:
        ModelError: not one weight moved.
    """
    if after == before:
        raise ModelError(
            f"{label}: no weight moved in {steps} steps, so the model is still the one that it began with; raise "
            "learning_rate, or give more rows, or rows of which one is better than another"
        )


def kind_of_shards(trainer: "Trainer") -> str:
    """What gives each process a part of the weights alone: `FSDP` or `ZeRO-3`; empty where each has them all."""
    if trainer.is_deepspeed_enabled:
        return "ZeRO-3" if trainer.accelerator.state.deepspeed_plugin.zero_stage == 3 else ""
    return "FSDP" if trainer.is_fsdp_enabled else ""


def share_kept(model: Any) -> float:  # noqa: ANN401 - PEFT's wrapper of a model
    """The share of what adapters learned that the weights hold once these are merged; 1 where nothing was learned.

    With a map's weights W and what its adapter adds to them Δ, that is ⟨round(W + Δ) − W, Δ⟩ / ⟨Δ, Δ⟩ over all maps.
    W is rounded to the number format of the model: in bfloat16 what is less than half a step of a weight, of which
    there are 128 from 1 to 2, is lost.
    """
    import torch
    from peft.tuners.lora import Linear

    kept, learned = 0.0, 0.0
    with torch.no_grad():
        for layer in model.modules():
            if not isinstance(layer, Linear) or layer.lora_variant:
                continue
            weight: Any = layer.get_base_layer().weight
            for adapter in layer.active_adapters:
                change = layer.get_delta_weight(adapter).float()
                moved = (weight.float() + change).to(weight.dtype).float() - weight.float()
                kept += float((moved * change).sum(dtype=torch.float64))
                learned += float(change.square().sum(dtype=torch.float64))
    return kept / learned if learned else 1.0


def merged(model: Any, warn: Callable[[str], None]) -> Any:  # noqa: ANN401 - a model, or PEFT's wrapper of one
    """The model with its adapters, if it has any, merged; a warning where its weights hold little of them."""
    if not hasattr(model, "merge_and_unload"):
        return model
    if (share := share_kept(model)) < ENOUGH:
        warn(
            f"the model's weights in {str(model.dtype).removeprefix('torch.')} hold {share:.0%} of what was trained: "
            "a change of less than half a step between two such numbers rounds away. A higher learning_rate moves "
            "weights further; a training without lora keeps them in 32 bits, and model.dtype=float32 reads them so"
        )
    return model.merge_and_unload()


def save_model(trainer: "Trainer", folder: Path, warn: Callable[[str], None] = lambda _: None) -> None:
    """Write the trained model with its adapters merged, as `write_model` does; the main process does it, for all.

    `warn` is told where the weights hold little of what was trained.

    Raises:
        ModelError: what is read differs from what was trained.
    """
    if kind_of_shards(trainer):
        weights = trainer.accelerator.get_state_dict(trainer.model_wrapped)  # all processes give their parts
        read_whole()
        if processes.is_main():
            write_model(put_together(trainer.model, weights), trainer.processing_class, folder)
        processes.wait()
        return
    # Without the wrapper that computes in bfloat16 during training: it is no part of the model that is saved.
    model: Any = trainer.accelerator.unwrap_model(trainer.model, keep_fp32_wrapper=False)
    if processes.is_main():
        write_model(merged(model, warn), trainer.processing_class, folder)
    processes.wait()


def read_whole() -> None:
    """Have transformers read models whole once a training with ZeRO-3 is over, or its trainer was made.

    Until then it shares out what any process reads among all, and a process that reads alone waits for the others.
    """
    from transformers.integrations.deepspeed import unset_hf_deepspeed_config

    unset_hf_deepspeed_config()  # type: ignore[no-untyped-call]


def put_together(trained: Any, weights: "Mapping[str, Tensor]") -> Any:  # noqa: ANN401 - models, or wrappers of one
    """The model of a training whose weights are sharded, in 32 bits on the CPU, with its adapters merged.

    Args:
        trained: the model that was trained, of whose weights this process holds a part.
        weights: all of them, by the names that they have in it.
    """
    import torch
    from peft import get_peft_model

    adapters = getattr(trained, "peft_config", None)
    inner = trained.get_base_model() if adapters else trained
    # FSDP makes a class of its own of the model's.
    kind: Any = next(kind for kind in type(inner).__mro__ if not kind.__module__.startswith("torch."))
    whole = kind.from_pretrained(inner.name_or_path, config=inner.config, dtype=torch.float32)
    if adapters:
        whole = get_peft_model(whole, adapters["default"])
    whole.load_state_dict(weights)
    return whole.merge_and_unload() if adapters else whole


def write_model(model: "PreTrainedModel", tokenizer: Tokenizer, folder: Path) -> None:
    """Write a model, whole or not at all; of several processes the main one does it.

    Raises:
        ModelError: the model computes no numbers, or what is read differs from what was written.
    """
    import torch

    if not processes.is_main():
        return

    plain: Any = model
    plain = plain.to(plain.dtype).eval()  # one type for all weights: a reward head is trained in another
    ids = torch.tensor([tokenizer("Yes?", add_special_tokens=False)["input_ids"]], device=plain.device)
    with torch.inference_mode():  # weights may be numbers that are too large to compute with
        if not bool(plain(input_ids=ids).logits.isfinite().all()):
            raise ModelError(f"{folder}: what the model computes is nan, and so is its loss; lower learning_rate")
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    plain.save_pretrained(partial)
    tokenizer.save_pretrained(partial)
    read = type(plain).from_pretrained(partial, dtype=plain.dtype).state_dict()
    written = {name: tensor.cpu() for name, tensor in plain.state_dict().items()}
    same = written.keys() == read.keys() and all(
        torch.equal(_bits(written[name]), _bits(read[name])) for name in written
    )
    if not same:
        raise ModelError(f"{partial}: differs from the trained model once it is read again; run the stage again")
    sync(partial)
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)


def copy_model(source: Path, folder: Path) -> None:
    """Copy a saved model, whole or not at all: where nothing is to be learned, it is what a training would give.

    Of several processes the main one does it.
    """
    if not processes.is_main():
        return
    partial = folder.with_name(f".{folder.name}.partial")
    for leftover in (partial, folder):
        shutil.rmtree(leftover, ignore_errors=True)
    shutil.copytree(source, partial)
    sync(partial)
    partial.rename(folder)


def sync(folder: Path) -> None:
    """Have the disk hold what was written into a folder, so that a rename or a mark after it cannot come first."""
    for path in [*filter(Path.is_file, folder.rglob("*")), folder]:
        descriptor = os.open(path, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)
