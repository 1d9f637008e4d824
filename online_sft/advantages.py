"""The weight of every token of a row, aligned with the tokens themselves.

row: {"input_ids": [5, 8, 2], "labels": [-100, 8, 2], "advantages": [0.0, 1.5, 1.5]}   or   "advantages": 1.5
"""

import hashlib
import math
from collections.abc import Sequence

__all__ = [
    "MASKS",
    "group_id",
    "is_finite_number",
    "masks_read",
    "message_weights",
    "prompt_of",
    "shifted_to_targets",
    "token_advantages",
]

# Columns of tokenised rows that say which tokens carry loss, 1 or 0. Where there are several, all must say so.
MASKS = ("loss_mask", "completion_mask", "assistant_masks")


def masks_read(completion_only_loss: bool | None) -> list[str]:
    """Those of `MASKS` that count: TRL's `completion_only_loss=False` trains on prompts too."""
    return [name for name in MASKS if name != "completion_mask" or completion_only_loss is not False]


def token_advantages(
    advantages: Sequence[float] | float | None,
    labels: Sequence[int],
    *,
    row: str,
    from_text: bool = False,
    column: str = "advantages",
) -> list[float]:
    """One finite advantage per token: a list is checked, a number (one advantage per sequence) is repeated.

    Args:
        advantages: of one row.
        labels: of its tokens, -100 where there is no loss.
        row: what to call the row in an error, for example "row 17 of the train dataset".
        from_text: the row was text, so a list may also hold one advantage per loss token, those of the completion say.
        column: what to call them in an error.

    Raises:
        ValueError: when the list has another length, or an advantage is missing, no number, or not finite.
    """
    num_tokens = len(labels)
    if isinstance(advantages, (int, float)):
        advantages = [advantages] * num_tokens
    num_loss_tokens = sum(label != -100 for label in labels)
    if from_text and isinstance(advantages, list) and len(advantages) == num_loss_tokens:
        given = iter(advantages)
        advantages = [0.0 if label == -100 else next(given) for label in labels]
    if not isinstance(advantages, list) or len(advantages) != num_tokens:
        got = f"{len(advantages)} {column}" if isinstance(advantages, list) else f"{column} {advantages!r}"
        tokens = f"{num_tokens} tokens" + (f", of which {num_loss_tokens} carry loss" if from_text else "")
        raise ValueError(
            f"{row} has {got} for {tokens}; give one number per token (0.0 where a token carries no loss) "
            "or one number for the whole row"
        )
    try:
        if all(map(math.isfinite, advantages)):
            return [float(value) for value in advantages]
    except TypeError:  # None or a string
        pass
    position, value = next((t, a) for t, a in enumerate(advantages) if not is_finite_number(a))
    raise ValueError(f"{row} has {column} {value!r} at token {position}; every one must be a finite number")


def is_finite_number(value: object) -> bool:
    """Whether it is a number, and neither infinite nor NaN."""
    return isinstance(value, (int, float)) and math.isfinite(value)


def shifted_to_targets(values: Sequence[float], *, first: float) -> list[float]:
    """From `source` alignment, where entry t belongs to the position that predicts token t+1, to that of the tokens.

    The first token is predicted by no position: it gets `first`. The last position predicts nothing: its entry goes.
    """
    return [first, *values[:-1]]


def message_weights(weights: Sequence[float], ends: Sequence[int]) -> list[float]:
    """The weight of each token from those of the messages; message i's tokens end at `ends[i]`."""
    starts = [0, *ends[:-1]]
    return [float(weight) for weight, start, end in zip(weights, starts, ends, strict=True) for _ in range(start, end)]


def prompt_of(input_ids: Sequence[int], labels: Sequence[int]) -> list[int]:
    """The tokens before the first that carries loss; all of them if none does."""
    num_prompt = next((t for t, label in enumerate(labels) if label != -100), len(input_ids))
    return list(input_ids[:num_prompt])


def group_id(name: object) -> int:
    """A number of 63 bits for a prompt or a group's name, the same in every process and run."""
    return int.from_bytes(hashlib.blake2b(repr(name).encode(), digest_size=8).digest(), "big") >> 1
