"""What policy and engine compute in, and how far their log-probs may be apart for that."""

from typing import Any

import torch
from torch import nn

__all__ = ["TOLERANCES", "compute_dtype", "name_of"]

# By the coarser dtype of policy and engine, nats. What rounding alone does to the log-prob of a token: about 1e-5 in
# float32; in bfloat16 a logit of 16 to 32 is rounded to a multiple of 1/8.
TOLERANCES = {"float32": 1e-3, "float16": 0.1, "bfloat16": 0.5}


def compute_dtype(args: Any, model: nn.Module) -> str:
    """The name of what the policy computes in: that of autocast, or else of its parameters."""
    if args.bf16 or args.fp16:
        return "bfloat16" if args.bf16 else "float16"
    return name_of(next(model.parameters()).dtype)


def name_of(dtype: torch.dtype | str) -> str:
    """`float32`, of `torch.float32` or "torch.float32"."""
    return str(dtype).removeprefix("torch.")
