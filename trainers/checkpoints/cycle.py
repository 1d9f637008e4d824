"""Where online SFT is between two generations: TRL's GRPO trainer forgets it when it is resumed."""

from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from trl import GRPOTrainer

__all__ = ["GenerationCycle"]


class GenerationCycle(TrainerCallback):
    """The rollouts of this process that are not used up, and how many micro-batches have been.

    As they were after the last whole step, which is what a checkpoint is of, whenever it is written.
    """

    def __init__(self, trainer: GRPOTrainer) -> None:
        self._trainer = trainer
        self._after_step: dict[str, Any] = {"step": 0, "rollouts": None}

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        trainer = self._trainer
        is_used_up = trainer._step % (trainer.args.steps_per_generation * trainer.num_iterations) == 0
        self._after_step = {"step": trainer._step, "rollouts": None if is_used_up else trainer._buffered_inputs}

    def state_dict(self) -> dict[str, Any]:
        """Numbers and tensors."""
        return self._after_step

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes the trainer to where `state_dict` was taken."""
        self._after_step = state
        self._trainer._step, self._trainer._buffered_inputs = state["step"], state["rollouts"]
