import math

import pytest
import torch
from torch import Tensor, tensor
from torch.testing import assert_close

from constitutional.training.ppo.math import (
    AdaptiveKL,
    Aggregation,
    Clip,
    Shaping,
    aggregate,
    denominator,
    ensemble,
    explained_variance,
    gae,
    importance_weights,
    kl_estimate,
    kl_loss,
    masked_mean,
    masked_whiten,
    normalise,
    policy_loss,
    shaped,
    token_logprobs,
    token_rewards,
    value_loss,
)

NAN, INF = math.nan, math.inf
HOWS: tuple[Aggregation, ...] = ("token_mean", "seq_mean_token_sum", "seq_mean_token_mean")


def masks(*lengths: int, width: int) -> Tensor:
    return torch.arange(width) < tensor(lengths)[:, None]


# --- Scores ---


def test_an_ensemble_counts_a_response_for_less_where_its_members_disagree() -> None:
    # Means 2 and 2, biased deviations √((1 + 1) / 2) = 1 and 0; 2 − ½·1 and 2 − ½·0.
    assert_close(ensemble(tensor([[1.0, 2.0], [3.0, 2.0]]), k=0.5), tensor([1.5, 2.0]))
    assert_close(ensemble(tensor([[1.0, -4.0]]), k=3.0), tensor([1.0, -4.0]))  # one model agrees with itself


def test_scores_are_normalised_by_the_reference_samples_and_not_by_the_batch() -> None:
    assert_close(normalise(tensor([5.0, 9.0]), mean=3.0, deviation=4.0), tensor([0.5, 1.5]))
    with pytest.raises(ValueError, match="do not vary"):
        normalise(tensor([1.0]), mean=1.0, deviation=0.0)


def test_penalties_come_after_the_clip_and_reach_the_responses_that_they_are_for() -> None:
    scores, mask, ended = tensor([9.0, -9.0, 1.0]), masks(2, 3, 1, width=3), tensor([True, False, False])
    # 2 − 2·0.1; −2 − 1 − 3·0.1, below the clip's bound; 1 − 1 − 1·0.1
    shaping = Shaping(clip=2.0, missing_eos_penalty=1.0, length_penalty=0.1)
    assert_close(shaped(scores, mask, ended, shaping), tensor([1.8, -3.3, -0.1]))
    assert_close(shaped(scores, mask, ended, Shaping()), scores)


# --- Rewards ---


def test_the_three_estimates_of_kl() -> None:
    # π = 1/2, π_ref = 1/4: ρ = 1/2. k1 = log 2, k2 = (log 2)²/2, k3 = 1/2 − 1 + log 2.
    logprobs, ref_logprobs = tensor([[0.5]]).log(), tensor([[0.25]]).log()
    assert_close(kl_estimate(logprobs, ref_logprobs, "k1"), tensor([[0.6931472]]))
    assert_close(kl_estimate(logprobs, ref_logprobs, "k2"), tensor([[0.2402265]]))
    assert_close(kl_estimate(logprobs, ref_logprobs, "k3"), tensor([[0.1931472]]))
    # The other way round, ρ = 2: k1 is negative, k3 = 2 − 1 − log 2.
    assert_close(kl_estimate(ref_logprobs, logprobs, "k1"), tensor([[-0.6931472]]))
    assert_close(kl_estimate(ref_logprobs, logprobs, "k3"), tensor([[0.3068528]]))


def test_k1_and_k3_average_to_the_kl_and_k2_does_not() -> None:
    # π = (1/2, 1/2), π_ref = (1/4, 3/4): KL = ½·log 2 + ½·log(2/3) = 0.1438410.
    policy, reference = tensor([0.5, 0.5]), tensor([0.25, 0.75])
    means = {kind: (policy * kl_estimate(policy.log(), reference.log(), kind)).sum() for kind in ("k1", "k2", "k3")}
    assert_close(means["k1"], tensor(0.1438410))
    assert_close(means["k3"], tensor(0.1438410))
    # ½·(log 2)²/2 + ½·(log 1.5)²/2 = 0.1201133 + 0.0411005
    assert_close(means["k2"], tensor(0.1612138))


