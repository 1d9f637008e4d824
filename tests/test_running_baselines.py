import pytest
import torch
from accelerate import Accelerator
from torch.testing import assert_close
from transformers import TrainerControl, TrainerState

from trainers.running_baselines import RunningBaselines

PRICES, REWARDS = torch.tensor([0.5, -0.1, 0.2]), torch.tensor([1.0, 0.0, 2.0])
OTHERS, SIZES = torch.tensor([0.0, 1.0, 3.0]), torch.tensor([2.0, 1.0, 4.0])


def end_of_step(running):
    running.on_step_end(None, TrainerState(), TrainerControl())


@pytest.fixture
def running():
    running = RunningBaselines(Accelerator(cpu=True))
    for part in (slice(0, 2), slice(2, 3)):  # two micro-batches
        running.add(0.25, PRICES[part], REWARDS[part], OTHERS[part], SIZES[part])
    return running


def test_nothing_counts_before_the_step_has_ended(running):
    assert running.kl_price.value == 0.0
    assert running.optimal.sums == (0.0,) * 5


def test_the_price_is_the_mean_over_completions_and_the_regression_is_of_reward_less_price_less_beta(running):
    end_of_step(running)
    assert_close(running.kl_price.value, 0.2)
    values = REWARDS - PRICES - 0.25
    g, m = SIZES, OTHERS
    sums = [x.sum().item() for x in (g, g * m, g * m * m, g * values, g * values * m)]
    assert running.optimal.sums == pytest.approx(sums)


def test_a_step_without_completions_changes_no_mean_and_older_steps_count_less(running):
    end_of_step(running)
    before = running.kl_price.value, *running.optimal.slope_and_intercept
    end_of_step(running)
    assert (running.kl_price.value, *running.optimal.slope_and_intercept) == pytest.approx(before)
    running.add(0.25, torch.tensor([2.0] * 3), REWARDS, OTHERS, SIZES)
    end_of_step(running)
    assert running.kl_price.value == pytest.approx((0.81 * 0.6 + 6) / (0.81 * 3 + 3))


def test_what_is_saved_brings_everything_back(running):
    end_of_step(running)
    running.add_batch(torch.tensor([1.0, float("nan"), 4.0]))
    assert running.reward.value == 2.5
    state, again = TrainerState(), RunningBaselines(Accelerator(cpu=True))
    state.stateful_callbacks["RunningBaselines"] = running.state()
    again.on_train_begin(None, state, TrainerControl())
    assert (again.reward, again.kl_price, again.optimal) == (running.reward, running.kl_price, running.optimal)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_step_that_is_not_finite_leaves_the_baselines_as_they_were(running, bad):
    end_of_step(running)
    before = running.kl_price, running.optimal
    running.add(0.25, torch.tensor([bad, 0.1, 0.1]), REWARDS, OTHERS, SIZES)
    end_of_step(running)
    assert (running.kl_price, running.optimal) == before
    running.add(0.25, PRICES, REWARDS, OTHERS, SIZES)
    end_of_step(running)
    assert running.kl_price.value == pytest.approx(0.2)


@pytest.mark.parametrize("shift", [1e3, 1e5])
def test_a_constant_added_to_all_rewards_moves_the_baseline_by_it(shift):
    others, own, baselines = torch.arange(8.0) % 3, torch.arange(8.0) % 2, []
    for added in (0.0, shift):
        running = RunningBaselines(Accelerator(cpu=True))
        running.add(0.0, torch.zeros(8), others * 0.5 + own + added, others + added, torch.ones(8))
        end_of_step(running)
        slope, intercept = running.optimal.slope_and_intercept
        baselines.append((slope, slope * (others.mean().item() + added) + intercept - added))
    assert 0 < baselines[0][0] < 1
    assert baselines[1] == pytest.approx(baselines[0], rel=1e-3)
