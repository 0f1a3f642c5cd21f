"""Saving what was trained: whole or not at all, and compared with what was trained once it is read again."""

import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from constitutional.base.errors import ModelError
from constitutional.engines.chat import Tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedModel, Trainer


def save_model(trainer: "Trainer", folder: Path) -> "PreTrainedModel":
    """Write what was trained, whole or not at all, adapters merged, and read it again to compare; returns the model.

    Raises:
        ModelError: what is read differs from what was trained.
    """
    # Without the wrapper that computes in bfloat16 during training: it is no part of the model that is saved.
    model: Any = trainer.accelerator.unwrap_model(trainer.model, keep_fp32_wrapper=False)
    plain = model.merge_and_unload() if hasattr(model, "merge_and_unload") else model
    return write_model(plain, trainer.processing_class, folder)


def write_model(model: "PreTrainedModel", tokenizer: Tokenizer, folder: Path) -> "PreTrainedModel":
    """Write a model, whole or not at all, and read it again to compare; returns it.

    Raises:
        ModelError: what is read differs from what was written.
    """
    import torch

    plain: Any = model
    plain = plain.to(plain.dtype).eval()  # one type for all weights: a reward head is trained in another
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    plain.save_pretrained(partial)
    tokenizer.save_pretrained(partial)
    read = type(plain).from_pretrained(partial, dtype=plain.dtype).state_dict()
    written = {name: tensor.cpu() for name, tensor in plain.state_dict().items()}
    same = written.keys() == read.keys() and all(torch.equal(written[name], read[name]) for name in written)
    if not same:
        raise ModelError(f"{partial}: differs from the trained model once it is read again; run the stage again")
    sync(partial)
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)
    saved: PreTrainedModel = plain
    return saved


def copy_model(source: Path, folder: Path) -> None:
    """Copy a saved model, whole or not at all: where nothing is to be learned, it is what a training would give."""
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
