"""What `--dry_run` does in place of training: everything up to the model, described and printed."""

import copy
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

from datasets import Dataset, IterableDataset
from torch import nn
from transformers import AutoProcessor
from trl import get_peft_config

from online_sft.inspection import Inspection
from online_sft.trajectories.dataset import TrajectoryDataset
from trainers.dry_run.arithmetic import OnlineBatches, RowBatches
from trainers.dry_run.blank_model import BlankModel, blank_reward_model
from trainers.dry_run.estimate import Sizes, parts_of
from trainers.dry_run.examples import Prompts, example_rows, prompts_of
from trainers.dry_run.memory import Part
from trainers.dry_run.printing import print_report
from trainers.dry_run.words import of_atropos, of_collected, of_completions, of_evaluation, of_rows, of_tokens
from trainers.engine.checks import check_engine
from trainers.model_files import check_policy
from trainers.online_sft_config import OnlineSFTConfig
from trainers.trajectory_sft_config import TrajectorySFTConfig

__all__ = ["Report", "describe"]

# Rows of a data set that are tokenised: enough for the longest and the mean, and quick for any file
NUM_ROWS = 512
# Of the configuration that the trainer gets: nothing outside is written to or asked, and nothing else is loaded.
_INERT: dict[str, Any] = {
    "atropos_sync_url": None,
    "beta": 0.0,
    "bf16": False,
    "fp16": False,
    "model_init_kwargs": None,
    "push_to_hub": False,
    "report_to": [],
    "sync_ref_model": False,
    "use_vllm": False,
}


@dataclass(frozen=True)
class Report:
    """All that is printed."""

    batches: dict[str, str]  # name and sentence
    parts: list[Part]
    ledger: list[str]
    examples: Inspection | Prompts | str  # or why there are none
    notes: list[str]  # on the examples


def describe(
    trainer_class: Callable[..., Any],
    config: Any,
    model: Any,
    train_dataset: Any,
    eval_dataset: Any,
    **arguments: Any,
) -> None:
    """Prints what `trainer_class(...).train()` would do; arguments as of `online_sft.launching.fit`.

    The trainer itself is built, with a model without weights and, but for prompts, the first rows of the data: what it
    refuses, it refuses here.

    Raises:
        ValueError, OSError: as the trainer.
    """
    path, init_kwargs = model.model_name_or_path, config.model_init_kwargs
    if isinstance(config, OnlineSFTConfig | TrajectorySFTConfig):
        check_engine(config, path, is_planned=True)  # the trainer gets a configuration without vLLM
    check_policy(path, config, needs_tokenizer=True)
    bits = 4 if model.load_in_4bit else 8 if model.load_in_8bit else None
    blank = BlankModel.of(path, init_kwargs, config.trust_remote_code, bits)
    processor = AutoProcessor.from_pretrained(
        path, revision=init_kwargs.get("revision") or "main", trust_remote_code=config.trust_remote_code
    )
    reward_models: list[nn.Module] = []
    if isinstance(config, OnlineSFTConfig):
        functions = [_reward(each, config) for each in arguments["reward_funcs"]]
        reward_models = [each for each in functions if isinstance(each, nn.Module)]
        arguments = {**arguments, "reward_funcs": functions}
        looked_at, looked_at_in_evaluation = train_dataset, eval_dataset  # prompts are tokenised while it trains
    else:
        looked_at, looked_at_in_evaluation = first_rows(train_dataset), first_rows(eval_dataset)
    with tempfile.TemporaryDirectory() as folder:
        trainer = trainer_class(
            model=blank.model,
            args=_inert(config, folder),
            train_dataset=looked_at,
            eval_dataset=looked_at_in_evaluation,
            processing_class=processor,
            peft_config=get_peft_config(model),
            **arguments,
        )
        blank = replace(blank, model=trainer.model)
        if isinstance(config, OnlineSFTConfig):
            print_report(_of_completions(trainer, config, blank, reward_models))
        else:
            print_report(_of_rows(trainer, config, blank, train_dataset, eval_dataset))


def first_rows(dataset: Any) -> Any:
    """The first `NUM_ROWS` of a table, a stream or trajectories; None of None."""
    if isinstance(dataset, Dataset):
        return dataset.select(range(min(NUM_ROWS, len(dataset))))
    if isinstance(dataset, IterableDataset):
        return dataset.take(NUM_ROWS)
    return TrajectoryDataset(islice(dataset, NUM_ROWS)) if dataset is not None else None


def _reward(function: Any, config: OnlineSFTConfig) -> Any:
    """A reward model without weights for a path; what is a function as it is."""
    if not isinstance(function, str) or function in ("math", "reasoning_gym"):
        return function
    return blank_reward_model(function, config.model_init_kwargs, config.trust_remote_code)


def _inert(config: Any, folder: str) -> Any:
    inert = copy.copy(config)
    inert.output_dir = folder
    inert.mixed_precision = "no"  # which follows from bf16 and fp16, and is no field
    for name, value in _INERT.items():
        if name in config.__dataclass_fields__:
            setattr(inert, name, value)
    return inert


