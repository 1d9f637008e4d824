"""Each denominator counts what it says, and adds up over micro-batches."""

import pytest
import torch

from online_sft import DENOMINATORS

ADVANTAGES = torch.tensor([[5.0, -2.0, 0.0], [5.0, 1.0, 7.0], [5.0, 4.0, 4.0]])
MASK = torch.tensor([[0, 1, 1], [0, 1, 0], [0, 0, 0]], dtype=torch.bool)
SEQUENCES = torch.arange(3).unsqueeze(1).expand(3, 3)


@pytest.mark.parametrize(("name", "expected"), [("tokens", 3.0), ("sequences", 2.0), ("abs_advantages", 3.0)])
def test_counts_loss_tokens_only_and_adds_up(name, expected):
    count = DENOMINATORS[name]
    assert count(ADVANTAGES, MASK, SEQUENCES).item() == expected
    parts = [count(ADVANTAGES[i : i + 1], MASK[i : i + 1], SEQUENCES[i : i + 1]) for i in range(3)]
    assert sum(parts).item() == expected


def test_sequences_of_a_packed_row_are_counted_one_by_one():
    packed = torch.tensor([[0, 0, 1, 1, 1, 2]])
    mask = torch.tensor([[0, 1, 0, 1, 1, 0]], dtype=torch.bool)
    assert DENOMINATORS["sequences"](torch.ones(1, 6), mask, packed).item() == 2.0
