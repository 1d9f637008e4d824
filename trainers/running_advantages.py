"""The running statistics of `advantage_normalization="global"`, saved in every checkpoint's trainer_state.json."""

from dataclasses import astuple
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import ExportableState

from online_sft.normalisation import Moments

__all__ = ["RunningAdvantages"]


class RunningAdvantages(TrainerCallback, ExportableState):
    """Moments of the advantages of all steps so far. Python floats, so JSON brings them back to the bit."""

    def __init__(self) -> None:
        self.moments = Moments()

    def state(self) -> dict[str, Any]:
        return {"args": {}, "attributes": {"moments": list(astuple(self.moments))}}

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """On a resume `state` is the checkpoint's, otherwise it holds what `state()` has just returned."""
        self.moments = Moments(*state.stateful_callbacks[type(self).__name__]["attributes"]["moments"])