def _of_completions(trainer: Any, config: OnlineSFTConfig, blank: BlankModel, reward_models: list[nn.Module]) -> Report:
    dataset, evaluated = trainer.train_dataset, trainer.eval_dataset
    batches = OnlineBatches(
        **_sizes_of(config),
        num_rows=_length(dataset),
        num_generations=config.num_generations,
        steps_per_generation=config.steps_per_generation,
        num_iterations=config.num_iterations,
    )
    prompts = prompts_of(trainer, list(islice(dataset, NUM_ROWS)))
    longest, limit = max(prompts.lengths), config.max_completion_length
    sizes = Sizes(None if limit is None else longest + limit, config.per_device_train_batch_size)
    return Report(
        batches=of_completions(batches, config)
        | of_tokens(
            sizes, config, f"{longest:,} of the longest of the first {len(prompts.lengths):,} prompts + {limit}"
        )
        | of_evaluation(_length(evaluated), config, config.num_generations_eval or config.num_generations),
        parts=parts_of(config, blank, sizes, has_weighted_head=False, reward_models=reward_models),
        ledger=[str(bias) for bias in config.bias_ledger()],
        examples=prompts,
        notes=_trained_on(config) + _against_limits(longest, config, blank),
    )


def _of_rows(trainer: Any, config: Any, blank: BlankModel, train_dataset: Any, eval_dataset: Any) -> Report:
    is_stream = config.is_atropos_stream or getattr(trainer, "_collected", None) is not None
    prepared, num_given = trainer.train_dataset, _length(train_dataset)
    num_rows, is_estimate = (None if is_stream else _length(prepared)), (num_given or 0) > NUM_ROWS
    if num_rows is not None and num_given is not None and is_estimate:
        num_rows = round(num_rows * num_given / NUM_ROWS)
    batches = RowBatches(**_sizes_of(config), num_rows=num_rows, drop_last=config.dataloader_drop_last)
    longest = config.max_length if is_stream else max(len(row["input_ids"]) for row in islice(prepared, NUM_ROWS))
    if config.packing:
        longest = config.max_length
    sizes = Sizes(longest, config.per_device_train_batch_size)
    of_sample = f"the longest of the first {NUM_ROWS} rows" if is_estimate else "the longest row"
    why = "max_length" if longest == config.max_length else of_sample
    lines = of_rows(batches, config, num_given, is_estimate=is_estimate)
    if is_stream:
        lines = of_atropos(batches, config) if config.is_atropos_stream else of_collected(batches, config)
    return Report(
        batches=lines | of_tokens(sizes, config, why) | of_evaluation(_length(eval_dataset), config, None),
        parts=parts_of(config, blank, sizes, has_weighted_head=trainer._has_weighted_head),
        ledger=[],
        examples="They come while it trains." if is_stream else example_rows(trainer),
        notes=_notes(config, is_estimate=is_estimate),
    )


def _sizes_of(config: Any) -> dict[str, Any]:
    return {
        "per_device": config.per_device_train_batch_size,
        "accumulation": config.gradient_accumulation_steps,
        "num_processes": config.launch.num_processes,
        "max_steps": config.max_steps,
        "num_epochs": config.num_train_epochs,
    }


def _length(dataset: Any) -> int | None:
    return None if dataset is None or isinstance(dataset, IterableDataset) else len(dataset)


def _trained_on(config: OnlineSFTConfig) -> list[str]:
    price = f" - {config.beta:g} log(p/p_ref)" if config.beta else ""
    return [
        f"Trained on: every token that the policy writes, up to {config.max_completion_length} a completion, its end "
        f"included, each with the weight r - b{price} of its completion (baseline={config.baseline}). Tokens of the "
        "prompt have no loss."
    ]


def _against_limits(longest: int, config: OnlineSFTConfig, blank: BlankModel) -> list[str]:
    limits = {"the model's context": blank.context}
    if config.use_vllm and config.vllm_max_model_length is not None:
        limits["vllm_max_model_length"] = config.vllm_max_model_length
    needed = longest + (config.max_completion_length or 0)
    found = []
    for name, limit in limits.items():
        if limit is not None:
            verdict = "within" if needed <= limit else "! more than"
            found.append(f"Prompt and completion take up to {needed:,} tokens, {verdict} {name} of {limit:,}.")
    return found


def _notes(config: Any, *, is_estimate: bool) -> list[str]:
    notes = []
    if is_estimate:
        notes.append(
            f"Looked at were the first {NUM_ROWS} rows only: what is wrong with later ones is not seen, and the number "
            "of rows to train on is extrapolated."
        )
        if config.weighting is not None:
            notes.append(
                f"weighting={config.weighting} compared these rows only; training compares the whole data set, and "
                "gives the rows of a prompt that goes on later other weights."
            )
    if config.advantage_normalization in ("batch", "group", "global"):
        notes.append(
            f"advantage_normalization={config.advantage_normalization} compared the rows shown only; in training it "
            "sees whole optimizer steps."
        )
    if config.policy_weighting != "none":
        notes.append(f"In training, policy_weighting={config.policy_weighting} multiplies these weights by another.")
    if isinstance(config, TrajectorySFTConfig) and config.mode == "combined":
        notes.append(
            f"The mean over actions is multiplied by bc_weight={config.bc_weight:g}, that over observations by "
            f"world_model_weight={config.world_model_weight:g}."
        )
    return notes
