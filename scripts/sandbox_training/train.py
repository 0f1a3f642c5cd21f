"""Pre-training of the sandbox model: a plain Llama, trained from nothing on the packed documents of `corpus`.

On a CPU two single-threaded ranks (gloo) are about twice as fast as one process with two threads.

Optimizer: Muon for the matrices (Jordan et al. 2024), AdamW for embeddings and norms; the rate is constant, then falls
linearly to zero, without which samples stay poor however low the loss.
"""

import argparse
import json
import os
import time
from collections.abc import Generator, Mapping
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from scripts.sandbox_training.corpus import FIRST, LAST, Shares, make_rows
from scripts.sandbox_training.network import Batch, Recipe, Sandbox, read_back, to_batch
from scripts.sandbox_training.packing import MAX_SEGMENTS, Rows


def rate_at(step: int, recipe: Recipe) -> float:
    """The learning rate's factor in [0, 1]: warm-up, constant, then linear to zero."""
    left = (recipe.steps - step) / (recipe.decay * recipe.steps)
    return min(1.0, (step + 1) / recipe.warmup_steps, max(0.0, left))


def optimizers(model: Sandbox, recipe: Recipe) -> list[torch.optim.Optimizer]:
    """Muon for the matrices of the blocks, AdamW for the rest."""
    matrices = [weight for block in model.blocks for weight in block.parameters() if weight.ndim == 2]
    chosen = {id(weight) for weight in matrices}
    rest = [weight for weight in model.parameters() if id(weight) not in chosen]
    return [
        torch.optim.Muon(
            matrices,
            lr=recipe.learning_rate,
            weight_decay=recipe.weight_decay,
            momentum=0.95,
            adjust_lr_fn="match_rms_adamw",
        ),
        torch.optim.AdamW(rest, lr=recipe.learning_rate, betas=(0.9, 0.98), weight_decay=0.0),
    ]


def shares_at(step: int, recipe: Recipe) -> Shares:
    """What kinds of documents are drawn at a step."""
    return LAST if step >= (1 - recipe.last) * recipe.steps else FIRST


STEPS_PER_CHUNK = 50
"""Rows are made for so many steps at once."""


def chunks(recipe: Recipe, tokenizer: Path, rank: int, ranks: int, first: int) -> Generator[Rows, None, None]:
    """This rank's rows, `STEPS_PER_CHUNK` steps at a time from chunk `first` on, made ahead in a process of its own."""
    rows = STEPS_PER_CHUNK * recipe.rows_per_step // ranks
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:

        def ask(index: int) -> Future[Rows]:
            seed = (recipe.seed * 10_000 + index) * 64 + rank
            shares = shares_at(index * STEPS_PER_CHUNK, recipe)
            return pool.submit(make_rows, seed, rows, recipe.row_length, tokenizer, shares)

        ahead = [ask(first), ask(first + 1)]
        index = first + 2
        while True:
            made = ahead.pop(0).result()
            ahead.append(ask(index))
            index += 1
            yield made


def save_atomically(state: dict[str, Any], path: Path) -> None:
    """Write a checkpoint so that a kill leaves either the old one or the new one."""
    temporary = path.with_suffix(".tmp")
    torch.save(state, temporary)
    temporary.replace(path)


@dataclass
class TrainingProgress:
    """How far training is, and what it took."""

    step: int = 0
    tokens: int = 0
    seconds: float = 0.0


class Trainer:
    """One rank's share of the training; `path` is the checkpoint that all ranks read and the first one writes."""

    def __init__(self, recipe: Recipe, path: Path, start: Mapping[str, Tensor] | None = None) -> None:
        self.recipe = recipe
        self.path = path
        self.rank, self.ranks = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.dtype = torch.bfloat16
        torch.manual_seed(recipe.seed)
        self.model = Sandbox(recipe).to(self.device)
        if start is not None:
            self.model.load_state_dict(start)
        self.optimizers = optimizers(self.model, recipe)
        self.done = TrainingProgress()
        if path.exists():
            self._resume()

    def _resume(self) -> None:
        saved = torch.load(self.path, map_location=self.device, weights_only=True)
        if saved["recipe"] != asdict(self.recipe):
            raise SystemExit(f"{self.path} was made by another recipe; delete it or use another --work folder")
        self.model.load_state_dict(saved["model"])
        for optimizer, state in zip(self.optimizers, saved["optimizers"], strict=True):
            optimizer.load_state_dict(state)
        self.done = TrainingProgress(saved["step"], saved["tokens"], saved["seconds"])

    def save(self) -> None:
        """Write the checkpoint, on the first rank."""
        if self.rank == 0:
            state = {
                "recipe": asdict(self.recipe),
                "model": self.model.state_dict(),
                "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
                **asdict(self.done),
            }
            save_atomically(state, self.path)

    def step(self, batch: Batch) -> float:
        """One optimizer step on this rank's share of the rows; returns this rank's loss."""
        factor = rate_at(self.done.step, self.recipe)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = self.recipe.learning_rate * factor
            optimizer.zero_grad(set_to_none=True)
        loss = self.model.loss(batch, self.dtype)
        loss.backward()  # type: ignore[no-untyped-call]
        if self.ranks > 1:
            self._average_gradients()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        for optimizer in self.optimizers:
            optimizer.step()
        self.done.step += 1
        return float(loss.detach())

    def _average_gradients(self) -> None:
        gradients = [weight.grad for weight in self.model.parameters() if weight.grad is not None]
        flat = torch.cat([gradient.reshape(-1) for gradient in gradients])
        dist.all_reduce(flat)
        flat /= self.ranks
        for gradient, mean in zip(gradients, torch.split(flat, [each.numel() for each in gradients]), strict=True):
            gradient.copy_(mean.view_as(gradient))


