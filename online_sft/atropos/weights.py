"""From a group to the weight of each token: the environment's advantages, or else its scores, normalised."""

from collections.abc import Callable

import numpy as np

from online_sft.atropos.group import Floats, ScoredGroup

__all__ = ["SCORE_NORMALISATIONS", "token_weights"]

_SAME = 1e-6  # scores whose spread is a smaller share of their size differ by rounding only


def _mean(scores: Floats) -> Floats:
    return scores - scores.mean()


def _mean_std(scores: Floats) -> Floats:
    deviations, spread = _mean(scores), scores.std()
    if spread <= _SAME * max(1.0, np.abs(scores).max()):
        return np.zeros_like(scores)
    return deviations / spread


SCORE_NORMALISATIONS: dict[str, Callable[[Floats], Floats]] = {
    "none": lambda scores: scores,
    "mean": _mean,  # scores - their mean
    "mean_std": _mean_std,  # over their standard deviation; 0 where they are all the same
}


def token_weights(group: ScoredGroup, score_normalization: str = "mean") -> list[Floats]:
    """The weight of each token of each sequence, [L]; 0 where there is no loss.

    Advantages of the environment are final. A sequence without has its normalised score at every loss token; a group of
    one keeps its score. A sequence with `set_advantage_to_zero` has weights of 0, and its score is in the group's mean.

    Args:
        group: as parsed.
        score_normalization: a key of `SCORE_NORMALISATIONS`.
    """
    if score_normalization not in SCORE_NORMALISATIONS:
        raise ValueError(
            f"score_normalization must be one of {', '.join(SCORE_NORMALISATIONS)}; got {score_normalization!r}"
        )
    scores = group.scores
    normalised = SCORE_NORMALISATIONS[score_normalization](scores) if len(scores) > 1 else scores
    weights = []
    for sequence, score in zip(group.sequences, normalised, strict=True):
        values = np.full(len(sequence), score) if sequence.advantages is None else sequence.advantages
        weights.append(np.where(sequence.is_loss & (not sequence.is_zeroed), values, 0.0))
    return weights
