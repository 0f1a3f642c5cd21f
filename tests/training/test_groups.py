import math

import pytest
import torch

from constitutional.training.groups import normalised, share_alike, weighted_sum

NAN = math.nan


def test_each_reward_is_divided_by_the_deviation_of_its_own_group() -> None:
    # The first group: 0, 0, 0, 4 has mean 1 and deviation √(12 / 3) = 2; 1, 0, 1, 0 has 0.5 and √(1 / 3) = 0.57735.
    rewards = torch.tensor(
        [[0.0, 1.0], [0.0, 0.0], [0.0, 1.0], [4.0, 0.0], [7.0, 3.0], [7.0, 5.0], [7.0, 3.0], [7.0, 5.0]]
    )
    z = 0.5 / (math.sqrt(1 / 3) + 1e-4)
    w = 1 / (math.sqrt(4 / 3) + 1e-4)  # of 3, 5, 3, 5
    expected = [
        [-1 / 2.0001, z],
        [-1 / 2.0001, -z],
        [-1 / 2.0001, z],
        [3 / 2.0001, -z],
        [0, -w],
        [0, w],
        [0, -w],
        [0, w],
    ]
    torch.testing.assert_close(normalised(rewards, 4), torch.tensor(expected))


def test_a_missing_number_is_left_out_and_one_alone_has_no_deviation() -> None:
    rewards = torch.tensor([[1.0, 5.0], [3.0, NAN], [NAN, NAN]])
    # 1 and 3: mean 2, deviation √2.
    z = 1 / (math.sqrt(2) + 1e-4)
    expected = torch.tensor([[-z, NAN], [z, NAN], [NAN, NAN]])
    torch.testing.assert_close(normalised(rewards, 3), expected, equal_nan=True)


def test_rewards_are_added_by_their_weights_where_there_are_any() -> None:
    rewards = torch.tensor([[1.0, 5.0], [3.0, NAN], [NAN, NAN]])
    totals = weighted_sum(rewards, torch.tensor([2.0, 0.1]))
    torch.testing.assert_close(totals, torch.tensor([2.5, 6.0, NAN]), equal_nan=True)


@pytest.mark.parametrize(
    ("totals", "share"),
    [([1, 1, 1, 2], 0.5), ([0.1, 0.1, 0.1, 0.1], 1.0), ([1, 2, 3, 4], 0.0), ([5, NAN, NAN, NAN], 1.0)],
)
def test_a_group_whose_replies_are_rewarded_alike_teaches_nothing(totals: list[float], share: float) -> None:
    assert share_alike(torch.tensor(totals), 2) == share
