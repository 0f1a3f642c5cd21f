"""Pre-training of the sandbox model: a plain Llama, trained from nothing on the packed documents of `corpus`.

The forward pass here is for training alone: fused weights, compiled blocks, tree-shaped attention masks, logits only
where there is a loss. `export` writes the same weights as transformers' `LlamaForCausalLM`, and a test holds the two to
equal logits. On a CPU two single-threaded ranks (gloo) are about twice as fast as one process with two threads.

Optimizer: Muon for the matrices (Jordan et al. 2024), AdamW for embeddings and norms; the rate is constant, then falls
linearly to zero, without which samples stay poor however low the loss.
"""

import argparse
import json
import math
import os
import time
from collections.abc import Generator
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import numpy.typing as npt
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from constitutional.sandbox.corpus import FIRST, LAST, MAX_SEGMENTS, Rows, make_rows


@dataclass(frozen=True)
class Recipe:
    """Everything that the weights depend on, besides the corpus."""

    hidden: int = 256
    layers: int = 4
    heads: int = 4
    feed_forward: int = 704
    vocabulary: int = 4096
    rope_theta: float = 10_000.0
    row_length: int = 640
    rows_per_step: int = 12
    """Over all ranks."""
    steps: int = 12600
    learning_rate: float = 2.5e-3
    warmup_steps: int = 60
    decay: float = 0.5
    """The share of the steps, at the end, over which the learning rate falls to zero."""
    last: float = 2 / 7
    """The share of the steps, at the end, in which the documents are drawn by `corpus.LAST`."""
    weight_decay: float = 0.05
    seed: int = 0


class Batch(NamedTuple):
    """B rows of T tokens on the device; `Rows` says what each is."""

    ids: Tensor
    parents: Tensor
    positions: Tensor
    weights: Tensor
    mask: Tensor
    """(B, 1, T, T): 0 where a token sees another, a large negative number elsewhere."""


def to_batch(rows: Rows, span: slice, device: torch.device, dtype: torch.dtype) -> Batch:
    """Some rows as tensors, with the mask that lets a token see its own ancestors only."""

    def take(array: npt.NDArray[Any], kind: torch.dtype) -> Tensor:
        return torch.from_numpy(array[span].astype("int64" if kind == torch.long else "float32")).to(device)

    segments = take(rows.segments, torch.long)
    bits = take(rows.ancestors, torch.long).gather(1, segments)  # (B, T): the branches that each token sees
    sees = ((bits[:, :, None] >> segments[:, None, :]) & 1).bool()
    length = sees.shape[-1]
    sees &= torch.ones(length, length, dtype=torch.bool, device=device).tril()
    mask = torch.zeros(sees.shape, dtype=dtype, device=device).masked_fill_(~sees, -30_000.0)
    return Batch(
        take(rows.ids, torch.long),
        take(rows.parents, torch.long),
        take(rows.positions, torch.long),
        take(rows.weights, torch.float32),
        mask[:, None],
    )


