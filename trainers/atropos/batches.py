"""One batch of Atropos for each optimizer step: the main process reads it, all processes get their part."""

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import ExportableState

from online_sft.atropos.client import Registration
from online_sft.atropos.fetcher import Fetcher, FetcherError, FetcherOptions
from online_sft.atropos.group import MalformedGroupError
from online_sft.atropos.journal import JournalError
from online_sft.atropos.quarantine import Quarantine
from online_sft.atropos.stream import BatchStream, StaleBatchesError, StepBatch
from trainers.atropos.micro_batches import micro_batch, parts_of
from trainers.atropos.policy_sync import PolicySyncError
from trainers.atropos.reading import batch_reader
from trainers.main_process import on_main_process

__all__ = ["ATROPOS_ERRORS", "AtroposBatches", "Sync"]

# What ends a run, and says what to do about it
ATROPOS_ERRORS = (FetcherError, JournalError, MalformedGroupError, PolicySyncError, StaleBatchesError)

# The other processes wait in a broadcast meanwhile, which gives up after ten minutes or so.
_HEARTBEAT_S = 5.0


class Sync(Protocol):
    """Brings the policy's weights to the server that the environments sample from."""

    def sync(self, policy_version: int) -> None:
        """A collective call, with all processes."""


class AtroposBatches(TrainerCallback, ExportableState):
    """The trainer's data loader: `gradient_accumulation_steps` micro-batches a batch of Atropos, whatever its size.

    As a callback it saves in every checkpoint's trainer_state.json which entry of the journal is next, so that a resume
    goes on with what the checkpoint has not consumed; and brings the weights to the inference server: once the journal
    is its own, after every `atropos_sync_every` optimizer steps, and when a batch was too stale to be trained on.

    Args:
        trainer: a `WeightedSFTTrainer` whose arguments name a source.
        sync: None: nobody samples from the policy.
    """

    def __init__(self, trainer: Any, sync: Sync | None) -> None:
        self._trainer, self._sync = trainer, sync
        self._position = self._position_after_step = 0
        self._handed_out = 0.0
        self._stream: BatchStream | None = None  # on the main process
        self._differences: list[Tensor] = []

    def state(self) -> dict[str, Any]:
        return {"args": {}, "attributes": {"position": self._position}}

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """On a resume `state` is the checkpoint's, otherwise it holds what `state()` has just returned."""
        saved = state.stateful_callbacks.setdefault(type(self).__name__, self.state())
        is_new_replay = self._trainer.args.atropos_replay and not state.global_step
        self._position = self._position_after_step = 0 if is_new_replay else saved["attributes"]["position"]

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self._position = self._position_after_step
        metrics = self._trainer._metrics["train"]
        metrics["atropos/seconds_training"].append(time.monotonic() - self._handed_out)
        self._log_differences(metrics)
        if self._sync is not None and state.global_step % self._trainer.args.atropos_sync_every == 0:
            started = time.monotonic()
            with self._trainer.stopwatch("sync"):
                self._sync.sync(state.global_step)
            metrics["atropos/seconds_sync"].append(time.monotonic() - started)

    def compare(self, outputs: Any, sampler_log_probs: Tensor) -> None:
        """Adds a micro-batch to the difference between policy and sampler, in nats per token, under TRL's names.

        It grows with staleness; right after a weight sync it is what rounding leaves.

        Args:
            outputs: of the LM head, [B, T-1]; adapters may have prepended tokens.
            sampler_log_probs: [B, T], NaN where unknown.
        """
        offset = outputs.log_probs.size(1) - sampler_log_probs.size(1)
        theirs = F.pad(sampler_log_probs, (offset, 0), value=torch.nan)
        known = outputs.label_mask & ~theirs.isnan()
        differences = (outputs.log_probs.detach() - theirs).abs().where(known, 0.0).double()
        self._differences.append(torch.stack([differences.sum(), known.sum(), differences.max()]))

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        trainer, accelerator = self._trainer, self._trainer.accelerator
        self.close()  # of a run that ended in an exception
        num_micro_batches = trainer.args.gradient_accumulation_steps
        try:
            self._open()
            while (batch := self._next()) is not None:
                self._log(batch)
                self._position_after_step, self._handed_out = batch.index + 1, time.monotonic()
                parts = parts_of(batch.rows, accelerator.num_processes * num_micro_batches)
                first = accelerator.process_index * num_micro_batches
                for part in parts[first : first + num_micro_batches]:
                    yield micro_batch(part, trainer._tokenizer.pad_token_id, accelerator.device)
            trainer.control.should_training_stop = True
        finally:
            self.close()

    def close(self) -> None:
        """Lets the fetcher end, and with it the journal's lock."""
        if self._stream is not None:
            self._stream.close()
            self._stream = None

    def _open(self) -> None:
        def open_stream() -> None:
            self._stream = _stream(self._trainer, self._position)

        def is_open() -> bool:
            assert self._stream is not None
            return self._stream.is_open(_HEARTBEAT_S)

        on_main_process(self._trainer.accelerator, open_stream)
        while not on_main_process(self._trainer.accelerator, is_open):
            pass
        if self._sync is not None:  # not before: the weights of a run that may not begin are nobody's policy
            self._sync.sync(self._trainer.state.global_step)

    def _next(self) -> StepBatch | None:
        """The batch for all processes; None at the end of a journal that is replayed."""

        def take() -> tuple[StepBatch | None, bool, bool]:
            assert self._stream is not None
            batch = self._stream.take(self._trainer.state.global_step, _HEARTBEAT_S)
            return batch, batch is None and self._stream.is_over, self._stream.is_behind

        while True:
            batch, is_over, is_behind = on_main_process(self._trainer.accelerator, take)
            if batch is not None or is_over:
                return batch
            if is_behind and self._sync is not None:  # it has been started anew: without this no step would follow
                self._sync.sync(self._trainer.state.global_step)

    def _log_differences(self, metrics: dict[str, list[float]]) -> None:
        here = torch.stack(self._differences or [torch.zeros(3, dtype=torch.float64)]).to(self._trainer.args.device)
        self._differences = []
        everywhere = self._trainer.accelerator.gather(here.float())
        total, count, largest = everywhere[:, 0].sum(), everywhere[:, 1].sum(), everywhere[:, 2].max()
        if count:
            metrics["sampling/sampling_logp_difference/mean"].append((total / count).item())
            metrics["sampling/sampling_logp_difference/max"].append(largest.item())

    def _log(self, batch: StepBatch) -> None:
        metrics = self._trainer._metrics["train"]
        for name, value in batch.metrics.items():
            metrics[name].append(float(value))
        for name, count in batch.counts.items():
            metrics[name] = [float(count)]


def _stream(trainer: Any, position: int) -> BatchStream:
    args = trainer.args
    folder = args.atropos_replay or args.atropos_journal or str(Path(args.output_dir) / "journal")
    fetcher = None
    if args.atropos_api_url:
        registration = Registration(
            batch_size=trainer.get_total_train_batch_size(args),
            max_token_len=args.max_length or trainer.model.config.get_text_config().max_position_embeddings,
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
        batch_reader(args, trainer.model.config, max_length=args.max_length),
        Quarantine(Path(args.output_dir) / "quarantine.jsonl"),
        fetcher,
        position=position,
        max_quarantined=args.atropos_max_quarantined,
        max_staleness=args.atropos_max_staleness,
    )
