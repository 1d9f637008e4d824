"""`python -m online_sft.train`: online SFT on a task by its name, summaries (tldr) or math.

Like `online-sft online`, except that the data is prepared and the reward chosen by the task, and that the defaults are
those of the two tasks.
"""

import logging
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from online_sft.launching import UsageError, fit, given_fields, one_line_errors, parse, print_help_if_asked
from online_sft.tasks import TASKS, prepare_dataset

if TYPE_CHECKING:
    from datasets import Dataset

__all__ = ["TaskArguments", "main"]

_PROG = "python -m online_sft.train"
_SUMMARY = (
    "Online SFT for summaries (tldr) or math: trains on the policy's own samples, graded by a reward model or by their "
    "final answer. Unless set otherwise, the learning rate is 3e-6, and a step of each device is of 4 x 8 samples."
)
_DEFAULTS = {
    "total_episodes": 10_000,
    "response_length": 256,
    "per_device_train_batch_size": 4,
    "gradient_accumulation_steps": 8,
    "learning_rate": 3e-6,
    "beta": 0.1,
}
# Whoever says one of these in TRL's words takes the place of the default.
_OTHER_WORDS = {
    "total_episodes": ("max_steps", "num_train_epochs"),
    "response_length": ("max_completion_length",),
}


@dataclass
class TaskArguments:
    """The task, its data and its models."""

    task_type: Literal["tldr", "math"] = field(
        default="tldr",
        metadata={"help": "The task; math, which a --math_dataset_name means, too, turns apply_overlong_penalty on."},
    )
    dataset_name: str | None = field(
        default=None,
        metadata={
            "help": "Hub id, .jsonl, .json or .parquet file, folder with a file per split, or `reasoning_gym:NAME`. "
            "Default: TL;DR of TRL, or DAPO-Math-17k."
        },
    )
    math_dataset_name: str | None = field(default=None, metadata={"help": "Another name of it, for math."})
    dataset_config: str | None = field(default=None, metadata={"help": "Configuration of a hub data set."})
    max_prompt_length: int | None = field(
        default=None, metadata={"help": "In tokens; longer prompts are left out, and their number is logged."}
    )
    validation_share: float = field(
        default=0.05, metadata={"help": "Of the prompts, held out if the data has no validation or test split."}
    )
    sft_model_path: str | None = field(
        default=None, metadata={"help": "The policy to start from: hub id or folder; also --model_name_or_path."}
    )
    reward_model_path: str | None = field(
        default=None, metadata={"help": "The reward model of tldr: hub id or folder. math compares answers."}
    )

    def __post_init__(self) -> None:  # argparse does not compare what a file says with the choices
        if self.task_type not in TASKS:
            raise ValueError(f"task_type must be one of {', '.join(TASKS)}; got {self.task_type!r}")


def main(argv: Sequence[str] | None = None) -> None:
    """Trains. A user's mistake ends in one line on stderr and exit code 2."""
    with one_line_errors(_PROG):
        _run(list(sys.argv[1:] if argv is None else argv))


def _run(arguments: list[str]) -> None:
    import online_sft

    online_sft._own_trainers()
    from trainers.checkpoints.options import CheckpointOptions
    from trainers.engine.options import WeightSyncOptions
    from trainers.options import OnlineSFTOptions
    from trainers.recording.options import RecordOptions

    own = (TaskArguments, OnlineSFTOptions, WeightSyncOptions, CheckpointOptions, RecordOptions)
    print_help_if_asked(_PROG, _SUMMARY, arguments, own, "trl.GRPOConfig", dry_run=True, **_DEFAULTS)
    from online_sft import OnlineSFTConfig, OnlineSFTTrainer

    defaults = _defaults(given_fields(arguments))
    task, config, model = parse(_PROG, arguments, (TaskArguments, OnlineSFTConfig), dry_run=True, **defaults)
    dataset_name = _either("dataset_name", task.dataset_name, "math_dataset_name", task.math_dataset_name)
    model.model_name_or_path = _either(
        "sft_model_path", task.sft_model_path, "model_name_or_path", model.model_name_or_path
    )
    reward_funcs = _reward_funcs(task)
    if model.model_name_or_path is None:
        raise UsageError("no model: set --sft_model_path to a hub id or a folder")
    train, validation = _data(task, dataset_name, config, model)
    eval_dataset = None if config.eval_strategy == "no" else validation
    fit(OnlineSFTTrainer, config, model, train, eval_dataset, dataset_name=dataset_name, reward_funcs=reward_funcs)


def _data(task: TaskArguments, dataset_name: str | None, config: Any, model: Any) -> "tuple[Dataset, Dataset]":
    from transformers import AutoTokenizer

    from trainers.model_files import check_model

    if config.process_index > 0:  # one report of what is left out is enough
        logging.getLogger("online_sft.tasks").setLevel(logging.ERROR)
    try:
        remote = {"revision": model.model_revision, "trust_remote_code": config.trust_remote_code}
        check_model(model.model_name_or_path, "model", **remote)
        tokenizer = AutoTokenizer.from_pretrained(model.model_name_or_path, **remote)
        with config.main_process_first():  # it fills the cache of the data set
            train, validation, _ = prepare_dataset(
                task.task_type,
                tokenizer,
                dataset_name,
                dataset_config=task.dataset_config,
                max_prompt_length=task.max_prompt_length,
                validation_share=task.validation_share,
                seed=config.seed,
            )
    except (ValueError, OSError, ImportError) as error:
        raise UsageError(error) from error
    return train, validation


def _defaults(given: Mapping[str, Any]) -> dict[str, Any]:
    """What holds where the user says nothing."""
    defaults = {name: value for name, value in _DEFAULTS.items() if not set(_OTHER_WORDS.get(name, ())) & set(given)}
    task = given.get("task_type", "math" if "math_dataset_name" in given else "tldr")
    return {**defaults, "task_type": task, "apply_overlong_penalty": task == "math"}


def _either(name: str, value: str | None, other_name: str, other_value: str | None) -> str | None:
    """The value of an argument that has two names."""
    if value is not None and other_value is not None and value != other_value:
        raise UsageError(f"{name} and {other_name} are two names of one thing; got {value} and {other_value}")
    return value if value is not None else other_value


def _reward_funcs(task: TaskArguments) -> list[str]:
    """The trainer makes the functions: it knows the rewards of right and wrong answers, and TRL loads reward models."""
    if task.task_type == "math":
        if task.reward_model_path is not None:
            raise UsageError("task_type=math compares answers and has no reward model; remove reward_model_path")
        return ["math"]
    if task.math_dataset_name is not None:
        raise UsageError("math_dataset_name is for task_type=math; set dataset_name, or remove task_type")
    if task.reward_model_path is None:
        raise UsageError("no reward: set --reward_model_path to a hub id or a folder, or --task_type math")
    return [task.reward_model_path]


if __name__ == "__main__":
    main()
