"""Keeps the record of a run while it goes on."""

import time
from collections.abc import Callable, Iterable
from itertools import islice
from typing import Any

import torch
from torch import Tensor
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from online_sft.record.folder import RecordFolder
from online_sft.record.sample import Sample
from trainers.recording.setup import setup_of_run

__all__ = ["Recorder"]

_MOST_VALUES = 101


class Recorder(TrainerCallback):
    """Writes `output_dir/record`, on the main process: `online_sft.record.folder`.

    Args:
        trainer: whose run.
    """

    def __init__(self, trainer: Any) -> None:
        self._trainer = trainer
        self._folder = RecordFolder(trainer.args.output_dir)
        self.setup: dict[str, Any] | None = None  # of the run that has begun, on the main process
        self._rewards: list[Tensor] = []  # since the last log entry
        self._num_samples = (0, 0)  # (step, how many of it are kept)
        self.last_sample: Sample | None = None

    @property
    def title(self) -> str:
        """Of the run: which trainer, and where."""
        return f"{type(self._trainer).__name__} {self._trainer.args.output_dir}"

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._num_samples, self.last_sample = (0, 0), None
        if state.global_step == 0:
            self._rewards = []
        if state.is_world_process_zero:
            self.setup = setup_of_run(self._trainer)
            self._folder.begin(self.setup, step=state.global_step)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        if self.setup is None:  # an evaluation before any training
            return
        entry = {"step": state.global_step, "time": time.time(), "metrics": logs}
        if logs and "loss" in logs and self._rewards:
            entry["rewards"] = _distribution(torch.cat(self._rewards))
            self._rewards = []
        self._folder.add_entry(entry)

    def state_dict(self) -> dict[str, Any]:
        """What the next log entry has so far."""
        return {"rewards": list(self._rewards)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes it up again."""
        self._rewards = [each.cpu() for each in state["rewards"]]

    def add_rewards(self, rewards: Tensor) -> None:
        """Takes in the rewards of a batch of completions; NaN where unscorable."""
        if self.setup is not None:
            self._rewards.append(rewards[~rewards.isnan()].float().cpu())

    def add_samples(self, samples: Callable[[int], Iterable[Sample]]) -> None:
        """Keeps the first ones of the optimizer step in progress, `record_samples` of them.

        Args:
            samples: makes those of a micro-batch, given the step's number; not called when there are enough.
        """
        step = self._trainer.state.global_step + 1
        num_kept = self._num_samples[1] if self._num_samples[0] == step else 0
        room = self._trainer.args.record_samples - num_kept
        if self.setup is None or room <= 0:
            return
        kept = list(islice(samples(step), room))
        self._num_samples = (step, num_kept + len(kept))
        self._folder.add_samples(kept)
        self.last_sample = kept[0] if kept and not num_kept else self.last_sample


def _distribution(rewards: Tensor) -> list[tuple[float, int]]:
    """Values in order, each with its number; of more than 101 different ones, as many evenly spaced quantiles."""
    values, counts = rewards.unique(return_counts=True)
    if len(values) > _MOST_VALUES:
        values = rewards.sort().values[torch.linspace(0, len(rewards) - 1, _MOST_VALUES).round().long()]
        counts = torch.ones(_MOST_VALUES, dtype=torch.long)
    return [(float(f"{value:.6g}"), count) for value, count in zip(values.tolist(), counts.tolist(), strict=True)]
