"""What the weighted sum is divided by. Each function counts one micro-batch; the optimizer step's D is their sum over
all micro-batches and processes, so that a token's weight does not depend on the micro-batch it fell into.

The sum of signed advantages is not offered: it can cross zero.
"""

from collections.abc import Callable

from torch import Tensor

__all__ = ["DENOMINATORS", "abs_advantages", "sequences", "tokens"]

# (advantages, mask, sequences), all [B, T] -> scalar
Denominator = Callable[[Tensor, Tensor, Tensor], Tensor]


def tokens(advantages: Tensor, mask: Tensor, sequence_ids: Tensor) -> Tensor:
    """Loss tokens, those of weight 0 included: Hugging Face's own."""
    return mask.sum().to(advantages.dtype)


def sequences(advantages: Tensor, mask: Tensor, sequence_ids: Tensor) -> Tensor:
    """Sequences with a loss token: each counts in proportion to its length."""
    return advantages.new_tensor(len(sequence_ids[mask].unique()))


def abs_advantages(advantages: Tensor, mask: Tensor, sequence_ids: Tensor) -> Tensor:
    """sum |A| over loss tokens: a weighted mean, blind to the scale of the advantages."""
    return advantages[mask].abs().sum()


DENOMINATORS: dict[str, Denominator] = {
    "abs_advantages": abs_advantages,
    "sequences": sequences,
    "tokens": tokens,
}
