"""What `WeightedSFTTrainer` would train on: a trainer of a toy model prepares the data, and its rows are read back."""

import copy
import sys
import tempfile
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from datasets import Dataset
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from torch import Tensor
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

from online_sft.advantages import masks_read
from online_sft.inspection import Inspection, Row, Summary, findings_in, mistakes_in, refusals, tokens_of
from trainers.step_weights import loss_tokens
from trainers.token_texts import token_texts
from trainers.weighted_sft_config import WeightedSFTConfig
from trainers.weighted_sft_trainer import WeightedSFTTrainer

__all__ = ["inspect_dataset", "texts_of"]

# Fields of the config that change which tokens have which weight, beside max_length and packing
_DATA_FIELDS = (
    "advantage_clipping",
    "advantage_normalization",
    "align",
    "assistant_only_loss",
    "chat_template_path",
    "completion_only_loss",
    "dataset_num_proc",
    "dataset_text_field",
    "eos_token",
    "policy_weighting",
    "target_ess",
    "use_advantage_weighting",
    "weighting",
    "weighting_kwargs",
)


def inspect_dataset(
    dataset: Dataset, args: WeightedSFTConfig, tokenizer: PreTrainedTokenizerBase | None, *, num_shown: int
) -> Inspection:
    """Findings and summary of all rows, and the tokens of the first `num_shown` that the trainer accepts.

    Args:
        tokenizer: of the model to train; None for tokenised rows, which are then shown as ids, and whose EOS and BOS
            are not looked at.

    Raises:
        ValueError: for text without a tokenizer, and for what the trainer refuses other than row by row.
    """
    if tokenizer is None and "input_ids" not in dataset.column_names:
        raise ValueError("text rows need the tokenizer of the model to train: set --model_name_or_path")
    mistakes = _mistakes(dataset, args, tokenizer)
    accepted = [number for number in range(len(dataset)) if number not in mistakes]
    rows = _rows(dataset.select(accepted), accepted, args, tokenizer) if accepted else []
    return Inspection(
        findings=[
            *refusals(mistakes),
            *findings_in(
                rows,
                eos_token_id=tokenizer.eos_token_id if tokenizer is not None else None,
                bos_token_id=tokenizer.bos_token_id if tokenizer is not None else None,
                max_length=args.max_length,
            ),
        ],
        summary=Summary.of(len(dataset), rows),
        shown={row.number: tokens_of(row, texts_of(row.input_ids.tolist(), tokenizer)) for row in rows[:num_shown]},
        notes=_notes(args, tokenizer),
    )


class _Trainer(WeightedSFTTrainer):
    """Remembers what a weighting gave each row: those of weight 0 go, and nothing else says which they were."""

    weights_of_rows: Tensor | None = None

    def _weights_of_rewards(self, rewards: Tensor, groups: Tensor) -> Tensor:
        self.weights_of_rows = super()._weights_of_rewards(rewards, groups)
        return self.weights_of_rows


def _mistakes(
    dataset: Dataset, args: WeightedSFTConfig, tokenizer: PreTrainedTokenizerBase | None
) -> dict[int, dict[str, str]]:
    """By number, the rows at which the trainer would stop."""
    names = _columns_read(dataset, args)
    if "input_ids" in dataset.column_names:
        lengths: list[tuple[int, ...]] = [(len(tokens or []),) for tokens in dataset["input_ids"]]
    else:
        lengths = _lengths_of_text(dataset, args, tokenizer, names)
    found = {
        number: mistakes_in({name: row[name] for name in names}, allowed[0], allowed)
        for number, (row, allowed) in enumerate(zip(dataset, lengths, strict=True))
    }
    return {number: mistakes for number, mistakes in found.items() if mistakes}


def _columns_read(dataset: Dataset, args: WeightedSFTConfig) -> list[str]:
    """Columns of numbers that the trainer reads: of tokenised rows labels and masks; then weights."""
    read = {"ref_log_probs"}
    if "input_ids" in dataset.column_names:
        read |= {"labels", *masks_read(args.completion_only_loss)}
    if args.use_advantage_weighting:
        read.add("advantages" if args.weighting is None else "reward")
    return [name for name in dataset.column_names if name in read]


def _lengths_of_text(
    dataset: Dataset, args: WeightedSFTConfig, tokenizer: PreTrainedTokenizerBase | None, names: list[str]
) -> list[tuple[int, ...]]:
    """Tokens and loss tokens of each row; 1, which nothing is compared with, where no column holds a list."""
    if not any(isinstance(value, list) for name in names for value in dataset[name]):
        return [(1,)] * len(dataset)
    unweighted = copy.copy(args)
    unweighted.use_advantage_weighting, unweighted.policy_weighting = False, "none"
    unweighted.weighting = unweighted.weighting_kwargs = unweighted.target_ess = None
    trainer = _trainer(dataset.remove_columns(names), unweighted, tokenizer)
    return [(len(labels), sum(label != -100 for label in labels)) for labels in trainer.train_dataset["labels"]]


