"""Actions and observations in one forward pass, each with its own mean over the optimizer step."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import Tensor

from online_sft.denominators import DENOMINATORS
from online_sft.precision import float64
from online_sft.trajectories.rendering import ACTION, OBSERVATION
from trainers.step_weights import loss_tokens, sequence_ids

__all__ = ["KINDS", "KindStatistics", "KindWeights", "counts"]

Batch = dict[str, Any]
KINDS = {"bc": ACTION, "world_model": OBSERVATION}  # by the prefix of their metrics


class KindWeights:
    """Scales weights w so that their plain sum is sum_k c_k / D_k sum_{t of kind k} w_t (-log p_t).

    D_k counts the kind's tokens (`args.loss_denominator`) of the whole optimizer step, over all ranks and
    micro-batches; a kind without any adds 0.

    Args:
        coefficients: c_k of each kind.
        denominator: a key of `DENOMINATORS`.
        num_copies: ranks that see the same batch (tensor parallelism).
    """

    def __init__(
        self, coefficients: Mapping[int, float], denominator: str, accelerator: Accelerator, num_copies: int
    ) -> None:
        self._coefficients, self._denominator = coefficients, denominator
        self._accelerator, self._num_copies = accelerator, num_copies
        self.scales = torch.zeros(len(KINDS))  # c_k / D_k of the step in progress

    def __call__(self, batches: list[Batch]) -> tuple[list[Batch], Tensor]:
        """The micro-batches of this rank, their weights scaled, and their denominator, 1. Inputs are not changed."""
        here = torch.stack([counts(batch, self._denominator) for batch in batches]).sum(0)
        everywhere = self._accelerator.reduce(here, reduction="sum") / self._num_copies
        coefficients = torch.tensor([self._coefficients[kind] for kind in KINDS.values()], device=here.device)
        self.scales = (coefficients / everywhere).masked_fill(everywhere == 0, 0.0)
        scale_of = torch.cat([self.scales.new_zeros(1), self.scales])  # by kind
        scaled = [{**batch, "advantages": batch["advantages"] * scale_of[batch["kinds"]]} for batch in batches]
        return scaled, torch.ones((), device=here.device)

    def unscaled(self, weights: Tensor, kinds: Tensor) -> Tensor:
        """The weights of tokens of these kinds as they were before. [...], [...] -> [...]"""
        return _unscaled(weights, kinds, self.scales)


def counts(batch: Batch, denominator: str) -> Tensor:
    """[kinds] float32: what `DENOMINATORS[denominator]` counts of each kind's loss tokens in one micro-batch."""
    mask, sequences = loss_tokens(batch["labels"]), sequence_ids(batch)
    count = DENOMINATORS[denominator]
    of_kinds = [count(batch["advantages"], mask & (batch["kinds"] == kind), sequences) for kind in KINDS.values()]
    return torch.stack(of_kinds).float()


@dataclass(frozen=True)
class KindStatistics:
    """Sums over the tokens of each kind, which add up over micro-batches, processes and steps."""

    sums: Tensor  # [kinds, 5] float64: D_k, weighted nll, tokens with a weight, their nll, how many were likeliest

    @classmethod
    def of(cls, batch: Batch, outputs: Any, weighted_nll: Tensor, scales: Tensor, denominator: str) -> "KindStatistics":
        """Of one micro-batch.

        Args:
            batch: with the weights of `KindWeights`.
            outputs: of the LM head: log_probs, is_top1 and label_mask, [B, T-1]; adapters may have prepended tokens.
            weighted_nll: of each token, like the log-probs: minus what the loss sums.
            scales: c_k / D_k, with which the weights were multiplied.
        """
        offset = outputs.log_probs.size(1) - batch["kinds"].size(1)
        kinds, weights = (F.pad(batch[name], (offset, 0)) for name in ("kinds", "advantages"))
        log_probs, scales = float64(outputs.log_probs.detach()), float64(scales)
        given = _unscaled(batch["advantages"], batch["kinds"], scales)
        rows = []
        of_kinds = zip(
            counts({**batch, "advantages": given}, denominator), _factors(scales), KINDS.values(), strict=True
        )
        for count, factor, kind in of_kinds:
            is_scored = outputs.label_mask & (kinds == kind) & (weights != 0)
            row = (
                count,
                float64(weighted_nll.detach()[is_scored]).sum() * factor,
                is_scored.sum(),
                -log_probs[is_scored].sum(),
                outputs.is_top1[is_scored].sum(),
            )
            rows.append(torch.stack([float64(value) for value in row]))
        return cls(torch.stack(rows))

    def __add__(self, other: "KindStatistics") -> "KindStatistics":
        return KindStatistics(self.sums + other.sums)

    def metrics(self) -> dict[str, float]:
        """`bc_` and `world_model_`: `loss`, the weighted mean, nats; `perplexity` and `accuracy`, of unweighted tokens.

        A kind without tokens has none.
        """
        metrics = {}
        for name, (count, weighted, num_scored, nll, num_right) in zip(KINDS, self.sums.tolist(), strict=True):
            if num_scored:
                metrics[f"{name}_loss"] = weighted / count
                metrics[f"{name}_perplexity"] = math.exp(min(nll / num_scored, 700.0))
                metrics[f"{name}_accuracy"] = num_right / num_scored
        return metrics


def _unscaled(weights: Tensor, kinds: Tensor, scales: Tensor) -> Tensor:
    """The weights before `scales`, of each kind, multiplied them; kind 0, which is learnt nowhere, has weight 0."""
    factors = _factors(scales)
    return weights * torch.cat([factors.new_ones(1), factors])[kinds]


def _factors(scales: Tensor) -> Tensor:
    """What undoes the scale of each kind; of a kind without tokens there is nothing to undo."""
    return torch.where(scales == 0, 1.0, 1 / scales)
