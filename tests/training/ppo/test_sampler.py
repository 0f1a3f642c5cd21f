"""How PPO's own sampler draws, on models of every kind; what it draws for a seed is tested with the trainer."""

from typing import Any

import pytest

from constitutional.engines.base import Sampling
from constitutional.training.ppo import rollout
from constitutional.training.ppo.rollout import Response, TransformersSampler

KINDS: dict[str, dict[str, Any]] = {
    "LlamaConfig": {},
    "Qwen3Config": {"head_dim": 8},
    "Gemma3TextConfig": {
        "head_dim": 8,
        "sliding_window": 8,
        "initializer_range": 0.03,  # its embeddings are scaled up
        "layer_types": ["sliding_attention", "full_attention"],
    },
    # Two that keep other things than keys and values, or have no positions: they make a cache of their own.
    "Lfm2Config": {"layer_types": ["conv", "full_attention"]},
    "BloomConfig": {"n_layer": 2, "n_head": 4},
}
PROMPTS = {
    "of different lengths": [[3, 9, 4], [5], [8] * 20, [7, 6, 5, 4], [30, 31]],
    "of one length": [[3, 9, 4], [5, 5, 9], [8, 8, 8]],
}
ENDS = frozenset(range(10, 22))


def make(kind: str) -> Any:  # noqa: ANN401
    import torch
    import transformers

    torch.set_num_threads(1)
    sizes = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "initializer_range": 0.3}
    tokens = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = getattr(transformers, kind)(**{**sizes, **heads, **tokens, **KINDS[kind]})
        return transformers.AutoModelForCausalLM.from_config(config).eval()  # type: ignore[no-untyped-call]


def draw(model: Any, prompts: list[list[int]], most: int = 12, *, bf16: bool = False) -> list[Response]:  # noqa: ANN401
    sampler = TransformersSampler(ENDS, 0, batch_size=len(prompts), bf16=bf16)
    sampler.sync(model, 0)
    drawn = dict(sampler.sample(prompts, range(len(prompts)), Sampling(0.7, max_tokens=most)))
    return [drawn[place] for place in range(len(prompts))]


def by_hand(model: Any, prompt: list[int], seed: int, most: int = 12) -> tuple[list[int], list[float]]:  # noqa: ANN401
    """Without a cache, a batch or padding."""
    import numpy as np
    import torch

    ids: list[int] = []
    logprobs: list[float] = []
    for uniform in np.random.default_rng(seed).random(most):
        with torch.no_grad():
            logits = model(torch.tensor([prompt + ids]), use_cache=False).logits[0, -1]
        of_tokens = (logits / 0.7).log_softmax(-1)
        ids.append(int((of_tokens.double().exp().cumsum(-1) <= uniform).sum()))
        logprobs.append(float(of_tokens[ids[-1]]))
        if ids[-1] in ENDS:
            break
    return ids, logprobs


@pytest.mark.parametrize("look", [1, 5, 99])
@pytest.mark.parametrize("lengths", PROMPTS)
@pytest.mark.parametrize("kind", KINDS)
def test_replies_are_those_of_a_row_by_itself_however_rarely_it_is_looked_at_which_have_ended(
    monkeypatch: pytest.MonkeyPatch, kind: str, lengths: str, look: int
) -> None:
    monkeypatch.setattr(rollout, "LOOK_ON_CPU", look)
    model, prompts = make(kind), PROMPTS[lengths]
    before = model.config._attn_implementation
    replies = draw(model, prompts)
    assert len({len(reply.ids) for reply in replies}) > 1
    for seed, (prompt, reply) in enumerate(zip(prompts, replies, strict=True)):
        ids, logprobs = by_hand(model, prompt, seed)
        assert reply.ids == ids
        assert reply.logprobs == pytest.approx(logprobs, abs=1e-5)
        assert reply.ended == (ids[-1] in ENDS)
    assert model.config._attn_implementation == before


def test_under_autocast_keys_are_kept_in_the_numbers_that_attention_would_convert_them_to(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import torch
    from transformers import DynamicCache

    from constitutional.engines import attention

    caches: list[Any] = []
    own = attention.cache_in_place

    def kept(layers: int, most: int) -> Any:  # noqa: ANN401
        caches.append(own(layers, most))
        return caches[-1]

    model, prompts = make("LlamaConfig"), PROMPTS["of different lengths"]
    monkeypatch.setattr(attention, "cache_in_place", kept)
    replies = draw(model, prompts, bf16=True)
    assert {layer.keys.dtype for layer in caches[0].layers} == {torch.bfloat16}
    # Transformers' own cache keeps keys as they come, which is in 32 bits.
    monkeypatch.setattr(attention, "cache_in_place", lambda *_: DynamicCache())
    assert draw(model, prompts, bf16=True) == replies


def test_between_two_looks_no_number_is_asked_of_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    model, asked = make("LlamaConfig"), 0
    monkeypatch.setattr(rollout, "LOOK_ON_CPU", 99)

    def counted(name: str) -> Any:  # noqa: ANN401
        own = getattr(torch.Tensor, name)

        def call(*args: Any, **named: Any) -> Any:  # noqa: ANN401
            nonlocal asked
            asked += 1
            return own(*args, **named)

        return call

    for name in ("__bool__", "__int__", "__float__", "__index__", "item", "tolist", "nonzero", "cpu", "numpy"):
        monkeypatch.setattr(torch.Tensor, name, counted(name))
    times = []
    for most in (2, 12):
        asked = 0
        draw(model, PROMPTS["of different lengths"], most)
        times.append(asked)
    assert times[0] == times[1] > 0
