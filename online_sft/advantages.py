"""The `advantages` column of a data set row: one number per token, aligned with the tokens themselves.

row: {"input_ids": [5, 8, 2], "labels": [-100, 8, 2], "advantages": [0.0, 1.5, 1.5]}   or   "advantages": 1.5
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["pad_advantages", "token_advantages"]


def token_advantages(advantages: Sequence[float] | float, num_tokens: int, *, row: str) -> list[float]:
    """One finite advantage per token: a list is checked, a number (one advantage per sequence) is repeated.

    Args:
        advantages: of one row.
        num_tokens: tokens of that row.
        row: what to call the row in an error, for example "row 17 of the train dataset".

    Raises:
        ValueError: when the list's length is not `num_tokens`, or an advantage is missing or not finite.
    """
    if isinstance(advantages, (int, float)):
        advantages = [float(advantages)] * num_tokens
    if advantages is None or len(advantages) != num_tokens:
        got = "no advantages" if advantages is None else f"{len(advantages)} advantages"
        raise ValueError(
            f"{row} has {got} for {num_tokens} tokens; give one number per token (0.0 where a token carries no loss) "
            "or one number for the whole row"
        )
    for position, value in enumerate(advantages):
        if value is None or not math.isfinite(value):
            raise ValueError(
                f"{row} has advantage {value} at token {position}; every advantage must be a finite number"
            )
    return list(advantages)


def pad_advantages(rows: Sequence[Sequence[float]], width: int) -> Tensor:
    """Right-pads ragged rows with 0 to [B, width] float32: a padding token has no weight."""
    return torch.tensor([[*row, *[0.0] * (width - len(row))] for row in rows], dtype=torch.float32)
