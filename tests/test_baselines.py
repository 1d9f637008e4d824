import pytest
import torch
from torch.testing import assert_close

from online_sft.baselines import BASELINES, GROUP_BASELINES, constant, group_mean, leave_one_out, no_baseline

NAN = float("nan")


def test_by_hand():
    rewards = torch.tensor([[1.0, 2.0, 6.0]])
    assert_close(leave_one_out(rewards), torch.tensor([[4.0, 3.5, 1.5]]))
    assert_close(group_mean(rewards), torch.tensor([[3.0, 3.0, 3.0]]))
    assert_close(constant(rewards, 0.5), torch.tensor([[0.5, 0.5, 0.5]]))
    assert_close(no_baseline(rewards), torch.zeros(1, 3))


def test_a_reward_that_could_not_be_scored_takes_no_part():
    rewards = torch.tensor([[1.0, NAN, 6.0], [NAN, 2.0, NAN], [NAN, NAN, NAN]])
    assert_close(leave_one_out(rewards)[0, [0, 2]], torch.tensor([6.0, 1.0]))
    assert_close(group_mean(rewards), torch.tensor([[3.5] * 3, [2.0] * 3, [0.0] * 3]))
    assert leave_one_out(rewards)[1, 1].item() == 0.0  # nothing to compare with


@pytest.mark.parametrize("name", sorted(BASELINES))
def test_groups_do_not_look_at_each_other_and_finite_rewards_give_finite_baselines(name):
    rewards = torch.tensor([[1.0, 2.0, NAN], [5.0, 5.0, 5.0]])
    together = BASELINES[name](rewards)
    apart = torch.cat([BASELINES[name](row[None]) for row in rewards])
    scored = ~rewards.isnan()
    assert_close(together[scored], apart[scored])
    assert together[scored].isfinite().all()
    assert_close((rewards - together)[1], rewards[1] - apart[1])


def test_tied_rewards_leave_nothing_above_a_group_baseline():
    rewards = torch.full((2, 4), 0.7)
    for name in GROUP_BASELINES:
        assert_close(rewards - BASELINES[name](rewards), torch.zeros(2, 4))


def test_leave_one_out_does_not_look_at_the_samples_own_reward():
    rewards = torch.tensor([[1.0, 2.0, 3.0]], requires_grad=True)
    jacobian = torch.autograd.functional.jacobian(leave_one_out, rewards)[0, :, 0]
    assert_close(jacobian.diagonal(), torch.zeros(3))
    assert_close(jacobian.sum(1), torch.ones(3))
