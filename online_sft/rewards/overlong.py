"""A penalty for completions that come close to the length limit, or reach it."""

from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["OverlongPenalty"]


@dataclass(frozen=True)
class OverlongPenalty:
    """Soft overlong punishment (DAPO, arXiv 2503.14476, Eq. 13), times a factor; a reward function to be added.

    For a completion of L tokens, M = `max_completion_length` and C = `cache_length`:
    0 where L <= M - C; factor · ((M - C) - L)/C up to M, from 0 to -factor; -factor beyond.

    Args:
        max_completion_length: tokens after which completions are cut. DAPO: 20,480.
        cache_length: how many tokens before that the penalty begins. DAPO: 4,096.
        factor: the largest penalty, in reward units.

    Raises:
        ValueError: unless 0 < cache_length <= max_completion_length and factor >= 0.
    """

    max_completion_length: int
    cache_length: int
    factor: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.cache_length <= self.max_completion_length:
            raise ValueError(
                f"cache_length must be at least 1 and at most max_completion_length={self.max_completion_length}; "
                f"got {self.cache_length}"
            )
        if not self.factor >= 0:
            raise ValueError(f"factor must be 0 or more, since it scales a penalty; got {self.factor}")

    @property
    def __name__(self) -> str:  # TRL names the metric `rewards/<__name__>`
        return "overlong_penalty"

    def __call__(self, completion_ids: Sequence[Sequence[int]], **columns: object) -> list[float]:
        """One number between -factor and 0 per completion."""
        start = self.max_completion_length - self.cache_length
        excess = [max(0, len(tokens) - start) for tokens in completion_ids]
        return [-self.factor * min(1.0, tokens / self.cache_length) for tokens in excess]
