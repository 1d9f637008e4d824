"""What online SFT remembers of earlier steps to compare with, saved in every checkpoint's trainer_state.json."""

import math
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import ExportableState

from online_sft.baselines import OptimalBaseline, RunningMean
from online_sft.precision import float64

__all__ = ["RunningBaselines"]


class RunningBaselines(TrainerCallback, ExportableState):
    """Running means of the reward, over batches, and of the price of the KL, over steps, and the optimal baseline.

    Python floats, so JSON brings them back to the bit.
    """

    def __init__(self, accelerator: Accelerator) -> None:
        self.reward = self.kl_price = RunningMean()
        self.optimal = OptimalBaseline()
        self._accelerator = accelerator
        self._of_this_step = self._nothing()  # of this rank

    @property
    def is_first_step(self) -> bool:
        """Whether nothing is known yet for the optimal baseline."""
        return not self.optimal.sums[0]

    def add_batch(self, rewards: Tensor) -> None:
        """Rewards of a batch of all ranks, NaN where there is none; they count from the next batch on."""
        scored = float64(rewards[~rewards.isnan()])
        self.reward = self.reward.after(scored.sum().item(), len(scored))

    def add(self, beta: float, prices: Tensor, rewards: Tensor, of_others: Tensor, sizes: Tensor) -> None:
        """Completions of this rank, each [B]; they count from the next step on.

        prices: beta (s - s_ref). rewards: r over its spread. of_others: m of `OptimalBaseline`. sizes: g of it.
        """
        # in float64 from the start: the regression takes differences of sums of squares
        prices, rewards, of_others, sizes = map(float64, (prices, rewards, of_others, sizes))
        sums = OptimalBaseline.sums_of(sizes, of_others, rewards - prices - beta)
        self._of_this_step += torch.cat([torch.stack([prices.sum(), torch.ones_like(prices).sum()]), sums])

    def state(self) -> dict[str, Any]:
        means = {"reward": self.reward, "kl_price": self.kl_price}
        attributes = {name: [mean.total, mean.count] for name, mean in means.items()}
        return {"args": {}, "attributes": {**attributes, "optimal": list(self.optimal.sums)}}

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """On a resume `state` is the checkpoint's, otherwise it holds what `state()` has just returned."""
        # a checkpoint of TRL's trainer has none, and Trainer saves only what was there
        saved = state.stateful_callbacks.setdefault(type(self).__name__, self.state())["attributes"]
        self.reward, self.kl_price = RunningMean(*saved["reward"]), RunningMean(*saved["kl_price"])
        self.optimal = OptimalBaseline(tuple(saved["optimal"]))

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        price, count, *sums = self._accelerator.reduce(self._of_this_step, reduction="sum").tolist()
        if all(map(math.isfinite, (price, *sums))):  # a step that overflowed must not stay in the baselines for ever
            self.kl_price, self.optimal = self.kl_price.after(price, count), self.optimal.after(sums)
        self._of_this_step = self._nothing()

    def _nothing(self) -> Tensor:
        return float64(torch.zeros(7, device=self._accelerator.device))
