"""Where online SFT is between two generations: TRL's GRPO trainer forgets it when it is resumed."""

from collections.abc import Mapping
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

__all__ = ["GenerationCycle"]


class GenerationCycle(TrainerCallback):
    """The rollouts of this process that are not used up, how many micro-batches have been, and what is to be logged.

    Rollouts and micro-batches are as they were after the last whole step, which is what a checkpoint is of, whenever it
    is written.

    Args:
        trainer: an `OnlineSFTTrainer`.
    """

    def __init__(self, trainer: Any) -> None:
        self._trainer = trainer
        self._after_step: dict[str, Any] = {"step": 0, "rollouts": None}

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        trainer = self._trainer
        is_used_up = trainer._step % (trainer.args.steps_per_generation * trainer.num_iterations) == 0
        self._after_step = {"step": trainer._step, "rollouts": None if is_used_up else trainer._buffered_inputs}

    def state_dict(self) -> dict[str, Any]:
        """Numbers, texts and tensors."""
        trainer = self._trainer
        return {
            **self._after_step,
            "empty_batches": trainer._empty_batches,
            "metrics": trainer._online_metrics["train"].state_dict(),
            "completions": _plain(trainer._logs) if trainer.args.log_completions else None,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes the trainer to where `state_dict` was taken."""
        trainer = self._trainer
        self._after_step = {name: state[name] for name in ("step", "rollouts")}
        trainer._step, trainer._buffered_inputs = state["step"], state["rollouts"]
        trainer._empty_batches = state["empty_batches"]
        trainer._online_metrics["train"].load_state_dict(state["metrics"])
        if state["completions"] is not None:
            _extend(trainer._logs, state["completions"])


def _plain(logs: Mapping[str, Any]) -> dict[str, Any]:
    """TRL's table of completions, less its images."""
    return {
        name: _plain(column) if isinstance(column, Mapping) else list(column)
        for name, column in logs.items()
        if name != "images"
    }


def _extend(logs: Any, saved: Mapping[str, Any]) -> None:
    for name, column in saved.items():
        if isinstance(column, Mapping):
            _extend(logs[name], column)
        else:
            logs[name].extend(column)
