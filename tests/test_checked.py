"""The checks around every reward function."""

import asyncio

import pytest

from online_sft import MathVerificationReward
from online_sft.rewards.checked import check_dataset, checked


def good(completions, **columns):
    return [0.5, None][: len(completions)]


async def good_async(completions, **columns):
    return [0.5, None]


def test_checked_rewards_pass_through_unchanged_under_their_name():
    assert checked(good, "good")(completions=["a", "b"]) == [0.5, None]
    assert checked(good, "other").__name__ == "other"
    assert asyncio.run(checked(good_async, "good_async")(completions=["a", "b"])) == [0.5, None]


@pytest.mark.parametrize(
    ("rewards", "message"),
    [
        ([1.0], "'f' returned 1 rewards for 2 completions"),
        ([1.0, 2.0, 3.0], "'f' returned 3 rewards for 2 completions"),
        ([1.0, float("nan")], "'f' returned nan for completion 1 of 2"),
        ([float("-inf"), 1.0], "'f' returned -inf for completion 0 of 2"),
    ],
)
def test_checked_rewards_that_cannot_be_used_are_named(rewards, message):
    with pytest.raises(ValueError, match=message):
        checked(lambda completions: rewards, "f")(completions=["a", "b"])

    async def wrong(completions):
        return rewards

    with pytest.raises(ValueError, match=message):
        asyncio.run(checked(wrong, "f")(completions=["a", "b"]))


def test_columns_that_a_reward_function_needs_are_found():
    def reward(completions, solution, hint=None, *, trainer_state, difficulty, **columns):
        return [0.0] * len(completions)

    assert check_dataset(reward, {"solution": [], "difficulty": []}) == []
    with pytest.raises(ValueError, match="'reward' needs the column difficulty; the dataset has prompt, solution"):
        check_dataset(reward, {"prompt": [], "solution": []})


def test_a_reward_function_that_knows_its_bad_rows_is_asked():
    assert check_dataset(MathVerificationReward(), {"solution": ["1", ""]}) == ["row 1: gold '': no_answer"]
