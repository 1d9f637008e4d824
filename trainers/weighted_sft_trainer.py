"""Weighted SFT on TRL's SFTTrainer: tokenisation, fused LM head, normalisation and metrics are TRL's."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch.nn.functional as F
from accelerate import PartialState
from accelerate.logging import get_logger
from datasets import Dataset, IterableDataset
from torch import Tensor, nn
from trl import SFTTrainer
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

from online_sft.advantages import token_advantages
from online_sft.losses import weighted_log_probs
from trainers.arguments import config_or_default
from trainers.weighted_collator import WeightedDataCollator
from trainers.weighted_sft_config import WeightedSFTConfig

__all__ = ["WeightedSFTTrainer"]

logger = get_logger(__name__)

# Columns of tokenised rows that say which tokens carry loss, 1 or 0. Where there are several, all must say so.
_MASKS = ("loss_mask", "completion_mask", "assistant_masks")


class WeightedSFTTrainer(SFTTrainer):
    """Supervised fine-tuning with a weight, of any sign, on every token: L = -(1/D) sum_bt A_bt log p(y_bt | y_b,<t).

    The sum runs over loss tokens (label not -100) and D is their number in the whole optimizer step, over all ranks and
    micro-batches; an advantage of 0 removes a token's gradient, not its place in D. With all advantages 1 this is
    SFTTrainer's loss.

    Data: any data set that `SFTTrainer` takes, with an `advantages` column: one number per row, or, for rows that are
    tokenised already (`input_ids` with `labels`, or with `loss_mask`, `completion_mask` or `assistant_masks`, 1 on loss
    tokens), one number per token, aligned with the tokens themselves.

    Constructor, arguments and features are those of `trl.SFTTrainer`; `args` is a `WeightedSFTConfig`.

    Overrides of `SFTTrainer`, and why:
        __init__: swaps TRL's collator, which ignores the column, for one that pads it.
        _prepare_dataset: TRL truncates tokens and labels only, and does not read every mask on tokenised rows.
        _set_signature_columns_if_needed: TRL would remove the column.
        compute_loss: multiplies the log-probs by the advantages; the rest of the loss is TRL's.

    Raises:
        ValueError: when the column is missing, a row's advantages do not match its tokens, or one is not finite.
    """

    _tag_names = ["trl", "weighted-sft"]
    _name = "Weighted SFT"

    def __init__(self, model: Any, args: WeightedSFTConfig | None = None, *more: Any, **options: Any) -> None:
        args = config_or_default(args, WeightedSFTConfig, model)
        if options.get("compute_loss_func") is not None:
            raise ValueError("compute_loss_func would replace the weighted loss; subclass compute_loss instead")
        super().__init__(model, args, *more, **options)
        parallelism = self.accelerator.parallelism_config
        if parallelism is not None and (parallelism.cp_enabled or parallelism.sp_enabled):
            raise ValueError("context and sequence parallelism would lose the weights; set cp_size=1 and sp_size=1")
        if self._is_vision_dataset:
            raise ValueError("WeightedSFTTrainer supports text only; this dataset has an image column")
        if type(self.data_collator) is DataCollatorForLanguageModeling:
            self.data_collator = WeightedDataCollator(**vars(self.data_collator))

    def _prepare_dataset(
        self,
        dataset: Dataset | IterableDataset,
        processing_class: Any,
        args: WeightedSFTConfig,
        packing: bool,
        formatting_func: Callable[[dict[str, Any]], str] | None,
        dataset_name: str,
    ) -> Dataset | IterableDataset:
        if isinstance(dataset, Dataset) and dataset.format["type"] != "custom":
            dataset = dataset.with_format(None)  # plain lists and numbers, whatever the user's own loop reads
        columns = list(next(iter(dataset)))
        if "advantages" not in columns:
            raise ValueError(
                f"the {dataset_name} dataset needs an `advantages` column (a number per row or per token; 1.0 for "
                f"plain SFT); it has {', '.join(columns)}"
            )
        if "input_ids" in columns:
            masks = [] if "labels" in columns else [name for name in _MASKS if name in columns]
            if args.completion_only_loss is False:
                masks = [name for name in masks if name != "completion_mask"]
            check = partial(_check_tokenised, dataset_name=dataset_name, masks=masks)
        else:
            check = partial(_check_text, dataset_name=dataset_name)
        # Not every process at once: the first one writes the cache.
        workers = {"num_proc": args.dataset_num_proc} if isinstance(dataset, Dataset) else {}
        with PartialState().main_process_first():
            dataset = dataset.map(check, with_indices=True, **workers)
        prepared = super()._prepare_dataset(dataset, processing_class, args, packing, formatting_func, dataset_name)
        if isinstance(prepared, Dataset) and len(prepared) < len(dataset):
            logger.warning(
                "%d of %d rows of the %s dataset have no loss token within max_length=%s and were dropped",
                len(dataset) - len(prepared),
                len(dataset),
                dataset_name,
                args.max_length,
            )
        with PartialState().main_process_first():
            return prepared.map(_fit_to_tokens, **workers)

    def _set_signature_columns_if_needed(self) -> None:
        super()._set_signature_columns_if_needed()
        if "advantages" not in self._signature_columns:
            self._signature_columns = [*self._signature_columns, "advantages"]

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        if "advantages" not in inputs:
            raise ValueError(
                f"the data collator {type(self.data_collator).__name__} returned no `advantages`; "
                "use WeightedDataCollator or add them, [B, T] like `input_ids`"
            )
        inputs = dict(inputs)
        advantages = inputs.pop("advantages")

        def weighted(**kwargs: Any) -> Any:
            outputs = model(**kwargs)
            if kwargs.get("fused_lm_head"):
                # Entry j of the log-probs is token j+1: drop the first advantage. Prompt-learning adapters prepend
                # virtual tokens instead, which get no weight. A negative pad crops.
                offset = outputs.log_probs.size(1) - advantages.size(1)
                outputs.log_probs = weighted_log_probs(outputs.log_probs, F.pad(advantages, (offset, 0)))
            return outputs

        return super().compute_loss(weighted, inputs, return_outputs, num_items_in_batch)


def _check_tokenised(row: dict[str, Any], index: int, *, dataset_name: str, masks: list[str]) -> dict[str, Any]:
    """One advantage per token; labels where all `masks` are 1 (TRL never reads `loss_mask` there)."""
    name, tokens = f"row {index} of the {dataset_name} dataset", row["input_ids"]
    checked = {"advantages": token_advantages(row["advantages"], len(tokens), row=name)}
    for mask in masks:
        if len(row[mask]) != len(tokens):
            raise ValueError(f"{name} has {len(row[mask])} entries in `{mask}` for {len(tokens)} tokens")
    if masks:
        kept = zip(*(row[mask] for mask in masks), strict=True)
        checked["labels"] = [token if all(bits) else -100 for token, bits in zip(tokens, kept, strict=True)]
    return checked


def _check_text(row: dict[str, Any], index: int, *, dataset_name: str) -> dict[str, Any]:
    """Text has no tokens yet, so only one advantage for the whole row makes sense."""
    name = f"row {index} of the {dataset_name} dataset"
    if isinstance(row["advantages"], list):
        raise ValueError(f"{name} is text with a list of advantages; per-token advantages need `input_ids`")
    return {"advantages": token_advantages(row["advantages"], 1, row=name)[0]}


def _fit_to_tokens(row: dict[str, Any]) -> dict[str, Any]:
    """Repeats a row's single advantage over its tokens, or cuts the list where TRL has cut the tokens."""
    num_tokens, advantages = len(row["input_ids"]), row["advantages"]
    return {"advantages": advantages[:num_tokens] if isinstance(advantages, list) else [advantages] * num_tokens}