def _rows(
    dataset: Dataset, numbers: list[int], args: WeightedSFTConfig, tokenizer: PreTrainedTokenizerBase | None
) -> list[Row]:
    """The rows as the trainer prepares them.

    Args:
        numbers: of the rows of `dataset` in the file.
    """
    trainer = _trainer(dataset, args, tokenizer)
    if trainer.weights_of_rows is not None:
        numbers = [number for number, weight in zip(numbers, trainer.weights_of_rows, strict=True) if weight]
    prepared = list(trainer.train_dataset)
    nums_kept = [_num_kept(row["labels"], args) for row in prepared]
    return [
        Row(number, torch.tensor(row["input_ids"]), loss_tokens(torch.tensor([row["labels"]]))[0], weights, num_kept)
        for number, row, weights, num_kept in zip(
            numbers, prepared, _weights_once_cut(trainer, prepared, nums_kept), nums_kept, strict=True
        )
    ]


def _num_kept(labels: Sequence[int], args: WeightedSFTConfig) -> int:
    """How many tokens of a row truncation leaves; 0 where none of them carries loss, for the trainer drops such rows.

    Packing keeps such rows, and all packing strategies but "bfd" keep all tokens.
    """
    if args.max_length is None or (args.packing and args.packing_strategy != "bfd"):
        return len(labels)
    kept = labels[: args.max_length]
    return len(kept) if args.packing or any(label != -100 for label in kept) else 0


def _weights_once_cut(
    trainer: WeightedSFTTrainer, rows: Sequence[Mapping[str, Any]], nums_kept: Sequence[int]
) -> list[Tensor]:
    """Of all tokens: those that are kept weigh what they do without the others, those that are cut what they did."""
    weights = _weights(trainer, rows)
    kept = [index for index, num_kept in enumerate(nums_kept) if num_kept]
    cut = [{name: values[: nums_kept[index]] for name, values in rows[index].items()} for index in kept]
    for index, weights_of_kept in zip(kept, _weights(trainer, cut), strict=True):
        weights[index] = torch.cat([weights_of_kept, weights[index][nums_kept[index] :]])
    return weights


def _weights(trainer: WeightedSFTTrainer, rows: Sequence[Mapping[str, Any]]) -> list[Tensor]:
    """What multiplies each token's loss, normalised and clipped, as if all rows made up one optimizer step."""
    if not rows:
        return []
    batches, _ = trainer._weighed([trainer.data_collator([row]) for row in rows], update=False)
    return [batch["advantages"][0] for batch in batches]


def _trainer(dataset: Dataset, args: WeightedSFTConfig, tokenizer: PreTrainedTokenizerBase | None) -> _Trainer:
    """A trainer of a model too small to matter, which neither cuts nor packs nor shuffles."""
    is_unknown = tokenizer is None
    tokenizer = _tokenizer_without_words() if tokenizer is None else tokenizer
    model = Qwen2ForCausalLM(
        Qwen2Config(
            vocab_size=len(tokenizer),
            hidden_size=8,
            intermediate_size=8,
            num_hidden_layers=1,
            num_attention_heads=1,
            num_key_value_heads=1,
        )
    )
    if is_unknown:  # any id may be a token
        model.config.vocab_size = sys.maxsize
    with tempfile.TemporaryDirectory() as folder:  # the trainer makes its output_dir
        config = WeightedSFTConfig(
            output_dir=folder,
            use_cpu=True,
            bf16=False,
            report_to="none",
            disable_tqdm=True,
            max_length=None,
            **{name: getattr(args, name) for name in _DATA_FIELDS},
        )
        return _Trainer(model, config, train_dataset=dataset, processing_class=tokenizer)


def _tokenizer_without_words() -> PreTrainedTokenizerBase:
    """What the trainer asks for even where the rows are tokenised: it has an EOS to pad with."""
    words = Tokenizer(WordLevel({"<eos>": 0}, unk_token="<eos>"))
    return PreTrainedTokenizerFast(tokenizer_object=words, eos_token="<eos>", pad_token="<eos>")


def texts_of(token_ids: list[int], tokenizer: PreTrainedTokenizerBase | None) -> list[str]:
    """The text of each token; without a tokenizer its id."""
    return [f"{token_id} " for token_id in token_ids] if tokenizer is None else token_texts(token_ids, tokenizer)


def _notes(args: WeightedSFTConfig, tokenizer: PreTrainedTokenizerBase | None) -> list[str]:
    notes = []
    if tokenizer is None:
        notes.append("EOS and BOS are not looked at: set --model_name_or_path to the model to train.")
    if args.advantage_normalization in ("batch", "group", "global"):
        notes.append(
            f"Weights are normalised over all rows at once; advantage_normalization={args.advantage_normalization} "
            "sees only the optimizer steps so far."
        )
    if args.policy_weighting != "none":
        notes.append(f"In training, policy_weighting={args.policy_weighting} multiplies these weights by another.")
    return notes
