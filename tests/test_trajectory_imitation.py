import math

import pytest
import torch

from online_sft.trajectories.action_values import ACTION_VALUES
from online_sft.trajectories.imitation import Episode, action_weights, episode_of
from online_sft.trajectories.trajectory import Trajectory
from online_sft.weightings import advantage_exponential, exponential, rejection, top_k

REWARDS = [1.0, 0.0, -2.0, 4.0]


@pytest.mark.parametrize(
    ("values", "discount", "expected"),
    [
        ("per_step", 1.0, REWARDS),
        ("return", 1.0, [3.0] * 4),
        ("reward_to_go", 1.0, [3.0, 2.0, 2.0, 4.0]),
        ("return", 0.5, [1.0 + 0.0 - 0.5 + 0.5] * 4),
        ("reward_to_go", 0.5, [1.0, 0.0, 0.0, 4.0]),
    ],
)
def test_the_values_of_actions_by_hand(values, discount, expected):
    assert ACTION_VALUES[values](REWARDS, discount) == expected
    assert action_weights([Episode(REWARDS, 0)], values=values, discount=discount) == [expected]


def test_without_values_or_weighting_every_action_counts_as_one():
    assert action_weights([Episode([5.0, 1.0], 0)]) == [[1.0, 1.0]]


def test_episodes_below_the_threshold_are_not_imitated_and_equal_ones_are():
    episodes = [Episode([1.0, 1.0], 0), Episode([1.0, 0.5], 0), Episode([3.0], 1)]
    assert action_weights(episodes, min_return=2.0) == [[1.0, 1.0], [None, None], [1.0]]


def test_a_filter_that_sums_many_small_rewards_does_not_miss_by_rounding():
    assert action_weights([Episode([0.1] * 10, 0)], min_return=1.0) == [[1.0] * 10]


def test_returns_compare_episodes_once_each_however_long():
    """A long episode would otherwise count as often as it has actions."""
    episodes = [Episode([1.0] * 4, 0), Episode([2.0], 0)]
    weights = action_weights(episodes, weighting=exponential)
    expected = 2 * torch.tensor([4.0, 2.0]).softmax(0)
    assert weights[0] == pytest.approx([expected[0].item()] * 4)
    assert weights[1] == pytest.approx([expected[1].item()])


def test_the_best_episodes_of_each_task():
    episodes = [Episode([1.0, 1.0], 7), Episode([5.0], 7), Episode([0.0, 0.0], 8)]
    assert action_weights(episodes, weighting=top_k) == [[0.0, 0.0], [1.0], [1.0, 1.0]]


def test_rewards_to_go_compare_actions_at_the_same_place_of_a_task():
    episodes = [Episode([0.0, 3.0], 7), Episode([0.0, 1.0], 7), Episode([9.0, 9.0], 8)]
    weights = action_weights(episodes, values="reward_to_go", weighting=advantage_exponential)
    # values 3, 3 / 1, 1 / 18, 9; means of (task, place): 2, 2 / 18 / 9
    for row, expected in zip(weights, [[math.e] * 2, [1 / math.e] * 2, [1.0, 1.0]], strict=True):
        assert row == pytest.approx(expected)


def test_what_is_filtered_is_not_compared_either():
    episodes = [Episode([0.0], 0), Episode([2.0], 0), Episode([4.0], 0)]
    weights = action_weights(episodes, min_return=1.0, weighting=exponential)
    assert weights[0] == [None]
    assert sum(row[0] for row in weights[1:]) == pytest.approx(2.0)


def test_an_action_that_was_cut_is_not_imitated():
    trajectory = Trajectory(["o", "p", "q"], ["a", "b"], [1.0, 2.0], {"cut_actions": [1]})
    assert action_weights([episode_of(trajectory)], values="per_step") == [[1.0, None]]


def test_a_task_is_the_group_or_what_the_first_observation_says():
    def group(observation, **metadata):
        return episode_of(Trajectory([observation, "end"], ["a"], [0.0], metadata)).group

    assert group("x") == group("x") != group("y")
    assert group("x", group="g") == group("y", group="g") != group("x")


def test_a_weight_that_is_not_finite_is_refused():
    with pytest.raises(ValueError, match="1 actions a weight that is not finite"):
        action_weights([Episode([0.0], 0), Episode([1.0], 0)], weighting=lambda r, g: r / (1 - r))


def test_rejection_keeps_zeros_in_the_denominator():
    """Weight 0 is not None: the token stays in the mean, as everywhere in weighted SFT."""
    assert action_weights([Episode([0.0], 0), Episode([1.0], 0)], weighting=rejection) == [[0.0], [1.0]]
