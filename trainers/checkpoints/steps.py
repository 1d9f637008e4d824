"""Whether a run is between two optimizer steps, where a checkpoint is all of it."""

from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from trainers.checkpoints.stream import EndlessStream

__all__ = ["WholeSteps"]


class WholeSteps(TrainerCallback):
    """Is told of steps; tells the stream that the trainer learns from, and how far a run without epochs has come.

    A checkpoint that is written within a step (a server that goes away, transformers' `enable_jit_checkpoint`) has the
    parameters of the step before it, and random numbers of later.
    """

    def __init__(self, trainer: Any) -> None:
        self._trainer = trainer
        self.is_within = False

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        self.is_within = True

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        self.is_within = False
        trainer = self._trainer
        stream: EndlessStream | None = trainer._stream
        if stream is not None:
            stream.end_step()
        if trainer.keeps_its_place:
            state.epoch = state.global_step / state.max_steps  # a resume does not begin it again
