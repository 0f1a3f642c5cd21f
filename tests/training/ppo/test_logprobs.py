"""Log-probabilities and entropies from logits, in chunks and in place, against the plain formula."""

import math

import pytest
import torch
from torch import Tensor, tensor
from torch.testing import assert_close

from constitutional.training.ppo import math as ppo_math
from constitutional.training.ppo.math import token_logprobs


def test_log_probabilities_are_those_at_the_temperature_of_sampling() -> None:
    # At temperature 2, logits 2·log 3 and 0 are log 3 and 0: probabilities 3/4 and 1/4.
    logits = tensor([[[2 * math.log(3), 0.0], [2 * math.log(3), 0.0]]])
    logprobs, entropy = token_logprobs(logits, tensor([[0, 1]]), temperature=2.0, entropy=True)
    assert entropy is not None
    assert_close(logprobs, tensor([[3 / 4, 1 / 4]]).log())
    # −3/4·log(3/4) − 1/4·log(1/4) = 0.21576 + 0.34657
    assert_close(entropy, tensor([[0.56234, 0.56234]]), atol=1e-5, rtol=0)


def test_the_entropy_is_greatest_where_all_tokens_are_equal_and_zero_where_one_is_certain() -> None:
    logits = tensor([[[5.0] * 4, [200.0, 0.0, 0.0, 0.0]]])
    _, entropy = token_logprobs(logits, tensor([[0, 0]]), entropy=True)
    assert entropy is not None
    assert_close(entropy, tensor([[math.log(4), 0.0]]))
    assert token_logprobs(logits, tensor([[0, 0]])).entropy is None


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("chunk", [1, 7, 14, 10**6])  # a token, a token, two tokens, all sequences at once
def test_in_chunks_and_in_place_values_and_gradients_are_those_of_the_plain_formula(
    monkeypatch: pytest.MonkeyPatch, chunk: int, temperature: float
) -> None:
    monkeypatch.setattr(ppo_math, "CHUNK", chunk)
    torch.manual_seed(0)
    given = torch.randn(3, 6, 7, requires_grad=True)
    tokens, weights = torch.randint(7, (3, 5)), torch.randn(2, 3, 5)
    log_policy = (given[:, 1:] / temperature).log_softmax(-1)
    expected = log_policy.gather(-1, tokens[..., None])[..., 0], -(log_policy.exp() * log_policy).sum(-1)

    def gradient(numbers: tuple[Tensor, ...]) -> Tensor:
        loss = torch.stack([(weight * number).sum() for weight, number in zip(weights, numbers, strict=False)]).sum()
        return torch.autograd.grad(loss, given, retain_graph=True)[0]

    # As models may give them: a slice of the logits, whose memory has gaps.
    both = token_logprobs(given.clone()[:, 1:], tokens, temperature, entropy=True)
    assert both.entropy is not None
    found = both.logprobs, both.entropy
    for one, other in zip(found, expected, strict=True):
        assert_close(one, other, atol=1e-6, rtol=0)
    assert_close(gradient(found), gradient(expected), atol=1e-6, rtol=0)
    alone = token_logprobs(given.clone()[:, 1:], tokens, temperature).logprobs
    assert_close(gradient((alone,)), gradient(expected[:1]), atol=1e-6, rtol=0)
    # A loss of one of the two that were asked for.
    for number in range(2):
        fresh = token_logprobs(given.clone()[:, 1:], tokens, temperature, entropy=True)
        (by_one,) = torch.autograd.grad((fresh[number] * weights[0]).sum(), given)  # type: ignore[operator]
        (by_other,) = torch.autograd.grad((expected[number] * weights[0]).sum(), given, retain_graph=True)
        assert_close(by_one, by_other, atol=1e-6, rtol=0)


def test_the_gradient_takes_the_memory_of_the_logits_and_a_graph_that_needs_them_is_refused() -> None:
    given = torch.randn(1, 3, 5, requires_grad=True)
    logits, gradients = given * 2.0, list[Tensor]()
    logits.register_hook(gradients.append)  # type: ignore[no-untyped-call]
    logprobs = token_logprobs(logits, tensor([[0, 1, 2]])).logprobs
    logprobs.sum().backward(retain_graph=True)  # type: ignore[no-untyped-call]
    assert gradients[0].data_ptr() == logits.data_ptr()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        logprobs.sum().backward()  # type: ignore[no-untyped-call]
    # The gradient of tanh is computed from what it gave: the wrong one, if nobody watched.
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        token_logprobs(given.tanh(), tensor([[0, 1, 2]])).logprobs.sum().backward()  # type: ignore[no-untyped-call]


@pytest.mark.parametrize("entropy", [False, True])
def test_of_logits_in_half_precision_all_is_computed_in_full_precision(entropy: bool) -> None:
    # 1/16 is exact in bfloat16; log(e^(1/16) / (e^(1/16) + 7)) is not: 0.0625 − log(8.0644945) = −2.0249704.
    first = tensor([[[1 / 16] + [0.0] * 7]], dtype=torch.bfloat16)
    assert_close(token_logprobs(first, tensor([[0]])).logprobs, tensor([[-2.0249704]]), atol=1e-6, rtol=0)

    torch.manual_seed(0)
    given = torch.randn(1, 4, 50, dtype=torch.bfloat16)
    tokens, weights = torch.randint(50, (1, 4)), torch.randn(1, 4)
    exact = given.float().requires_grad_()
    log_policy = (exact / 0.7).log_softmax(-1)
    expected = (weights * log_policy.gather(-1, tokens[..., None])[..., 0]).sum()
    expected = expected - (log_policy.exp() * log_policy).sum() * entropy
    expected.backward()  # type: ignore[no-untyped-call]
    logits = given.clone().requires_grad_()
    found = token_logprobs(logits.clone(), tokens, 0.7, entropy=entropy)
    loss = (weights * found.logprobs).sum() + (0.0 if found.entropy is None else found.entropy.sum())
    assert_close(loss, expected, atol=1e-5, rtol=0)
    loss.backward()  # type: ignore[no-untyped-call]
    assert exact.grad is not None
    assert logits.grad is not None
    assert logits.grad.dtype == torch.bfloat16
    # Rounded once, at the end, to a number next to it: 8 bits.
    assert_close(logits.grad.float(), exact.grad, atol=1e-6, rtol=2**-8)
