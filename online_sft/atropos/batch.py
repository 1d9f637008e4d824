"""A batch of Atropos as rows, and as padded arrays under the names of the interface published for Atropos."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from online_sft.atropos.group import Floats, Ints, MalformedGroupError, ScoredGroup, parse_group
from online_sft.atropos.weights import token_weights

__all__ = ["AtroposBatchProcessor", "BatchReader", "Quarantined", "WeightedRow", "padded"]

logger = logging.getLogger(__name__)

_DTYPES = {"tokens": torch.long, "labels": torch.long, "loss_masks": torch.long}


@dataclass(frozen=True)
class WeightedRow:
    """A sequence to train on. Arrays are [L]; entry t belongs to token t."""

    tokens: Ints
    is_loss: NDArray[np.bool_]
    weights: Floats  # 0 where there is no loss
    log_probs: Floats  # of the engine that sampled, nats; NaN where unknown
    temperature: float  # of the sampling
    group: int  # its place in the batch
    has_gradient: bool  # False: the environment wants none from it, however weights are normalised
    is_cut: bool  # at max_length

    def __len__(self) -> int:
        return len(self.tokens)


@dataclass(frozen=True)
class Quarantined:
    """A group that is not trained on."""

    group: int  # its place in the batch
    reason: str
    raw: Any  # as it came


@dataclass(frozen=True)
class BatchReader:
    """How groups become rows.

    Args:
        max_length: of a sequence in tokens; longer ones lose their end, with its masks, advantages and log-probs.
        score_normalization: of groups without advantages (`token_weights`).
        vocab_size, advantages_of_sequences, temperature: of `parse_group`.
    """

    max_length: int | None = None
    score_normalization: str = "mean"
    vocab_size: int | None = None
    advantages_of_sequences: bool = False
    temperature: float = 1.0

    def groups(self, batch: Sequence[Any]) -> tuple[dict[int, ScoredGroup], list[Quarantined]]:
        """The groups of a batch by their place in it, and those that are malformed."""
        groups: dict[int, ScoredGroup] = {}
        quarantined = []
        for index, raw in enumerate(batch):
            try:
                groups[index] = parse_group(
                    raw,
                    vocab_size=self.vocab_size,
                    advantages_of_sequences=self.advantages_of_sequences,
                    temperature=self.temperature,
                )
            except MalformedGroupError as error:
                quarantined.append(Quarantined(index, str(error), raw))
        return groups, quarantined

    def rows(self, index: int, group: ScoredGroup) -> list[WeightedRow]:
        """The sequences of a group, weighted and cut."""
        weights = token_weights(group, self.score_normalization)
        cut = slice(self.max_length)
        return [
            WeightedRow(
                tokens=sequence.tokens[cut],
                is_loss=sequence.is_loss[cut],
                weights=of_tokens[cut],
                log_probs=(np.full(len(sequence), np.nan) if sequence.log_probs is None else sequence.log_probs)[cut],
                temperature=sequence.temperature,
                group=index,
                has_gradient=not sequence.is_zeroed,
                is_cut=len(sequence) > len(of_tokens[cut]),
            )
            for sequence, of_tokens in zip(group.sequences, weights, strict=True)
        ]


class AtroposBatchProcessor:
    """Turns the groups of `/batch` into what `WeightedSFTInterface.compute_weighted_loss` takes.

        processor = AtroposBatchProcessor(pad_token_id=0, max_length=512)
        tensors = processor.to_tensors(processor.process_atropos_batch(answer["batch"]), device="cuda")

    Malformed groups are left out with a warning; `quarantined` has those of the last batch, each with its reason.

    Args:
        pad_token_id: at the right of shorter sequences.
        max_length, score_normalization, vocab_size, advantages_of_sequences: of `BatchReader`.
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
        self.pad_token_id = pad_token_id
        self.reader = BatchReader(max_length, score_normalization, vocab_size, advantages_of_sequences)
        self.quarantined: list[Quarantined] = []

    def process_atropos_batch(self, batch: Sequence[Mapping[str, Any]]) -> dict[str, np.ndarray]:
        """Arrays of all sequences of all groups, in order, each [B, T]; T the longest of them.

        `tokens`; `loss_masks`, 1 on loss tokens; `advantages`, 0 elsewhere; `labels`, -100 elsewhere;
        `inference_logprobs`, NaN where unknown; and `temperatures`, [B].

        Raises:
            MalformedGroupError: when no group of the batch can be used.
        """
        groups, self.quarantined = self.reader.groups(batch)
        for each in self.quarantined:
            logger.warning("group %d of the batch is left out: %s", each.group, each.reason)
        rows = [row for index, group in groups.items() for row in self.reader.rows(index, group)]
        if not rows:
            reasons = "; ".join(each.reason for each in self.quarantined) or "it has no groups"
            raise MalformedGroupError(f"no group of the batch can be used: {reasons}")
        return padded(rows, self.pad_token_id)

    @staticmethod
    def to_tensors(batch: Mapping[str, np.ndarray], device: torch.device | str = "cpu") -> dict[str, Tensor]:
        """The arrays as tensors: int64, or float32 for advantages, log-probs and temperatures."""
        return {
            name: torch.as_tensor(values, dtype=_DTYPES.get(name, torch.float32), device=device)
            for name, values in batch.items()
        }


def padded(rows: Sequence[WeightedRow], pad_token_id: int) -> dict[str, np.ndarray]:
    """The arrays of `AtroposBatchProcessor.process_atropos_batch`."""
    tokens = _stacked([row.tokens for row in rows], pad_token_id)
    is_loss = _stacked([row.is_loss for row in rows], False)
    return {
        "tokens": tokens,
        "loss_masks": is_loss.astype(np.int64),
        "advantages": _stacked([row.weights for row in rows], 0.0),
        "labels": np.where(is_loss, tokens, -100),
        "inference_logprobs": _stacked([row.log_probs for row in rows], np.nan),
        "temperatures": np.array([row.temperature for row in rows]),
    }


def _stacked(rows: Sequence[np.ndarray], value: float) -> np.ndarray:
    return pad_sequence([torch.from_numpy(row) for row in rows], batch_first=True, padding_value=value).numpy()
