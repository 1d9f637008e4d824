"""From a data set's rows to one weight per token, around TRL's own tokenisation, and through truncation and packing.

`labelled` runs before TRL tokenises, `weighted` after it, `cut` last. TRL's own truncation and packing would keep
tokens and labels only.
"""

import copy
import json
from collections.abc import Callable, Collection
from functools import partial
from itertools import groupby
from typing import Any, TypeAlias

import pyarrow.compute as pc
import torch
from accelerate import PartialState
from accelerate.logging import get_logger
from datasets import Dataset, Features, IterableDataset, List, Value
from jinja2 import TemplateError
from trl import pack_dataset

from online_sft.advantages import (
    group_id,
    is_finite_number,
    masks_read,
    message_weights,
    prompt_of,
    shifted_to_targets,
    token_advantages,
)
from online_sft.weightings import Weighting
from trainers.tokenised_rows import check_ids, check_labels, check_masks, check_vocabulary
from trainers.weighted_sft_config import WeightedSFTConfig

__all__ = ["cut", "is_prepared", "labelled", "rendered", "reweighted", "weighted"]

logger = get_logger(__name__)

# What `cut` writes into a data set's description, which its parts and orders keep
_PREPARED = "online-sft: one weight per token"

Data: TypeAlias = Dataset | IterableDataset
Row: TypeAlias = dict[str, Any]


def is_prepared(dataset: Data, columns: Collection[str]) -> bool:
    """Whether `cut` made this data set, or the one that it is a part or an order of; or TRL's packing did."""
    return dataset.info.description == _PREPARED or "seq_lengths" in columns


def labelled(dataset: Data, columns: Collection[str], args: WeightedSFTConfig, dataset_name: str) -> Data:
    """Tokenised rows get labels from every mask they have (TRL never reads `loss_mask`), and `target` alignment."""
    if isinstance(dataset, IterableDataset):
        dataset = dataset.map(_plain_row)
    masks = [name for name in masks_read(args.completion_only_loss) if name in columns]
    if "input_ids" not in columns or not (masks or args.align == "source"):
        return dataset
    label = partial(_label_row, dataset_name=dataset_name, masks=masks, from_source=args.align == "source")
    return _map(dataset, label, args)


def weighted(
    dataset: Data,
    args: WeightedSFTConfig,
    dataset_name: str,
    *,
    from_text: bool,
    needs_weights: bool,
    with_groups: bool,
    vocabulary_size: int,
    render: Callable[[list[Row], Row], list[int]],
) -> Data:
    """Tokenised rows with labels get one finite advantage per token: the row's times that of the token's message.

    Without `args.use_advantage_weighting` it is 1 everywhere.

    Args:
        from_text: TRL has just tokenised the rows.
        needs_weights: every row must have some; no weighting will make them.
        with_groups: number the prompts, in a column `groups`.
        vocabulary_size: of the model, whose tokens are below it.
        render: token ids of a conversation's first messages, given them and the row.
    """
    weigh = partial(
        _weigh_row,
        dataset_name=dataset_name,
        use_weights=args.use_advantage_weighting,
        needs_weights=needs_weights,
        from_text=from_text,
        from_source=args.align == "source",
        with_groups=with_groups,
        vocabulary_size=vocabulary_size,
        render=render,
    )
    if not isinstance(dataset, Dataset):
        return _map(dataset, weigh, args)
    # else `datasets` would write fractions into a column of whole numbers
    kinds = {"advantages": "float64", "groups": "int64", "ref_log_probs": "float64"}
    made = {"advantages", *(["groups"] if with_groups else []), *({"ref_log_probs"} & set(dataset.column_names))}
    lists = {name: List(Value(kind)) for name, kind in kinds.items() if name in made}
    return _map(dataset, weigh, args, features=Features({**dataset.features, **lists}))


