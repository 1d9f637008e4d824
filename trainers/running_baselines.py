"""What online SFT remembers of earlier steps to compare with, saved in every checkpoint's trainer_state.json."""

from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import ExportableState

from online_sft.baselines import RunningMean

__all__ = ["RunningBaselines"]


class RunningBaselines(TrainerCallback, ExportableState):
    """Running means of the reward, over batches, and of the price of the KL, over steps.

    Python floats, so JSON brings them back to the bit.
    """

    def __init__(self, accelerator: Accelerator) -> None:
        self.reward = self.kl_price = RunningMean()
        self._accelerator = accelerator
        self._of_this_step = torch.zeros(2, device=accelerator.device)  # sum and count of this rank's prices

    def add_kl_prices(self, prices: Tensor) -> None:
        """beta (s - s_ref) of completions of this rank; they count from the next step on."""
        self._of_this_step += torch.stack([prices.sum(), torch.tensor(float(len(prices)), device=prices.device)])

    def state(self) -> dict[str, Any]:
        means = {"reward": self.reward, "kl_price": self.kl_price}
        return {"args": {}, "attributes": {name: [mean.total, mean.count] for name, mean in means.items()}}

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """On a resume `state` is the checkpoint's, otherwise it holds what `state()` has just returned."""
        # a checkpoint of TRL's trainer has none, and Trainer saves only what was there
        saved = state.stateful_callbacks.setdefault(type(self).__name__, self.state())["attributes"]
        self.reward, self.kl_price = RunningMean(*saved["reward"]), RunningMean(*saved["kl_price"])

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        total, count = self._accelerator.reduce(self._of_this_step, reduction="sum")
        self.kl_price = self.kl_price.after(total / count)  # NaN, which changes nothing, where none was added
        self._of_this_step = torch.zeros_like(self._of_this_step)
