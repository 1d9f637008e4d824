"""What a run costs: seconds of each kind of work in an optimizer step, tokens a second, memory."""

from typing import Any

import psutil
import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from trainers.recording.stopwatch import Stopwatch

__all__ = ["Costs"]


class Costs(TrainerCallback):
    """Measures from the beginning of `train`, and from one log entry to the next."""

    def __init__(self) -> None:
        self.stopwatch = Stopwatch()
        self._step, self._num_tokens = 0, 0  # of the last entry

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.stopwatch.pop()
        self._step, self._num_tokens = state.global_step, 0

    def pop(self, step: int, num_tokens: int) -> dict[str, float]:
        """Since the last call: `seconds/...` an optimizer step, `tokens_per_second`, `memory_gib`.

        Args:
            step: optimizer steps so far.
            num_tokens: read so far. Where a run is resumed, the first entry does not say how many of them are new.
        """
        seconds = self.stopwatch.pop()
        costs = {f"seconds/{name}": value / max(step - self._step, 1) for name, value in seconds.items()}
        is_known = self._num_tokens > 0 or self._step == 0
        if is_known and num_tokens > self._num_tokens:
            costs["tokens_per_second"] = (num_tokens - self._num_tokens) / sum(seconds.values())
        self._step, self._num_tokens = step, num_tokens
        return {**costs, "memory_gib": _memory() / 2**30}


def _memory() -> int:
    """Bytes: the peak on the GPU since the last call; without one, what the process has in RAM."""
    if not torch.cuda.is_available():
        return psutil.Process().memory_info().rss
    peak = torch.cuda.max_memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    return peak
