import math

import pytest

from constitutional.training.metrics import current, finite, stays_high, with_kl_of_replies

FORMER_PPO = {
    "step": 2,
    "episodes": 64,
    "reward": 0.5,
    "rewards/length": 3.0,
    "unrewarded": 0.0,
    "score": 0.25,
    "kl": 4.0,
    "sqrt_kl": 2.0,
    "entropy": 1.5,
    "length": 8.0,
    "truncated": 0.125,
    "explained_variance": None,
    "sampler_mismatch": 0.01,
    "sampler_mismatch_max": 0.02,
    "kl_coefficient": 0.05,
    "learning_rate": 1e-4,
    "policy_loss": 0.1,
    "value_loss": 0.2,
    "ptx_loss": 0.3,
    "clip_fraction": 0.4,
    "approx_kl": 0.5,
    "gold": 1.0,
}
FORMER_GRPO = {
    "step": 5,
    "loss": 0.1,
    "reward": 0.5,
    "rewards/length": 3.0,
    "score": 0.375,
    "kl": 4.0,
    "sqrt_kl": 2.0,
    "entropy": 1.5,
    "length": 8.0,
    "truncated": 0.125,
    "groups_alike": 0.5,
    "grad_norm": 1.0,
}


def test_a_former_line_of_ppo_has_the_names_of_trl() -> None:
    assert current(FORMER_PPO) == {
        "step": 2,
        "episode": 64,
        "reward": 0.5,
        "rewards/length/mean": 3.0,
        "unrewarded": 0.0,
        "gold": 1.0,
        "objective/scores": 0.25,
        "objective/kl": 4.0,
        "objective/kl_coef": 0.05,
        "policy/entropy_avg": 1.5,
        "completions/mean_length": 8.0,
        "completions/clipped_ratio": 0.125,
        "val/explained_variance": None,
        "sampling/sampling_logp_difference/mean": 0.01,
        "sampling/sampling_logp_difference/max": 0.02,
        "loss/policy_avg": 0.1,
        "loss/value_avg": 0.2,
        "loss/ptx_avg": 0.3,
        "learning_rate": 1e-4,
        "policy/clipfrac_avg": 0.4,
        "policy/approxkl_avg": 0.5,
    }


def test_the_reward_of_a_former_line_of_grpo_is_what_trl_logged() -> None:
    assert current(FORMER_GRPO) == {
        "step": 5,
        "loss": 0.1,
        "reward": 0.375,
        "rewards/length/mean": 3.0,
        "objective/kl": 4.0,
        "entropy": 1.5,
        "completions/mean_length": 8.0,
        "completions/clipped_ratio": 0.125,
        "grad_norm": 1.0,
        "frac_reward_zero_std": 0.5,
    }


@pytest.mark.parametrize("line", [FORMER_PPO, FORMER_GRPO, {"step": 1, "loss": 0.5, "rewards/margins": 2.0}])
def test_a_line_that_has_the_names_of_today_stays_as_it_is(line: dict[str, float]) -> None:
    assert current(current(line)) == current(line)
    assert line.keys() & {"sqrt_kl"} or current(line) == line


def test_the_kl_of_a_reply_is_that_of_a_token_times_the_length() -> None:
    line = {"kl": 0.25, "completions/mean_length": 8.0}
    assert with_kl_of_replies(line) == {**line, "objective/kl": 2.0}
    assert with_kl_of_replies({"completions/mean_length": 8.0})["objective/kl"] is None


@pytest.mark.parametrize(
    ("shares", "ended", "high"),
    [
        ([], True, False),
        ([0.5] * 5, False, True),
        ([0.9] * 4, False, False),
        ([0.9] * 4, True, True),
        ([0.9] * 9 + [0.4], True, False),
        ([0.1] * 9 + [0.6] * 5, False, True),
    ],
)
def test_a_share_stays_high_if_the_last_five_lines_have_it(shares: list[float], ended: bool, high: bool) -> None:
    assert stays_high(shares, ended=ended) == high


def test_what_json_cannot_say_is_left_empty() -> None:
    assert [finite(number) for number in (1.5, None, math.nan, math.inf)] == [1.5, None, None, None]
