"""vLLM in the training processes."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import trl.generation.vllm_generation as trl_generation
from trl import GRPOTrainer

from trainers.engine.dtypes import compute_dtype

__all__ = ["in_dtype_of_the_policy"]


@contextmanager
def in_dtype_of_the_policy(trainer: GRPOTrainer, args: Any) -> Iterator[None]:
    """While TRL builds the engine: in `args.vllm_dtype`, or in what the policy computes in.

    TRL has no option for it, and vLLM's own choice for a float32 model is bfloat16.
    """
    engine = getattr(trl_generation, "LLM", None)  # absent where vLLM is not installed, which TRL says better
    if engine is None or not args.use_vllm or args.vllm_mode != "colocate":
        yield
        return

    def in_dtype(**options: Any) -> Any:
        return engine(**options, dtype=args.vllm_dtype or compute_dtype(args, trainer.model))

    trl_generation.LLM = in_dtype
    try:
        yield
    finally:
        trl_generation.LLM = engine
