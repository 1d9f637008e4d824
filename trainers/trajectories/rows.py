"""From a data set of trajectories to one of tokens."""

import json
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any, TypeAlias

from accelerate import PartialState
from accelerate.logging import get_logger
from datasets import Dataset, Features, IterableDataset, List, Value

from online_sft.trajectories.dataset import TrajectoryDataset
from online_sft.trajectories.examples import Example, examples_of
from online_sft.trajectories.imitation import Episode, action_weights, episode_of
from online_sft.trajectories.rendering import Renderer
from online_sft.trajectories.trajectory import Trajectory
from online_sft.weightings import Weighting
from trainers.trajectory_sft_config import TrajectorySFTConfig

__all__ = ["COLUMNS", "as_dataset", "as_trajectories", "is_of_trajectories", "token_rows", "weights_of"]

logger = get_logger(__name__)

Data: TypeAlias = Dataset | IterableDataset
COLUMNS = ["input_ids", "labels", "advantages", "kinds"]
_FEATURES = Features(
    {"input_ids": List(Value("int64")), "labels": List(Value("int64"))}
    | {"advantages": List(Value("float64")), "kinds": List(Value("int64")), "is_cut": Value("bool")}
)


def as_dataset(trajectories: Any) -> Any:
    """A `TrajectoryDataset` or list of trajectories as the table that TRL's trainer takes; anything else as it is."""
    if isinstance(trajectories, TrajectoryDataset | list):
        return Dataset.from_dict({"trajectory": [json.dumps(each.to_dict()) for each in trajectories]})
    return trajectories


def as_trajectories(dataset: Any) -> Iterator[Trajectory]:
    """The trajectories of anything that `as_dataset` takes; none of None."""
    for index, row in enumerate(dataset or []):
        yield row if isinstance(row, Trajectory) else _trajectory(row, index, "train")


def is_of_trajectories(row: dict[str, Any]) -> bool:
    """Whether a data set with such rows is one of trajectories."""
    return "trajectory" in row or {"observations", "actions", "rewards"} <= set(row)


def weights_of(
    episodes: Sequence[Episode], args: TrajectorySFTConfig, weighting: Weighting | None
) -> list[list[float | None]]:
    """The weights of their actions, as `args` has them."""
    return action_weights(
        episodes,
        min_return=args.min_reward_threshold if args.filter_low_reward else None,
        values=args.reward_weighting,
        discount=args.reward_discount,
        weighting=weighting,
    )


def token_rows(
    dataset: Data, args: TrajectorySFTConfig, renderer: Renderer, weighting: Weighting | None, dataset_name: str
) -> Data:
    """Rows of `COLUMNS`. What is cut, and what is left out because it is too long, is counted and told.

    Raises:
        ValueError: for what is no trajectory, what the chat template cannot render, or nothing to learn.
    """
    make = partial(_token_batch, renderer=renderer, args=args, dataset_name=dataset_name)
    if isinstance(dataset, IterableDataset):
        if weighting is not None:
            raise ValueError(
                f"a weighting compares the trajectories of the whole {dataset_name} dataset, which is a stream; load "
                "it as a table, or set reward_weighting alone"
            )
        return dataset.map(make, with_indices=True, batched=True, remove_columns=dataset.column_names).filter(
            _has_tokens
        )
    episodes = [episode_of(_trajectory(row, index, dataset_name)) for index, row in enumerate(dataset)]
    weights = weights_of(episodes, args, weighting)
    if args.filter_low_reward:
        num_low = sum(row[0] is None for row in weights)
        logger.warning(
            "%d of %d trajectories of the %s dataset have a return below min_reward_threshold=%g and are not imitated",
            num_low,
            len(weights),
            dataset_name,
            args.min_reward_threshold,
        )
    with PartialState().main_process_first():
        rows = dataset.map(
            partial(make, weights=weights),
            with_indices=True,
            batched=True,
            batch_size=100,
            remove_columns=dataset.column_names,
            features=_FEATURES,
            num_proc=args.dataset_num_proc,
        )
        kept = rows.filter(_has_tokens, num_proc=args.dataset_num_proc)
    _tell(len(rows) - len(kept), sum(kept["is_cut"]), args, dataset_name)
    if not len(kept):
        raise ValueError(
            f"nothing is to be learnt from the {dataset_name} dataset with mode={args.mode!r}"
            + (f" and min_reward_threshold={args.min_reward_threshold:g}" if args.filter_low_reward else "")
        )
    return kept


def _token_batch(
    batch: dict[str, list[Any]],
    indices: list[int],
    *,
    renderer: Renderer,
    args: TrajectorySFTConfig,
    dataset_name: str,
    weights: list[list[float | None]] | None = None,
) -> dict[str, list[Any]]:
    examples: list[Example] = []
    for place, index in enumerate(indices):
        trajectory = _trajectory({name: values[place] for name, values in batch.items()}, index, dataset_name)
        (own,) = weights_of([episode_of(trajectory)], args, None) if weights is None else [weights[index]]
        try:
            examples += examples_of(trajectory, renderer, args.window, own)
        except ValueError as error:
            raise ValueError(f"trajectory {index} of the {dataset_name} dataset: {error}") from error
    rows = [vars(example) for example in examples]
    return {name: [row[name] for row in rows] for name in _FEATURES}


def _trajectory(row: dict[str, Any], index: int, dataset_name: str) -> Trajectory:
    try:
        return Trajectory.from_dict(json.loads(row["trajectory"]) if "trajectory" in row else _without_nones(row))
    except ValueError as error:
        raise ValueError(f"trajectory {index} of the {dataset_name} dataset: {error}") from error


def _without_nones(value: Any) -> Any:
    """A table has one set of keys for all messages, None where a message has not this one."""
    if isinstance(value, dict):
        return {name: _without_nones(each) for name, each in value.items() if each is not None}
    return [_without_nones(each) for each in value] if isinstance(value, list) else value


def _has_tokens(row: dict[str, Any]) -> bool:
    return bool(row["input_ids"])


def _tell(num_left_out: int, num_cut: int, args: TrajectorySFTConfig, dataset_name: str) -> None:
    for count, what in (
        (num_left_out, "turns of the %s dataset are longer than max_length=%s and left out"),
        (num_cut, "turns of the %s dataset are longer than max_length=%s and lose the end of the last observation"),
    ):
        if count:
            logger.warning(f"%d {what}", count, dataset_name, args.max_length)
