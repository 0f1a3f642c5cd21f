"""The sandbox model as it is trained, and as `transformers` reads it.

The forward pass here is for training alone: fused weights, compiled blocks, tree-shaped attention masks, logits only
where there is a loss. `export` writes the same weights as transformers' `LlamaForCausalLM`, and a test holds the two to
equal logits; `read_back` undoes it.
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scripts.sandbox_training.packing import Rows


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
    last: float = 0.4
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


SHARPNESS = 1.4
"""The exported final norm is scaled by this, so that rare slips within a sentence become rarer at temperature 1."""


def export(model: Sandbox, folder: Path, tokenizer: Path, *, sharpness: float = SHARPNESS) -> None:
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


def read_back(folder: Path, recipe: Recipe, *, sharpness: float = SHARPNESS) -> dict[str, Tensor]:
    """The weights that `export` wrote with this sharpness, as the state of a `Sandbox`, in single precision."""
    from safetensors.torch import load_file

    plain = {name: weight.float() for name, weight in load_file(folder / "model.safetensors").items()}
    state = {"embedding": plain["model.embed_tokens.weight"], "norm": plain["model.norm.weight"] / sharpness}
    for index in range(recipe.layers):
        source, target = f"model.layers.{index}", f"blocks.{index}"
        state[f"{target}.qkv"] = torch.cat([plain[f"{source}.self_attn.{part}_proj.weight"] for part in "qkv"])
        state[f"{target}.out"] = plain[f"{source}.self_attn.o_proj.weight"]
        state[f"{target}.gate_up"] = torch.cat([plain[f"{source}.mlp.{part}_proj.weight"] for part in ("gate", "up")])
        state[f"{target}.down"] = plain[f"{source}.mlp.down_proj.weight"]
        state[f"{target}.norm_1"] = plain[f"{source}.input_layernorm.weight"]
        state[f"{target}.norm_2"] = plain[f"{source}.post_attention_layernorm.weight"]
    return state