class Block(nn.Module):
    """A Llama layer with the query, key and value weights in one matrix, and gate and up in another."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        d, ff = recipe.hidden, recipe.feed_forward
        self.heads = recipe.heads

        def matrix(rows: int, columns: int, gain: float = 1.0) -> nn.Parameter:
            return nn.Parameter(torch.randn(rows, columns) * (0.6 * gain * columns**-0.5))

        residual = 1 / math.sqrt(2 * recipe.layers)
        self.qkv = matrix(3 * d, d)
        self.out = matrix(d, d, residual)
        self.gate_up = matrix(2 * ff, d)
        self.down = matrix(d, ff, residual)
        self.norm_1 = nn.Parameter(torch.ones(d))
        self.norm_2 = nn.Parameter(torch.ones(d))

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor) -> Tensor:
        """(B, T, hidden) to the same."""
        b, t, d = x.shape
        kind = x.dtype
        y = F.rms_norm(x, (d,), self.norm_1.to(kind), 1e-6)
        qkv = F.linear(y, self.qkv.to(kind)).view(b, t, 3, self.heads, d // self.heads)
        first, second = qkv[:, :, :2].chunk(2, dim=-1)
        turned = torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)
        q, k, v = (each.transpose(1, 2) for each in (turned[:, :, 0], turned[:, :, 1], qkv[:, :, 2]))
        # Written out, for the backward pass of the fused CPU kernel takes twice as long with a mask.
        scores = q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5 + mask
        seen = (scores.softmax(-1) @ v).transpose(1, 2).reshape(b, t, d)
        x = x + F.linear(seen, self.out.to(kind))
        y = F.rms_norm(x, (d,), self.norm_2.to(kind), 1e-6)
        gate, up = F.linear(y, self.gate_up.to(kind)).chunk(2, dim=-1)
        return x + F.linear(F.silu(gate) * up, self.down.to(kind))


class Sandbox(nn.Module):
    """The training-time model."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        self.recipe = recipe
        self.embedding = nn.Parameter(torch.randn(recipe.vocabulary, recipe.hidden) * 0.02)
        self.blocks = nn.ModuleList(Block(recipe) for _ in range(recipe.layers))
        self.norm = nn.Parameter(torch.ones(recipe.hidden))

    def hidden(self, ids: Tensor, positions: Tensor, mask: Tensor, dtype: torch.dtype) -> Tensor:
        """Final hidden states, (B, T, hidden)."""
        half = self.recipe.hidden // self.recipe.heads // 2
        inverse = self.recipe.rope_theta ** (-torch.arange(half, device=ids.device, dtype=torch.float32) / half)
        angle = positions[..., None].float() * inverse
        cos, sin = (each.to(dtype)[:, :, None, None, :] for each in (angle.cos(), angle.sin()))
        x = F.embedding(ids, self.embedding).to(dtype)
        for block in self.blocks:
            x = block(x, cos, sin, mask)
        return F.rms_norm(x, (x.shape[-1],), self.norm.to(dtype), 1e-6)

    def loss(self, batch: Batch, dtype: torch.dtype) -> Tensor:
        """Weighted mean cross-entropy of the weighted tokens, each predicted from the token before it in its branch."""
        hidden = self.hidden(batch.ids, batch.positions, batch.mask, dtype)
        row, at = (batch.weights > 0).nonzero(as_tuple=True)
        logits = F.linear(hidden[row, batch.parents[row, at]], self.embedding.to(dtype)).float()
        weights = batch.weights[row, at]
        losses = F.cross_entropy(logits, batch.ids[row, at], reduction="none")
        return (losses * weights).sum() / weights.sum()


def export(model: Sandbox, folder: Path, tokenizer: Path, *, sharpness: float = 1.0) -> None:
    """Write the weights in bf16 as a model that `AutoModelForCausalLM.from_pretrained(folder)` loads.

    The final norm is scaled by `sharpness`, and with it all logits: what the written model says at temperature 1 is
    what the trained one says at 1 / sharpness.
    """
    from transformers import AutoTokenizer, GenerationConfig, LlamaConfig, LlamaForCausalLM

    recipe = model.recipe
    chat = AutoTokenizer.from_pretrained(tokenizer)
    config = LlamaConfig(
        vocab_size=recipe.vocabulary,
        hidden_size=recipe.hidden,
        intermediate_size=recipe.feed_forward,
        num_hidden_layers=recipe.layers,
        num_attention_heads=recipe.heads,
        num_key_value_heads=recipe.heads,
        max_position_embeddings=2048,
        rms_norm_eps=1e-6,
        rope_parameters={"rope_type": "default", "rope_theta": recipe.rope_theta},
        tie_word_embeddings=True,
        bos_token_id=chat.bos_token_id,
        eos_token_id=chat.eos_token_id,
        pad_token_id=chat.pad_token_id,
    )
    plain = LlamaForCausalLM(config)  # type: ignore[no-untyped-call]
    state: dict[str, Tensor] = {"model.norm.weight": model.norm * sharpness}
    state["model.embed_tokens.weight"] = state["lm_head.weight"] = model.embedding
    for index, block in enumerate(model.blocks):
        assert isinstance(block, Block)
        name = f"model.layers.{index}"
        for part, weight in zip("qkv", block.qkv.chunk(3), strict=True):
            state[f"{name}.self_attn.{part}_proj.weight"] = weight
        state[f"{name}.self_attn.o_proj.weight"] = block.out
        for part, weight in zip(("gate", "up"), block.gate_up.chunk(2), strict=True):
            state[f"{name}.mlp.{part}_proj.weight"] = weight
        state[f"{name}.mlp.down_proj.weight"] = block.down
        state[f"{name}.input_layernorm.weight"] = block.norm_1
        state[f"{name}.post_attention_layernorm.weight"] = block.norm_2
    plain.load_state_dict({name: weight.detach().cpu().contiguous() for name, weight in state.items()})
    plain.generation_config = GenerationConfig(  # type: ignore[no-untyped-call]
        do_sample=True,
        temperature=1.0,
        max_new_tokens=256,
        bos_token_id=chat.bos_token_id,
        eos_token_id=chat.eos_token_id,
        pad_token_id=chat.pad_token_id,
    )
    plain.bfloat16().save_pretrained(folder)
    chat.save_pretrained(folder)


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