def test_as_a_loss_the_kl_has_the_value_of_k3_and_its_own_gradient() -> None:
    logits, reference = torch.tensor([0.3, -1.0, 0.5], requires_grad=True), tensor([0.2, 0.5, 0.3])
    log_policy = logits.log_softmax(-1)
    exact = (log_policy.exp() * (log_policy - reference.log())).sum()
    # The expectation over tokens that the policy draws, each token's loss weighted by its probability.
    estimate = (log_policy.exp().detach() * kl_loss(log_policy, reference.log())).sum()
    assert_close(estimate, exact)
    assert_close(*(torch.autograd.grad(each, logits, retain_graph=True)[0] for each in (estimate, exact)))


def test_every_token_pays_for_its_kl_and_the_last_one_earns_the_score() -> None:
    # β = 1/10; log π − log π_ref is 1 and −2 in the first response, 3 in the second. Padding holds anything.
    logprobs = tensor([[-1.0, -3.0, NAN], [-1.0, -INF, 0.0]])
    ref_logprobs = tensor([[-2.0, -1.0, 0.0], [-4.0, -INF, NAN]])
    rewards = token_rewards(tensor([5.0, 7.0]), logprobs, ref_logprobs, masks(2, 1, width=3), kl_coefficient=0.1)
    assert_close(rewards, tensor([[-0.1, 0.2 + 5.0, 0.0], [-0.3 + 7.0, 0.0, 0.0]]))


def test_advantages_of_two_tokens_by_hand() -> None:
    # γ = 1/2, λ = 1/2. δ_1 = 4 − 2 = 2; δ_0 = 1 + ½·2 − 1 = 1. A_1 = 2, A_0 = 1 + ¼·2 = 1.5. Returns: A + V.
    found = gae(tensor([[1.0, 4.0]]), tensor([[1.0, 2.0]]), masks(2, width=2), gamma=0.5, lam=0.5)
    assert_close(found.advantages, tensor([[1.5, 2.0]]))
    assert_close(found.returns, tensor([[2.5, 4.0]]))


def test_advantages_agree_with_the_sum_that_defines_them() -> None:
    torch.manual_seed(0)
    lengths, gamma, lam = (5, 1, 3, 4), 0.9, 0.8
    rewards, values, mask = torch.randn(4, 5), torch.randn(4, 5), masks(*lengths, width=5)
    found = gae(rewards, values, mask, gamma, lam)
    for b, length in enumerate(lengths):
        for t in range(5):
            expected = 0.0
            for i in range(t, length):  # only a response's own tokens; the value after the last is 0
                next_value = float(values[b, i + 1]) if i + 1 < length else 0.0
                delta = float(rewards[b, i]) + gamma * next_value - float(values[b, i])
                expected += (gamma * lam) ** (i - t) * delta
            assert float(found.advantages[b, t]) == pytest.approx(expected, abs=1e-5)
    assert_close(found.returns, found.advantages + torch.where(mask, values, 0.0))


def test_with_lambda_1_returns_are_what_is_still_to_come() -> None:
    # 3 + 2 + 1, 2 + 1, 1, whatever the critic says.
    found = gae(tensor([[3.0, 2.0, 1.0]]), tensor([[7.0, -1.0, 0.5]]), masks(3, width=3), gamma=1.0, lam=1.0)
    assert_close(found.returns, tensor([[6.0, 3.0, 1.0]]))


# --- Means and whitening ---


def test_a_mean_is_over_the_mask() -> None:
    values, mask = tensor([[1.0, 2.0, NAN], [6.0, NAN, INF]]), masks(2, 1, width=3)
    assert_close(masked_mean(values, mask), tensor(3.0))  # (1 + 2 + 6) / 3


