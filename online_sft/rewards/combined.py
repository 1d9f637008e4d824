"""Several reward functions as one."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from online_sft.rewards.checked import RewardFunction, check_dataset, checked, is_async, name_of

__all__ = ["CombinedReward"]


@dataclass(frozen=True, eq=False)
class CombinedReward:
    """sum_k weight_k · reward_k where every gate is open, `closed` where one is not; None where anything is None.

    A sample that any part cannot score is unscorable: its other parts would be a number half-way between right and
    wrong. Gates say when a reward counts at all, for instance only for answers in the right format.

    Args:
        weights: the weight of each reward function.
        gates: reward functions that are open where they return more than 0.
        closed: the reward where a gate is not open.

    Raises:
        ValueError: without reward functions, for a weight that is not finite, and for asynchronous functions; when
            called, for rewards that cannot be used (`checked`).
    """

    weights: Mapping[RewardFunction, float]
    gates: Sequence[RewardFunction] = ()
    closed: float = 0.0

    def __post_init__(self) -> None:
        if not self.weights:
            raise ValueError("weights is empty; name at least one reward function")
        for function, weight in self.weights.items():
            if not math.isfinite(weight):
                raise ValueError(f"the weight of {name_of(function)!r} must be a finite number; got {weight}")
        for function in [*self.weights, *self.gates]:
            if is_async(function):
                raise ValueError(f"{name_of(function)!r} is asynchronous; pass it to the trainer on its own")

    @property
    def __name__(self) -> str:  # TRL names the metric `rewards/<__name__>`
        return "+".join(map(name_of, self.weights))

    def __call__(self, completions: Sequence[Any], **columns: Any) -> list[float | None]:
        """One reward per completion."""
        parts = [
            [None if reward is None else weight * reward for reward in self._rewards(function, completions, columns)]
            for function, weight in self.weights.items()
        ]
        gates = [self._rewards(gate, completions, columns) for gate in self.gates]
        return [self._combine(row[: len(parts)], row[len(parts) :]) for row in zip(*parts, *gates, strict=True)]

    def check_dataset(self, dataset: Mapping[str, Sequence[Any]]) -> list[str]:
        """What `checked.check_dataset` reports of all parts and gates."""
        return [line for function in [*self.weights, *self.gates] for line in check_dataset(function, dataset)]

    def _combine(self, parts: Sequence[float | None], gates: Sequence[float | None]) -> float | None:
        scored = [part for part in parts if part is not None]
        if len(scored) < len(parts) or None in gates:
            return None
        return sum(scored) if all(gate > 0 for gate in gates if gate is not None) else self.closed

    def _rewards(
        self, function: RewardFunction, completions: Sequence[Any], columns: dict[str, Any]
    ) -> Sequence[float | None]:
        return checked(function, name_of(function))(completions=completions, **columns)
