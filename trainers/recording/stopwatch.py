"""Where the time of a run goes: every second in exactly one section."""

import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from online_sft.record.sections import SECTIONS

__all__ = ["Stopwatch"]


class Stopwatch:
    """Sections within sections stop the clock of the outer one, so that the seconds add up to the time that passed.

        with stopwatch("rollout"):
            with stopwatch("sync"): ...

    What is in no section is "train"; all that an evaluation does is "evaluation". A GPU works on while Python goes
    ahead: at the borders of sections it is waited for, so that a backward pass does not count as the rollout after it.
    """

    def __init__(self) -> None:
        self._seconds: dict[str, float] = defaultdict(float)
        self._section, self._since = "train", time.perf_counter()

    @contextmanager
    def __call__(self, section: str) -> Iterator[None]:
        """Counts the body as `section`."""
        assert section in SECTIONS, section
        outer = self._enter(section if self._section != "evaluation" else "evaluation")
        try:
            yield
        finally:
            self._enter(outer)

    @property
    def now(self) -> tuple[str, float]:
        """The section, and the seconds since it was entered."""
        return self._section, time.perf_counter() - self._since

    def pop(self) -> dict[str, float]:
        """Seconds of each section since the last call; 0 for those that have been entered before."""
        self._enter(self._section)
        seconds = dict(self._seconds)
        self._seconds.update(dict.fromkeys(seconds, 0.0))
        return seconds

    def _enter(self, section: str) -> str:
        if torch.cuda.is_available() and torch.cuda.is_initialized():
            torch.cuda.synchronize()
        now = time.perf_counter()
        self._seconds[self._section] += now - self._since
        outer, self._section, self._since = self._section, section, now
        return outer
