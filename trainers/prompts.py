"""The prompts of online SFT: what is wrong with a data set before a model is loaded, and rows drawn anew."""

import logging
from typing import Any

import torch
from datasets import Dataset, DatasetDict, IterableDataset, IterableDatasetDict
from torch import nn

from online_sft.rewards.checked import check_dataset
from trainers.online_sft_config import OnlineSFTConfig
from trainers.text_rows import check_text

__all__ = ["check_prompts", "check_template", "draw_rows"]

logger = logging.getLogger(__name__)

_ROWS_NAMED = 5  # in the report of rows that cannot be graded


def check_prompts(dataset: Any, reward_funcs: list[Any], args: OnlineSFTConfig, *, has_all_columns: bool) -> None:
    """Refuses a train dataset that cannot work, and reports the rows that cannot be graded.

    Args:
        dataset: a data set, a stream, or None where something else supplies the prompts.
        reward_funcs: whose columns are needed.
        has_all_columns: False where environments or a rollout function add columns.

    Raises:
        ValueError: for missing columns, fewer rows than one batch takes, and data that `filter_groups_enable` cannot
            draw from.
    """
    if dataset is not None:
        _check_kind(dataset)
    if dataset is not None and dataset.column_names is not None and has_all_columns:
        _check_columns(dataset, reward_funcs, with_rows=args.process_index == 0)
    num_prompts = args.generation_batch_size // args.num_generations
    if isinstance(dataset, Dataset) and len(dataset) < num_prompts:
        # TRL takes whole batches of prompts from an epoch; without one it would train for 0 steps and say little
        raise ValueError(
            f"the train dataset has {len(dataset)} rows and one batch takes {num_prompts} prompts "
            "(generation_batch_size="
            f"{args.generation_batch_size} over num_generations={args.num_generations}); lower "
            "per_device_train_batch_size or raise num_generations"
        )
    if args.filter_groups_enable and not isinstance(dataset, Dataset):
        raise ValueError(
            "filter_groups_enable draws fresh prompts by their row, which a stream does not have; load the data set "
            "with streaming=False"
        )
    if args.filter_groups_enable and {"image", "images"} & set(dataset.column_names):
        raise ValueError("filter_groups_enable replaces rows of text, not images; set filter_groups_enable=False")


def check_template(dataset: Any, chat_template: str | None) -> None:
    """Refuses prompts of messages without a template that makes texts of them.

    Raises:
        ValueError
    """
    if isinstance(dataset, Dataset) and chat_template is None and isinstance(dataset[0].get("prompt"), list):
        raise ValueError(
            "the prompts are messages, and the tokenizer has no chat_template; give texts as prompts, or save a "
            "tokenizer with a chat_template in the model's folder"
        )


def draw_rows(num_rows: int, count: int, *, seeds: tuple[int, ...], rank: int, num_ranks: int) -> list[int]:
    """`count` rows of `num_rows` for this rank, with replacement; the same for the same seeds, other ones on each "
    "rank."""
    generator = torch.Generator().manual_seed(hash(seeds) % 2**63)  # a tuple of integers has the same hash everywhere
    return torch.randint(num_rows, (num_ranks, count), generator=generator)[rank].tolist()


def _check_kind(dataset: object) -> None:
    if isinstance(dataset, (DatasetDict, IterableDatasetDict)):
        splits = ", ".join(map(str, dataset))
        raise ValueError(f"the train dataset is one of splits ({splits}); pass one of them, as dataset['train']")
    if not isinstance(dataset, (Dataset, IterableDataset)):
        raise ValueError(
            f"the train dataset is a {type(dataset).__name__}; pass a data set of `datasets`, as "
            "Dataset.from_list(rows) makes one"
        )


def _check_prompt(prompt: object, name: str) -> None:
    check_text(prompt, "prompt", name)
    if not prompt:
        raise ValueError(f"{name} has the prompt {prompt!r}, which has no token to continue; remove it")


def _check_columns(dataset: Any, reward_funcs: list[Any], with_rows: bool) -> None:
    if "prompt" not in dataset.column_names:
        raise ValueError(f"the train dataset needs a `prompt` column; it has {', '.join(dataset.column_names)}")
    has_rows = with_rows and isinstance(dataset, Dataset)  # a stream is checked as it comes
    if has_rows:
        for index, prompt in enumerate(dataset["prompt"]):
            _check_prompt(prompt, f"row {index} of the train dataset")
    columns = {name: dataset[name] if has_rows else [] for name in dataset.column_names}
    for function in reward_funcs:
        if callable(function) and not isinstance(function, nn.Module):  # a reward model needs no columns
            report = check_dataset(function, columns)
            if report:
                logger.warning(
                    "%d of %d rows of the train dataset cannot be graded, and their samples are left out: %s%s",
                    len(report),
                    len(dataset),
                    "; ".join(report[:_ROWS_NAMED]),
                    "; ..." if len(report) > _ROWS_NAMED else "",
                )
