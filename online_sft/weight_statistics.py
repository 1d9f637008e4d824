"""What the weights do to a step: how many tokens really count, how much of the gradient pushes away from the data."""

from dataclasses import dataclass

import torch
from torch import Tensor

from online_sft.precision import float64

__all__ = ["WeightStatistics"]

_SUMS = ("tokens", "weights", "squares", "gradient", "negative_gradient", "scored", "nll", "negative", "negative_nll")


@dataclass(frozen=True)
class WeightStatistics:
    """Sums over loss tokens, which add up over micro-batches, processes and steps.

    `gradient` is sum |slope| (1 - p), half the L1 norm of the gradient at the logits, slope (softmax - onehot).
    """

    sums: Tensor  # [9] float64, named by _SUMS
    largest: Tensor  # scalar float64, max |w|

    @classmethod
    def of(
        cls, weights: Tensor, slopes: Tensor, log_probs: Tensor, scored: Tensor, num_loss_tokens: Tensor
    ) -> "WeightStatistics":
        """Of one micro-batch.

        Args:
            weights, log_probs: [...], of each token.
            slopes: [...], what multiplies the gradient of each log-prob: the weight, unless a floor or DFT changes it.
            scored: [...] bool, tokens with loss and a weight; `log_probs` is known there only.
            num_loss_tokens: those of weight 0 included.
        """
        weights, log_probs = float64(weights[scored]), float64(log_probs.detach()[scored])
        gradient = float64(slopes[scored]).abs() * -torch.expm1(log_probs)
        negative = weights < 0
        sums = (
            num_loss_tokens,
            weights.abs().sum(),
            weights.square().sum(),
            gradient.sum(),
            gradient[negative].sum(),
            scored.sum(),
            -log_probs.sum(),
            negative.sum(),
            -log_probs[negative].sum(),
        )
        return cls(torch.stack([float64(x) for x in sums]), torch.cat([weights.new_zeros(1), weights.abs()]).max())

    def __add__(self, other: "WeightStatistics") -> "WeightStatistics":
        return WeightStatistics(self.sums + other.sums, torch.maximum(self.largest, other.largest))

    def metrics(self) -> dict[str, float]:
        """Ratios; one without a denominator is left out.

        `ess`: effective sample size (sum |w|)^2 / sum w^2, as a share of the loss tokens.
        `max_weight_share`: the largest |w| as a share of sum |w|.
        `negative_gradient_share`: of the gradient's mass, what comes from negative weights.
        `nll`: nats per token with a weight, unweighted.
        `negative_nll`: the same where the weight is negative; it runs away when unlearning diverges.
        """
        s = dict(zip(_SUMS, self.sums.tolist(), strict=True))
        ratios = {
            "ess": (s["weights"] ** 2, s["squares"] * s["tokens"]),
            "max_weight_share": (self.largest.item(), s["weights"]),
            "negative_gradient_share": (s["negative_gradient"], s["gradient"]),
            "nll": (s["nll"], s["scored"]),
            "negative_nll": (s["negative_nll"], s["negative"]),
        }
        return {name: part / whole for name, (part, whole) in ratios.items() if whole}
