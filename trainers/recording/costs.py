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
        self._step = 0  # of the last entry
        self._num_tokens: int | None = None  # at the last entry that said so
        self._seconds = 0.0  # since then

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.stopwatch.pop()
        self._step, self._seconds = state.global_step, 0.0
        self._num_tokens = 0 if state.global_step == 0 else None

    def pop(self, step: int, num_tokens: int | None) -> dict[str, float]:
        """Since the last call: `seconds/...` an optimizer step, `tokens_per_second`, `memory_gib`.

        Args:
            step: optimizer steps so far.
            num_tokens: read so far; None where no batch has been read since the last call: several steps may share one.
                Of a resumed run the first number does not say how many of them are new.
        """
        seconds = self.stopwatch.pop()
        costs = {f"seconds/{name}": value / max(step - self._step, 1) for name, value in seconds.items()}
        self._step, self._seconds = step, self._seconds + sum(seconds.values())
        if num_tokens is not None:
            if self._num_tokens is not None and num_tokens > self._num_tokens:
                costs["tokens_per_second"] = (num_tokens - self._num_tokens) / self._seconds
            self._num_tokens, self._seconds = num_tokens, 0.0
        return {**costs, "memory_gib": _memory() / 2**30}


def _memory() -> int:
    """Bytes: the peak on the GPU since the last call; without one, what the process has in RAM."""
    if not torch.cuda.is_available():
        return psutil.Process().memory_info().rss
    peak = torch.cuda.max_memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    return peak