def test_whitening_gives_openais_numbers() -> None:
    # Mean 1.6, biased variance 2·(0.01 + 0.04 + 0.09 + 0.16) / 9 = 1/15: 1.2 becomes −0.4·√15 + 1.6 = 0.0508.
    values = tensor([[1.2, 1.3, 1.4], [1.5, 1.6, 1.7], [1.8, 1.9, 2.0]])
    everywhere = torch.ones(3, 3, dtype=torch.bool)
    kept = masked_whiten(values, everywhere, shift_mean=False)
    # lm-human-preferences' whiten(rewards, shift_mean=False), run in TensorFlow
    published = [[0.05080712, 0.4381051, 0.8254035], [1.2127019, 1.6, 1.9872989], [2.3745968, 2.7618952, 3.149194]]
    assert_close(kept, tensor(published), atol=1e-5, rtol=0)
    assert_close(masked_whiten(values, everywhere, shift_mean=True), kept - 1.6)


def test_whitening_leaves_padding_out_and_at_zero() -> None:
    # 1 and 3: mean 2, variance 1.
    whitened = masked_whiten(tensor([[1.0, NAN], [3.0, 99.0]]), masks(1, 1, width=2), shift_mean=True)
    assert_close(whitened, tensor([[-1.0, 0.0], [1.0, 0.0]]))


def test_a_perfect_critic_explains_everything_and_a_constant_one_nothing() -> None:
    returns, mask = tensor([[1.0, 3.0], [5.0, NAN]]), masks(2, 1, width=2)
    assert explained_variance(returns, returns, mask) == 1.0
    assert explained_variance(tensor([[2.0, 2.0], [2.0, 0.0]]), returns, mask) == pytest.approx(0.0, abs=1e-6)
    # Errors 0, 0, 3 with mean 1: variance (1 + 1 + 4) / 3 = 2; of the returns (4 + 0 + 4) / 3. 1 − 2·3/8
    assert explained_variance(tensor([[1.0, 3.0], [2.0, 0.0]]), returns, mask) == pytest.approx(0.25)
    assert explained_variance(returns, torch.ones(2, 2), mask) is None


# --- Losses ---


def of_ratios(*ratios: float) -> Tensor:
    return tensor([ratios]).log()


def test_the_policys_loss_stops_where_a_ratio_has_gone_far_enough() -> None:
    ratios, advantages = of_ratios(1.5, 0.5, 1.5, 0.5, 1.1), tensor([[1.0, 1.0, -2.0, -2.0, 1.0]])
    logprobs = ratios.clone().requires_grad_()
    found = policy_loss(logprobs, torch.zeros(1, 5), advantages, masks(5, width=5), Clip(low=0.2, high=0.3))
    # −min(1.5, 1.3), −min(0.5, 0.8), −min(−3, −2.6), −min(−1, −1.6), −1.1
    assert_close(found.per_token, tensor([[-1.3, -0.5, 3.0, 1.6, -1.1]]))
    # The gradient is −A·ratio where nothing was clipped, which is where the loss is not the clipped one.
    found.per_token.sum().backward()  # type: ignore[no-untyped-call]
    assert logprobs.grad is not None
    assert_close(logprobs.grad, tensor([[0.0, -0.5, 3.0, 0.0, -1.1]]))
    assert_close(found.clip_fraction, tensor(2 / 5))
    # The mean of r − 1 − log r: 0.0945349, 0.1931472, both twice, and 0.0046898.
    assert_close(found.approx_kl, tensor((2 * 0.0945349 + 2 * 0.1931472 + 0.0046898) / 5), atol=1e-6, rtol=0)


def test_the_dual_clip_bounds_the_loss_of_a_bad_token_that_became_likely() -> None:
    ratios, advantages = of_ratios(10.0, 2.0, 10.0), tensor([[-1.0, -1.0, 1.0]])
    logprobs = ratios.clone().requires_grad_()
    found = policy_loss(logprobs, torch.zeros(1, 3), advantages, masks(3, width=3), Clip(dual=3.0))
    # −max(−10, −3), −max(−2, −3), and the common clip: −1.2
    assert_close(found.per_token, tensor([[3.0, 2.0, -1.2]]))
    assert_close(found.clip_fraction, tensor(2 / 3))
    found.per_token.sum().backward()  # type: ignore[no-untyped-call]
    assert_close(logprobs.grad, tensor([[0.0, 2.0, 0.0]]))


