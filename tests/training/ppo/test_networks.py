from typing import Any

import torch
import transformers

from constitutional.training.ppo.networks import make_networks, side_by_side

PROMPTS, RESPONSES = [[1, 5, 9, 4], [1], [1, 8]], [[7], [7, 2, 9], [3, 3]]


def capped_model() -> Any:  # noqa: ANN401
    """One that bends its logits after its head has computed them: no larger than ±½."""
    torch.manual_seed(0)
    config = transformers.Gemma2Config(
        vocab_size=20,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=8,
        final_logit_softcapping=0.5,
        attn_logit_softcapping=None,
        pad_token_id=0,
        initializer_range=1.0,
    )
    kind: Any = transformers.Gemma2ForCausalLM
    return kind(config).eval()


def test_prompts_and_responses_stand_side_by_side() -> None:
    batch = side_by_side(PROMPTS, RESPONSES, 0, torch.device("cpu"))
    assert batch.ids.tolist() == [[1, 5, 9, 4, 7], [1, 7, 2, 9, 0], [1, 8, 3, 3, 0]]
    assert batch.mask.tolist() == [[True, False, False], [True, True, True], [True, True, False]]
    assert batch.width == 3
    assert batch.tokens.tolist() == [7, 7, 2, 9, 3, 3]
    spread = batch.spread(torch.arange(1.0, 7.0))
    assert spread.tolist() == [[1, 0, 0], [2, 3, 4], [5, 6, 0]]


def test_logits_are_computed_where_replies_are_and_as_the_model_computes_them() -> None:
    policy = capped_model()
    networks = make_networks(policy, None, None, None, None)
    batch = side_by_side(PROMPTS, RESPONSES, 0, torch.device("cpu"))
    shapes: list[Any] = []
    policy.lm_head.register_forward_hook(lambda *passed: shapes.append(tuple(passed[2].shape)))
    found = networks.logprobs(batch, 0.5, entropy=True)
    assert shapes == [(1, 6, 20)]
    assert found.entropy is not None
    for row, (prompt, response) in enumerate(zip(PROMPTS, RESPONSES, strict=True)):
        with torch.no_grad():
            logits = policy(torch.tensor([[*prompt, *response]])).logits[0, len(prompt) - 1 : -1] / 0.5
        assert float(logits.abs().max()) <= 1  # they are capped
        by_hand = logits.log_softmax(-1)
        logprobs = by_hand[range(len(response)), response]
        torch.testing.assert_close(found.logprobs[row, : len(response)], logprobs, atol=1e-5, rtol=0)
        entropy = -(by_hand.exp() * by_hand).sum(-1)
        torch.testing.assert_close(found.entropy[row, : len(response)], entropy, atol=1e-5, rtol=0)
        assert not found.logprobs[row, len(response) :].any()
    found.logprobs.sum().backward()  # type: ignore[no-untyped-call]
    assert bool(policy.lm_head.weight.grad.any())
