"""Which columns a data set of weighted SFT needs."""

from collections.abc import Mapping
from typing import Any

from trainers.weighted_sft_config import WeightedSFTConfig

__all__ = ["check_columns"]


def check_columns(row: Mapping[str, Any], args: WeightedSFTConfig, dataset_name: str, *, has_weighting: bool) -> None:
    """Refuses, by its first row, a data set that has no weights, or the weights of two sources.

    Raises:
        ValueError: what it needs, and which columns it has.
    """
    conversations = [row.get(name) for name in ("messages", "conversations", "prompt", "completion")]
    messages = [message for value in conversations if isinstance(value, list) for message in value]
    on_messages = any(isinstance(message, dict) and "weight" in message for message in messages)
    columns = ", ".join(row)
    if {"tokens", "masks", "scores"} <= set(row):
        raise ValueError(f"the {dataset_name} dataset holds groups of Atropos; give its file as atropos_data_path")
    if has_weighting:
        if "reward" not in row or "advantages" in row:
            raise ValueError(
                "a weighting makes weights from a `reward` column, instead of `advantages`; "
                f"the {dataset_name} dataset has {columns}"
            )
    elif args.use_advantage_weighting and "advantages" not in row and not on_messages:
        raise ValueError(
            f"the {dataset_name} dataset needs an `advantages` column (a number per row or per token; 1.0 for "
            f"plain SFT), a `weight` on messages, or a `reward` column and a weighting; it has {columns}"
        )
    if args.policy_weighting == "importance" and "ref_log_probs" not in row:
        raise ValueError(
            f"policy_weighting='importance' needs a `ref_log_probs` column, the log-prob of each token under the "
            f"policy that wrote it; the {dataset_name} dataset has {columns}"
        )
