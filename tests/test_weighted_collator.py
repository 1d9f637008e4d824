"""The collator keeps one advantage per token, padded or flattened as TRL does the tokens."""

import pytest
import torch

from trainers.weighted_collator import WeightedDataCollator

ROWS = [
    {"input_ids": [5, 6, 7], "labels": [-100, 6, 7], "advantages": [1.0, 2.0, -3.0], "groups": [9, 9, 9]},
    {"input_ids": [8, 9], "labels": [8, 9], "advantages": [4.0, 5.0], "groups": [3, 3]},
]


def test_padding_and_masked_tokens_get_weight_zero():
    batch = WeightedDataCollator(pad_token_id=0, pad_to_multiple_of=4)(ROWS)
    assert batch["advantages"].tolist() == [[0.0, 2.0, -3.0, 0.0], [4.0, 5.0, 0.0, 0.0]]
    assert batch["advantages"].dtype == torch.float32
    assert batch["groups"].tolist() == [[9, 9, 9, -1], [3, 3, -1, -1]]
    assert batch["input_ids"].shape == batch["advantages"].shape


def test_without_padding_the_first_token_of_each_sequence_gets_weight_zero():
    batch = WeightedDataCollator(pad_token_id=0, padding_free=True)(ROWS)
    assert batch["advantages"].tolist() == [[0.0, 2.0, -3.0, 0.0, 5.0]]
    assert batch["position_ids"].tolist() == [[0, 1, 2, 0, 1]]


def test_fragments_of_a_packed_row_start_with_weight_zero():
    row = {"input_ids": [1, 2, 3, 4], "labels": [1, 2, 3, 4], "advantages": [1.0, 1.0, 1.0, 1.0], "seq_lengths": [3, 1]}
    batch = WeightedDataCollator(pad_token_id=0, padding_free=True)([row])
    assert batch["advantages"].tolist() == [[0.0, 1.0, 1.0, 0.0]]


@pytest.mark.parametrize("advantages", [[1.0, 2.0], [1.0, 2.0, float("nan")]])
def test_rows_that_do_not_fit_are_named(advantages):
    with pytest.raises(ValueError, match=r"row 1 of the batch has advantages of shape .* for 3 tokens"):
        WeightedDataCollator(pad_token_id=0)([ROWS[1], {**ROWS[0], "advantages": advantages}])
