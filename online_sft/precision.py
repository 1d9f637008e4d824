"""float64 for sums that run over a whole training."""

from torch import Tensor

__all__ = ["float64"]


def float64(values: Tensor) -> Tensor:
    """The values in float64; on the CPU if their device has none (Apple's MPS)."""
    return (values.cpu() if values.device.type == "mps" else values).double()
