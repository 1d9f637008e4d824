"""Weighted SFT on TRL's SFTTrainer: tokenisation, training loop and metrics are TRL's, weights and loss are ours."""

import copy
import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from accelerate.logging import get_logger
from datasets import Dataset, IterableDataset
from peft import PeftModel
from torch import Tensor, nn
from trl import SFTTrainer
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling
from trl.trainer.utils import add_fused_lm_head

from online_sft.interface import checked_mask
from online_sft.losses import per_token
from online_sft.objectives import importance_weights, value_and_slopes
from online_sft.weight_statistics import WeightStatistics
from online_sft.weightings import Weighting, fit_temperature
from trainers.arguments import config_or_default
from trainers.atropos.batches import AtroposBatches, Sync
from trainers.atropos.dataset import atropos_dataset
from trainers.atropos.micro_batches import refuse_other_temperatures
from trainers.atropos.policy_sync import PolicySync
from trainers.atropos.vllm_sync import VLLMPolicySync
from trainers.checkpoints.resumable import ResumableTrainer
from trainers.model_files import vocabulary_size_of
from trainers.recording.recorded import RecordedTrainer
from trainers.recording.samples import row_samples
from trainers.running_advantages import RunningAdvantages
from trainers.step_weights import StepWeights, loss_tokens, sequence_ids
from trainers.text_rows import checked_texts
from trainers.weighted_collator import TOKEN_COLUMNS, WeightedDataCollator
from trainers.weighted_columns import check_columns
from trainers.weighted_data import cut, is_prepared, labelled, rendered, reweighted, weighted
from trainers.weighted_lm_head import TokenWeighting, add_weighted_lm_head, objective_of
from trainers.weighted_sft_config import WeightedSFTConfig

__all__ = ["WeightedSFTTrainer"]

logger = get_logger(__name__)


