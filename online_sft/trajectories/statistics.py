"""What a data set of trajectories holds, in a few numbers."""

from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import numpy as np

from online_sft.trajectories.encoding import EncodedTrajectory

__all__ = ["TrajectoryStatistics"]

_MAX_RANGES = 10
_Range = tuple[int, int]


@dataclass(frozen=True)
class TrajectoryStatistics:
    """Of at least one trajectory. A return is the sum of a trajectory's rewards."""

    num_trajectories: int
    num_transitions: int
    mean_return: float
    std_return: float  # over the trajectories, with 1 / n
    min_return: float
    return_quantiles: tuple[float, float, float]  # 10, 50 and 90 %, linear between neighbours
    max_return: float
    mean_length: float  # actions
    success_rate: float | None  # `success` is true, of those that say it; None if none does
    truncated_share: float  # `truncated` is true, of all
    by_environment: dict[str | None, int]  # None: it does not say
    by_policy_version: dict[_Range | None, int]  # first and last version, at most 10 ranges of one width

    @classmethod
    def of(cls, rows: Collection[EncodedTrajectory]) -> "TrajectoryStatistics":
        """Those of these trajectories.

        Raises:
            ValueError: there is none.
        """
        if not rows:
            raise ValueError("a data set without a trajectory has no statistics")
        returns = np.array([row.total_reward for row in rows])
        q10, q50, q90 = np.quantile(returns, [0.1, 0.5, 0.9]).tolist()
        metadata = [row.metadata() for row in rows]
        successes = [each["success"] is True for each in metadata if each.get("success") is not None]
        environments = [each.get("environment") for each in metadata]
        return cls(
            num_trajectories=len(rows),
            num_transitions=sum(row.num_transitions for row in rows),
            mean_return=float(returns.mean()),
            std_return=float(returns.std()),
            min_return=float(returns.min()),
            return_quantiles=(q10, q50, q90),
            max_return=float(returns.max()),
            mean_length=sum(row.num_actions for row in rows) / len(rows),
            success_rate=sum(successes) / len(successes) if successes else None,
            truncated_share=sum(each.get("truncated") is True for each in metadata) / len(rows),
            by_environment=dict(Counter(None if each is None else str(each) for each in environments).most_common()),
            by_policy_version=_by_range([each.get("policy_version") for each in metadata]),
        )

    def lines(self) -> list[str]:
        """For people."""
        q10, q50, q90 = self.return_quantiles
        success = "unknown" if self.success_rate is None else f"{self.success_rate:.1%}"
        return [
            f"trajectories     {self.num_trajectories}, of {self.mean_length:.1f} actions on average",
            f"transitions      {self.num_transitions}",
            f"return           {self.mean_return:.4g} ± {self.std_return:.4g} (standard deviation)",
            f"                 min {self.min_return:.4g}, 10 % {q10:.4g}, median {q50:.4g}, 90 % {q90:.4g}, "
            f"max {self.max_return:.4g}",
            f"success          {success}",
            f"truncated        {self.truncated_share:.1%}",
            *_table("environment", {_unknown(name): count for name, count in self.by_environment.items()}),
            *_table("policy version", {_span(each): count for each, count in self.by_policy_version.items()}),
        ]


def _by_range(versions: list[Any]) -> dict[_Range | None, int]:
    known = [each for each in versions if isinstance(each, int) and not isinstance(each, bool)]
    counts: dict[_Range | None, int] = {}
    if known:
        low, high = min(known), max(known)
        width = -(-(high - low + 1) // _MAX_RANGES)
        for start, count in sorted(Counter(low + (each - low) // width * width for each in known).items()):
            counts[start, min(start + width - 1, high)] = count
    if len(known) < len(versions):
        counts[None] = len(versions) - len(known)
    return counts


def _table(title: str, counts: dict[str, int]) -> list[str]:
    return [f"{title if not index else '':<16} {name}: {count}" for index, (name, count) in enumerate(counts.items())]


def _unknown(name: str | None) -> str:
    return "unknown" if name is None else name


def _span(versions: _Range | None) -> str:
    if versions is None:
        return "unknown"
    return str(versions[0]) if versions[0] == versions[1] else f"{versions[0]} to {versions[1]}"
