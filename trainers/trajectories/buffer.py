"""The trajectories that a run collects and still trains on, as rows in a reproducible order."""

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from accelerate.logging import get_logger

from online_sft.trajectories.examples import Example, examples_of
from online_sft.trajectories.imitation import episode_of
from online_sft.trajectories.rendering import Renderer
from online_sft.trajectories.trajectory import Trajectory
from online_sft.weightings import Weighting
from trainers.trajectories.rows import weights_of
from trainers.trajectory_sft_config import TrajectorySFTConfig

__all__ = ["TrajectoryBuffer"]

logger = get_logger(__name__)


@dataclass
class _Kept:
    trajectory: Trajectory
    policy_version: int | None  # the optimizer step whose weights acted; None: nobody's, and never stale
    weights: list[float | None] | None = None  # of `rows`, which take time to make
    rows: list[Example] | None = None


class TrajectoryBuffer:
    """The newest `args.max_trajectories`; the oldest go first.

    Args:
        renderer: of the rows.
        weighting: of the actions of all that are kept, beside what `args` says.
    """

    def __init__(self, args: TrajectorySFTConfig, renderer: Renderer, weighting: Weighting | None) -> None:
        self._args, self._renderer, self._weighting = args, renderer, weighting
        self._kept: deque[_Kept] = deque(maxlen=args.max_trajectories)

    def __len__(self) -> int:
        """The trajectories that are kept."""
        return len(self._kept)

    def add(self, trajectories: Iterable[Trajectory], policy_version: int | None) -> None:
        """Keeps trajectories, for which the oldest go."""
        self._kept.extend(_Kept(each, policy_version) for each in trajectories)

    def drop_stale(self, last_step: int) -> int:
        """Forgets what will be too old for the optimizer step `last_step`. Returns how many."""
        limit, before = self._args.max_trajectory_staleness, len(self._kept)
        if limit is not None:
            fresh = [k for k in self._kept if k.policy_version is None or last_step - k.policy_version <= limit]
            self._kept = deque(fresh, maxlen=self._kept.maxlen)
        return before - len(self._kept)

    def in_order(self, seed: tuple[int, ...]) -> Iterator[Example]:
        """All rows, shuffled, again and again without end.

        Raises:
            ValueError: when there is nothing to learn.
        """
        rows = self._rows()
        if not rows:
            raise ValueError(
                f"nothing is to be learnt from the {len(self)} trajectories collected so far with "
                f"mode={self._args.mode!r}{self._why_nothing()}; collect more (collect_episodes), begin with "
                "demonstrations (train_dataset), or ask for less"
            )
        generator = np.random.default_rng(seed)
        while True:
            yield from (rows[index] for index in generator.permutation(len(rows)))

    def _why_nothing(self) -> str:
        trajectories = [kept.trajectory for kept in self._kept]
        threshold = self._args.min_reward_threshold
        if self._args.filter_low_reward and all(each.total_reward < threshold for each in trajectories):
            return f": none of them has a return of min_reward_threshold={threshold:g}"
        if all(len(each.metadata.get("cut_actions", ())) == len(each) for each in trajectories):
            return ": each action is cut at max_completion_length"
        if any(kept.rows for kept in self._kept):
            return f": turns are longer than max_length={self._args.max_length}"
        return ""

    def _rows(self) -> list[Example]:
        weights = weights_of([episode_of(kept.trajectory) for kept in self._kept], self._args, self._weighting)
        num_left_out = 0
        rows: list[Example] = []
        for kept, own in zip(self._kept, weights, strict=True):
            if kept.rows is None or kept.weights != own:
                kept.rows, kept.weights = self._examples(kept.trajectory, own), own
                num_left_out += sum(not row.input_ids for row in kept.rows)
            rows += [row for row in kept.rows if row.input_ids]
        if num_left_out:
            logger.warning("%d turns are longer than max_length=%s and left out", num_left_out, self._args.max_length)
        return rows

    def _examples(self, trajectory: Trajectory, weights: list[float | None]) -> list[Example]:
        try:
            return examples_of(trajectory, self._renderer, self._args.window, weights)
        except ValueError as error:
            raise ValueError(f"an episode of {trajectory.metadata.get('environment')}: {error}") from error
