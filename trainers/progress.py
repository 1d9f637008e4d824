"""One progress line that shows whether the run is learning."""

import sys
from typing import Any

from tqdm import tqdm
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

__all__ = ["RunningRewardCallback"]


class RunningRewardCallback(TrainerCallback):
    """A progress bar with the running reward (online SFT) or loss (weighted SFT) behind it.

    The running value is an exponential average over the logged ones, each new one counting for a fifth. Takes the place
    of `transformers.ProgressCallback`, which prints every log entry. In a file or CI log it writes a line every 15 s.

    Args:
        title: stands in front of the bar.
    """

    def __init__(self, title: str) -> None:
        self.title = title
        self.running: float | None = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        interval = 0.1 if sys.stderr.isatty() else 15.0
        self.bar = tqdm(
            desc=self.title,
            total=state.max_steps,
            disable=not state.is_world_process_zero,
            dynamic_ncols=True,
            mininterval=interval,
            maxinterval=max(interval, 10.0),
        )

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self.bar.update(state.global_step - self.bar.n)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        name = next((name for name in ("reward", "loss") if (logs or {}).get(name) is not None), None)
        if logs and name:
            value = float(logs[name])
            self.running = value if self.running is None else self.running + 0.2 * (value - self.running)
            self.bar.set_postfix_str(f"{name} {self.running:.3f}", refresh=False)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.bar.close()
