"""Z-scores of advantages over the right tokens, exact over any split into micro-batches."""

import statistics

import pytest
import torch
from torch.testing import assert_close

from online_sft.normalisation import (
    NORMALISATIONS,
    Moments,
    cells,
    clip,
    merge_moments,
    moments_by_cell,
    normalise,
    standardise,
)

ADVANTAGES = torch.tensor([[9.0, 1.0, 2.0, 6.0], [9.0, -1.0, 5.0, 9.0], [9.0, 3.0, 3.0, 3.0]], dtype=torch.float64)
MASK = torch.tensor([[0, 1, 1, 1], [0, 1, 1, 0], [0, 1, 1, 1]], dtype=torch.bool)
SEQUENCES = torch.arange(3).unsqueeze(1).expand(3, 4)
GROUPS = torch.tensor([7, 7, 8]).unsqueeze(1).expand(3, 4)
# which entries of ADVANTAGES[MASK], row by row, share a z-score
MEMBERS = {
    "batch": [range(8)],
    "global": [range(8)],
    "sequence": [range(3), range(3, 5), range(5, 8)],
    "group": [range(5), range(5, 8)],
}


@pytest.mark.parametrize("name", MEMBERS)
def test_equals_the_z_scores_of_pythons_statistics_module(name):
    values = ADVANTAGES[MASK].tolist()
    expected = [0.0] * len(values)
    for members in MEMBERS[name]:
        mean, std = statistics.mean(values[i] for i in members), statistics.pstdev(values[i] for i in members)
        for i in members:
            expected[i] = (values[i] - mean) / (std + 1e-8)
    got = normalise(ADVANTAGES, MASK, name, sequences=SEQUENCES, groups=GROUPS)
    assert_close(got[MASK], torch.tensor(expected, dtype=torch.float64))
    assert not got[~MASK].any()


def test_none_changes_nothing():
    assert normalise(ADVANTAGES, MASK, "none", sequences=SEQUENCES) is ADVANTAGES


@pytest.mark.parametrize("value", [0.0, 3.0, 0.1, -7e5])
def test_equal_advantages_become_zero(value):
    same = torch.full((2, 5), value)
    got = normalise(same, torch.ones(2, 5, dtype=torch.bool), "batch", sequences=torch.zeros(2, 5, dtype=torch.long))
    assert got.abs().max() < 1e-6


def test_masked_advantages_do_not_count():
    changed = torch.where(MASK, ADVANTAGES, torch.tensor(1e6, dtype=torch.float64))
    for name in MEMBERS:
        results = [normalise(a, MASK, name, sequences=SEQUENCES, groups=GROUPS) for a in (ADVANTAGES, changed)]
        assert torch.equal(*results)


@pytest.mark.parametrize("name", MEMBERS)
def test_moments_of_micro_batches_add_up_to_those_of_the_batch(name):
    of_token = cells(name, SEQUENCES, GROUPS)
    whole = moments_by_cell(ADVANTAGES, MASK, of_token)
    parts = [moments_by_cell(ADVANTAGES[i : i + 1], MASK[i : i + 1], of_token[i : i + 1]) for i in (2, 0, 1)]
    merged = merge_moments(parts)
    assert merged.keys() == whole.keys()
    for cell, moments in whole.items():
        other = merged[cell]
        assert moments.count == other.count
        assert_close([other.mean, other.squared_deviations], [moments.mean, moments.squared_deviations])


def test_a_large_offset_does_not_cancel():
    """The textbook sum of squares would lose every digit here."""
    values = 1e9 + torch.tensor([[1.0, 2.0, 3.0, 4.0]], dtype=torch.float64)
    mask, cell = torch.ones(1, 4, dtype=torch.bool), torch.zeros(1, 4, dtype=torch.long)
    left, right = (moments_by_cell(values[:, s], mask[:, s], cell[:, s]) for s in (slice(0, 1), slice(1, 4)))
    assert_close(merge_moments([left, right])[0].std, statistics.pstdev([1, 2, 3, 4]))


def test_empty_moments_are_neutral():
    seen = Moments(3.0, 1.5, 2.0)
    assert Moments() + seen == seen
    assert seen + Moments() == seen
    assert Moments().std == 0.0


def test_no_loss_token_gives_zeros():
    nothing = torch.zeros_like(MASK)
    assert not normalise(ADVANTAGES, nothing, "batch", sequences=SEQUENCES).any()


def test_half_precision_advantages_are_widened():
    assert normalise(ADVANTAGES.bfloat16(), MASK, "batch", sequences=SEQUENCES).dtype == torch.float32


def test_standardise_uses_the_moments_given_not_those_of_the_batch():
    got = standardise(ADVANTAGES, MASK, torch.zeros_like(SEQUENCES), {0: Moments(10.0, 1.0, 40.0)})
    assert_close(got[MASK], (ADVANTAGES[MASK] - 1.0) / 2.0)


def test_clip_moves_values_into_the_bounds():
    assert clip(torch.tensor([-3.0, 0.5, 3.0]), [-1.0, 2.0]).tolist() == [-1.0, 0.5, 2.0]
    assert clip(ADVANTAGES, None) is ADVANTAGES


def test_inputs_are_not_changed():
    before = ADVANTAGES.clone()
    for name in NORMALISATIONS:
        clip(normalise(ADVANTAGES, MASK, name, sequences=SEQUENCES, groups=GROUPS), [-1.0, 1.0])
    assert torch.equal(ADVANTAGES, before)


def test_errors_name_the_way_out():
    with pytest.raises(ValueError, match="must be one of none, batch, sequence, global, group; got 'z'"):
        cells("z", SEQUENCES)
    with pytest.raises(ValueError, match="needs the group of each sequence"):
        cells("group", SEQUENCES)
