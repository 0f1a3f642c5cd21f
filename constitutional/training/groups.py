"""Rewards of the replies to one prompt, which are compared with each other: normalised one by one, or all alike."""

import torch
from torch import Tensor


def normalised(rewards: Tensor, group: int) -> Tensor:
    """Each reward less its group's mean, in deviations of its group: (r_ik − mean r_k) / (std r_k + 1e-4).

    "GDPO: Group reward-Decoupled normalization Policy Optimization" (2026), arXiv 2601.05242: rewards that are
    normalised before they are added count by their weights, where otherwise the one that varies most wins. This is what
    TRL's GRPO does for `normalize_then_sum`: with Bessel's correction, and NaN for a reward that has fewer than two
    numbers in the group.

    Args:
        rewards: (B, K), of the replies to one prompt after the other; NaN where a reward has no number.
        group: replies to each prompt.
    """
    grouped = rewards.view(-1, group, rewards.shape[-1])
    known = ~grouped.isnan()
    count = known.sum(1, keepdim=True)
    left = grouped - grouped.nanmean(1, keepdim=True)
    variance = left.nan_to_num().square().sum(1, keepdim=True) / (count - 1)
    variance = torch.where(count > 1, variance, torch.nan)
    return (left / (variance.sqrt() + 1e-4)).view_as(rewards)


def weighted_sum(rewards: Tensor, weights: Tensor) -> Tensor:
    """The sum (B,) of rewards (B, K) by their weights (K,), of those that are there; NaN where none is."""
    return torch.where(rewards.isnan().all(1), torch.nan, (rewards * weights).nansum(1))


def share_alike(totals: Tensor, group: int) -> float:
    """The share of groups whose replies have one and the same reward, 0 to 1, from (B,): they teach nothing.

    TRL's `frac_reward_zero_std`, which it takes over the whole batch where rewards are normalised one by one, and after
    the penalty for the KL in RLOO, so that it would hardly ever be more than 0.
    """
    grouped = totals.view(-1, group)
    highest = grouped.nan_to_num(nan=-torch.inf).amax(1)
    lowest = grouped.nan_to_num(nan=torch.inf).amin(1)
    return float((highest <= lowest).float().mean())
