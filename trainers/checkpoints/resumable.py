"""Trainers whose runs go on from a checkpoint to the bit, or say why they cannot."""

import logging
import os
from typing import Any

import torch
from accelerate.utils import send_to_device
from datasets import Dataset, IterableDataset
from peft import PeftModel
from torch.utils.data import Sampler
from transformers import Trainer
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_callback import ExportableState
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, TrainOutput, rotate_checkpoints

from trainers.checkpoints.atomic import clear_aside, publish
from trainers.checkpoints.choice import checkpoint_to_resume, optimizer_of, setup_of, state_file
from trainers.checkpoints.manifest import digest_of, written_manifest
from trainers.checkpoints.samplers import SeededByEpoch, seeded_by_epoch
from trainers.checkpoints.steps import WholeSteps
from trainers.checkpoints.stream import EndlessStream
from trainers.engine.sampling import own_random_numbers
from trainers.first_failure import told_to_the_launcher
from trainers.main_process import on_main_process
from trainers.whole_weights import whole_weights

__all__ = ["ResumableTrainer"]

logger = logging.getLogger(__name__)


class ResumableTrainer(Trainer):
    """What our trainers add to `transformers.Trainer`: checkpoints that are whole and complete, models that load.

    A checkpoint is written aside and gets its name when all of it is there, so that a run that is killed while saving
    leaves those before. It has a manifest (`online_sft.json`: format version, set-up, size of each file), and a file of
    each process with what Trainer does not save (`online_sft_0.pt`, ...).

    Overrides of `Trainer`, and why:
        train: finds the checkpoint ("auto": the last whole one, or a new start), and refuses one from which the run
            would not go on as if it had never stopped; tells the launcher what ends it.
        evaluate: takes no random numbers from the training.
        save_model: whole weights, also where checkpoints are of shards (FSDP's SHARDED_STATE_DICT).
        _save_checkpoint: writes it aside, with what we add.
        _get_output_dir: aside, meanwhile.
        _push_from_checkpoint: not from there.
        _load_optimizer_and_scheduler: loads what we have added.
        _load_callback_state: of all callbacks that save theirs; Trainer leaves them as they are, or makes ours anew.
        get_train_dataloader: streams keep their place.
        _get_train_sampler: an order by seed and epoch alone.
        _run_epoch: tells the sampler of the epoch; resumed at its end, a run makes no further step.
    """

    _total_train_tokens: int  # of TRL's trainers, as the next
    _metrics: dict[str, dict[str, list[float]]]
    _statistics_to_resume: tuple[tuple[str, type], ...] = ()  # attributes, by "train" and "eval", and their class
    _aside: str | None = None  # while a checkpoint is written
    _sampler: Sampler | None = None
    _stream: EndlessStream | None = None  # that is trained on
    _has_own_batches = False  # instead of a data set, and knows which is next
    _saved: dict[str, Any] | None = None  # of the checkpoint, until the first epoch begins
    resumes_automatically = False  # whether `train` was asked to begin anew where there is no checkpoint
    whole_steps: WholeSteps | None = None  # since `train` has begun

    def train(
        self,
        resume_from_checkpoint: str | bool | None = None,
        trial: Any = None,
        ignore_keys_for_eval: list[str] | None = None,
    ) -> TrainOutput:
        if self._is_fsdp1 and self.accelerator.is_main_process:
            logger.warning(
                "FSDP1 is deprecated by transformers, and loses the state of the optimizer when it resumes from a "
                "checkpoint of shards (fsdp_state_dict_type=SHARDED_STATE_DICT); add --fsdp_version 2"
            )
        self.resumes_automatically = resume_from_checkpoint == "auto"
        self._stream, self._saved, self.whole_steps = None, None, WholeSteps(self)
        self.remove_callback(WholeSteps)  # of an earlier `train`
        self.add_callback(self.whole_steps)
        ignore_data_skip = self.args.ignore_data_skip
        try:
            with told_to_the_launcher():
                checkpoint = on_main_process(
                    self.accelerator, lambda: checkpoint_to_resume(self, resume_from_checkpoint)
                )
                self.args.ignore_data_skip = ignore_data_skip or self.keeps_its_place
                return super().train(checkpoint, trial, ignore_keys_for_eval)
        finally:
            self.args.ignore_data_skip = ignore_data_skip

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        with own_random_numbers():
            return super().evaluate(*args, **kwargs)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        plugin: Any = self.accelerator.state.fsdp_plugin if self.is_fsdp_enabled else None
        if plugin is None or self._aside is not None:
            return super().save_model(output_dir, _internal_call)
        kind = plugin.state_dict_type.name
        plugin.set_state_dict_type("FULL_STATE_DICT")  # of another, Trainer would write nothing
        try:
            super().save_model(output_dir, _internal_call)
        finally:
            plugin.set_state_dict_type(kind)

    def save_merged_model(self, output_dir: str) -> None:
        """Writes the model with its adapters merged, and its tokenizer: for `from_pretrained` and vLLM without PEFT.

        A collective call; the model in training keeps its adapters.

        Raises:
            ValueError: for adapters that are no part of the weights (prompt tuning).
        """
        weights = whole_weights(self)
        if self.accelerator.is_main_process:
            model = self.accelerator.unwrap_model(self.model)
            base: Any = model.get_base_model() if isinstance(model, PeftModel) else model
            base.save_pretrained(output_dir, state_dict=weights)
            if self.processing_class is not None:
                self.processing_class.save_pretrained(output_dir)

    def resume_state(self) -> dict[str, Any]:
        """What this process needs to go on beside what Trainer saves: numbers, texts and tensors."""
        kept = {name: getattr(self, name).get("train") for name, _ in self._statistics_to_resume}
        return {
            "num_tokens": self._total_train_tokens,
            "stream": None if self._stream is None else self._stream.position,
            # of the next log entry
            "loss": self._tr_loss.item(),
            "last_logged": self._globalstep_last_logged,
            "metrics": {name: [float(x) for x in values] for name, values in self._metrics["train"].items()},
            "statistics": {name: None if found is None else vars(found) for name, found in kept.items()},
        }

    def load_resume_state(self, state: dict[str, Any]) -> None:
        """Of the checkpoint."""
        self._saved = state
        self._total_train_tokens = state["num_tokens"]
        self._metrics["train"].update(state["metrics"])
        for name, kind in self._statistics_to_resume:
            if state["statistics"][name] is not None:
                getattr(self, name)["train"] = kind(**state["statistics"][name])

    def reasons_against_exact_resume(self) -> list[str]:
        """Why no checkpoint of this configuration says all that a run depends on."""
        reasons = {
            "ignore_data_skip=True: the data begin anew": self.args.ignore_data_skip and not self._has_own_batches,
            "FSDP1 loses the state of the optimizer": self._is_fsdp1 and self._is_saved_in_shards,
        }
        return [reason for reason, holds in reasons.items() if holds]

    @property
    def keeps_its_place(self) -> bool:
        """Whether what is trained on has no epochs, and knows what is next: streams, Atropos, what is collected."""
        return self._has_own_batches or isinstance(self.train_dataset, IterableDataset)

    def data_digest(self) -> str | None:
        """Tells the data of one run from those of another; None where they cannot be told."""
        if not isinstance(self.train_dataset, Dataset):
            return None
        data = self.train_dataset.with_format(None)  # a user's transform may be random
        return digest_of(len(data), data.__getitem__)

    @property
    def _is_fsdp1(self) -> bool:
        return self.is_fsdp_enabled and self.accelerator.state.fsdp_plugin.fsdp_version == 1

    @property
    def _is_saved_in_shards(self) -> bool:
        return self.accelerator.state.fsdp_plugin.state_dict_type.name == "SHARDED_STATE_DICT"

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        run_dir, is_writer = super()._get_output_dir(trial), self.args.should_save
        name = f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
        final = os.path.join(run_dir, name)
        self._aside = clear_aside(self.accelerator, run_dir, is_writer=is_writer)
        written = os.path.join(self._aside, name)
        try:
            super()._save_checkpoint(model, trial)
            if not self.args.save_only_model:
                torch.save(self.resume_state(), os.path.join(written, state_file(self.args.process_index)))
        finally:
            self._aside = None
        # Trainer has looked for it aside
        best = os.path.join(run_dir, f"{PREFIX_CHECKPOINT_DIR}-{self.state.best_global_step}")
        if best == final or os.path.isdir(best):
            self.state.best_model_checkpoint = best
        self.accelerator.wait_for_everyone()
        if is_writer:
            self.state.save_to_json(os.path.join(written, TRAINER_STATE_NAME))
            written_manifest(written, setup_of(self), optimizer_of(self.args))
        publish(self.accelerator, written, final, is_writer=is_writer)
        if self.args.push_to_hub:
            self._push_from_checkpoint(final)
        if is_writer:
            best_model, limit = self.state.best_model_checkpoint, self.args.save_total_limit
            rotate_checkpoints(run_dir, limit, best_model_checkpoint=best_model, use_mtime=True)

    def _get_output_dir(self, trial: Any) -> str:
        return self._aside or super()._get_output_dir(trial)

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        if self._aside is None:
            super()._push_from_checkpoint(checkpoint_folder)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is None:
            return
        path = os.path.join(checkpoint, state_file(self.args.process_index))
        if os.path.isfile(path):
            state = torch.load(path, map_location="cpu", weights_only=True)
            self.load_resume_state(send_to_device(state, self.accelerator.device))

    def _load_callback_state(self) -> None:
        exporting = [each for each in self.callback_handler.callbacks if isinstance(each, ExportableState)]
        ours = [type(each).__name__ for each in exporting if type(each).__module__.startswith("trainers.")]
        saved, restore = self.state.stateful_callbacks, self.args.restore_callback_states_from_checkpoint
        # ours need their trainer, and restore themselves; the control is of the step that was saved
        apart = {*ours, "TrainerControl"}
        self.state.stateful_callbacks = {name: state for name, state in saved.items() if name not in apart}
        self.args.restore_callback_states_from_checkpoint = True
        try:
            super()._load_callback_state()
        finally:
            self.args.restore_callback_states_from_checkpoint = restore
            # Trainer saves only those that it finds there
            self.state.stateful_callbacks = {type(each).__name__: each.state() for each in exporting} | saved

    def get_train_dataloader(self) -> Any:
        loader = super().get_train_dataloader()
        return EndlessStream(loader) if isinstance(self.train_dataset, IterableDataset) else loader

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler | None:
        self._sampler = seeded_by_epoch(super()._get_train_sampler(train_dataset), self.args)
        return self._sampler

    def _run_epoch(self, *, epoch: int, train_dataloader: Any, **rest: Any) -> None:
        if self.state.global_step >= self.state.max_steps:
            self.control.should_training_stop = True
            return
        if isinstance(self._sampler, SeededByEpoch):
            self._sampler.set_epoch(epoch)
        if isinstance(train_dataloader, EndlessStream):
            self._stream = train_dataloader
        if self._saved is not None:
            self._begin_where_it_was(self._saved)
            self._saved = None
        super()._run_epoch(epoch=epoch, train_dataloader=train_dataloader, **rest)

    def _begin_where_it_was(self, saved: dict[str, Any]) -> None:
        """What `train` sets to nothing before its first epoch."""
        if self._stream is not None:
            self._stream.position = saved["stream"]
        self._tr_loss += saved["loss"]
        self._total_loss_scalar -= saved["loss"]  # the mean at the end is of the steps of this `train`
        self._globalstep_last_logged = saved["last_logged"]
