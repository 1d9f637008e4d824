"""The data of a task: prompts for TL;DR summaries or math problems, in training and validation parts."""

import difflib
import logging
import math
import random
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from online_sft.layouts import Problem, layout_of
from online_sft.rewards.messages import text_of

if TYPE_CHECKING:
    from datasets import Dataset

__all__ = ["TASKS", "prepare_dataset"]

logger = logging.getLogger(__name__)

# The tasks, and the data set of each unless another one is named.
TASKS = {
    "tldr": "trl-internal-testing/tldr-preference-sft-trl-style",
    "math": "BytedTsinghua-SIA/DAPO-Math-17k",
}
_GYM = "reasoning_gym:"
_NUM_GYM_PROBLEMS = 5_000
_BUILDERS = {".json": "json", ".jsonl": "json", ".parquet": "parquet"}
_VALIDATION_SPLITS = ("validation", "test")
_ROWS_AT_A_TIME = 1_000

_Problems = dict[str, Problem]  # by the text of the prompt; of a chat: its last user message


class _Tokenizer(Protocol):
    """What is asked of a tokenizer of transformers."""

    chat_template: Any

    def __call__(self, text: Any) -> Mapping[str, Any]: ...

    def apply_chat_template(self, conversation: Any, **options: Any) -> Any: ...


def prepare_dataset(
    task: Literal["tldr", "math"],
    tokenizer: _Tokenizer,
    dataset_name: str | None = None,
    *,
    dataset_config: str | None = None,
    max_prompt_length: int | None = None,
    validation_share: float = 0.05,
    seed: int = 0,
) -> "tuple[Dataset, Dataset, dict[str, str] | None]":
    """The prompts of a task: (train, validation, reward_lookup).

    Rows have a `prompt`: a chat if the tokenizer has a chat template, else a text; for math also a `solution`, the gold
    answer. Problems are put into DAPO's prompt; data sets that come with prompts keep theirs. `reward_lookup` has the
    gold of each prompt text, for `MathVerificationReward(reward_lookup=...)`; None for TL;DR.

    Each prompt is there once, in one of the parts: copies are merged, and validation prompts left out of train. Math
    prompts with two different golds are left out, as nobody knows which is right. What is merged or left out is logged
    as a warning, with its number.

    Args:
        task: "tldr" or "math".
        tokenizer: of the policy; decides about chats, and counts the tokens of prompts.
        dataset_name: hub id, a .jsonl, .json or .parquet file, a folder with a file per split, or
            `reasoning_gym:chain_sum` (any data set of reasoning-gym whose answers are math), 5,000 problems made by
            `seed`. Layouts (`online_sft.layouts.LAYOUTS`) are recognised by their columns. None: the task's in `TASKS`.
        dataset_config: configuration of a hub data set.
        max_prompt_length: in tokens, chat template included; longer prompts are left out.
        validation_share: of the prompts, held out where there is no `validation` or `test` split; 0 for none.
        seed: which prompts are held out.

    Raises:
        ValueError: for an unknown task or layout, data that cannot be read, and when no prompt is left.
    """
    if task not in TASKS:
        raise ValueError(f"task must be one of {', '.join(TASKS)}; got {task!r}")
    if not 0 <= validation_share < 1:
        raise ValueError(f"validation_share must be at least 0 and less than 1; got {validation_share}")
    name = dataset_name or TASKS[task]
    splits = _load(name, dataset_config, seed)
    if "train" not in splits:
        raise ValueError(f"{name} has no train split; it has {', '.join(splits)}")
    held_out = next((split for split in _VALIDATION_SPLITS if split in splits), None)
    train = _problems(task, splits["train"], f"the train split of {name}")
    train = _not_too_long(train, tokenizer, max_prompt_length, f"the train split of {name}")
    if held_out:
        validation = _problems(task, splits[held_out], f"the {held_out} split of {name}")
        validation = _not_too_long(validation, tokenizer, max_prompt_length, f"the {held_out} split of {name}")
        train, validation = _apart(train, validation, name)
    else:
        train, validation = _hold_out(train, validation_share, seed)
    if not train:
        raise ValueError(f"no prompt of {name} is left to train on")
    has_golds = task == "math"
    golds = {text: problem.gold for text, problem in (train | validation).items()} if has_golds else None
    return _as_dataset(train, tokenizer, has_golds), _as_dataset(validation, tokenizer, has_golds), golds


def _load(name: str, config: str | None, seed: int) -> "Mapping[str, Dataset]":
    """The splits of a hub data set, a local file or folder, or a data set of reasoning-gym."""
    from datasets import load_dataset
    from datasets.exceptions import DatasetGenerationError

    if name.startswith(_GYM):
        return {"train": _gym_problems(name.removeprefix(_GYM), seed)}
    try:
        builder = _BUILDERS.get(Path(name).suffix)
        return load_dataset(builder, data_files=name) if builder else load_dataset(name, config)
    except (OSError, ValueError, DatasetGenerationError) as error:
        raise ValueError(f"cannot load {name!r}: {error.__cause__ or error}") from error


