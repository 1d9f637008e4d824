"""Batches with one advantage per token."""

from dataclasses import dataclass
from typing import Any

import torch
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling
from trl.trainer.utils import pad

__all__ = ["TOKEN_COLUMNS", "WeightedDataCollator"]

# Columns with one number per token, beside the tokens and labels: dtype and value on padding
TOKEN_COLUMNS: dict[str, tuple[torch.dtype, float]] = {
    "advantages": (torch.float32, 0.0),
    "ref_log_probs": (torch.float32, 0.0),
    "groups": (torch.int64, -1),
    "temperatures": (torch.float32, 1.0),
    "has_gradient": (torch.int64, 0),
    "kinds": (torch.int64, 0),
}


@dataclass
class WeightedDataCollator(DataCollatorForLanguageModeling):
    """TRL's collator, plus `advantages` and, where the rows have them, the other `TOKEN_COLUMNS`.

    All are [B, T], or [1, sum of T] without padding, aligned with `input_ids`; advantages are 0 where there is no loss:
    on padding, on masked tokens, and on the first token of each packed sequence or fragment, which nothing predicts.

    Raises:
        ValueError: when a row has not one advantage per token, or one that is not finite.
    """

    def torch_call(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        batch = super().torch_call(examples)
        for name, (dtype, padding) in TOKEN_COLUMNS.items():
            if name not in examples[0]:
                continue
            rows = [torch.as_tensor(example[name], dtype=dtype) for example in examples]
            for index, (row, example) in enumerate(zip(rows, examples, strict=True)):
                if row.shape != (len(example["input_ids"]),) or not row.isfinite().all():
                    raise ValueError(
                        f"row {index} of the batch has {name} of shape {list(row.shape)} for "
                        f"{len(example['input_ids'])} tokens, or one that is not finite"
                    )
            batch[name] = pad(
                [torch.cat(rows)] if self.padding_free else rows,
                padding_value=padding,
                padding_side="right",
                pad_to_multiple_of=self.pad_to_multiple_of,
            )
        if "advantages" in batch:
            batch["advantages"].masked_fill_(batch["labels"] == -100, 0.0)
        return batch
