"""The mathematics of PPO on language models: pure functions of tensors, each with its equation.

B sequences, T response tokens, V tokens in the vocabulary. Responses are padded on the right; `mask` (B, T) is True at
a response's tokens up to and including its end token. To what takes a mask, padding changes nothing, be it NaN, and its
results are 0 there. A token is an action, what stands before it the state, and a response the episode.

A batch may lie in micro-batches, and on several processes. Losses are sums over tokens divided by a number that counts
the whole batch (`aggregate`, `denominator`), so that cutting it otherwise gives the same gradient. Whitening is no such
sum: it wants the whole batch, whose numbers (one for a token) every process has room for.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

KLEstimator = Literal["k1", "k2", "k3"]
Aggregation = Literal["token_mean", "seq_mean_token_sum", "seq_mean_token_mean"]

LOG_RATIO_BOUND = 20.0
"""Ratios lie within e^±20: the worst token then gives a large number, not an infinite one."""
CHUNK, GPU_CHUNK = 2**20, 2**25
"""Logits that are held in float32 at once: 4 MiB of them, which a CPU's cache holds, or 128 MiB for a GPU's kernels."""


# --- Logits ---


class TokenLogprobs(NamedTuple):
    """What a policy says of the tokens that were drawn, each (B, T) in float32."""

    logprobs: Tensor
    entropy: Tensor | None
    """−Σ π·log π over the vocabulary, from 0 to log V; None where it was not asked for."""


def token_logprobs(logits: Tensor, tokens: Tensor, temperature: float = 1.0, *, entropy: bool = False) -> TokenLogprobs:
    """Log π(token) with π the softmax of logits / temperature, of logits (B, T, V) at tokens (B, T), and π's entropy.

    The temperature must be that of sampling, or π is not the policy that acted. No more than a chunk of the logits is
    held in float32, and the backward pass writes the gradient over the logits: of their size there is one buffer, ever.
    Who reads the logits after that pass reads their gradient; a graph that needs them again, or a second backward pass,
    is refused by autograd.
    """
    columns: tuple[Tensor, Tensor | None] = _TokenLogprobs.apply(logits, tokens, temperature, entropy)  # type: ignore[no-untyped-call]
    return TokenLogprobs(*columns)


class _TokenLogprobs(torch.autograd.Function):
    """With g the gradient by log π(token) and h that by H, for each logit_v what follows, over the temperature.

    ([v = token] − π_v)·g − π_v·(log π_v + H)·h = [v = token]·g − π_v·(g + (log π_v + H)·h).
    """

    @staticmethod
    def forward(
        ctx: FunctionCtx, logits: Tensor, tokens: Tensor, temperature: float, entropy: bool
    ) -> tuple[Tensor, Tensor | None]:
        logprobs = torch.empty(tokens.shape, dtype=torch.float32, device=logits.device)
        entropies = torch.empty_like(logprobs) if entropy else None
        for at in _chunks(logits):
            log_policy = _scaled(logits[at], temperature).log_softmax(-1)
            logprobs[at] = log_policy.gather(-1, tokens[at].unsqueeze(-1)).squeeze(-1)
            if entropies is not None:
                entropies[at] = -torch.linalg.vecdot(log_policy.exp(), log_policy)
        ctx.save_for_backward(*(logits, tokens), *([] if entropies is None else [entropies]))
        ctx.temperature = temperature  # type: ignore[attr-defined]
        return logprobs, entropies

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, grad: Tensor, by_entropy: Tensor | None) -> tuple[Tensor, None, None, None]:
        logits, tokens, *entropies = ctx.saved_tensors  # type: ignore[attr-defined]
        temperature: float = ctx.temperature  # type: ignore[attr-defined]
        grad = (grad / temperature).unsqueeze(-1)
        for at in _chunks(logits):
            scaled = _scaled(logits[at], temperature)
            if by_entropy is None:
                of_chunk = scaled.softmax(-1).mul_(-grad[at])
            else:
                log_policy = scaled.log_softmax(-1)
                of_chunk = log_policy.exp()
                log_policy.add_(entropies[0][at].unsqueeze(-1)).mul_(by_entropy[at].unsqueeze(-1) / temperature)
                of_chunk.mul_(log_policy.add_(grad[at])).neg_()
            logits[at] = of_chunk.scatter_add_(-1, tokens[at].unsqueeze(-1), grad[at])
        return logits.detach(), None, None, None


def _scaled(chunk: Tensor, temperature: float) -> Tensor:
    """In float32, and copied only if something changes."""
    return chunk.float() if temperature == 1 else chunk.float() / temperature


def _chunks(logits: Tensor) -> Iterator[tuple[slice, slice]]:
    """Cuts sequences and tokens. A flat view would be simpler, but of a slice of the logits it would be a copy."""
    sequences, tokens, vocabulary = logits.shape
    most = GPU_CHUNK if logits.is_cuda else CHUNK
    by_sequence, by_token = (max(1, most // max(1, size)) for size in (tokens * vocabulary, vocabulary))
    for start in range(0, sequences, by_sequence):
        for first in range(0, tokens, by_token):
            yield slice(start, start + by_sequence), slice(first, first + by_token)


# --- Scores: one number for each response ---


def ensemble(scores: Tensor, k: float) -> Tensor:
    """Mean − k·deviation over K reward models' scores (K, B): (B,); where they disagree, a response counts for less.

    A lower confidence bound, after Coste et al. (2024), "Reward model ensembles help mitigate overoptimization", who
    subtract the variance; a deviation has the unit of the scores. It is the biased one: 0 of a single model.
    """
    return scores.mean(0) - k * scores.std(0, correction=0)


def normalise(scores: Tensor, mean: float, deviation: float) -> Tensor:
    """(score − mean) / deviation, both measured on reference samples before the training.

    Ziegler et al. (2019), "Fine-tuning language models from human preferences", section 2. The moments stay fixed:
    those of the current batch would take from the scores exactly the progress that they should show.
    """
    if not deviation > 0:
        raise ValueError(f"The deviation of the reference scores is {deviation}; scores that do not vary teach nothing")
    return (scores - mean) / deviation


class Shaping(NamedTuple):
    """What is done to normalised scores. By default nothing."""

    clip: float = float("inf")
    """Scores are held within ± this, before the penalties."""
    missing_eos_penalty: float = 0.0
    """Taken from a response that was cut off before its end token."""
    length_penalty: float = 0.0
    """Taken for each token of a response."""


def shaped(scores: Tensor, mask: Tensor, ended: Tensor, shaping: Shaping) -> Tensor:
    """Scores (B,) within the clip, minus the penalties for responses that did not end (`ended` (B,)) and for length.

    Penalties come after the clip, which would otherwise swallow them where the score is already low.
    """
    lengths = mask.sum(-1)
    penalties = shaping.missing_eos_penalty * ~ended + shaping.length_penalty * lengths
    return scores.clamp(-shaping.clip, shaping.clip) - penalties


# --- Rewards: one number for each token ---


def kl_estimate(logprobs: Tensor, ref_logprobs: Tensor, kind: KLEstimator) -> Tensor:
    """Of KL(π ‖ π_ref) at tokens that π drew, (B, T); with ρ = π_ref/π: −log ρ, (log ρ)²/2, or ρ − 1 − log ρ.

    Schulman (2020), "Approximating KL divergence". k1 is unbiased and may be negative, k2 biased, k3 unbiased and never
    negative. That is about their values. A policy gradient takes the reward for a constant: with k1 it comes to rest
    where r − β·k1 is the same for all tokens, at π_ref·exp(r/β). k2 and k3, being a charge on either side of π_ref,
    push down a token that is less likely than there, where k1 lifts it, until it dies out. As a loss it is k2 that has
    the gradient of KL (`kl_loss`).
    """
    log_ratio = ref_logprobs - logprobs
    if kind == "k1":
        return -log_ratio
    if kind == "k2":
        return log_ratio**2 / 2
    return log_ratio.clamp(max=LOG_RATIO_BOUND).exp() - 1 - log_ratio


def kl_loss(logprobs: Tensor, ref_logprobs: Tensor) -> Tensor:
    """Per token (B, T), for a KL term beside the policy's loss: k3's value with the gradient of k2.

    At tokens that π drew, (log π − log π_ref)·∇log π is unbiased for ∇KL(π ‖ π_ref). The gradient of k1 has mean 0,
    that of k3 is another divergence's.
    """
    k2, k3 = (kl_estimate(logprobs, ref_logprobs, kind) for kind in ("k2", "k3"))
    return k3.detach() + k2 - k2.detach()


def token_rewards(
    scores: Tensor, logprobs: Tensor, ref_logprobs: Tensor, mask: Tensor, kl_coefficient: float
) -> Tensor:
    """−β·(log π − log π_ref) at each token, and the response's score (B,) at its last one as well: (B, T).

    Ziegler et al. (2019), equation 2, spread over the tokens as in their code. Summed over a response it is
    R = score − β·log(π/π_ref), whose expectation π_ref·exp(score/β)/Z maximises.
    """
    last = mask & (mask.cumsum(-1) == mask.sum(-1, keepdim=True))
    penalty = -kl_coefficient * kl_estimate(logprobs, ref_logprobs, "k1")
    return torch.where(mask, penalty, 0.0) + torch.where(last, scores[:, None], 0.0)


class Advantages(NamedTuple):
    """Both (B, T)."""

    advantages: Tensor
    returns: Tensor


def gae(rewards: Tensor, values: Tensor, mask: Tensor, gamma: float, lam: float) -> Advantages:
    """A_t = Σ_l (γλ)^l·δ_{t+l} with δ_t = r_t + γ·V_{t+1} − V_t, and what the critic should have said, A_t + V_t.

    Schulman et al. (2016), "High-dimensional continuous control using generalized advantage estimation", equations 11
    to 16. `values` (B, T) are of the state before each token. After a response's last token the value is 0, also where
    it was cut off: its score is all that it will get.
    """
    values = torch.where(mask, values, 0.0)
    rewards = torch.where(mask, rewards, 0.0)
    next_values = torch.nn.functional.pad(values[:, 1:], (0, 1))
    deltas = rewards + gamma * next_values - values  # 0 at padding, so that nothing flows in from there
    advantages = torch.zeros_like(deltas)
    following = torch.zeros_like(deltas[:, 0])
    for t in reversed(range(deltas.shape[1])):
        following = deltas[:, t] + gamma * lam * following
        advantages[:, t] = following
    return Advantages(advantages, advantages + values)


# --- Means and whitening ---


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """The mean of the values where the mask is True, a scalar; NaN where it is nowhere."""
    return torch.where(mask, values, 0.0).sum() / mask.sum()


def masked_whiten(values: Tensor, mask: Tensor, shift_mean: bool) -> Tensor:
    """(x − mean) / √(variance + 1e-8), plus the mean again unless `shift_mean`; over the mask, the variance biased.

    As in OpenAI's lm-human-preferences (TRL's had Bessel's correction). Rewards are whitened without the shift, which
    would pay or charge for length; advantages with it. Whitening makes the last small differences as large as the first
    ones were: without a learning rate that falls to 0, the policy dithers around its optimum.
    """
    mean = masked_mean(values, mask)
    variance = masked_mean((values - mean) ** 2, mask)
    whitened = (values - mean) * torch.rsqrt(variance + 1e-8)
    return torch.where(mask, whitened if shift_mean else whitened + mean, 0.0)


def explained_variance(values: Tensor, returns: Tensor, mask: Tensor) -> float | None:
    """1 − Var(returns − values) / Var(returns): 1 is a perfect critic, 0 a constant; None if returns do not vary."""

    def variance(numbers: Tensor) -> Tensor:
        return masked_mean((numbers - masked_mean(numbers, mask)) ** 2, mask)

    of_returns = float(variance(returns))
    return 1 - float(variance(returns - values)) / of_returns if of_returns > 0 else None


# --- Losses ---


class Clip(NamedTuple):
    """How far the policy's loss follows a ratio π/π_old."""

    low: float = 0.2
    """Ratios below 1 − low are not pushed further down."""
    high: float = 0.2
    """Ratios above 1 + high are not pushed further up."""
    dual: float | None = None
    """Ratios above this, more than 1, are not pushed down where the advantage is negative: one of them can be huge."""


