import pytest
import torch
from torch.testing import assert_close

from online_sft.baselines import (
    BASELINES,
    GROUP_BASELINES,
    OptimalBaseline,
    RunningMean,
    constant,
    group_mean,
    leave_one_out,
    no_baseline,
)

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


@pytest.mark.parametrize("name", sorted(set(BASELINES) - {"optimal", "running_mean"}))
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


# --- what is learnt of earlier steps


def test_the_running_mean_forgets_a_tenth_each_time():
    mean = RunningMean().after(6.0, 3).after(10.0, 2)
    assert_close(mean.value, (0.9 * 6 + 10) / (0.9 * 3 + 2))
    assert_close(mean(torch.zeros(2, 2)), torch.full((2, 2), mean.value))


@pytest.mark.parametrize("baseline", [RunningMean(), OptimalBaseline()])
def test_the_first_batch_is_compared_with_its_own_other_samples(baseline):
    assert_close(baseline(torch.tensor([[1.0], [2.0], [6.0]])), torch.tensor([[4.0], [3.5], [1.5]]))


def fitted(weights, of_others, values):
    return OptimalBaseline().after(OptimalBaseline.sums_of(weights, of_others, values).tolist())


def test_before_there_are_earlier_steps_it_is_the_weighted_mean_of_the_others():
    g, a = torch.tensor([1.0, 2.0, 3.0]), torch.tensor([6.0, 3.0, 9.0])
    expected = torch.tensor([(6 + 27) / 5, (6 + 27) / 4, (6 + 6) / 3])
    assert_close(OptimalBaseline.of_other_samples(g, a), expected)
    assert_close(OptimalBaseline.of_other_samples(0 * g, a), torch.zeros(3))


def test_the_optimal_baseline_is_the_weighted_regression_on_the_others():
    generator = torch.Generator().manual_seed(0)
    g, m, noise = (torch.rand(50, generator=generator, dtype=torch.float64) for _ in range(3))
    a = 0.4 * m + noise
    design = torch.stack([m, torch.ones(50)], dim=1).double() * g.sqrt().unsqueeze(1)
    expected = torch.linalg.lstsq(design, a * g.sqrt()).solution
    assert_close(torch.tensor(fitted(g, m, a).slope_and_intercept), expected, check_dtype=False)


def test_without_groups_it_is_the_optimal_constant():
    g, a = torch.tensor([1.0, 3.0]), torch.tensor([2.0, 6.0])
    assert_close(fitted(g, torch.zeros(2), a)(torch.tensor([[0.0], [9.0]])), torch.full((2, 1), (2 + 18) / 4))


@pytest.mark.parametrize(("values", "slope"), [([0.0, 3.0], 1.0), ([3.0, 0.0], 0.0)])
def test_the_slope_stays_between_0_and_1_and_the_line_goes_through_the_means(values, slope):
    baseline = fitted(torch.ones(2), torch.tensor([0.0, 1.0]), torch.tensor(values))
    assert baseline.slope_and_intercept == (slope, 1.5 - slope * 0.5)


def test_where_others_say_all_it_is_leave_one_out_and_a_sample_without_others_gets_the_mean():
    m = torch.tensor([0.0, 1.0, 4.0])
    rewards = torch.tensor([[1.0, 2.0, 6.0], [NAN, 7.0, NAN]])
    baseline = fitted(torch.ones(3), m, m)(rewards)
    assert_close(baseline[0], leave_one_out(rewards)[0])
    assert_close(baseline[1, 1], m.mean())


def test_older_steps_count_less_for_the_optimal_baseline():
    ones = torch.ones(1)
    baseline = fitted(ones, 0 * ones, ones).after(OptimalBaseline.sums_of(ones, 0 * ones, 3 * ones).tolist())
    assert_close(baseline.slope_and_intercept[1], (0.9 * 1 + 3) / 1.9)
