"""Sums of rewards with weights and gates; what one part cannot score, the sum cannot."""

import pytest

from online_sft import CombinedReward, MathVerificationReward, OverlongPenalty


def ones(completions, **columns):
    return [1.0] * len(completions)


def unsure(completions, **columns):
    return [None if "?" in text else 2.0 for text in completions]


def has_answer_line(completions, **columns):
    return [float("Answer:" in text) for text in completions]


async def asynchronous(completions, **columns):
    return [0.0]


def test_the_weighted_sum_by_hand():
    reward = CombinedReward({ones: 0.5, unsure: -3.0})
    assert reward(["a", "b"]) == [-5.5, -5.5]
    assert reward.__name__ == "ones+unsure"


def test_unscorable_by_one_part_or_gate_is_unscorable():
    assert CombinedReward({ones: 1.0, unsure: 1.0})(["a", "?"]) == [3.0, None]
    assert CombinedReward({ones: 1.0, unsure: 0.0})(["a", "?"]) == [1.0, None]
    assert CombinedReward({ones: 1.0}, gates=[unsure])(["a", "?"]) == [1.0, None]


def test_a_closed_gate_replaces_the_sum():
    reward = CombinedReward({ones: 2.0}, gates=[has_answer_line, ones], closed=-1.0)
    assert reward(["Answer: 1", "1"]) == [2.0, -1.0]
    assert CombinedReward({unsure: 2.0}, gates=[has_answer_line])(["Answer: ?", "?"]) == [None, None]


def test_a_bad_gold_is_not_half_right_because_it_is_short():
    """TRL would sum None and 0.0 to 0.0, half-way between right and wrong."""
    reward = CombinedReward({MathVerificationReward(): 1.0, OverlongPenalty(10, 5): 1.0})
    completions = ["Answer: 1"] * 4
    tokens = [[0] * 3, [0] * 10, [0] * 3, [0] * 3]
    assert reward(completions, completion_ids=tokens, solution=["1", "1", "2", ""]) == [1.0, 0.0, -1.0, None]


def test_columns_and_golds_are_checked_through_it():
    reward = CombinedReward({ones: 1.0, MathVerificationReward(): 1.0})
    assert reward.check_dataset({"solution": ["1", ""]}) == ["row 1: gold '': no_answer"]
    with pytest.raises(ValueError, match="needs one column of golds"):
        reward.check_dataset({"prompt": ["?"]})


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ({}, "weights is empty"),
        ({ones: float("nan")}, "the weight of 'ones' must be a finite number; got nan"),
        ({asynchronous: 1.0}, "'asynchronous' is asynchronous"),
    ],
)
def test_what_cannot_be_combined_is_refused(weights, message):
    with pytest.raises(ValueError, match=message):
        CombinedReward(weights)


def test_rewards_that_cannot_be_used_are_named():
    with pytest.raises(ValueError, match="reward function '<lambda>' returned nan for completion 0"):
        CombinedReward({lambda completions, **columns: [float("nan")]: 1.0})(["a"])