def rendered(messages: list[Row], row: Row, *, tokenizer: Any, chat_template: str | None) -> list[int]:
    """The token ids of a conversation's first messages."""
    tools = row.get("tools")
    return tokenizer.apply_chat_template(
        messages,
        tools=json.loads(tools) if isinstance(tools, str) else tools,
        chat_template=chat_template,
        return_dict=True,
        **row.get("chat_template_kwargs") or {},
    )["input_ids"]


def reweighted(dataset: Data, args: WeightedSFTConfig, dataset_name: str, weighting: Weighting) -> Dataset:
    """Multiplies the advantages by the weighting of the rows' rewards.

    Rows of weight 0 go, and are counted, unless a normalisation still compares them with the others.
    """
    if not isinstance(dataset, Dataset):
        raise ValueError(
            f"a weighting compares the rewards of the whole {dataset_name} dataset, which is a stream; load it as a "
            "table (dataset_streaming=False), or stream it with an `advantages` column"
        )
    weights = weighting(*_rewards_and_groups(dataset, dataset_name))
    if weights.shape != (len(dataset),) or not weights.isfinite().all():
        raise ValueError(
            f"the weighting must return one finite weight per row, [{len(dataset)}]; got {list(weights.shape)}, "
            f"{int((~weights.isfinite()).sum())} of them not finite"
        )
    kept = weights.nonzero().flatten().tolist()
    if not kept:
        raise ValueError(f"the weighting gives every row of the {dataset_name} dataset weight 0")
    if args.advantage_normalization != "none":
        kept = list(range(len(dataset)))
    if len(kept) < len(dataset):
        logger.warning(
            "the weighting gives %d of %d rows of the %s dataset weight 0; they are left out",
            len(dataset) - len(kept),
            len(dataset),
            dataset_name,
        )
    scales = weights[kept].tolist()
    with PartialState().main_process_first():
        return dataset.select(kept).map(partial(_scale_row, scales=scales), with_indices=True)


def _rewards_and_groups(dataset: Dataset, dataset_name: str) -> tuple[torch.Tensor, torch.Tensor]:
    """The `reward` of each row, float64, and the number of its group."""
    rewards = dataset["reward"][:]
    for index, value in enumerate(rewards):
        if not is_finite_number(value):
            raise ValueError(
                f"row {index} of the {dataset_name} dataset has reward {value!r}; a weighting needs a finite number in "
                "every row: remove the rows that could not be graded"
            )
    of_tokens = dataset.with_format("arrow")[:]["groups"]  # a million rows of a thousand tokens are no Python lists
    firsts = pc.list_flatten(pc.list_slice(of_tokens, 0, 1, return_fixed_size_list=True)).fill_null(-1)
    return torch.tensor(rewards, dtype=torch.float64), torch.tensor(firsts.to_pylist())


def cut(dataset: Data, columns: list[str], args: WeightedSFTConfig, dataset_name: str, *, packing: bool) -> Data:
    """TRL's truncation, packing and shuffling.

    Args:
        columns: those that are kept, one number per token each.
    """
    dataset = dataset.select_columns(columns)
    keeps_all = args.max_length is None or (packing and args.packing_strategy != "bfd")
    if isinstance(dataset, Dataset) and not keeps_all:
        _tell_what_is_cut(dataset, args.max_length, dataset_name)
    if isinstance(dataset, Dataset) and dataset_name == "train":
        _tell_if_all_are_zero(dataset)
    if packing:
        if args.max_length is None:
            raise ValueError("packing needs max_length, the length of a packed row; it is None")
        if args.shuffle_dataset:  # before too, so that not always the same rows share a packed one
            dataset = dataset.shuffle(seed=args.seed)
        with PartialState().main_process_first():
            dataset = pack_dataset(dataset, args.max_length, args.packing_strategy, _workers(dataset, args))
    elif args.max_length is not None:
        dataset = _map(dataset, partial(_cut_row, columns=columns, max_length=args.max_length), args, indices=False)
        with PartialState().main_process_first():
            kept = dataset.filter(_has_loss, **_workers(dataset, args))
        if isinstance(kept, Dataset) and not len(kept):
            raise ValueError(
                f"no row of the {dataset_name} dataset has a loss token within max_length={args.max_length}; raise it, "
                "or look at the data with `online-sft inspect`"
            )
        if isinstance(kept, Dataset) and len(kept) < len(dataset):
            logger.warning(
                "%d of %d rows of the %s dataset have no loss token within max_length=%d and were dropped",
                len(dataset) - len(kept),
                len(dataset),
                dataset_name,
                args.max_length,
            )
        dataset = kept
    if args.shuffle_dataset:
        dataset = dataset.shuffle(seed=args.seed)
    dataset = copy.copy(dataset)
    dataset._info = dataset.info.copy()
    dataset.info.description = _PREPARED
    return dataset


