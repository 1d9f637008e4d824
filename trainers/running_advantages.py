"""The running statistics of `advantage_normalization="global"`, saved in every checkpoint's trainer_state.json."""

from dataclasses import astuple
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import ExportableState

from online_sft.normalisation import Moments

__all__ = ["RunningAdvantages"]


class RunningAdvantages(TrainerCallback, ExportableState):
    """Moments of the advantages of all finished steps. Python floats, so JSON brings them back to the bit.

    `step`: those with the step in progress, which may yet be given up (`auto_find_batch_size`).
    """

    def __init__(self) -> None:
        self.moments = self.step = Moments()

    def state(self) -> dict[str, Any]:
        return {"args": {}, "attributes": {"moments": list(astuple(self.moments))}}

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """On a resume `state` is the checkpoint's, otherwise it holds what `state()` has just returned."""
        # a checkpoint of SFTTrainer has none, and Trainer saves only what was there
        saved = state.stateful_callbacks.setdefault(type(self).__name__, self.state())
        self.moments = self.step = Moments(*saved["attributes"]["moments"])

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self.moments = self.step