class PolicyLoss(NamedTuple):
    """The loss, and three numbers for the log, without gradient."""

    per_token: Tensor
    """(B, T)."""
    clip_fraction: Tensor
    """The share of tokens whose gradient a clip took away, a scalar."""
    approx_kl: Tensor
    """KL(π_old ‖ π) by k3 on the tokens, which π_old drew, a scalar; 0 until the first step on a batch."""
    ratio: Tensor
    """The mean of π/π_old over the tokens, a scalar; 1 until the first step on a batch."""


class ValueLoss(NamedTuple):
    """The critic's loss, and a number for the log, without gradient."""

    per_token: Tensor
    """(B, T)."""
    clip_fraction: Tensor
    """The share of tokens whose gradient the clip took away, a scalar."""


def policy_loss(
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    mask: Tensor,
    clip: Clip,
    weights: Tensor | None = None,
) -> PolicyLoss:
    """−min(ratio·A, clip(ratio, 1 − low, 1 + high)·A) per token, with ratio = π/π_old.

    Schulman et al. (2017), "Proximal policy optimization algorithms", equation 7; where A < 0, no more than −dual·A
    (Ye et al. (2020), "Mastering complex control in MOBA games with deep reinforcement learning"). `weights` (B, T)
    multiply a token's loss: those of `importance_weights`, where another program drew the tokens.
    """
    log_ratio = torch.where(mask, logprobs - old_logprobs, 0.0).clamp(-LOG_RATIO_BOUND, LOG_RATIO_BOUND)
    ratio = log_ratio.exp()
    advantages = torch.where(mask, advantages, 0.0)
    free, held = -advantages * ratio, -advantages * ratio.clamp(1 - clip.low, 1 + clip.high)
    per_token, clipped = torch.maximum(free, held), held > free
    if clip.dual is not None:
        most = torch.where(advantages < 0, -advantages * clip.dual, torch.inf)
        per_token, clipped = torch.minimum(per_token, most), clipped | (most < per_token)
    if weights is not None:
        per_token = per_token * torch.where(mask, weights, 0.0)
    with torch.no_grad():
        clip_fraction = masked_mean(clipped.to(ratio.dtype), mask)
        approx_kl = masked_mean(ratio - 1 - log_ratio, mask)
        mean_ratio = masked_mean(ratio, mask)
    return PolicyLoss(per_token, clip_fraction, approx_kl, mean_ratio)