def test_a_ratio_beyond_all_bounds_gives_a_finite_loss() -> None:
    found = policy_loss(tensor([[-1.0]]), tensor([[-200.0]]), tensor([[-1.0]]), masks(1, width=1), Clip())
    assert_close(found.per_token, tensor([[math.exp(20)]]))


def test_in_the_first_epoch_ratios_are_1_and_the_gradient_is_reinforces() -> None:
    torch.manual_seed(0)
    logits, tokens = torch.randn(2, 3, 5, requires_grad=True), torch.randint(5, (2, 3))
    advantages, mask = torch.randn(2, 3), masks(3, 2, width=3)
    logprobs = token_logprobs(logits, tokens).logprobs
    found = policy_loss(logprobs, logprobs.detach(), advantages, mask, Clip())
    assert_close(found.per_token, torch.where(mask, -advantages, 0.0), atol=0, rtol=0)
    assert float(found.clip_fraction) == 0
    assert float(found.approx_kl) == 0
    reinforce = -(torch.where(mask, advantages, 0.0) * logits.log_softmax(-1).gather(-1, tokens[..., None])[..., 0])
    assert_close(
        *(torch.autograd.grad(each.sum(), logits, retain_graph=True)[0] for each in (found.per_token, reinforce))
    )


def test_what_another_program_drew_is_weighed_by_its_ratio_up_to_a_bound() -> None:
    trainer = tensor([[0.5, 0.5, 0.2]]).log().requires_grad_()
    weights = importance_weights(trainer, tensor([[0.4, 0.1, 0.4]]).log(), bound=2.0)
    assert_close(weights, tensor([[1.25, 2.0, 0.5]]))  # 5 would be the second
    assert not weights.requires_grad
    found = policy_loss(
        torch.zeros(1, 3), torch.zeros(1, 3), tensor([[1.0, 1.0, -2.0]]), masks(3, width=3), Clip(), weights
    )
    assert_close(found.per_token, tensor([[-1.25, -2.0, 1.0]]))


def test_the_critics_loss_is_the_worse_of_the_free_and_the_held_value() -> None:
    values = tensor([[1.0, 3.0, NAN]], requires_grad=True)
    # Held within 0 ± 0.5: 0.5 and 0.5. (1 − 2)² and (0.5 − 2)²; (3 − 1)² and (0.5 − 1)².
    found = value_loss(values, torch.zeros(1, 3), tensor([[2.0, 1.0, 0.0]]), masks(2, width=3), clip=0.5).per_token
    assert_close(found, tensor([[2.25 / 2, 4.0 / 2, 0.0]]))
    # The gradient is 0 where the held value counts, which does not move with V, and V − R where the free one does.
    found.sum().backward()  # type: ignore[no-untyped-call]
    assert_close(values.grad, tensor([[0.0, 2.0, 0.0]]))
    free = value_loss(values, torch.zeros(1, 3), tensor([[2.0, 1.0, 0.0]]), masks(2, width=3), clip=INF).per_token
    assert_close(free, tensor([[1.0 / 2, 4.0 / 2, 0.0]]))


@pytest.mark.parametrize(
    ("how", "expected"),
    [
        ("token_mean", 12 / 4),  # (1 + 2 + 3 + 6) / 4
        ("seq_mean_token_sum", (6 + 6) / 2),
        ("seq_mean_token_mean", (2 + 6) / 2),
    ],
)
def test_three_ways_to_average_a_loss(how: Aggregation, expected: float) -> None:
    mask = masks(3, 1, 0, width=3)  # the third, without tokens, fills up a shard
    per_token = tensor([[1.0, 2.0, 3.0], [6.0, NAN, 9.0], [9.0, 9.0, 9.0]])
    assert_close(aggregate(per_token, mask, how, denominator(mask, how)), tensor(expected))