LOG_EVERY, SAVE_EVERY = 25, 100


def train(
    recipe: Recipe,
    tokenizer: Path,
    work: Path,
    *,
    start: Mapping[str, Tensor] | None = None,
    stop_at: int | None = None,
    compiled: bool = True,
) -> Sandbox:
    """Train to the end of the recipe, or to step `stop_at`; goes on from `work/checkpoint.pt` where there is one.

    Run in one process, or in several started by `torchrun`, each with its share of every step's rows. It begins with
    random weights, or with those of `start`.
    """
    trainer = Trainer(recipe, work / "checkpoint.pt", start)
    if trainer.ranks > 1:
        torch.set_num_threads(1)
        dist.init_process_group("gloo")
    if compiled:
        for block in trainer.model.blocks:
            block.compile(dynamic=False)
    done, share = trainer.done, recipe.rows_per_step // trainer.ranks
    end = min(recipe.steps, recipe.steps if stop_at is None else stop_at)
    data = chunks(recipe, tokenizer, trainer.rank, trainer.ranks, done.step // STEPS_PER_CHUNK)
    started = time.monotonic() - done.seconds
    rows: Rows | None = None
    total = 0.0
    while done.step < end:
        offset = done.step % STEPS_PER_CHUNK
        if rows is None or offset == 0:
            rows = next(data)
        span = slice(offset * share, (offset + 1) * share)
        total += trainer.step(to_batch(rows, span, trainer.device, trainer.dtype))
        done.tokens += trainer.ranks * int((rows.segments[span] != MAX_SEGMENTS).sum())
        done.seconds = time.monotonic() - started
        if trainer.rank == 0 and done.step % LOG_EVERY == 0:
            _log(work / "log.jsonl", done, total / LOG_EVERY, rate_at(done.step - 1, recipe))
            total = 0.0
        if done.step % SAVE_EVERY == 0 or done.step == end:
            trainer.save()
    data.close()
    return trainer.model


def _log(path: Path, done: TrainingProgress, loss: float, factor: float) -> None:
    line = {
        "step": done.step,
        "minutes": round(done.seconds / 60, 2),
        "tokens": done.tokens,
        "tokens_per_s": round(done.tokens / done.seconds),
        "loss": round(loss, 4),
        "rate": round(factor, 3),
    }
    print(json.dumps(line), flush=True)
    with path.open("a", encoding="utf-8") as log:
        log.write(json.dumps(line) + "\n")


def load_checkpoint(path: Path) -> tuple[Sandbox, dict[str, Any]]:
    """The model of a checkpoint, and what the checkpoint says of its training."""
    saved = torch.load(path, map_location="cpu", weights_only=True)
    model = Sandbox(replace(Recipe(), **saved["recipe"]))
    model.load_state_dict(saved["model"])
    return model, {name: saved[name] for name in ("recipe", "step", "tokens", "seconds")}


def main() -> None:
    """Train, as one rank: `python -m torch.distributed.run --nproc_per_node 2 -m scripts.sandbox_training.train …`."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--tokenizer", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--recipe", default="{}", help="JSON: fields of Recipe that differ from the default")
    parser.add_argument("--begin-with", type=Path, default=None, help="an exported model to begin with")
    parser.add_argument("--stop-at", type=int, default=None)
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    recipe = replace(Recipe(), **json.loads(arguments.recipe))
    start = None if arguments.begin_with is None else read_back(arguments.begin_with, recipe)
    train(recipe, arguments.tokenizer, arguments.work, start=start, stop_at=arguments.stop_at)


if __name__ == "__main__":
    main()
