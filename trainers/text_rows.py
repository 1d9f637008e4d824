"""Texts and conversations, looked at before TRL tokenises them, which would say neither which row nor why."""

from collections.abc import Collection
from functools import partial
from typing import Any, TypeAlias

from datasets import Dataset, IterableDataset

from online_sft.advantages import is_finite_number
from trainers.weighted_sft_config import WeightedSFTConfig

__all__ = ["check_messages", "check_text", "checked_texts"]

Row: TypeAlias = dict[str, Any]
_CONVERSATIONS = ("messages", "conversations", "prompt", "completion")


def checked_texts(
    dataset: Dataset | IterableDataset,
    columns: Collection[str],
    args: WeightedSFTConfig,
    dataset_name: str,
) -> Dataset | IterableDataset:
    """The data set of texts or conversations, all of whose rows can be tokenised; a stream is looked at as it comes.

    Raises:
        ValueError: names the row.
    """
    text_field = args.dataset_text_field
    has_layout = {text_field, "messages", "conversations"} & set(columns) or {"prompt", "completion"} <= set(columns)
    if not has_layout:
        raise ValueError(
            f"the {dataset_name} dataset has nothing to train on: it needs `messages`, or `prompt` and `completion`, "
            f"or `{text_field}`, or `input_ids`; it has {', '.join(columns)}"
        )
    texts = [name for name in (text_field, *_CONVERSATIONS) if name in columns]
    check = partial(_check_row, dataset_name=dataset_name, columns=texts, assistant_only=args.assistant_only_loss)
    if isinstance(dataset, IterableDataset):
        return dataset.map(check, with_indices=True)
    for index, row in enumerate(dataset.select_columns(texts)):
        check(row, index)
    return dataset


def check_text(value: object, column: str, row: str) -> None:
    """A text or a conversation, and not nothing.

    Raises:
        ValueError
    """
    if isinstance(value, list) and value:
        check_messages(value, column, row)
    elif not isinstance(value, str) or column in ("messages", "conversations"):
        raise ValueError(
            f"{row} has the {column} {value!r:.60}; it must be a text, or a list of messages with `role` and `content`"
        )


def check_messages(messages: list[Any], column: str, row: str) -> None:
    """Messages have a role, and content; or `from` and `value`, in a column `conversations`.

    Raises:
        ValueError
    """
    keys = ("from", "value") if column == "conversations" and "from" in messages[0] else ("role", "content")
    for place, message in enumerate(messages):
        if not isinstance(message, dict) or not isinstance(message.get(keys[0]), str) or keys[1] not in message:
            raise ValueError(
                f"{row} has as message {place} of {column} {message!r:.60}; a message has `{keys[0]}` and `{keys[1]}`"
            )
        weight = message.get("weight")
        if weight is not None and not is_finite_number(weight):
            raise ValueError(
                f"{row} has the weight {weight!r} on message {place}; it must be a finite number, or absent"
            )


def _check_row(row: Row, index: int, *, dataset_name: str, columns: list[str], assistant_only: bool) -> Row:
    name = f"row {index} of the {dataset_name} dataset"
    for column in columns:
        check_text(row[column], column, name)
    if assistant_only:
        messages = [message for column in columns if isinstance(row[column], list) for message in row[column]]
        roles = [message.get("role", message.get("from")) for message in messages]
        if messages and not {"assistant", "gpt"} & set(roles):
            raise ValueError(
                f"{name} has no message of the assistant, only of {', '.join(roles)}, and assistant_only_loss=True "
                "trains on nothing else; remove the row, or the option"
            )
    return {}
