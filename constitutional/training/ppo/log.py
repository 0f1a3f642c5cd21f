"""What PPO writes about a phase, from its rollout: the numbers of the log, and replies to read."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from constitutional.training.ppo.rollout import Rewards, RolloutBatch

if TYPE_CHECKING:
    import torch


def describe(rollout: RolloutBatch, rewards: Rewards, kl_coefficient: float) -> dict[str, Any]:
    """The batch as it was drawn, under TRL's names for PPO and, where it had none, for GRPO.

    `objective/…` are means over replies: of the scores (the rewards, clipped, less the penalties for length and for
    being cut off), of the KL from the reference, of its penalty, and of −log π, each summed over a reply's tokens;
    `rlhf_reward` is the score with the penalty for the KL. `reward` is the weighted sum of the rewards as they are,
    before all of this. `policy/entropy_avg`, and the distance between the log-probabilities of the sampler and of the
    trainer (`sampling/…`), are means over tokens. A reply is unrewarded where no reward has a number for it.
    """
    from constitutional.training.ppo import math as ppo_math

    mask, kl = rollout.mask, float(_kls(rollout).mean())
    mismatch = (rollout.logprobs - rollout.sampler_logprobs).abs()
    score = float(rollout.scores.mean())
    line: dict[str, Any] = {
        "reward": float(rewards.total(rollout.rewards).mean()),
        **_by_reward(rewards.names, rollout.rewards),
        "unrewarded": float(rollout.rewards.isnan().all(0).float().mean()),
        "objective/scores": score,
        "objective/kl": kl,
        "objective/non_score_reward": -kl_coefficient * kl,
        "objective/rlhf_reward": score - kl_coefficient * kl,
        "objective/entropy": float(-rollout.logprobs.masked_fill(~mask, 0).sum(1).mean()),
        "objective/kl_coef": kl_coefficient,
        "policy/entropy_avg": float(ppo_math.masked_mean(rollout.entropies, mask)),
        "completions/mean_length": float(mask.sum(1).float().mean()),
        "completions/clipped_ratio": float((~rollout.ended).float().mean()),
        "val/num_eos_tokens": int(rollout.ended.sum()),
        "val/explained_variance": ppo_math.explained_variance(rollout.values, rollout.returns, mask),
        "sampling/sampling_logp_difference/mean": float(ppo_math.masked_mean(mismatch, mask)),
        "sampling/sampling_logp_difference/max": float(mismatch.masked_fill(~mask, 0).max()),
    }
    return line | ({"gold": math.fsum(rollout.gold) / len(rollout.gold)} if rollout.gold else {})


def samples(rollout: RolloutBatch, rewards: Rewards, prompts: Sequence[Any]) -> list[dict[str, Any]]:
    """The replies to the batch's first prompts, which are given, so that one can see what the numbers are about."""
    kls, totals = _kls(rollout), rewards.total(rollout.rewards)
    return [
        {
            "prompt": prompt,
            "reply": rollout.texts[row],
            "reward": float(totals[row]),
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


def _by_reward(names: Sequence[str], rewards: "torch.Tensor") -> dict[str, float | None]:
    """The mean and the deviation of each reward (R, B) over the replies that it has a number for; None without any."""
    line: dict[str, float | None] = {}
    for name, numbers in zip(names, rewards, strict=True):
        known = numbers[~numbers.isnan()]
        line[f"rewards/{name}/mean"] = float(known.mean()) if len(known) else None
        line[f"rewards/{name}/std"] = float(known.std()) if len(known) > 1 else None
    return line