class WeightedSFTTrainer(RecordedTrainer, ResumableTrainer, SFTTrainer):
    """Supervised fine-tuning with a weight, of any sign, on every token: L = -(1/D) sum_bt A_bt log p(y_bt | y_b,<t).

    The sum runs over loss tokens (label not -100). D is their number in the whole optimizer step, over all ranks and
    micro-batches (`loss_denominator` offers others); an advantage of 0 removes a token's gradient, not its place in D.
    With all advantages 1 this is SFTTrainer's loss. Advantages are constants: no gradient flows into them.

    Data: any data set that `SFTTrainer` takes, as a table or a stream, with weights in any of these forms, which
        multiply:
        `advantages`: one number per row; or one per token of rows that are tokenised already (`input_ids` with
            `labels`,
            or with `loss_mask`, `completion_mask` or `assistant_masks`, 1 on loss tokens), aligned with the tokens
            themselves (`args.align`); or one per token or per loss token of text, as TRL tokenises it.
        `"weight"` on a message of a conversation: on all of its tokens; a message without one counts as 1.
        `reward`, with `args.weighting` or the argument `weighting`, instead of `advantages`.
    Weights survive truncation, packing (all strategies) and padding-free batches.

    Constructor, arguments and features are those of `trl.SFTTrainer`, and:
        args: a `WeightedSFTConfig`.
        weighting: a function (rewards [N], groups [N]) -> weights [N] of the whole data set, instead of
            `args.weighting`. Rows share a group if they share a prompt, or the value of a `group` column.

    Logged beside TRL's metrics, which cover the tokens that have a weight: those of
    `online_sft.weight_statistics.WeightStatistics`, over all tokens since the last log entry.

    Overrides of `SFTTrainer` (those of `RecordedTrainer` and `ResumableTrainer` are listed there), and why:
        __init__: swaps TRL's collator, which ignores the weights, for one that keeps them; adds the weighted LM head.
        _prepare_dataset: TRL truncates and packs tokens and labels only, and does not read every mask on tokenised
        rows. _set_signature_columns_if_needed: TRL would remove the columns.
        get_train_dataloader: batches of Atropos instead of a data set, where `args` says so.
        get_batch_samples: sees the whole optimizer step; normalises its advantages and counts D.
        compute_loss: the weighted loss; the rest is TRL's.
        log: adds the metrics of the weights.

    Raises:
        ValueError: when no weights are found, a row's do not match its tokens, or one is not finite.
    """

    _tag_names = ["trl", "weighted-sft"]
    _name = "Weighted SFT"
    _statistics_to_resume: tuple[tuple[str, type], ...] = (("_statistics", WeightStatistics),)

    def __init__(
        self,
        model: Any,
        args: WeightedSFTConfig | None = None,
        *more: Any,
        weighting: Weighting | None = None,
        **options: Any,
    ) -> None:
        args = config_or_default(args, WeightedSFTConfig, model)
        if weighting is not None and (args.weighting is not None or not args.use_advantage_weighting):
            raise ValueError(
                f"the argument `weighting` beside args.weighting={args.weighting!r} and "
                f"use_advantage_weighting={args.use_advantage_weighting}; drop one"
            )
        from_atropos = atropos_dataset(args, model)
        if from_atropos is not None:
            if options.get("train_dataset") is not None:
                raise ValueError("train_dataset beside a source of Atropos batches in args; drop one")
            options["train_dataset"] = from_atropos
        self._weighting = weighting or args.weighting_function()
        self._target_ess = args.target_ess
        has_tokenizer = options.get("processing_class") is not None or len(more) > 3
        self._vocabulary_size = vocabulary_size_of(model, args, needs_tokenizer=not has_tokenizer)
        super().__init__(model, args, *more, **options)
        if self.compute_loss_func is not None:
            raise ValueError("compute_loss_func would replace the weighted loss; subclass compute_loss instead")
        parallelism = self.accelerator.parallelism_config
        if parallelism is not None and (parallelism.cp_enabled or parallelism.sp_enabled):
            raise ValueError("context and sequence parallelism would lose the weights; set cp_size=1 and sp_size=1")
        if self._is_vision_dataset:
            raise ValueError("WeightedSFTTrainer supports text only; this dataset has an image column")
        if type(self.data_collator) is DataCollatorForLanguageModeling:
            self.data_collator = WeightedDataCollator(**vars(self.data_collator))
        self.model_accepts_loss_kwargs = True  # our loss is divided by the whole step's D, whatever the model takes
        running = RunningAdvantages()
        self.add_callback(running)
        # D counts all ranks, whose gradients are averaged and not summed
        self._num_averaged = (
            self.accelerator.num_processes // self._tp_size if args.average_tokens_across_devices else 1
        )
        self._atropos: AtroposBatches | None = None
        if args.is_atropos_stream:
            self._take_batches_of_atropos()
        self._step_weights = StepWeights(args, self.accelerator, running, self._tp_size)
        self._statistics: dict[str, WeightStatistics] = {}
        self._warned = False
        self._objective = objective_of(args)
        self._add_lm_head()

    def _take_batches_of_atropos(self) -> None:
        if self._tp_size > 1:
            raise ValueError("tensor parallelism with Atropos' batches is not supported; set tp_size=1")
        syncs: dict[str, Callable[[Any], Sync]] = {"serve": PolicySync, "vllm": VLLMPolicySync}
        sync = syncs[self.args.atropos_sync_engine](self) if self.args.atropos_sync_url else None
        self._atropos, self._has_own_batches = AtroposBatches(self, sync), True
        self.add_callback(self._atropos)

    def get_train_dataloader(self) -> Any:
        return super().get_train_dataloader() if self._atropos is None else self._atropos

    def _add_lm_head(self) -> None:
        """Ours where it can be, TRL's general one elsewhere, and the user is told."""
        base_model = self.model.get_base_model() if isinstance(self.model, PeftModel) else self.model
        outside = {
            "policy_weighting='importance' needs a sequence's log-probs before its gradient": (
                self.args.policy_weighting == "importance"
            ),
            "the model has a load-balancing loss": self.aux_loss_enabled,
            "the adapter prepends virtual tokens": isinstance(self.model, PeftModel)
            and self.model.active_peft_config.is_prompt_learning,
        }
        reason = next((reason for reason, holds in outside.items() if holds), None)
        self._has_weighted_head = reason is None and self.args.lm_head == "weighted"
        if self._has_weighted_head:
            return add_weighted_lm_head(base_model)
        if self.args.lm_head == "weighted":
            logger.warning("TRL's fused LM head is used, which recomputes the logits in the backward pass: %s", reason)
        if self.args.temperature != 1.0:  # TRL's trainer has added one of temperature 1
            add_fused_lm_head(
                base_model, temperature=self.args.temperature, outputs=("log_probs", "entropy", "is_top1")
            )

    def _prepare_dataset(
        self,
        dataset: Dataset | IterableDataset,
        processing_class: Any,
        args: WeightedSFTConfig,
        packing: bool,
        formatting_func: Callable[[dict[str, Any]], str] | None,
        dataset_name: str,
    ) -> Dataset | IterableDataset:
        first = next(iter(dataset), None)
        if first is None:
            raise ValueError(f"the {dataset_name} dataset is empty")
        if is_prepared(dataset, first):  # `evaluate` may be given it again, or a part of it
            return dataset
        if isinstance(dataset, IterableDataset) or dataset.format["type"] != "custom":
            dataset = dataset.with_format(None)  # plain lists and numbers, whatever the user's own loop reads
        check_columns(first, args, dataset_name, has_weighting=self._weighting is not None)
        from_text = "input_ids" not in first
        if from_text and formatting_func is None:
            dataset = checked_texts(dataset, first, args, dataset_name)
        dataset = labelled(dataset, first, args, dataset_name)
        uncut = copy.copy(args)
        uncut.max_length, uncut.shuffle_dataset = None, False
        tokenised = super()._prepare_dataset(dataset, processing_class, uncut, False, formatting_func, dataset_name)

        prepared = weighted(
            tokenised,
            args,
            dataset_name,
            from_text=from_text,
            needs_weights=args.use_advantage_weighting and self._weighting is None,
            with_groups=self._weighting is not None or args.advantage_normalization == "group",
            vocabulary_size=self._vocabulary_size,
            render=partial(rendered, tokenizer=processing_class, chat_template=self.chat_template),
        )
        if self._weighting is not None:
            prepared = reweighted(prepared, args, dataset_name, self._weights_of_rewards)
        needed = {
            "advantages": True,
            "groups": args.advantage_normalization == "group",
            "ref_log_probs": args.policy_weighting == "importance",
            "temperatures": "temperatures" in first,
            "has_gradient": "has_gradient" in first,
            "kinds": False,  # of TrajectorySFTTrainer
        }
        columns = ["input_ids", "labels", *(name for name in TOKEN_COLUMNS if needed[name])]
        return cut(prepared, columns, args, dataset_name, packing=packing)

    def _weights_of_rewards(self, rewards: Tensor, groups: Tensor) -> Tensor:
        """The weighting, with the temperature that `target_ess` asks for: that of the first data set, to train on."""
        assert self._weighting is not None
        if self._target_ess is not None:
            temperature = fit_temperature(self._weighting, rewards, groups, target_ess=self._target_ess)
            logger.warning("weighting: temperature %.6g for target_ess=%g", temperature, self._target_ess)
            self._weighting, self._target_ess = partial(self._weighting, temperature=temperature), None
        return self._weighting(rewards, groups)

    def _set_signature_columns_if_needed(self) -> None:
        super()._set_signature_columns_if_needed()
        missing = [name for name in TOKEN_COLUMNS if name not in self._signature_columns]
        self._signature_columns = [*self._signature_columns, *missing]

    def get_batch_samples(
        self, epoch_iterator: Iterator, num_batches: int, device: torch.device
    ) -> tuple[list[dict[str, Any]], Tensor | int | None]:
        batches, num_items = super().get_batch_samples(epoch_iterator, num_batches, device)
        return self._weighed(batches, update=True) if batches else (batches, num_items)

    def _weighed(self, batches: list[dict[str, Any]], *, update: bool) -> tuple[list[dict[str, Any]], Tensor]:
        for batch in batches:
            if "advantages" not in batch:
                raise ValueError(
                    f"the data collator {type(self.data_collator).__name__} returned no `advantages`; "
                    "use WeightedDataCollator or add them, [B, T] like `input_ids`"
                )
        return self._step_weights(batches, update=update)

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        denominator, is_whole_step = num_items_in_batch, num_items_in_batch is None
        if is_whole_step:  # evaluation, or a call from outside the training loop
            (inputs,), denominator = self._weighed([inputs], update=False)

        def score(**kwargs: Any) -> Any:
            if not kwargs.pop("fused_lm_head", False):  # the logits, for `compute_metrics`
                return model(**kwargs)
            outputs, weights = self._score(model, kwargs, inputs)
            self._count(weights, outputs, inputs)
            if self._atropos is not None and self.model.training:
                self._atropos.compare(outputs, inputs["ref_log_probs"])
            # TRL takes minus their sum. Of a whole step it divides by the labels, and does not undo DDP's average.
            outputs.log_probs = -outputs.nll / denominator
            if is_whole_step:
                outputs.log_probs = outputs.log_probs * outputs.label_mask.sum().clamp(min=1) * self._num_averaged
            return outputs

        model_inputs = {name: value for name, value in inputs.items() if name not in TOKEN_COLUMNS}
        return super().compute_loss(score, model_inputs, return_outputs, None if is_whole_step else 1)

    def _score(self, model: nn.Module, model_inputs: dict[str, Any], batch: dict[str, Any]) -> tuple[Any, Tensor]:
        """The model's output with `nll`, minus the objective summed over the batch in nats; and its tokens' weights."""
        advantages = batch["advantages"]
        if self._has_weighted_head:
            temperatures = batch.get("temperatures")
            temperature = self.args.temperature if temperatures is None else 1.0
            chunk_size = self.args.lm_head_chunk_size
            weighting = TokenWeighting(advantages, self._objective, temperature, temperatures, chunk_size)
            return model(**model_inputs, token_weighting=weighting), advantages[:, 1:]
        labels = batch["labels"]
        if "temperatures" in batch:
            refuse_other_temperatures(batch["temperatures"][labels != -100], self.args.temperature)
        if self.args.policy_weighting != "importance":  # whose ratio is that of all of a sequence's tokens
            labels = labels.masked_fill(advantages == 0, -100)
        outputs = model(**{**model_inputs, "labels": labels}, fused_lm_head=True)
        # Entry j of the log-probs is token j+1: drop the first weight. Prompt-learning adapters prepend virtual
        # tokens instead, which get none. A negative pad crops.
        offset = outputs.log_probs.size(1) - advantages.size(1)
        weights = F.pad(advantages, (offset, 0))
        if self.args.policy_weighting == "importance":
            weights = weights * importance_weights(
                outputs.log_probs,
                F.pad(batch["ref_log_probs"], (offset, 0)),
                F.pad(loss_tokens(labels), (offset, 0)),
                F.pad(sequence_ids(batch), (offset, 0)),
                max_weight=self.args.importance_max,
            )
        outputs.nll = -self._objective(outputs.log_probs, weights).sum()
        return outputs, weights

    def _count(self, weights: Tensor, outputs: Any, batch: dict[str, Any]) -> None:
        """Adds a micro-batch to the metrics of the next log entry."""
        mode = "train" if self.model.training else "eval"
        scored = outputs.label_mask & (weights != 0)
        _, slopes = value_and_slopes(self._objective, outputs.log_probs, weights)
        step = WeightStatistics.of(weights, slopes, outputs.log_probs, scored, loss_tokens(batch["labels"]).sum())
        self._statistics[mode] = self._statistics[mode] + step if mode in self._statistics else step
        if self.model.training:
            shown = self._weights_to_show
            self.recorder.add_samples(lambda at: row_samples(at, batch, shown(slopes, batch), self._tokenizer))

    def _weights_to_show(self, slopes: Tensor, batch: dict[str, Any]) -> Tensor:
        """What multiplied the gradients of a micro-batch's tokens, before the denominator. [B, T-1]"""
        return slopes

    @property
    def objective(self) -> str:
        """What is minimised, for people."""
        divisor = f"{self.args.loss_denominator_value:g}" if self.args.loss_denominator == "constant" else "D"
        what = {"tokens": "loss tokens", "sequences": "sequences", "abs_advantages": "sum of |A|"}
        told = "" if divisor != "D" else f", D: {what[self.args.loss_denominator]} of the optimizer step"
        return f"L = -(1/{divisor}) sum_bt m_bt A_bt log p(y_bt | y_b,<t){told}"

    def compute_advantage_weighted_sft_loss(
        self,
        input_ids: Tensor,
        advantages: Tensor,
        loss_mask: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
    ) -> Tensor:
        """The weighted loss of one batch, for a loop of your own: a scalar with a gradient, in nats per loss token.

        The batches of all ranks count as one optimizer step, whose gradients are to be averaged, as DDP does:
        normalisation, clipping, denominator and temperature are those of `args`; the running statistics of "global" are
        not changed. With `align="source"` and otherwise
        the defaults this is the formula published for verl,
        sum(ce * advantages[:, :-1] * loss_mask[:, :-1]) / sum(loss_mask[:, :-1]).

        Args:
            input_ids: [B, T] int64.
            advantages: [B, T], or [B], one per sequence.
            loss_mask: [B, T], 1 on loss tokens, else 0.
            attention_mask: [B, T], 0 on padding.
            position_ids: [B, T]; 0 starts a sequence.

        Raises:
            ValueError: when shapes disagree or the mask holds anything but 0 and 1.
        """
        advantages = per_token(advantages, input_ids)
        if not input_ids.shape == advantages.shape == loss_mask.shape:
            raise ValueError(
                f"advantages and loss_mask must be [B, T] = {list(input_ids.shape)} like input_ids; "
                f"got {list(advantages.shape)} and {list(loss_mask.shape)}"
            )
        mask, advantages = checked_mask(loss_mask), advantages.detach().float()
        if self.args.align == "source":
            mask, advantages = F.pad(mask[:, :-1], (1, 0)), F.pad(advantages[:, :-1], (1, 0))
        labels = input_ids.masked_fill(~mask, -100)
        batch = {"input_ids": input_ids, "labels": labels, "advantages": advantages}
        optional = {"attention_mask": attention_mask, "position_ids": position_ids}
        batch |= {name: value for name, value in optional.items() if value is not None}
        (batch,), denominator = self._weighed([self._prepare_inputs(batch)], update=False)
        model_inputs = {name: value for name, value in batch.items() if name not in TOKEN_COLUMNS}
        with self.compute_loss_context_manager():
            outputs, _ = self._score(self.model, model_inputs, batch)
        return outputs.nll / denominator * self._num_averaged

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        mode = "train" if self.model.training else "eval"
        if mode in self._statistics:
            local = self._statistics.pop(mode)
            everywhere = WeightStatistics(
                self.accelerator.reduce(local.sums, reduction="sum") / self._tp_size,
                self.accelerator.gather(local.largest).max(),
            )
            metrics = everywhere.metrics()
            self._metrics[mode].update({name: [value] for name, value in metrics.items()})
            self._warn_of_divergence(metrics.get("negative_nll", 0.0))
        super().log(logs, start_time)

    def _warn_of_divergence(self, negative_nll: float) -> None:
        """Once per run, when negatively weighted tokens are far less likely than chance and nothing stops them."""
        chance = math.log(self.model.config.get_text_config().vocab_size)
        if self._warned or self.args.negative_log_prob_floor is not None or negative_nll < 2 * chance:
            return
        self._warned = True
        logger.warning(
            "tokens of negative weight have reached %.1f nats on average, far beyond chance (%.1f): their loss has no "
            "lower bound; set negative_log_prob_floor=%.0f or lower the learning rate",
            negative_nll,
            chance,
            -chance,
        )
