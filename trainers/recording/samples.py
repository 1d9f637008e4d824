"""What a batch trains on, as samples to look at."""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from online_sft.record.sample import Sample
from trainers.completion_inputs import policy_mask
from trainers.step_weights import loss_tokens, sequence_ids
from trainers.token_texts import token_texts

__all__ = ["completion_samples", "row_samples"]


def completion_samples(
    step: int, inputs: dict[str, Any], weights: Tensor, values: Mapping[str, Tensor], tokenizer: Any
) -> Iterator[Sample]:
    """Prompts and completions of a micro-batch of online SFT.

    Args:
        inputs: prompt_ids, prompt_mask [B, P], left-padded; completion_ids, completion_mask [B, T].
        weights: [B, T], of the completions' tokens; 0 at those that the policy did not write (of tools).
        values: [B] each, by name; NaN where unknown.
    """
    written = policy_mask(inputs).bool()
    for row in range(len(weights)):
        prompt = inputs["prompt_ids"][row][inputs["prompt_mask"][row].bool()]
        # what mask_truncated_completions takes out of the loss is still to be seen
        length = _length(inputs["completion_ids"][row], written[row], tokenizer)
        ids = [*prompt.tolist(), *inputs["completion_ids"][row, :length].tolist()]
        of_completion = zip(weights[row, :length].tolist(), written[row, :length].tolist(), strict=True)
        yield Sample(
            step,
            tuple(token_texts(ids, tokenizer)),
            (*[None] * len(prompt), *(weight if has_loss else None for weight, has_loss in of_completion)),
            {name: of_all[row].item() for name, of_all in values.items()},
        )


def row_samples(
    step: int, batch: Mapping[str, Tensor], weights: Tensor, tokenizer: PreTrainedTokenizerBase
) -> Iterator[Sample]:
    """The sequences of a micro-batch of weighted SFT, also of packed rows.

    Args:
        batch: input_ids, labels [B, T]; attention_mask or position_ids where there are some.
        weights: [B, T-1], of every token but the first; more where adapters have prepended tokens.
    """
    offset = batch["input_ids"].size(1) - weights.size(1)  # a negative pad crops
    weights = F.pad(weights, (offset, 0))
    has_loss, sequences = loss_tokens(batch["labels"]), sequence_ids(dict(batch))
    is_there = batch["attention_mask"].bool() if "attention_mask" in batch else torch.ones_like(has_loss)
    for row in range(len(weights)):
        for sequence in sequences[row].unique().tolist():
            place = (sequences[row] == sequence) & is_there[row]
            of_tokens = zip(weights[row, place].tolist(), has_loss[row, place].tolist(), strict=True)
            yield Sample(
                step,
                tuple(token_texts(batch["input_ids"][row, place].tolist(), tokenizer)),
                tuple(weight if loss else None for weight, loss in of_tokens),
                {},
            )


def _length(token_ids: Tensor, written: Tensor, tokenizer: Any) -> int:
    """Of a right-padded completion."""
    there = written | (token_ids != tokenizer.pad_token_id)
    return int(there.nonzero().max()) + 1 if there.any() else 0
