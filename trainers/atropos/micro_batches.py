"""Rows of Atropos as the micro-batches of `WeightedSFTTrainer`."""

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from online_sft.atropos.batch import WeightedRow, padded

__all__ = ["micro_batch", "parts_of", "refuse_other_temperatures"]


def parts_of(rows: Sequence[WeightedRow], num_parts: int) -> list[Sequence[WeightedRow]]:
    """The rows in order, in so many parts whose sizes differ by one at most."""
    bounds = np.linspace(0, len(rows), num_parts + 1).round().astype(int)
    return [rows[start:end] for start, end in pairwise(bounds)]


def micro_batch(rows: Sequence[WeightedRow], pad_token_id: int, device: torch.device) -> dict[str, Tensor]:
    """What `WeightedDataCollator` makes of a data set's rows: all [B, T], aligned with the tokens.

    `ref_log_probs` are those of the engine that sampled, NaN where unknown; `groups` the places of the rows' groups in
    the batch. Without rows, one of a padding token without loss: every process has to take part in every step.
    """
    if not rows:
        nothing = np.zeros(2)
        tokens = np.full(2, pad_token_id)
        rows = [WeightedRow(tokens, np.zeros(2, dtype=bool), nothing, np.full(2, np.nan), 1.0, -1, True, False)]
    arrays = padded(rows, pad_token_id)
    lengths = np.array([len(row) for row in rows])
    shape = arrays["tokens"].shape
    columns = {
        "input_ids": arrays["tokens"],
        "attention_mask": (np.arange(shape[1]) < lengths[:, None]).astype(np.int64),
        "labels": arrays["labels"],
        "advantages": arrays["advantages"].astype(np.float32),
        "ref_log_probs": arrays["inference_logprobs"].astype(np.float32),
        "groups": np.broadcast_to(np.array([[row.group] for row in rows]), shape).copy(),
        "temperatures": np.broadcast_to(arrays["temperatures"][:, None].astype(np.float32), shape).copy(),
        "has_gradient": np.broadcast_to(np.array([[int(row.has_gradient)] for row in rows]), shape).copy(),
    }
    return {name: torch.as_tensor(values, device=device) for name, values in columns.items()}


def refuse_other_temperatures(temperatures: Tensor, temperature: float) -> None:
    """TRL's LM head divides all logits by one temperature.

    Raises:
        ValueError: for tokens that were sampled at another one.
    """
    others = temperatures[~torch.isclose(temperatures, torch.full_like(temperatures, temperature))]
    if len(others):
        raise ValueError(
            f"rows that were sampled at temperature {others[0]:g} need our LM head, which is not used here; if all "
            f"rows were, set temperature (now {temperature:g})"
        )