def importance_weights(trainer_logprobs: Tensor, sampler_logprobs: Tensor, bound: float) -> Tensor:
    """min(π_trainer/π_sampler, bound) of the same weights in two programs, without gradient: (B, T).

    Truncated importance sampling (Ionides (2008); for this use Yao et al. (2025), "Your efficient RL framework secretly
    brings you off-policy RL training"): an inference engine rounds otherwise than the trainer, and its samples are not
    quite π_old's. The bound, 2 say, trades a little bias for a bounded variance.
    """
    return (trainer_logprobs - sampler_logprobs).detach().exp().clamp(max=bound)


def value_loss(values: Tensor, old_values: Tensor, returns: Tensor, mask: Tensor, clip: float) -> ValueLoss:
    """½·max((V − R)², (clip(V, V_old ± clip) − R)²) per token; an infinite clip is none.

    As in OpenAI's baselines (Engstrom et al. (2020), "Implementation matters in deep policy gradients", section 3).
    """
    clipped = old_values + (values - old_values).clamp(-clip, clip)
    # Masked before they are squared: the gradient of a square is NaN where the number is, even times 0.
    free_error, held_error = (torch.where(mask, value - returns, 0.0) for value in (values, clipped))
    free, held = free_error**2, held_error**2
    with torch.no_grad():
        clip_fraction = masked_mean((held > free).to(values.dtype), mask)
    return ValueLoss(torch.maximum(free, held) / 2, clip_fraction)


