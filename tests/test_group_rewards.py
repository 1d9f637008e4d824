import math

import pytest
import torch
from torch.testing import assert_close
from trl.trainer.utils import nanstd

from online_sft.group_rewards import degenerate_groups, scaled_rewards

REWARDS = torch.tensor([[1.0, 0.0, 0.0, 1.0], [2.0, math.nan, 5.0, 5.0]])


def test_without_a_scale_rewards_stay_as_they_are():
    assert_close(scaled_rewards(REWARDS), REWARDS, equal_nan=True, rtol=0, atol=0)


def test_the_group_scale_divides_by_each_groups_spread_as_trl_computes_it():
    expected = REWARDS / (nanstd(REWARDS, dim=1, keepdim=True) + 1e-4)
    assert_close(scaled_rewards(REWARDS, "group"), expected, equal_nan=True)


def test_the_batch_scale_divides_by_the_spread_of_all_samples():
    assert_close(scaled_rewards(REWARDS, "batch"), REWARDS / (nanstd(REWARDS) + 1e-4), equal_nan=True)


@pytest.mark.parametrize("scale", ["group", "batch"])
def test_equal_rewards_and_single_ones_stay_finite_and_equal(scale):
    scaled = scaled_rewards(torch.tensor([[1.0, 1.0], [1.0, math.nan]]), scale)
    assert scaled[~scaled.isnan()].tolist() == [scaled[0, 0].item()] * 3
    assert scaled[0, 0].item() == pytest.approx(1e4)  # 1 over TRL's epsilon: the spread is 0


@pytest.mark.parametrize(
    ("group", "min_std", "degenerate"),
    [
        ([1.0, 1.0, 1.0], 0.0, True),
        ([0.007, 0.007, 0.007], 0.0, True),  # whose mean is not exactly 0.007 in float32
        ([1.0, 0.0, 1.0], 0.0, False),
        ([1.0, 1.0, math.nan], 0.0, True),
        ([1.0, 0.0, math.nan], 0.0, False),
        ([1.0, math.nan, math.nan], 0.0, True),
        ([math.nan] * 3, 0.0, True),
        ([1.0, 0.0, 1.0, 0.0], 0.49, False),  # population spread 0.5
        ([1.0, 0.0, 1.0, 0.0], 0.5, True),
    ],
)
def test_a_group_is_degenerate_when_its_rewards_are_all_the_same(group, min_std, degenerate):
    assert degenerate_groups(torch.tensor([group]), min_std).tolist() == [degenerate]
