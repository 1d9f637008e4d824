"""A batch of Atropos as padded rows and tensors, under the names of the interface published for Atropos."""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from online_sft.atropos.group import MalformedGroupError, parse_group
from online_sft.atropos.weights import token_weights

__all__ = ["AtroposBatchProcessor"]

logger = logging.getLogger(__name__)

_DTYPES = {"tokens": torch.long, "labels": torch.long, "loss_masks": torch.long}


class AtroposBatchProcessor:
    """Turns the groups of `/batch` into what `WeightedSFTInterface.compute_weighted_loss` takes.

        processor = AtroposBatchProcessor(pad_token_id=0, max_length=512)
        tensors = processor.to_tensors(processor.process_atropos_batch(answer["batch"]), device="cuda")

    Malformed groups are left out with a warning; `quarantined` has those of the last batch, each with its reason.

    Args:
        pad_token_id: at the right of shorter sequences.
        max_length: of a sequence in tokens; longer ones lose their end, with its masks, advantages and log-probs.
        score_normalization: of groups without advantages (`token_weights`).
        vocab_size, advantages_of_sequences: of `parse_group`.
    """

    def __init__(
        self,
        pad_token_id: int,
        max_length: int | None = None,
        *,
        score_normalization: str = "mean",
        vocab_size: int | None = None,
        advantages_of_sequences: bool = False,
    ) -> None:
        self.pad_token_id, self.max_length = pad_token_id, max_length
        self.score_normalization = score_normalization
        self.vocab_size, self.advantages_of_sequences = vocab_size, advantages_of_sequences
        self.quarantined: list[tuple[Any, str]] = []

    def process_atropos_batch(self, batch: Sequence[Mapping[str, Any]]) -> dict[str, np.ndarray]:
        """Arrays of all sequences of all groups, in order, each [B, T]; T the longest of them.

        `tokens`; `loss_masks`, 1 on loss tokens; `advantages`, 0 elsewhere; `labels`, -100 elsewhere;
        `inference_logprobs`, NaN where unknown; and `temperatures`, [B].

        Raises:
            MalformedGroupError: when no group of the batch can be used.
        """
        self.quarantined = []
        columns: dict[str, list[np.ndarray]] = {name: [] for name in ("tokens", "is_loss", "advantages", "log_probs")}
        temperatures = []
        for index, raw in enumerate(batch):
            try:
                group = parse_group(
                    raw, vocab_size=self.vocab_size, advantages_of_sequences=self.advantages_of_sequences
                )
            except MalformedGroupError as error:
                self.quarantined.append((raw, str(error)))
                logger.warning("group %d of the batch is left out: %s", index, error)
                continue
            for sequence, weights in zip(group.sequences, token_weights(group, self.score_normalization), strict=True):
                cut = slice(self.max_length)
                unknown = np.full(len(sequence), np.nan)
                columns["tokens"].append(sequence.tokens[cut])
                columns["is_loss"].append(sequence.is_loss[cut])
                columns["advantages"].append(weights[cut])
                columns["log_probs"].append((unknown if sequence.log_probs is None else sequence.log_probs)[cut])
                temperatures.append(sequence.temperature)
        if not temperatures:
            reasons = "; ".join(reason for _, reason in self.quarantined) or "it has no groups"
            raise MalformedGroupError(f"no group of the batch can be used: {reasons}")
        tokens, is_loss = _padded(columns["tokens"], self.pad_token_id), _padded(columns["is_loss"], False)
        return {
            "tokens": tokens,
            "loss_masks": is_loss.astype(np.int64),
            "advantages": _padded(columns["advantages"], 0.0),
            "labels": np.where(is_loss, tokens, -100),
            "inference_logprobs": _padded(columns["log_probs"], np.nan),
            "temperatures": np.array(temperatures),
        }

    @staticmethod
    def to_tensors(batch: Mapping[str, np.ndarray], device: torch.device | str = "cpu") -> dict[str, Tensor]:
        """The arrays as tensors: int64, or float32 for advantages, log-probs and temperatures."""
        return {
            name: torch.as_tensor(values, dtype=_DTYPES.get(name, torch.float32), device=device)
            for name, values in batch.items()
        }


def _padded(rows: Sequence[np.ndarray], value: float) -> np.ndarray:
    return pad_sequence([torch.from_numpy(row) for row in rows], batch_first=True, padding_value=value).numpy()
