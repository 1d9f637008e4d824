"""Trainers whose runs can be looked at: where the time goes, what they train on, and how it goes."""

from pathlib import Path
from typing import Any

from transformers import Trainer
from transformers.trainer_callback import ProgressCallback
from transformers.trainer_utils import TrainOutput

from trainers.model_card import run_sections
from trainers.recording.costs import Costs
from trainers.recording.live_view import LiveView
from trainers.recording.recorder import Recorder
from trainers.recording.setup import setup_of_run
from trainers.recording.stopwatch import Stopwatch

__all__ = ["RecordedTrainer"]


class RecordedTrainer(Trainer):
    """What our trainers add to `transformers.Trainer`: a record of the run, a view of it, and a clock.

    Logged with each entry of the training: `seconds/rollout`, `reward`, `sync`, `data`, `train`, `evaluation` and
    `saving`, which add up to the time of an optimizer step; `tokens_per_second`; `memory_gib`.

    Overrides of `Trainer`, and why:
        __init__: adds the recorder, and the view in place of the progress bar.
        train: closes the view, whatever ends it. get_batch_samples: timed. evaluate: timed. _save_checkpoint: timed.
        log: adds what the run costs.
        create_model_card: adds method, data, evaluation, configuration, command.
    """

    _metrics: dict[str, dict[str, list[float]]]  # of TRL's trainers

    def __init__(self, *args: Any, **options: Any) -> None:
        self._costs = Costs()
        self._view: LiveView | None = None
        super().__init__(*args, **options)
        self.recorder = Recorder(self)
        self.add_callback(self._costs)
        self.add_callback(self.recorder)
        has_bar = any(type(callback) is ProgressCallback for callback in self.callback_handler.callbacks)
        if self.args.live_view == "auto" and has_bar:
            self.remove_callback(ProgressCallback)
            self._view = LiveView(self.recorder, self.stopwatch)
            self.add_callback(self._view)

    @property
    def stopwatch(self) -> Stopwatch:
        """`with trainer.stopwatch("rollout"):` counts the body as that section of the time."""
        return self._costs.stopwatch

    def train(self, *args: Any, **kwargs: Any) -> TrainOutput:
        try:
            return super().train(*args, **kwargs)
        finally:
            if self._view is not None:
                self._view.close()

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> Any:
        with self.stopwatch("data"):
            return super().get_batch_samples(*args, **kwargs)

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        with self.stopwatch("evaluation"):
            return super().evaluate(*args, **kwargs)

    def _save_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        with self.stopwatch("saving"):
            super()._save_checkpoint(*args, **kwargs)

    def create_model_card(self, *args: Any, **options: Any) -> None:
        super().create_model_card(*args, **options)
        if self.is_world_process_zero():
            sections = run_sections(self.recorder.setup or setup_of_run(self), self.state.log_history)
            with open(Path(self.args.output_dir) / "README.md", "a", encoding="utf-8") as card:
                card.write(sections)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs:
            num_tokens = self._metrics["train"].get("num_tokens")
            costs = self._costs.pop(self.state.global_step, int(num_tokens[-1]) if num_tokens else None)
            self._metrics["train"].update({name: [value] for name, value in costs.items()})
        super().log(logs, start_time)