def _workers(dataset: Data, args: WeightedSFTConfig) -> dict[str, Any]:
    return {"num_proc": args.dataset_num_proc} if isinstance(dataset, Dataset) else {}


def _map(
    dataset: Data,
    function: Callable[..., Row],
    args: WeightedSFTConfig,
    *,
    indices: bool = True,
    features: Features | None = None,
) -> Data:
    with PartialState().main_process_first():  # not every process at once: the first one writes the cache
        return dataset.map(function, with_indices=indices, features=features, **_workers(dataset, args))


def _plain_row(row: Row) -> Row:
    """A stream may yield arrays, tensors and NumPy's numbers; from here on there are lists and Python's."""
    return {name: value.tolist() if hasattr(value, "tolist") else value for name, value in row.items()}


def _label_row(row: Row, index: int, *, dataset_name: str, masks: list[str], from_source: bool) -> Row:
    name, tokens = f"row {index} of the {dataset_name} dataset", row["input_ids"]
    check_ids(row, "input_ids", name=name)
    check_masks(row, masks, name=name)
    bits = {mask: row[mask] for mask in masks}
    changed: Row = {}
    labels = tokens
    if "labels" in row:
        check_labels(row, name=name)
        labels = row["labels"]
    if from_source:
        bits = {
            mask: shifted_to_targets(values, first=0) if mask == "loss_mask" else values
            for mask, values in bits.items()
        }
        for column in ("advantages", "ref_log_probs"):
            if isinstance(row.get(column), list):
                changed[column] = shifted_to_targets(row[column], first=0.0)
    if masks:
        kept = zip(*bits.values(), strict=True)
        changed["labels"] = [label if all(flags) else -100 for label, flags in zip(labels, kept, strict=True)]
    return changed


def _weigh_row(
    row: Row,
    index: int,
    *,
    dataset_name: str,
    use_weights: bool,
    needs_weights: bool,
    from_text: bool,
    from_source: bool,
    with_groups: bool,
    vocabulary_size: int,
    render: Callable[[list[Row], Row], list[int]],
) -> Row:
    name, tokens, labels = f"row {index} of the {dataset_name} dataset", row["input_ids"], row["labels"]
    check_ids(row, "input_ids", name=name)
    check_labels(row, name=name)
    if not from_text:  # TRL may have added tokens to the model for its own
        check_vocabulary(row, vocabulary_size, name=name)
    lists = [column for column in ("advantages", "ref_log_probs") if isinstance(row.get(column), list)]
    if from_text and from_source and lists:
        raise ValueError(f"{name} is text with a list of {lists[0]}, and align='source' is for tokenised rows")
    given = row["advantages"] if use_weights and "advantages" in row else 1.0
    advantages = token_advantages(given, labels, row=name, from_text=from_text)
    messages = _messages(row) if use_weights and from_text else []
    weights = [message.get("weight") for message in messages]
    if needs_weights and "advantages" not in row and not messages:
        raise ValueError(f"{name} has no `advantages`, and earlier rows have")
    if any(weight is not None for weight in weights):
        of_tokens = message_weights(*_runs(messages, weights, row, render, name))
        advantages = [a * w for a, w in zip(advantages, token_advantages(of_tokens, labels, row=name), strict=True)]
    weighed: Row = {"advantages": advantages}
    if "ref_log_probs" in row:
        if not isinstance(row["ref_log_probs"], list):
            raise ValueError(f"{name} has ref_log_probs {row['ref_log_probs']!r}; give a list, one per token")
        weighed["ref_log_probs"] = token_advantages(
            row["ref_log_probs"], labels, row=name, from_text=from_text, column="ref_log_probs"
        )
    if with_groups:
        prompt = prompt_of(tokens, labels)
        if row.get("group", "") is None:
            raise ValueError(f"{name} has group None, and other rows have one; name every row's group")
        if "group" not in row and not prompt:
            raise ValueError(
                f"{name} has no prompt: its first token carries loss already, so it cannot be grouped with the other "
                "samples of its prompt; add a `group` column"
            )
        weighed["groups"] = [group_id(row.get("group", prompt))] * len(tokens)
    return weighed


