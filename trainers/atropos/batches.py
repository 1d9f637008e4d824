"""One batch of Atropos for each optimizer step: the main process reads it, all processes get their part."""

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import ExportableState

from online_sft.atropos.batch import BatchReader
from online_sft.atropos.client import Registration
from online_sft.atropos.fetcher import Fetcher, FetcherOptions
from online_sft.atropos.quarantine import Quarantine
from online_sft.atropos.stream import BatchStream, StepBatch
from trainers.atropos.micro_batches import micro_batch, parts_of
from trainers.main_process import on_main_process

__all__ = ["AtroposBatches"]

# The other processes wait in a broadcast meanwhile, which gives up after ten minutes or so.
_HEARTBEAT_S = 5.0


class AtroposBatches(TrainerCallback, ExportableState):
    """The trainer's data loader: `gradient_accumulation_steps` micro-batches a batch of Atropos, whatever its size.

    As a callback it saves in every checkpoint's trainer_state.json which entry of the journal is next, so that a resume
    goes on with what the checkpoint has not consumed.

    Args:
        trainer: a `WeightedSFTTrainer` whose arguments name a source.
    """

    def __init__(self, trainer: Any) -> None:
        self._trainer = trainer
        self._position = self._position_after_step = 0
        self._handed_out = 0.0

    def state(self) -> dict[str, Any]:
        return {"args": {}, "attributes": {"position": self._position}}

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """On a resume `state` is the checkpoint's, otherwise it holds what `state()` has just returned."""
        saved = state.stateful_callbacks.setdefault(type(self).__name__, self.state())
        self._position = self._position_after_step = saved["attributes"]["position"]

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self._position = self._position_after_step
        state.epoch = state.global_step / state.max_steps  # a stream has one, and a resume does not begin it again
        self._trainer._metrics["train"]["atropos/seconds_training"].append(time.monotonic() - self._handed_out)

    def compare(self, outputs: Any, sampler_log_probs: Tensor) -> None:
        """Adds the policy's difference from whoever sampled to the metrics, under TRL's names, in nats per token.

        It grows with staleness; before the first step, a weight sync that works leaves rounding only.

        Args:
            outputs: of the LM head, [B, T-1].
            sampler_log_probs: [B, T], NaN where unknown.
        """
        known = outputs.label_mask & ~sampler_log_probs[:, 1:].isnan()
        if known.any():
            differences = (outputs.log_probs.detach() - sampler_log_probs[:, 1:])[known].abs()
            metrics = self._trainer._metrics["train"]
            metrics["sampling/sampling_logp_difference/mean"].append(differences.mean().item())
            metrics["sampling/sampling_logp_difference/max"].append(differences.max().item())

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        trainer, accelerator = self._trainer, self._trainer.accelerator
        num_micro_batches = trainer.args.gradient_accumulation_steps
        stream = _on_main_process_only(accelerator, lambda: _stream(trainer, self._position))
        try:
            while (batch := self._next(stream)) is not None:
                self._log(batch)
                self._position_after_step, self._handed_out = batch.index + 1, time.monotonic()
                parts = parts_of(batch.rows, accelerator.num_processes * num_micro_batches)
                first = accelerator.process_index * num_micro_batches
                for part in parts[first : first + num_micro_batches]:
                    yield micro_batch(part, trainer._tokenizer.pad_token_id, accelerator.device)
            trainer.control.should_training_stop = True
        finally:
            if stream is not None:
                stream.close()

    def _next(self, stream: BatchStream | None) -> StepBatch | None:
        """The batch for all processes; None at the end of a journal that is replayed."""

        def take() -> tuple[StepBatch | None, bool]:
            assert stream is not None
            batch = stream.take(self._trainer.state.global_step, _HEARTBEAT_S)
            return batch, batch is None and stream.is_over

        while True:
            batch, is_over = on_main_process(self._trainer.accelerator, take)
            if batch is not None or is_over:
                return batch

    def _log(self, batch: StepBatch) -> None:
        metrics = self._trainer._metrics["train"]
        for name, value in batch.metrics.items():
            metrics[name].append(float(value))
        for name, count in batch.counts.items():
            metrics[name] = [float(count)]


def _on_main_process_only(accelerator: Any, call: Callable[[], BatchStream]) -> BatchStream | None:
    """What the call returns, on the main process; its errors are raised on all."""
    made: list[BatchStream] = []
    on_main_process(accelerator, lambda: made.append(call()))
    return made[0] if made else None


def _stream(trainer: Any, position: int) -> BatchStream:
    args = trainer.args
    folder = args.atropos_replay or args.atropos_journal or str(Path(args.output_dir) / "journal")
    reader = BatchReader(
        max_length=args.max_length,
        score_normalization=args.atropos_score_normalization,
        vocab_size=trainer.model.config.get_text_config().vocab_size,
        advantages_of_sequences=args.atropos_advantages_of_sequences,
        temperature=args.temperature,
    )
    fetcher = None
    if args.atropos_api_url:
        context = trainer.model.config.get_text_config().max_position_embeddings
        registration = Registration(
            batch_size=trainer.get_total_train_batch_size(args),
            max_token_len=args.max_length or context,
            num_steps=args.max_steps,
            starting_step=trainer.state.global_step,
            checkpoint_dir=os.path.abspath(args.output_dir),
            save_checkpoint_interval=int(args.save_steps),
            wandb_group=args.run_name or "online-sft",
        )
        fetcher = Fetcher(
            FetcherOptions(
                url=args.atropos_api_url,
                journal=folder,
                registration=registration,
                refresh_interval_s=args.atropos_refresh_interval,
                warn_after_s=args.atropos_warn_after,
                timeout_s=args.atropos_timeout,
                max_response_bytes=args.atropos_max_response_bytes,
                reset_on_conflict=args.atropos_reset_on_conflict,
            )
        )
    return BatchStream(
        folder,
        reader,
        Quarantine(Path(args.output_dir) / "quarantine.jsonl"),
        fetcher,
        position=position,
        max_quarantined=args.atropos_max_quarantined,
        max_staleness=args.atropos_max_staleness,
    )