STEPS_PER_CHUNK = 50


def chunks(recipe: Recipe, tokenizer: Path, rank: int, ranks: int, first: int) -> Generator[Rows, None, None]:
    """This rank's rows, `STEPS_PER_CHUNK` steps at a time from chunk `first` on, made ahead in a process of its own."""
    rows = STEPS_PER_CHUNK * recipe.rows_per_step // ranks
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:

        def ask(index: int) -> Future[Rows]:
            seed = (recipe.seed * 10_000 + index) * 64 + rank
            is_last = index * STEPS_PER_CHUNK >= (1 - recipe.last) * recipe.steps
            return pool.submit(make_rows, seed, rows, recipe.row_length, tokenizer, LAST if is_last else FIRST)

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
class Progress:
    """How far training is, and what it took."""

    step: int = 0
    tokens: int = 0
    seconds: float = 0.0


class Trainer:
    """One rank's share of the training; `path` is the checkpoint that all ranks read and the first one writes."""

    def __init__(self, recipe: Recipe, path: Path) -> None:
        self.recipe = recipe
        self.path = path
        self.rank, self.ranks = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.dtype = torch.bfloat16
        torch.manual_seed(recipe.seed)
        self.model = Sandbox(recipe).to(self.device)
        self.optimizers = optimizers(self.model, recipe)
        self.done = Progress()
        if path.exists():
            self._resume()

    def _resume(self) -> None:
        saved = torch.load(self.path, map_location=self.device, weights_only=True)
        if saved["recipe"] != asdict(self.recipe):
            raise SystemExit(f"{self.path} was made by another recipe; delete it or use another --work folder")
        self.model.load_state_dict(saved["model"])
        for optimizer, state in zip(self.optimizers, saved["optimizers"], strict=True):
            optimizer.load_state_dict(state)
        self.done = Progress(saved["step"], saved["tokens"], saved["seconds"])

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


def train(recipe: Recipe, tokenizer: Path, work: Path, *, stop_at: int | None = None, compiled: bool = True) -> Sandbox:
    """Train to the end of the recipe, or to step `stop_at`; goes on from `work/checkpoint.pt` where there is one.

    Run in one process, or in several started by `torchrun`, each with its share of every step's rows.
    """
    trainer = Trainer(recipe, work / "checkpoint.pt")
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


def _log(path: Path, done: Progress, loss: float, factor: float) -> None:
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
    """Train, as one rank: `python -m torch.distributed.run --nproc_per_node 2 -m constitutional.sandbox.train …`."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--tokenizer", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--recipe", default="{}", help="JSON: fields of Recipe that differ from the default")
    parser.add_argument("--stop-at", type=int, default=None)
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    train(
        replace(Recipe(), **json.loads(arguments.recipe)),
        arguments.tokenizer,
        arguments.work,
        stop_at=arguments.stop_at,
    )


if __name__ == "__main__":
    main()
