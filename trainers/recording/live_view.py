"""How a run goes, while it goes: a view in a terminal, a line now and then in a file or in CI."""

import logging
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from rich.console import Console
from rich.live import Live
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from online_sft.record.sample import Sample
from online_sft.record.terminal import Progress, line_of, view_of
from trainers.recording.recorder import Recorder
from trainers.recording.stopwatch import Stopwatch

__all__ = ["LiveView"]

_REFRESHES_PER_SECOND = 4
_SECONDS_PER_LINE = 60.0


class LiveView(TrainerCallback):
    """Shows progress, curves, where the time goes, and samples; of the main process only.

    In a terminal it is drawn in place, and what the process prints meanwhile appears above it. Elsewhere there is a
    line for a log entry, one a minute at most.

    Args:
        recorder: whose samples are shown.
        stopwatch: says what the run is doing.
    """

    def __init__(self, recorder: Recorder, stopwatch: Stopwatch) -> None:
        self._recorder, self._stopwatch = recorder, stopwatch
        self._progress: Progress | None = None
        self._sample: Sample | None = None
        self._last_line = (-1, -_SECONDS_PER_LINE)  # its step, and when
        self._open = ExitStack()
        self._live: Live | None = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if not state.is_world_process_zero:
            return
        title = self._recorder.title
        self._progress = Progress(title, first_step=state.global_step, num_steps=state.max_steps, began=time.time())
        self._sample, self._last_line = None, (-1, -_SECONDS_PER_LINE)
        console = Console(stderr=True, highlight=False)
        if console.is_terminal and not console.is_dumb_terminal:
            self._live = Live(get_renderable=self._view, console=console, refresh_per_second=_REFRESHES_PER_SECOND)
            self._open.enter_context(self._live)
            self._open.enter_context(_logged_above(sys.stderr))

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if self._progress is None:
            return
        self._progress.step = state.global_step
        every, newest = args.show_sample_steps, self._recorder.last_sample
        if every and newest is not None and (self._sample is None or state.global_step % every == 0):
            self._sample = newest

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        if self._progress is None:
            return
        self._progress.step = state.global_step
        self._progress.add(logs or {})
        if self._live is None and time.monotonic() - self._last_line[1] >= _SECONDS_PER_LINE:
            self._print_line(self._progress)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self._progress is not None and self._live is None and self._last_line[0] != state.global_step:
            self._print_line(self._progress)
        self.close()

    def close(self) -> None:
        """Leaves the view as it is, and gives the terminal back."""
        self._open.close()
        self._progress = self._live = None

    def _print_line(self, progress: Progress) -> None:
        self._last_line = (progress.step, time.monotonic())
        print(line_of(progress, time.time()), file=sys.stderr, flush=True)

    def _view(self) -> Any:
        assert self._progress is not None
        return view_of(self._progress, self._sample, time.time(), *self._stopwatch.now)


@contextmanager
def _logged_above(stream: Any) -> Iterator[None]:
    """Handlers that write to the terminal itself, which they have kept, would write into the view.

    Args:
        stream: what prints above the view.
    """
    loggers = [logging.getLogger(), *(each for each in logging.Logger.manager.loggerDict.values())]
    handlers = {
        handler
        for logger in loggers
        if isinstance(logger, logging.Logger)
        for handler in logger.handlers
        if type(handler) is logging.StreamHandler and handler.stream in (sys.__stderr__, sys.__stdout__)
    }
    kept = {handler: handler.setStream(stream) for handler in handlers}
    try:
        yield
    finally:
        for handler, former in kept.items():
            handler.setStream(former)
