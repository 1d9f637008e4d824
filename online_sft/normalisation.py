"""Normalisation of advantages: z-scores over the loss tokens that share a cell, then clipping.

    A'_t = (A_t - mean_c) / (std_c + eps)        c the cell of token t: the batch, its sequence, or its prompt's group

Moments add up exactly over micro-batches and processes (Chan et al., 1979), so the batch is that of the whole optimizer
step. The standard deviation is that of a population (divided by n). A cell of equal advantages becomes 0.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from online_sft.precision import float64

__all__ = ["NORMALISATIONS", "Moments", "cells", "clip", "merge_moments", "moments_by_cell", "normalise", "standardise"]

NORMALISATIONS = ("none", "batch", "sequence", "global", "group")

# One cell for everything
_WHOLE = 0


@dataclass(frozen=True)
class Moments:
    """Count, mean and sum of squared deviations of the advantages seen so far."""

    count: float = 0.0
    mean: float = 0.0
    squared_deviations: float = 0.0

    @property
    def std(self) -> float:
        return (self.squared_deviations / self.count) ** 0.5 if self.count else 0.0

    def __add__(self, other: "Moments") -> "Moments":
        """Moments of both sets together, without the cancellation of a sum of squares."""
        count = self.count + other.count
        if not count:
            return self
        difference = other.mean - self.mean
        return Moments(
            count,
            self.mean + difference * other.count / count,
            self.squared_deviations + other.squared_deviations + difference**2 * self.count * other.count / count,
        )


def cells(normalisation: str, sequences: Tensor, groups: Tensor | None = None) -> Tensor:
    """The cell of each token, int64, shaped as `sequences`: equal where advantages are normalised together.

    Args:
        normalisation: one of `NORMALISATIONS`, not "none".
        sequences: [B, T] int64, the sequence of each token; a packed row holds several.
        groups: [B, T] int64, the prompt of each token; for "group".

    Raises:
        ValueError: for another normalisation, or "group" without groups.
    """
    if normalisation in ("batch", "global"):
        return torch.full_like(sequences, _WHOLE)
    if normalisation == "sequence":
        return sequences
    if normalisation == "group":
        if groups is None:
            raise ValueError("advantage_normalization='group' needs the group of each sequence")
        return groups
    raise ValueError(f"advantage_normalization must be one of {', '.join(NORMALISATIONS)}; got {normalisation!r}")


def moments_by_cell(advantages: Tensor, mask: Tensor, cells: Tensor) -> dict[int, Moments]:
    """Moments of the advantages where `mask` (bool) is set, cell by cell, in float64. All arguments of one shape."""
    values = float64(advantages[mask])
    found, inverse, counts = cells[mask].to(values.device).unique(return_inverse=True, return_counts=True)
    counts = float64(counts)
    means = torch.zeros_like(counts).index_add_(0, inverse, values) / counts
    deviations = torch.zeros_like(counts).index_add_(0, inverse, (values - means[inverse]).square())
    rows = torch.stack([counts, means, deviations], 1).tolist()
    return {cell: Moments(*row) for cell, row in zip(found.tolist(), rows, strict=True)}


def merge_moments(parts: Iterable[dict[int, Moments]]) -> dict[int, Moments]:
    """The moments of micro-batches, processes or steps together."""
    merged: dict[int, Moments] = {}
    for part in parts:
        for cell, moments in part.items():
            merged[cell] = merged.get(cell, Moments()) + moments
    return merged


def standardise(
    advantages: Tensor, mask: Tensor, cells: Tensor, moments: dict[int, Moments], *, eps: float = 1e-8
) -> Tensor:
    """(A - mean) / (std + eps) of each token's cell, as float32 or the wider dtype given; 0 where `mask` is not set."""
    values = float64(advantages[mask])
    found, inverse = cells[mask].to(values.device).unique(return_inverse=True)
    known = [moments[cell] for cell in found.tolist()]
    means = values.new_tensor([m.mean for m in known])[inverse]
    stds = values.new_tensor([m.std for m in known])[inverse]
    dtype = torch.promote_types(advantages.dtype, torch.float32)
    scores = ((values - means) / (stds + eps)).to(dtype).to(advantages.device)
    return torch.zeros(mask.shape, dtype=dtype, device=advantages.device).masked_scatter(mask, scores)


def clip(advantages: Tensor, bounds: Sequence[float] | None) -> Tensor:
    """Advantages moved into [min, max]; None leaves them."""
    return advantages if bounds is None else advantages.clamp(*bounds)


def normalise(
    advantages: Tensor, mask: Tensor, normalisation: str, *, sequences: Tensor, groups: Tensor | None = None
) -> Tensor:
    """Z-scores of one batch that stands alone; inputs are not changed.

    Args:
        advantages: [B, T].
        mask: [B, T] bool, the loss tokens.
        normalisation: one of `NORMALISATIONS`. "global" has seen this batch only.
        sequences, groups: as in `cells`.

    Returns:
        [B, T]; 0 where there is no loss, except for "none", which returns `advantages`.
    """
    if normalisation == "none":
        return advantages
    of_token = cells(normalisation, sequences, groups)
    return standardise(advantages, mask, of_token, moments_by_cell(advantages, mask, of_token))
