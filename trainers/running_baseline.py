"""The running mean of `baseline="running_mean"`, saved in every checkpoint's trainer_state.json."""

from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import ExportableState

from online_sft.baselines import RunningMean

__all__ = ["RunningBaseline"]


class RunningBaseline(TrainerCallback, ExportableState):
    """Holds the mean reward of the batches so far. Python floats, so JSON brings them back to the bit."""

    def __init__(self) -> None:
        self.mean = RunningMean()

    def state(self) -> dict[str, Any]:
        return {"args": {}, "attributes": {"total": self.mean.total, "count": self.mean.count}}

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """On a resume `state` is the checkpoint's, otherwise it holds what `state()` has just returned."""
        # a checkpoint of a run with another baseline has none, and Trainer saves only what was there
        saved = state.stateful_callbacks.setdefault(type(self).__name__, self.state())
        self.mean = RunningMean(**saved["attributes"])