def aggregate(per_token: Tensor, mask: Tensor, how: Aggregation, denominator: float | Tensor) -> Tensor:
    """This part's share of the whole batch's loss, a scalar; the shares of all parts add up to the loss.

    The mean over tokens, over sequences of the sum over their tokens, or over sequences of the mean over theirs. The
    denominator counts the whole batch: the sum of `denominator(mask, how)` over all parts. Where gradients are averaged
    over processes (DDP), multiply by their number.
    """
    per_token = torch.where(mask, per_token, 0.0)
    if how == "seq_mean_token_mean":
        per_token = per_token / mask.sum(-1, keepdim=True).clamp(min=1)
    return per_token.sum() / denominator


def denominator(mask: Tensor, how: Aggregation) -> Tensor:
    """The tokens of this part, or its sequences that have any; a scalar, to be summed over all parts."""
    return mask.sum() if how == "token_mean" else mask.any(-1).sum()


# --- The coefficient of the KL ---


@dataclass
class AdaptiveKL:
    """β, led so that the KL from the reference comes to the target, or fixed; β is all that a checkpoint must hold.

    Ziegler et al. (2019), section 2: β ← β·(1 + clip(KL/target − 1, ±0.2)·episodes/horizon).
    """

    coefficient: float
    target: float | None = None
    """The KL of a response, summed over its tokens; None keeps the coefficient as it is."""
    horizon: float = 10_000
    """Episodes over which β grows by at most about a fifth."""

    def update(self, kl: float, episodes: int) -> None:
        """After `episodes` responses whose KL was `kl` on average."""
        if self.target is not None:
            error = min(max(kl / self.target - 1, -0.2), 0.2)
            self.coefficient *= 1 + error * episodes / self.horizon