def _gym_problems(name: str, seed: int) -> "Dataset":
    try:
        import reasoning_gym
    except ImportError as error:
        raise ImportError("this data set needs reasoning-gym: pip install 'online-sft[reasoning-gym]'") from error
    from datasets import Dataset

    if name not in reasoning_gym.factory.DATASETS:
        nearest = difflib.get_close_matches(name, reasoning_gym.factory.DATASETS, n=1, cutoff=0.0)[0]
        raise ValueError(f"reasoning-gym has no data set {name!r}; did you mean {nearest!r}?")
    items = reasoning_gym.create_dataset(name, seed=seed, size=_NUM_GYM_PROBLEMS)
    return Dataset.from_list([{**item, "metadata": item["metadata"]["source_dataset"]} for item in items])


def _problems(task: str, dataset: "Dataset", where: str) -> _Problems:
    """One problem per prompt text; says how many copies were merged and how many problems contradict each other."""
    layout = layout_of(task, dataset.column_names)
    problems: _Problems = {}
    contradicted: dict[str, str] = {}  # prompt text: the other gold
    row_number = 0
    for columns in dataset.select_columns(list(layout.columns)).iter(_ROWS_AT_A_TIME):
        for values in zip(*columns.values(), strict=True):
            try:
                problem = layout.read(dict(zip(columns, values, strict=True)))
                text = text_of(problem.prompt, role="user")
            except ValueError as error:
                raise ValueError(f"row {row_number} of {where}, read as {layout.name}: {error}") from error
            if problems.setdefault(text, problem).gold != problem.gold:
                contradicted[text] = problem.gold
            row_number += 1
    if row_number > len(problems):
        logger.warning("merged %d copies of prompts in %s", row_number - len(problems), where)
    if contradicted:
        text, gold = next(iter(contradicted.items()))
        logger.warning(
            "left out %d of %d prompts of %s, which have several golds: %r has %r and %r",
            *(len(contradicted), len(problems), where, text[:200], problems[text].gold, gold),
        )
    return {text: problem for text, problem in problems.items() if text not in contradicted}


def _not_too_long(problems: _Problems, tokenizer: _Tokenizer, limit: int | None, where: str) -> _Problems:
    if limit is None or not problems:
        return problems
    prompts = [_as_prompt(problem, tokenizer) for problem in problems.values()]
    if tokenizer.chat_template:
        tokens = tokenizer.apply_chat_template(prompts, add_generation_prompt=True, return_dict=True)["input_ids"]
    else:
        tokens = tokenizer(prompts)["input_ids"]
    lengths = [len(ids) for ids in tokens]
    kept = {text: problem for (text, problem), length in zip(problems.items(), lengths, strict=True) if length <= limit}
    if len(kept) < len(problems):
        logger.warning(
            "left out %d of %d prompts of %s, which have more than max_prompt_length=%d tokens, the longest %d",
            *(len(problems) - len(kept), len(problems), where, limit, max(lengths)),
        )
    return kept


def _apart(train: _Problems, validation: _Problems, name: str) -> tuple[_Problems, _Problems]:
    """Validation prompts leave train; those whose golds differ there leave both."""
    shared = train.keys() & validation.keys()
    contradicted = {text for text in shared if train[text].gold != validation[text].gold}
    if shared:
        logger.warning(
            "left out %d of %d training prompts of %s, which are validation prompts, and %d of those, too, since "
            "their golds differ",
            *(len(shared), len(train), name, len(contradicted)),
        )
    return (
        {text: problem for text, problem in train.items() if text not in shared},
        {text: problem for text, problem in validation.items() if text not in contradicted},
    )


def _hold_out(problems: _Problems, share: float, seed: int) -> tuple[_Problems, _Problems]:
    """A share of the prompts, at least one unless it is 0, and never the only one."""
    number = min(math.ceil(share * len(problems)), max(0, len(problems) - 1))
    held_out = set(random.Random(seed).sample(list(problems), number))
    return (
        {text: problem for text, problem in problems.items() if text not in held_out},
        {text: problem for text, problem in problems.items() if text in held_out},
    )


def _as_dataset(problems: _Problems, tokenizer: _Tokenizer, has_golds: bool) -> "Dataset":
    from datasets import Dataset

    columns: dict[str, list[Any]] = {"prompt": [_as_prompt(problem, tokenizer) for problem in problems.values()]}
    if has_golds:
        columns["solution"] = [problem.gold for problem in problems.values()]
    return Dataset.from_dict(columns)


def _as_prompt(problem: Problem, tokenizer: _Tokenizer) -> str | list[dict[str, Any]]:
    """A chat for a tokenizer with a chat template, else a text."""
    prompt = problem.prompt
    if tokenizer.chat_template:
        return [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
    if isinstance(prompt, str):
        return prompt
    if len(prompt) > 1:
        raise ValueError(
            f"a prompt is a chat of {len(prompt)} messages, and the tokenizer has no chat template; set one, or use "
            "another model"
        )
    return text_of(prompt, role="user")
