"""Dynamic sampling (DAPO, arXiv 2503.14476, section 3.2): groups that say nothing are replaced by fresh ones."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import Tensor

from online_sft.group_rewards import degenerate_groups

__all__ = ["FilteredBatch", "replace_rows", "replaced_degenerate_groups"]

Batch = dict[str, Any]
_PADDED_LEFT = ("prompt_ids", "prompt_mask")
_TOKEN_IDS = ("prompt_ids", "completion_ids")


@dataclass(frozen=True)
class FilteredBatch:
    """A batch after filtering, and what it took; the counts are those of all ranks."""

    batch: Batch
    is_degenerate: Tensor  # [groups of this rank], those that are left
    num_groups: int
    num_kept: int
    num_refilled: int
    num_all_correct: int  # before refilling: all the same, and positive
    num_all_wrong: int  # before refilling: all the same, and not positive
    num_sampled: int  # groups that were generated for this batch


def replaced_degenerate_groups(
    batch: Batch,
    sample: Callable[[int], Batch],
    *,
    accelerator: Accelerator,
    num_generations: int,
    min_std: float,
    max_retries: int,
    pad_token_id: int,
) -> FilteredBatch:
    """Puts fresh groups in the places of those whose rewards are all the same, for at most `max_retries` rounds.

    All ranks go through the same rounds, and in each sample as many groups as the rank that needs most: whatever the
    sampling does collectively, it does on all of them. What a rank samples beyond its need serves as a further try.

    Args:
        batch: of this rank, rows of a group together; `rewards` [rows] among its tensors.
        sample: returns a batch of so many fresh groups.
        pad_token_id: for the token ids of the shorter of two batches.
    """

    def degenerate(batch: Batch) -> Tensor:
        return degenerate_groups(batch["rewards"].view(-1, num_generations), min_std)

    def of_all_ranks(*counts: Tensor) -> list[int]:
        return accelerator.reduce(torch.stack(counts), reduction="sum").tolist()

    is_degenerate = degenerate(batch)
    is_positive = batch["rewards"].view(-1, num_generations).nanmean(1) > 0
    first = is_degenerate.clone()
    num_sampled = len(first)
    for _ in range(max_retries):
        needed = int(accelerator.gather(is_degenerate.sum().view(1)).max())
        if needed == 0:
            break
        fresh = sample(needed)
        num_sampled += needed
        good = (~degenerate(fresh)).nonzero().flatten()
        places = is_degenerate.nonzero().flatten()[: len(good)]
        rows = _rows_of(places, num_generations), _rows_of(good[: len(places)], num_generations)
        batch = replace_rows(batch, rows[0], fresh, rows[1], pad_token_id)
        is_degenerate[places] = False
    kept, refilled, correct, wrong = of_all_ranks(
        (~is_degenerate).sum(),
        (first & ~is_degenerate).sum(),
        (first & is_positive).sum(),
        (first & ~is_positive).sum(),
    )
    num_groups = len(first) * accelerator.num_processes
    return FilteredBatch(
        batch, is_degenerate, num_groups, kept, refilled, correct, wrong, num_sampled * accelerator.num_processes
    )


def replace_rows(batch: Batch, places: Tensor, fresh: Batch, rows: Tensor, pad_token_id: int) -> Batch:
    """`batch` with rows `places` taken from rows `rows` of `fresh`, padded to a common width.

    Prompts are padded on the left, all else on the right; token ids with `pad_token_id`, all else with 0. Values
    without rows stay.

    Raises:
        ValueError: for a value that is no tensor, whose rows cannot be told, and values that only one of them has.
    """
    if other := set(batch) ^ set(fresh):
        raise ValueError(
            f"filter_groups_enable cannot merge batches of which only one has {', '.join(sorted(other))}; have your "
            "rollouts return it always, or set filter_groups_enable=False"
        )
    num_rows = len(batch["rewards"])
    merged = dict(batch)
    for name, old in batch.items():
        if not isinstance(old, Tensor):
            raise ValueError(f"filter_groups_enable cannot replace rows of {name!r}; set filter_groups_enable=False")
        if old.dim() == 0 or len(old) != num_rows:
            continue
        new = fresh[name]
        if old.dim() == 2:
            width = max(old.size(1), new.size(1))
            value = pad_token_id if name in _TOKEN_IDS else 0
            old, new = (_padded(x, width, value, left=name in _PADDED_LEFT) for x in (old, new))
        merged[name] = old.index_copy(0, places, new[rows])
    return merged


def _padded(values: Tensor, width: int, value: int, *, left: bool) -> Tensor:
    missing = width - values.size(1)
    return F.pad(values, (missing, 0) if left else (0, missing), value=value)


def _rows_of(groups: Tensor, num_generations: int) -> Tensor:
    return (groups.unsqueeze(1) * num_generations + torch.arange(num_generations, device=groups.device)).flatten()
