"""Advantage patterns: each has its shape, and the data set is the same for the same seed."""

import random

import pytest

from online_sft import PATTERNS, pattern_dataset

SHAPES = {
    "uniform": [1.0] * 8,
    "increasing": [t / 7 for t in range(8)],
    "decreasing": [1 - t / 7 for t in range(8)],
    "end_weighted": [0.5] * 6 + [2.0] * 2,
    "alternating": [1.0, -1.0] * 4,
}


@pytest.mark.parametrize("name", SHAPES)
def test_shape_over_eight_tokens(name):
    assert PATTERNS[name](8, random.Random(0)) == pytest.approx(SHAPES[name])


def test_sparse_positive_is_one_on_a_fifth_of_the_tokens():
    assert sorted(PATTERNS["sparse_positive"](20, random.Random(0))) == [0.0] * 16 + [1.0] * 4


def test_random_is_standard_normal():
    values = PATTERNS["random"](20_000, random.Random(0))
    mean = sum(values) / len(values)
    assert abs(mean) < 0.03
    assert abs(sum((v - mean) ** 2 for v in values) / len(values) - 1) < 0.03


@pytest.mark.parametrize("name", PATTERNS)
def test_one_token_is_enough(name):
    assert len(PATTERNS[name](1, random.Random(0))) == 1


def test_rows_are_well_formed_and_cycle_through_the_patterns():
    rows = list(pattern_dataset(50, num_rows=20, lengths=(4, 9), prompt_share=0.5))
    assert [row["pattern"] for row in rows[:7]] == list(PATTERNS)
    assert len(rows) == 20
    for row in rows:
        num_tokens = len(row["input_ids"])
        assert 4 <= num_tokens <= 9
        assert all(0 <= token < 50 for token in row["input_ids"])
        assert row["loss_mask"] == [0] * (num_tokens // 2) + [1] * (num_tokens - num_tokens // 2)
        assert len(row["advantages"]) == num_tokens
        assert not any(row["advantages"][: num_tokens // 2])


def test_a_seed_gives_the_same_rows_every_time_it_is_read():
    data = pattern_dataset(50, num_rows=5, seed=3)
    assert list(data) == list(data) == list(pattern_dataset(50, num_rows=5, seed=3))
    assert list(data) != list(pattern_dataset(50, num_rows=5, seed=4))


def test_mistakes_are_named():
    with pytest.raises(ValueError, match=r"patterns must be among alternating.*; got 'zigzag'"):
        pattern_dataset(50, patterns=["zigzag"])
    with pytest.raises(ValueError, match=r"lengths must be .* got \(9, 4\)"):
        pattern_dataset(50, lengths=(9, 4))
