"""Which actions behaviour cloning imitates, and how much."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from online_sft.advantages import group_id
from online_sft.trajectories.action_values import ACTION_VALUES
from online_sft.trajectories.trajectory import Trajectory
from online_sft.weightings import Weighting

__all__ = ["Episode", "action_weights", "episode_of"]


@dataclass(frozen=True)
class Episode:
    """What the weights of a trajectory's actions depend on."""

    rewards: list[float]
    group: int  # of its task: `metadata["group"]`, or, where there is none, what its first observation says
    cut_actions: frozenset[int] = frozenset()  # places of actions whose end was never said


def episode_of(trajectory: Trajectory) -> Episode:
    """Of a trajectory."""
    task = trajectory.metadata.get("group")
    group = group_id(trajectory.observations[0] if task is None else task)
    return Episode(list(trajectory.rewards), group, frozenset(trajectory.metadata.get("cut_actions", ())))


def action_weights(
    episodes: Sequence[Episode],
    *,
    min_return: float | None = None,
    values: str | None = None,
    discount: float = 1.0,
    weighting: Weighting | None = None,
) -> list[list[float | None]]:
    """The weight of each action of each episode; None for one that is not imitated, such as one that was cut.

    Args:
        episodes: all that the weighting compares.
        min_return: episodes with a lower return are not imitated, nor compared.
        values: a key of `ACTION_VALUES`, what an action is worth; None is 1, or the return where there is a weighting.
        discount: of the values.
        weighting: weights from values (`online_sft.weightings`); None: they are the weights. Returns compare the
            episodes of a task; other values compare actions at the same place of these episodes.

    Raises:
        ValueError: when the weighting gives a weight that is not finite.
    """
    kept = [
        index
        for index, episode in enumerate(episodes)
        if min_return is None or math.fsum(episode.rewards) >= min_return
    ]
    weights: list[list[float | None]] = [[None] * len(episode.rewards) for episode in episodes]
    if values is None and weighting is None:
        of_kept = [[1.0] * len(episodes[index].rewards) for index in kept]
    else:
        values = values or "return"
        of_kept = [ACTION_VALUES[values](episodes[index].rewards, discount) for index in kept]
        if weighting is not None:
            of_kept = _compared(of_kept, [episodes[index].group for index in kept], weighting, values == "return")
    for index, row in zip(kept, of_kept, strict=True):
        cut = episodes[index].cut_actions
        weights[index] = [None if t in cut else weight for t, weight in enumerate(row)]
    return weights


def _compared(
    values: list[list[float]], groups: list[int], weighting: Weighting, is_of_episodes: bool
) -> list[list[float]]:
    """The weighting of the values, each of which counts once."""
    flat = [row[:1] if is_of_episodes else row for row in values]
    cells = [group_id((group, t)) for row, group in zip(flat, groups, strict=True) for t in range(len(row))]
    weights = weighting(
        torch.tensor([value for row in flat for value in row], dtype=torch.float64), torch.tensor(cells)
    )
    if not weights.isfinite().all():
        raise ValueError(f"the weighting gives {int((~weights.isfinite()).sum())} actions a weight that is not finite")
    rest = iter(weights.tolist())
    compared = [[next(rest) for _ in row] for row in flat]
    return [row * len(every) if is_of_episodes else row for row, every in zip(compared, values, strict=True)]