def _messages(row: Row) -> list[Row]:
    """The messages of a conversational row, in order; none for text."""
    parts = [row.get(column) for column in ("messages", "prompt", "completion")]
    return [message for part in parts if isinstance(part, list) for message in part]


def _runs(
    messages: list[Row],
    weights: list[float | None],
    row: Row,
    render: Callable[[list[Row], Row], list[int]],
    name: str,
) -> tuple[list[float], list[int]]:
    """Runs of messages of one weight, and where each run's tokens end. Only where the weight changes is rendered."""
    runs = [(weight, len(list(run))) for weight, run in groupby(1.0 if w is None else w for w in weights)]
    ends, num_messages = [], 0
    way_out = (
        "; set chat_template_path to a template that only appends (as TRL's *_training.jinja do), or tokenise the rows "
        "yourself, with one advantage per token"
    )
    for _, length in runs[:-1]:
        num_messages += length
        try:
            prefix = render(messages[:num_messages], row)
        except TemplateError as error:  # some templates insist on a user's message
            raise ValueError(
                f"{name}: the chat template cannot render the first {num_messages}: {error}{way_out}"
            ) from error
        if row["input_ids"][: len(prefix)] != prefix:
            raise ValueError(
                f"{name}: the chat template renders the first {num_messages} messages differently when more follow, so "
                f"it cannot be told which tokens are whose{way_out}"
            )
        ends.append(len(prefix))
    return [weight for weight, _ in runs], [*ends, len(row["input_ids"])]


def _scale_row(row: Row, index: int, *, scales: list[float]) -> Row:
    return {"advantages": [scales[index] * advantage for advantage in row["advantages"]]}


def _cut_row(row: Row, *, columns: list[str], max_length: int) -> Row:
    return {name: row[name][:max_length] for name in columns}


def _has_loss(row: Row) -> bool:
    return any(label != -100 for label in row["labels"])


def _tell_what_is_cut(dataset: Dataset, max_length: int, dataset_name: str) -> None:
    """Truncation takes weights with its tokens: say so, with numbers."""
    lengths = pc.list_value_length(dataset.with_format("arrow")[:]["input_ids"])
    num_long = pc.sum(pc.greater(lengths, max_length)).as_py()
    if num_long:
        logger.warning(
            "%d of %d rows of the %s dataset are cut at max_length=%d, with their weights",
            num_long,
            len(dataset),
            dataset_name,
            max_length,
        )


def _tell_if_all_are_zero(dataset: Dataset) -> None:
    tables = dataset.with_format("arrow").iter(1000)
    if not any(pc.any(pc.not_equal(pc.list_flatten(each["advantages"]), 0)).as_py() for each in tables):
        logger.warning("every token of the train dataset has weight 0, so nothing is learnt: look at its `advantages`")
