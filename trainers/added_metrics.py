"""Callbacks that measure the model in training at each evaluation, beside the trainer's own loss."""

from abc import abstractmethod
from collections.abc import Sequence
from itertools import takewhile
from typing import Any

from transformers import (
    EarlyStoppingCallback,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

__all__ = ["AddedMetrics"]


class AddedMetrics(TrainerCallback):
    """Adds what `evaluate` returns to the metrics of each evaluation, of a dict of evaluation sets with the first.

    Args:
        trainer: whose evaluations.
        ks: which k of pass@k.
        num_generations: samples of each task, at least the largest k.

    Raises:
        ValueError: when the k's do not fit `num_generations`.
    """

    def __init__(self, trainer: Any, ks: Sequence[int], num_generations: int) -> None:
        if not ks or not 1 <= min(ks) <= max(ks) <= num_generations:
            raise ValueError(f"each k must be between 1 and num_generations={num_generations}; got {list(ks)}")
        self.trainer, self.ks = trainer, sorted(set(ks))

    @abstractmethod
    def evaluate(self) -> dict[str, float]:
        """The metrics of the trainer's model as it is. Every process must call it; each gets all of them."""

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Refuses an `EarlyStoppingCallback` that would not find the metrics, and then never stop the training."""
        earlier = takewhile(lambda other: other is not self, self.trainer.callback_handler.callbacks)
        if any(isinstance(other, EarlyStoppingCallback) for other in earlier):
            name = type(self).__name__
            raise ValueError(
                f"EarlyStoppingCallback would look at the metrics before those of {name} are among them: add it with "
                f"trainer.add_callback after {name}"
            )

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        metrics: dict[str, float],
        **kwargs: Any,
    ) -> None:
        """Adds to `metrics`, which the trainer reads afterwards, and logs what it adds."""
        sets = self.trainer.eval_dataset
        first = f"eval_{next(iter(sets))}_runtime" if isinstance(sets, dict) else "eval_runtime"
        if first in metrics:
            found = self.evaluate()
            metrics.update(found)
            # TRL's own `log` would print its table of completions a second time
            Trainer.log(self.trainer, found)
