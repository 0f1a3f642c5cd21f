"""Where training with these functions comes to rest: at π_ref·exp(r/β), which is known in closed form.

The policy is a table of logits, one row for each prefix of a response; the batch is every possible response, weighted
by its probability, so that each gradient is the exact expectation and no bound is met by luck. Steps are those of the
natural gradient (Kakade 2001; of a table: the gradient over the visits' probability), which need a few dozen phases.
"""

import itertools
from collections.abc import Callable, Iterator
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from constitutional.training.ppo.math import (
    Clip,
    KLEstimator,
    aggregate,
    gae,
    kl_estimate,
    masked_whiten,
    policy_loss,
    token_rewards,
    value_loss,
)

BETA = 0.5
EPOCHS = 2  # in the second one ratios differ from 1, and the first phases are clipped


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


class Problem(NamedTuple):
    """Every response of T tokens from a vocabulary of V, N = V^T in all, and S prefixes."""

    tokens: Tensor
    """(N, T)."""
    prefixes: Tensor
    """The row of the table before each token, (N, T)."""
    reference: Tensor
    """Logits, (S, V)."""
    scores: Tensor
    """(N)."""

    def logprobs(self, logits: Tensor) -> Tensor:
        return logits.log_softmax(-1)[self.prefixes, self.tokens]

    def probabilities(self, logits: Tensor) -> Tensor:
        return self.logprobs(logits).sum(-1).exp()


def problem(length: int, vocabulary: int) -> Problem:
    responses = list(itertools.product(range(vocabulary), repeat=length))
    prefixes = [each for t in range(length) for each in itertools.product(range(vocabulary), repeat=t)]
    generator = torch.Generator().manual_seed(0)
    return Problem(
        torch.tensor(responses),
        torch.tensor([[prefixes.index(response[:t]) for t in range(length)] for response in responses]),
        torch.randn(len(prefixes), vocabulary, generator=generator, dtype=torch.float64) / 2,
        torch.randn(len(responses), generator=generator, dtype=torch.float64),
    )


Rewards = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


def shipped_rewards(scores: Tensor, logprobs: Tensor, ref_logprobs: Tensor, mask: Tensor) -> Tensor:
    return token_rewards(scores, logprobs, ref_logprobs, mask, BETA)


def distance_from_optimum(
    of: Problem, phases: int, *, rewards: Rewards = shipped_rewards, whiten: bool = False, anneal: bool = False
) -> float:
    """Total variation between π_ref·exp(r/β)/Z and what `phases` of PPO lead to."""
    mask = torch.ones_like(of.tokens, dtype=torch.bool)
    ref_logprobs = of.logprobs(of.reference)
    policy = of.reference.clone().requires_grad_()
    critic = torch.zeros(len(of.reference), dtype=torch.float64, requires_grad=True)
    for phase in range(phases):
        with torch.no_grad():
            old_logprobs, old_values = of.logprobs(policy), critic[of.prefixes]
            reached = old_logprobs.sum(-1, keepdim=True).exp().expand_as(old_logprobs)
            of_phase = rewards(of.scores, old_logprobs, ref_logprobs, mask)
            advantages, returns = gae(of_phase, old_values, mask, gamma=1.0, lam=0.95)
            if whiten:
                advantages = masked_whiten(advantages, mask, shift_mean=True)
            visits = torch.zeros_like(policy).index_put((of.prefixes, of.tokens), reached, accumulate=True)
        rate = 0.5 * (1 - phase / phases) ** 2 if anneal else 0.5
        for _ in range(EPOCHS):
            of_policy = policy_loss(of.logprobs(policy), old_logprobs, advantages, mask, Clip(), reached).per_token
            of_critic = value_loss(critic[of.prefixes], old_values, returns, mask, clip=torch.inf).per_token * reached
            # The weights, which sum to 1 over the responses, are the mean already.
            loss = aggregate(of_policy + of_critic, mask, "seq_mean_token_sum", denominator=1.0)
            by_policy, by_critic = torch.autograd.grad(loss, (policy, critic))
            with torch.no_grad():
                policy -= rate * by_policy / visits.clamp(min=1e-30)  # what has died out stays so, as it would
                critic -= by_critic / visits.sum(-1).clamp(min=1e-30)
    optimum = (ref_logprobs.sum(-1) + of.scores / BETA).softmax(-1)
    return float((of.probabilities(policy.detach()) - optimum).abs().sum() / 2)


def test_a_bandit_with_eight_arms_comes_to_the_optimum() -> None:
    bandit = problem(length=1, vocabulary=8)
    assert distance_from_optimum(bandit, phases=0) > 0.2  # there is a way to go
    assert distance_from_optimum(bandit, phases=30) <= 1e-4


def test_three_tokens_of_a_vocabulary_of_five_come_to_the_optimum() -> None:
    sequences = problem(length=3, vocabulary=5)
    assert distance_from_optimum(sequences, phases=0) > 0.2
    assert distance_from_optimum(sequences, phases=40) <= 1e-4


@pytest.mark.parametrize("kind", ["k2", "k3"])
@pytest.mark.parametrize(("length", "vocabulary"), [(1, 8), (3, 5)])
def test_any_other_estimator_in_the_reward_leads_elsewhere(length: int, vocabulary: int, kind: KLEstimator) -> None:
    def rewards(scores: Tensor, logprobs: Tensor, ref_logprobs: Tensor, mask: Tensor) -> Tensor:
        return token_rewards(scores, logprobs, ref_logprobs, mask, 0.0) - BETA * kl_estimate(
            logprobs, ref_logprobs, kind
        )

    assert distance_from_optimum(problem(length, vocabulary), phases=40, rewards=rewards) > 0.1


def test_with_whitened_advantages_it_takes_a_falling_learning_rate_to_come_to_rest() -> None:
    bandit = problem(length=1, vocabulary=8)
    assert distance_from_optimum(bandit, phases=100, whiten=True, anneal=True) <= 2e-3
    assert distance_from_optimum(bandit, phases=100, whiten=True) > 1e-2
