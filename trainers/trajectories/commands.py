"""`online-sft trajectories collect|stats|train`. Heavy imports wait until a run starts."""

import argparse
import json
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from online_sft.launching import (
    DataArguments,
    UsageError,
    fit,
    load_split,
    parse,
    print_help_if_asked,
    working_directory_on_path,
)
from trainers.checkpoints.options import CheckpointOptions
from trainers.engine.options import WeightSyncOptions
from trainers.options import WeightedSFTOptions
from trainers.recording.options import RecordOptions
from trainers.trajectories.options import CollectionOptions, SamplingOptions, TrajectoryOptions

if TYPE_CHECKING:
    from online_sft import TrajectorySFTConfig, TrajectorySFTTrainer

__all__ = ["main", "train_dataclasses"]

_PROG = "online-sft trajectories"
_SUMMARIES = {
    "collect": "Play episodes of a model in environments, and keep them in a file.",
    "stats": "Returns, lengths and successes of the trajectories in a file.",
    "train": "Behaviour cloning, a world model or both, on a file of trajectories, or on what the model collects.",
}
_PARTS = 10  # of a collection, each of which is saved when it is there
_FILES = (".json", ".jsonl", ".parquet")


@dataclass
class EnvironmentArguments:
    """Where episodes are played."""

    environments: list[str] | None = field(
        default=None,
        metadata={
            "help": "Ids of Gymnasium's registry: online-sft/MathRetries-v0, or `my_module:Id-v0`, which imports the "
            "module first. Episode after episode takes the next one."
        },
    )


@dataclass
class CollectArguments:
    """What `collect` keeps."""

    output: str | None = field(default=None, metadata={"help": "A new .jsonl, .json or .parquet file."})
    episodes: int = field(default=100, metadata={"help": "How many."})


@dataclass
class EvaluationArguments:
    """What `train` measures, with --eval_strategy."""

    eval_share: float = field(
        default=0.1, metadata={"help": "Share of the trajectories in a single file that is held out, whole tasks."}
    )
    eval_environments: list[str] | None = field(
        default=None, metadata={"help": "Environments to play in at each evaluation: return, success, pass@k."}
    )
    eval_tasks: int = field(default=32, metadata={"help": "Tasks to play."})
    eval_ks: list[int] = field(default_factory=lambda: [1], metadata={"help": "Which k of pass@k."})


def main(arguments: list[str]) -> None:
    """The command.

    Raises:
        UsageError: for what cannot be done.
    """
    parser = argparse.ArgumentParser(
        prog=_PROG,
        description="Behaviour cloning and world models on trajectories.",
        epilog=f"`{_PROG} COMMAND --help` describes a command.",
    )
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, summary in _SUMMARIES.items():
        subparsers.add_parser(name, help=summary, add_help=False)
    name = parser.parse_args(arguments[:1]).command
    {"collect": _collect, "stats": _stats, "train": _train}[name](arguments[1:])


def train_dataclasses() -> tuple[type, ...]:
    """What the arguments of `train` fill, in its order."""
    from online_sft import TrajectorySFTConfig

    return DataArguments, EnvironmentArguments, EvaluationArguments, TrajectorySFTConfig