@pytest.mark.parametrize("how", HOWS)
def test_losses_of_the_parts_add_up_to_that_of_the_whole_however_it_is_cut(how: Aggregation) -> None:
    torch.manual_seed(0)
    per_token, mask = torch.randn(6, 7), masks(7, 1, 3, 5, 2, 2, width=7)
    whole = aggregate(per_token, mask, how, denominator(mask, how))
    for sizes in ([1, 5], [2, 3, 1], [1] * 6):
        parts = list(zip(torch.split(per_token, sizes), torch.split(mask, sizes), strict=True))
        # As in training, a part is cut to its longest response.
        parts = [(part[:, : int(m.sum(-1).max())], m[:, : int(m.sum(-1).max())]) for part, m in parts]
        total = sum(denominator(m, how) for _, m in parts)
        assert_close(sum(aggregate(part, m, how, total) for part, m in parts), whole)


# --- All of it ---


def losses(scores: Tensor, per_token: Tensor, mask: Tensor) -> tuple[Tensor, ...]:
    """What one batch comes to, from scores (B,) and five tensors of tokens (5, B, T); all results are scalars."""
    logprobs, old_logprobs, ref_logprobs, values, old_values = per_token
    rewards = masked_whiten(token_rewards(scores, old_logprobs, ref_logprobs, mask, 0.1), mask, shift_mean=False)
    advantages, returns = gae(rewards, old_values, mask, 1.0, 0.95)
    advantages = masked_whiten(advantages, mask, shift_mean=True)
    policy = policy_loss(logprobs, old_logprobs, advantages, mask, Clip(dual=3.0))
    critic = value_loss(values, old_values, returns, mask, 0.2).per_token
    aggregated = [
        aggregate(each, mask, how, denominator(mask, how)) for each in (policy.per_token, critic) for how in HOWS
    ]
    return *aggregated, policy.clip_fraction, policy.approx_kl


def test_more_padding_changes_no_loss_and_no_gradient_whatever_stands_there() -> None:
    torch.manual_seed(0)
    scores, mask = torch.randn(4), masks(5, 2, 4, 1, width=5)
    narrow = torch.randn(5, 4, 5, requires_grad=True)
    garbage = torch.where(mask, narrow.detach(), NAN)
    wide = torch.nn.functional.pad(garbage, (0, 3), value=INF).requires_grad_()
    wider_mask = torch.nn.functional.pad(mask, (0, 3), value=False)
    for one, other in zip(losses(scores, narrow, mask), losses(scores, wide, wider_mask), strict=True):
        assert_close(one, other, atol=1e-7, rtol=1e-6)
        if one.requires_grad:
            (by_narrow,) = torch.autograd.grad(one, narrow, retain_graph=True)
            (by_wide,) = torch.autograd.grad(other, wide, retain_graph=True)
            assert_close(by_wide[..., :5], by_narrow, atol=1e-7, rtol=1e-6)
            assert not by_wide[..., 5:].any()


# --- The coefficient of the KL ---


def test_the_coefficient_follows_the_kl_by_at_most_a_fifth_of_the_episodes_share() -> None:
    adaptive = AdaptiveKL(coefficient=0.1, target=6.0, horizon=1000)
    adaptive.update(kl=12.0, episodes=500)  # 12/6 − 1 = 1, held at 0.2: 0.1·(1 + 0.2·500/1000)
    assert adaptive.coefficient == pytest.approx(0.11)
    adaptive.update(kl=5.4, episodes=100)  # 5.4/6 − 1 = −0.1: 0.11·(1 − 0.1·100/1000)
    assert adaptive.coefficient == pytest.approx(0.1089)
    adaptive.update(kl=0.0, episodes=1000)  # −1, held at −0.2: 0.1089·0.8
    assert adaptive.coefficient == pytest.approx(0.08712)


def test_without_a_target_the_coefficient_stays() -> None:
    fixed = AdaptiveKL(coefficient=0.05)
    fixed.update(kl=100.0, episodes=1000)
    assert fixed.coefficient == 0.05
