"""Rows that are tokenised already: ids, labels and masks, checked before a model would fail on them."""

from collections.abc import Collection, Sized
from typing import Any, TypeAlias

__all__ = ["check_ids", "check_labels", "check_masks", "check_vocabulary"]

Row: TypeAlias = dict[str, Any]


def check_ids(row: Row, column: str, *, name: str) -> None:
    """A list of whole numbers; `name` is the row's, in messages.

    Raises:
        ValueError
    """
    ids = row[column]
    if not isinstance(ids, Sized) or (len(ids) and isinstance(ids[0], (str, float, list))):  # type: ignore[index]
        raise ValueError(f"{name} has the {column} {ids!r:.60}; give a list of token ids, which are whole numbers")


def check_labels(row: Row, *, name: str) -> None:
    """One label for each token, -100 where it carries no loss.

    Raises:
        ValueError
    """
    labels, num_tokens = row["labels"], len(row["input_ids"])
    if labels is None or len(labels) != num_tokens:
        raise ValueError(
            f"{name} has {'no' if labels is None else len(labels)} labels for {num_tokens} tokens; give one for each, "
            "-100 where a token carries no loss"
        )
    check_ids(row, "labels", name=name)
    unknown = [label for label in set(labels) if label < 0 and label != -100]
    if unknown:
        raise ValueError(f"{name} has the label {unknown[0]}; a token without loss has the label -100")


def check_masks(row: Row, masks: Collection[str], *, name: str) -> None:
    """0 or 1 for each token.

    Raises:
        ValueError
    """
    num_tokens = len(row["input_ids"])
    for mask in masks:
        values = row[mask]
        if values is None:
            raise ValueError(f"{name} has no `{mask}`, and other rows have")
        if not isinstance(values, Sized):
            raise ValueError(f"{name} has the {mask} {values!r}; give a list, 1 on loss tokens and 0 elsewhere")
        if len(values) != num_tokens:
            raise ValueError(f"{name} has {len(values)} entries in `{mask}` for {num_tokens} tokens; give one for each")
        odd = next((value for value in values if value not in (0, 1)), None)  # type: ignore[attr-defined]
        if odd is not None:
            raise ValueError(
                f"{name} has {odd} in `{mask}`, which must hold 1 on loss tokens and 0 elsewhere (Atropos' masks hold "
                "-100 or the token: they are `labels`)"
            )


def check_vocabulary(row: Row, size: int, *, name: str) -> None:
    """Tokens that the model has; negative labels are `check_labels`'s.

    Raises:
        ValueError
    """
    ids, labels = row["input_ids"], row["labels"]
    extremes = (min(ids, default=0), max(ids, default=0), max(labels, default=0))
    for column, extreme in zip(("input_ids", "input_ids", "labels"), extremes, strict=True):
        is_without_loss = column == "labels" and extreme == -100
        if not 0 <= extreme < size and not is_without_loss:
            raise ValueError(
                f"{name} has {extreme} in {column}, and the model's tokens are 0 to {size - 1}; tokenise with the "
                "tokenizer of the model to train"
            )
