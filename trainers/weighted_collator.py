"""Batches with one advantage per token."""

from dataclasses import dataclass
from typing import Any

from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

from online_sft.advantages import pad_advantages, token_advantages

__all__ = ["WeightedDataCollator"]


@dataclass
class WeightedDataCollator(DataCollatorForLanguageModeling):
    """TRL's collator, plus `advantages`: [B, T] float32, aligned with `input_ids`, 0 on padding.

    Raises:
        ValueError: when a row's advantages do not match its tokens or are not finite.
    """

    def torch_call(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        batch = super().torch_call(examples)
        rows = [
            token_advantages(example["advantages"], len(example["input_ids"]), row=f"row {index} of the batch")
            for index, example in enumerate(examples)
        ]
        batch["advantages"] = pad_advantages(rows, batch["input_ids"].size(1))
        return batch
