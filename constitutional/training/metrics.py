"""Names of what trainings log: those of TRL, under which other tools look for them.

Logs that were written before these names have others; `current` reads both.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, Final

LENGTH: Final = "completions/mean_length"
"""Tokens of a reply."""
CUT_OFF: Final = "completions/clipped_ratio"
"""Share of replies that reached the most tokens allowed."""
KL: Final = "objective/kl"
"""Nats of a whole reply from the model that a training began with, as in TRL's PPO; a plain `kl` is of a token."""
ALIKE: Final = "frac_reward_zero_std"
"""Share of the prompts whose replies all have the same rewards, so that nothing is learned from them."""
MISMATCH: Final = "sampling/sampling_logp_difference"
"""Distance between the sampler's log-probability of a token and the trainer's; /mean and /max."""

_FORMER: Final = {
    "length": LENGTH,
    "truncated": CUT_OFF,
    "sampler_mismatch": f"{MISMATCH}/mean",
    "sampler_mismatch_max": f"{MISMATCH}/max",
}
"""Former names in the logs of all online trainings."""
_FORMER_GRPO: Final = {**_FORMER, "groups_alike": ALIKE, "score": "reward"}
_FORMER_PPO: Final = {
    **_FORMER,
    "episodes": "episode",
    "score": "objective/scores",
    "entropy": "policy/entropy_avg",
    "kl_coefficient": "objective/kl_coef",
    "explained_variance": "val/explained_variance",
    "policy_loss": "loss/policy_avg",
    "value_loss": "loss/value_avg",
    "ptx_loss": "loss/ptx_avg",
    "clip_fraction": "policy/clipfrac_avg",
    "approx_kl": "policy/approxkl_avg",
}


def current(line: Mapping[str, Any]) -> dict[str, Any]:
    """A line of a training log under the names of today; one that has them already is returned as it is.

    Former logs of online trainings are known by their `sqrt_kl`. There `kl` was of a whole reply for all of them, and
    the `reward` of GRPO and RLOO left out the penalty for replies that were cut off.
    """
    if "sqrt_kl" not in line:
        return dict(line)
    names = _FORMER_PPO if "episodes" in line else _FORMER_GRPO
    left_out = {"sqrt_kl", "kl", *names, *(["reward"] if names is _FORMER_GRPO else [])}
    kept = {
        f"{name}/mean" if name.startswith("rewards/") else name: value
        for name, value in line.items()
        if name not in left_out
    }
    renamed = {now: line[then] for then, now in names.items() if then in line}
    return kept | renamed | {KL: line["kl"]}


def with_kl_of_replies(line: Mapping[str, Any]) -> dict[str, Any]:
    """A line of TRL's log with `objective/kl`, None where the training measures no KL.

    TRL's `kl` is a mean over tokens. Times the mean length it is a mean over replies; in a line of several steps, which
    has the means of both over the steps, nearly so.
    """
    kl = line.get("kl")
    return {**line, KL: None if kl is None else kl * line[LENGTH]}


HIGH: Final = 0.5
"""A share of prompts that teach nothing is worth a warning from here on."""
PATIENCE: Final = 5
"""Lines of the log that it has to be high in, one after the other."""
TO_DIFFER: Final = (
    "Raise algorithm.num_generations or algorithm.temperature, so that replies differ; take harder or easier prompts; "
    "or add a reward with finer steps to algorithm.rewards"
)
"""What to change where replies to a prompt are rewarded alike."""


def stays_high(shares: Sequence[float], *, ended: bool) -> bool:
    """Whether the last lines of a log all have a high share of prompts that teach nothing.

    Args:
        shares: `frac_reward_zero_std` of each line, 0 to 1.
        ended: the training is over, so that fewer lines than are waited for will do.
    """
    recent = shares[-PATIENCE:]
    return bool(recent) and min(recent) >= HIGH and (ended or len(recent) == PATIENCE)


def finite(number: float | None) -> float | None:
    """The number; None where it is none, which JSON cannot say."""
    return None if number is None or not math.isfinite(number) else number
