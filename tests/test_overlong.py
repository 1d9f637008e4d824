"""DAPO's penalty for long completions."""

import pickle

import pytest
from trl.rewards import get_soft_overlong_punishment

from online_sft import OverlongPenalty


def test_equation_13_by_hand():
    penalty = OverlongPenalty(max_completion_length=20, cache_length=8, factor=2.0)
    lengths = {0: 0.0, 12: 0.0, 13: -0.25, 16: -1.0, 20: -2.0, 21: -2.0, 500: -2.0}
    assert penalty(completion_ids=[[7] * length for length in lengths], prompts=None) == list(lengths.values())


def test_a_factor_of_one_is_trls_function():
    completions = [[0] * length for length in range(130)]
    ours = OverlongPenalty(100, 20)(completion_ids=completions)
    assert ours == pytest.approx(get_soft_overlong_punishment(100, 20)(completion_ids=completions), abs=1e-12)


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        ((100, 0), "cache_length must be at least 1 and at most max_completion_length=100; got 0"),
        ((100, 101), "got 101"),
        ((100, 20, -1.0), "factor must be 0 or more"),
        ((100, 20, float("nan")), "factor must be 0 or more"),
    ],
)
def test_limits_that_make_no_sense_are_refused(limits, message):
    with pytest.raises(ValueError, match=message):
        OverlongPenalty(*limits)


def test_it_pickles_and_has_a_name():
    assert pickle.loads(pickle.dumps(OverlongPenalty(100, 20))).__name__ == "overlong_penalty"
