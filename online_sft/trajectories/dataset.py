"""The trajectories that are trained on: kept, bounded, filtered, split, saved."""

import math
import random
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import orjson

from online_sft.trajectories.collection import Environment, collect, one_at_a_time
from online_sft.trajectories.encoding import EncodedTrajectory
from online_sft.trajectories.files import read_encoded, write_trajectories
from online_sft.trajectories.statistics import TrajectoryStatistics
from online_sft.trajectories.trajectory import Message, Trajectory, Transition

__all__ = ["TrajectoryDataset"]


class TrajectoryDataset:
    """Trajectories in the order in which they came.

    Each is kept as JSON, about as long as its text: what cannot be saved is refused when it is added, and nobody can
    change what is inside. `dataset[index]` and iteration give new objects.

    Args:
        max_trajectories: beyond it, the oldest go first; `num_evicted` counts them. None: all are kept.

    Raises:
        ValueError: for a bound below 1, and as `add_trajectory`.
    """

    def __init__(self, trajectories: Iterable[Trajectory] = (), *, max_trajectories: int | None = None) -> None:
        if max_trajectories is not None and max_trajectories < 1:
            raise ValueError(f"max_trajectories must be at least 1, or None for no bound; got {max_trajectories}")
        self.max_trajectories = max_trajectories
        self.num_evicted = 0
        self._rows: deque[EncodedTrajectory] = deque(maxlen=max_trajectories)
        self.extend(trajectories)

    def __len__(self) -> int:
        """The number of trajectories."""
        return len(self._rows)

    def __getitem__(self, index: int) -> Trajectory:
        return self._rows[index].decode()

    def __iter__(self) -> Iterator[Trajectory]:
        return (row.decode() for row in self._rows)

    def add_trajectory(self, trajectory: Trajectory) -> None:
        """Keeps a copy; a full data set forgets its oldest trajectory for it.

        Raises:
            ValueError: it could not be saved; see `EncodedTrajectory.of`.
        """
        self._add(EncodedTrajectory.of(trajectory))

    def extend(self, trajectories: Iterable[Trajectory]) -> None:
        """Adds one after the other; those before one that is refused stay added."""
        for trajectory in trajectories:
            self.add_trajectory(trajectory)

    def collect_from_environment(
        self,
        policy: Callable[[list[Message]], str],
        env: Environment,
        num_trajectories: int,
        max_steps: int = 100,
        *,
        seed: int = 0,
    ) -> int:
        """Adds episodes of a policy in one environment. `online_sft.trajectories.collection` plays several at a time.

        Args:
            policy: what it says to a conversation.
            env: of the convention in `online_sft.environments`; it stays open.
            num_trajectories: episodes.
            max_steps: actions after which one is truncated.
            seed: of the episodes.

        Returns:
            How many there are: less than `num_trajectories` where the environment raised, of which there is a warning.
        """
        if not callable(policy):
            raise TypeError(f"the policy comes first, then the environment; got {type(policy).__name__} as the policy")
        seeds = np.random.SeedSequence(seed).generate_state(num_trajectories).tolist()
        spec = getattr(env, "spec", None)
        name = type(env).__name__ if spec is None else spec.id
        make = partial(_KeptOpen, env)
        found = collect(one_at_a_time(policy), [make], seeds, max_steps=max_steps, metadata={"environment": name})
        self.extend(found.trajectories)
        return len(found.trajectories)

    def filter_by_reward(self, min_reward: float | None = None, max_reward: float | None = None) -> "TrajectoryDataset":
        """A new data set of the trajectories whose return, the sum of the rewards, is within the bounds, inclusively.

        Raises:
            ValueError: no number is within the bounds.
        """
        low = -math.inf if min_reward is None else min_reward
        high = math.inf if max_reward is None else max_reward
        if not low <= high:
            raise ValueError(f"no return is between min_reward {min_reward} and max_reward {max_reward}")
        return self._with(row for row in self._rows if low <= row.total_reward <= high)

    def num_transitions(self) -> int:
        """The number that `get_transitions` returns: actions whose next observation is known."""
        return sum(row.num_transitions for row in self._rows)

    def get_transitions(self) -> list[Transition]:
        """(s, a, s', r) of every action whose next observation is known."""
        return [transition for trajectory in self for transition in trajectory.transitions()]

    def split(self, train_ratio: float = 0.8, *, seed: int = 0) -> tuple["TrajectoryDataset", "TrajectoryDataset"]:
        """Two data sets, for training and validation, each in the order of this one; the same for the same seed.

        Trajectories that share `metadata["group"]` stay together; one without is its own group. Groups are taken in
        random order for training, as long as they fit into train_ratio of the trajectories.

        Raises:
            ValueError: a side would be empty.
        """
        if not 0 < train_ratio < 1:
            raise ValueError(f"train_ratio must be between 0 and 1, so that neither side is empty; got {train_ratio}")
        groups = self._groups()
        random.Random(seed).shuffle(groups)
        room = math.floor(train_ratio * len(self) + 1e-9)  # 0.29 * 100 is below 29
        chosen: set[int] = set()
        for group in groups:
            if len(chosen) + len(group) <= room:
                chosen.update(group)
        if not chosen:
            raise ValueError(
                f"train_ratio {train_ratio} leaves no trajectory to train on: there are {len(self)} in {len(groups)} "
                f"groups, of {min(map(len, groups), default=0)} or more each, and groups are not divided"
            )
        train = self._with(row for index, row in enumerate(self._rows) if index in chosen)
        return train, self._with(row for index, row in enumerate(self._rows) if index not in chosen)

    def statistics(self) -> TrajectoryStatistics:
        """Returns, lengths, successes, and where the trajectories come from.

        Raises:
            ValueError: there is no trajectory.
        """
        return TrajectoryStatistics.of(self._rows)

    def save(self, path: str | Path) -> None:
        """Writes all trajectories to a file, whole or not at all; see `write_trajectories`."""
        write_trajectories(path, self._rows)

    @classmethod
    def load(
        cls, path: str | Path, *, max_trajectories: int | None = None, skip_damaged: bool = False
    ) -> "TrajectoryDataset":
        """The trajectories of a file, of `save` or of MRLM; see `read_trajectories`.

        Args:
            max_trajectories: of the new data set; the last ones of the file are kept.
            skip_damaged: read what is intact, and log one warning of what is not.
        """
        loaded = cls(max_trajectories=max_trajectories)
        for row in read_encoded(path, skip_damaged=skip_damaged):
            loaded._add(row)
        return loaded

    def _add(self, row: EncodedTrajectory) -> None:
        self.num_evicted += len(self) == self.max_trajectories
        self._rows.append(row)

    def _with(self, rows: Iterable[EncodedTrajectory]) -> "TrajectoryDataset":
        dataset = TrajectoryDataset(max_trajectories=self.max_trajectories)
        dataset._rows.extend(rows)
        return dataset

    def _groups(self) -> list[list[int]]:
        """The indices of the trajectories of each group."""
        groups: dict[bytes, list[int]] = {}
        alone = []
        for index, row in enumerate(self._rows):
            group = row.metadata().get("group")
            if group is None:
                alone.append([index])
            else:
                groups.setdefault(orjson.dumps(group, option=orjson.OPT_SORT_KEYS), []).append(index)
        return [*groups.values(), *alone]


class _KeptOpen:
    """Somebody's environment, which is not ours to close."""

    def __init__(self, environment: Environment) -> None:
        self.reset, self.step = environment.reset, environment.step

    def close(self) -> None:
        """Nothing."""
