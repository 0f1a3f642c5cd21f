"""What PPO writes about a phase, from its rollout: the numbers of the log, and replies to read."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from constitutional.training.ppo.rollout import Rewards, RolloutBatch

if TYPE_CHECKING:
    import torch


def describe(rollout: RolloutBatch, rewards: Rewards) -> dict[str, Any]:
    """The batch as it was drawn: means over replies, and over tokens for the entropy and the sampler's mismatch.

    The mismatch is the distance between the sampler's log-probability of a token and the trainer's.
    """
    from constitutional.training.ppo import math as ppo_math

    mask, kl = rollout.mask, float(_kls(rollout).mean())
    mismatch = (rollout.logprobs - rollout.sampler_logprobs).abs()
    line: dict[str, Any] = {
        "reward": float(rewards.total(rollout.rewards).mean()),
        **{f"rewards/{name}": _mean(numbers) for name, numbers in zip(rewards.names, rollout.rewards, strict=True)},
        "score": float(rollout.scores.mean()),
        "kl": kl,
        "sqrt_kl": math.sqrt(max(kl, 0.0)),
        "entropy": float(ppo_math.masked_mean(rollout.entropies, mask)),
        "length": float(mask.sum(1).float().mean()),
        "truncated": float((~rollout.ended).float().mean()),
        "explained_variance": ppo_math.explained_variance(rollout.values, rollout.returns, mask),
        "sampler_mismatch": float(ppo_math.masked_mean(mismatch, mask)),
        "sampler_mismatch_max": float(mismatch.masked_fill(~mask, 0).max()),
    }
    return line | ({"gold": math.fsum(rollout.gold) / len(rollout.gold)} if rollout.gold else {})


def samples(rollout: RolloutBatch, rewards: Rewards, prompts: Sequence[Any]) -> list[dict[str, Any]]:
    """The replies to the batch's first prompts, which are given, so that one can see what the numbers are about."""
    kls, totals = _kls(rollout), rewards.total(rollout.rewards)
    return [
        {
            "prompt": prompt,
            "reply": rollout.texts[row],
            "reward": None if bool(rollout.rewards[:, row].isnan().all()) else float(totals[row]),
            "score": float(rollout.scores[row]),
            "kl": float(kls[row]),
            "length": int(rollout.mask[row].sum()),
            "truncated": not bool(rollout.ended[row]),
        }
        for row, prompt in enumerate(prompts)
    ]


def _kls(rollout: RolloutBatch) -> "torch.Tensor":
    """From the reference, by k1, summed over each reply's tokens: (B)."""
    from constitutional.training.ppo import math as ppo_math

    per_token = ppo_math.kl_estimate(rollout.logprobs, rollout.ref_logprobs, "k1")
    return per_token.masked_fill(~rollout.mask, 0).sum(1)


def _mean(numbers: "torch.Tensor") -> float | None:
    """Of those that are there."""
    return None if bool(numbers.isnan().all()) else float(numbers.nanmean())
