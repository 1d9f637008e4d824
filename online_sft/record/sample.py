"""A sequence that a run has trained on, as people look at it: token by token, with what each counted for."""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import chain, groupby
from typing import Any

__all__ = ["Sample"]


@dataclass(frozen=True)
class Sample:
    """A prompt with the policy's completion, or a row of a data set, in an optimizer step.

    A token's weight is what multiplied the gradient of its log-prob, before the division by the loss's denominator:
    online r - b, less the price of the KL, times importance weights; in weighted SFT the advantage, normalised and
    clipped.
    """

    step: int  # the optimizer step, from 1
    tokens: tuple[str, ...]  # their texts; joined they are the whole text
    weights: tuple[float | None, ...]  # of each token; None: no loss
    values: Mapping[str, float | None]  # by name: reward, advantage, ...; None: unknown

    def __post_init__(self) -> None:
        assert len(self.tokens) == len(self.weights), (len(self.tokens), len(self.weights))

    def to_dict(self) -> dict[str, Any]:
        """For JSON. Weights are runs: [[3, None], [5, 1.0]] is three tokens without loss and five of weight 1."""
        runs = [[len(list(run)), _short(weight)] for weight, run in groupby(self.weights)]
        values = {name: _short(value) for name, value in self.values.items()}
        return {"step": self.step, "tokens": list(self.tokens), "weights": runs, "values": values}

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> "Sample":
        """The inverse, up to six digits."""
        weights = chain.from_iterable([weight] * length for length, weight in content["weights"])
        return cls(content["step"], tuple(content["tokens"]), tuple(weights), content["values"])


def _short(number: float | None) -> float | None:
    return None if number is None else float(f"{number:.6g}") + 0.0  # no -0.0