def _stats(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(prog=f"{_PROG} stats", description=_SUMMARIES["stats"], allow_abbrev=False)
    parser.add_argument("file", nargs="+", help="A .jsonl, .json or .parquet file of trajectories.")
    parser.add_argument("--skip_damaged", action="store_true", help="Count what can be read of a damaged file.")
    options = parser.parse_args(arguments)
    from online_sft.trajectories.dataset import TrajectoryDataset

    try:
        for file in options.file:
            lines = TrajectoryDataset.load(file, skip_damaged=options.skip_damaged).statistics().lines()
            print("\n".join([*([f"{file}:"] if len(options.file) > 1 else []), *lines]))
    except (ValueError, OSError) as error:
        raise UsageError(error) from error


def _collect(arguments: list[str]) -> None:
    own = (CollectArguments, EnvironmentArguments, SamplingOptions)
    print_help_if_asked(f"{_PROG} collect", _SUMMARIES["collect"], arguments, own, "trl.SFTConfig")
    from tqdm import tqdm

    from online_sft import TrajectoryDataset, TrajectorySFTConfig, TrajectorySFTTrainer
    from trainers.main_process import on_main_process
    from trainers.trajectories.policy import play, seed_of

    collect, where, config, model = parse(
        f"{_PROG} collect", arguments, (CollectArguments, EnvironmentArguments, TrajectorySFTConfig), max_steps=1
    )
    if not where.environments:
        raise UsageError("no environment: set --environments, for example --environments online-sft/MathRetries-v0")
    if collect.output is None or Path(collect.output).suffix not in _FILES:
        raise UsageError(f"output={collect.output!r} must name a file that ends in {', '.join(_FILES)}")
    if Path(collect.output).exists():
        raise UsageError(f"{collect.output} exists; choose another --output")
    if not Path(collect.output).parent.is_dir():
        raise UsageError(f"there is no folder {str(Path(collect.output).parent)!r} for --output; make it first")
    if collect.episodes < 1:
        raise UsageError(f"episodes must be at least 1; got {collect.episodes}")
    if model.model_name_or_path is None:
        raise UsageError("no model: set --model_name_or_path to a hub id or a folder")
    with tempfile.TemporaryDirectory() as folder:
        config.output_dir = folder
        factories = _factories(where.environments)
        try:
            trainer = TrajectorySFTTrainer(model.model_name_or_path, config, environments=factories)
        except (ValueError, OSError, ImportError) as error:
            raise UsageError(error) from error
        collected = TrajectoryDataset()
        size = -(-collect.episodes // _PARTS)
        bar = tqdm(total=collect.episodes, unit=" episodes", disable=not trainer.accelerator.is_main_process)
        for start in range(0, collect.episodes, size):
            part = range(start, min(start + size, collect.episodes))
            try:
                found = play(
                    trainer,
                    [factories[index % len(factories)] for index in part],
                    [seed_of(config.seed, index) for index in part],
                    sampling_seed=seed_of(config.seed, start),
                    num_environments=config.num_environments,
                    max_steps=config.max_episode_steps,
                    metadata={"policy": model.model_name_or_path},
                )
            except ValueError as error:
                raise UsageError(error) from error
            collected.extend(found.trajectories)
            bar.update(len(part))
            if len(collected):
                on_main_process(trainer.accelerator, lambda: collected.save(collect.output))
                bar.set_postfix(mean_return=f"{collected.statistics().mean_return:.3g}")
        bar.close()
        if not len(collected):
            raise UsageError(f"all {collect.episodes} episodes failed, the first: {found.failures[0]}")
        if trainer.accelerator.is_main_process:
            print("\n".join(collected.statistics().lines()))


def _train(arguments: list[str]) -> None:
    own = (TrajectoryOptions, EnvironmentArguments, CollectionOptions, DataArguments, EvaluationArguments)
    more = (WeightedSFTOptions, WeightSyncOptions, CheckpointOptions, RecordOptions)
    print_help_if_asked(f"{_PROG} train", _SUMMARIES["train"], arguments, (*own, *more), "trl.SFTConfig", dry_run=True)
    from online_sft import TrajectorySFTTrainer

    data, where, evaluation, config, model = parse(f"{_PROG} train", arguments, train_dataclasses(), dry_run=True)
    if model.model_name_or_path is None:
        raise UsageError("no model: set --model_name_or_path to a hub id or a folder")
    if not data.dataset_name and not where.environments:
        raise UsageError("no trajectories: set --dataset_name to a file of them, or --environments to collect some")
    train_dataset, eval_dataset = _data(data, evaluation, config) if data.dataset_name else (None, None)
    environments = _factories(where.environments) if where.environments else None
    eval_environments = _factories(evaluation.eval_environments) if evaluation.eval_environments else None

    def build(**options: Any) -> "TrajectorySFTTrainer":
        trainer = TrajectorySFTTrainer(**options)
        if eval_environments:
            from trainers.trajectories.evaluation import EnvironmentEvaluationCallback

            trainer.add_callback(
                EnvironmentEvaluationCallback(
                    trainer,
                    eval_environments,
                    num_tasks=evaluation.eval_tasks,
                    ks=evaluation.eval_ks,
                    num_generations=max(evaluation.eval_ks),
                    num_environments=config.num_environments,
                    max_steps=config.max_episode_steps,
                )
            )
        return trainer

    fit(
        build,
        config,
        model,
        train_dataset,
        eval_dataset,
        dataset_name=data.dataset_name,
        environments=environments,
    )


def _factories(names: list[str] | str) -> list[Callable[[], Any]]:
    from online_sft.environments.factories import environment_factories

    try:
        with working_directory_on_path():
            # YAML's `environments: online-sft/MathRetries-v0` arrives as a string
            return environment_factories([names] if isinstance(names, str) else names)
    except ValueError as error:
        raise UsageError(error) from error


def _data(data: DataArguments, evaluation: EvaluationArguments, config: "TrajectorySFTConfig") -> tuple[Any, Any]:
    """To train on, and to evaluate on where the trainer does: a share of a single file, or the test split."""
    from datasets import IterableDataset

    from online_sft import TrajectoryDataset
    from online_sft.trajectories.files import read_trajectories

    assert data.dataset_name is not None
    evaluates = config.eval_strategy != "no"
    if not data.dataset_name.endswith(_FILES):
        return load_split(data, data.dataset_train_split), (
            load_split(data, data.dataset_test_split) if evaluates else None
        )
    try:
        if data.dataset_streaming:
            if evaluates:
                raise UsageError("a file that is streamed is not divided: set --eval_strategy no, or use a folder")
            rows = partial(_rows, read_trajectories, data.dataset_name)
            return IterableDataset.from_generator(rows), None
        whole = TrajectoryDataset.load(data.dataset_name)
        return whole.split(1 - evaluation.eval_share, seed=config.seed) if evaluates else (whole, None)
    except (ValueError, OSError) as error:
        raise UsageError(error) from error


def _rows(read: Callable[[str], Iterable[Any]], path: str) -> Iterator[dict[str, str]]:
    return ({"trajectory": json.dumps(trajectory.to_dict())} for trajectory in read(path))
