"""Tasks that may be tried again after feedback."""

from abc import abstractmethod
from typing import Any

from online_sft.environments.text_env import Step, TextEnv

__all__ = ["RetriesEnv"]


class RetriesEnv(TextEnv):
    """A task that may be tried n = `max_attempts` times: success at attempt k earns 1 - (k - 1) / n, and ends it.

    A failed attempt earns 0 and is answered by what was wrong with it. `info["attempt"]` counts from 1.

    Args:
        max_attempts: n.

    Raises:
        ValueError: when it is below 1.
    """

    def __init__(self, max_attempts: int = 3) -> None:
        super().__init__()
        if max_attempts < 1:
            raise ValueError(f"max_attempts must be at least 1; got {max_attempts}")
        self.max_attempts = max_attempts

    def _begin(self) -> tuple[str, dict[str, Any]]:
        self._attempt = 0
        task, group = self._draw()
        return f"{task}\n\nAttempts: {self.max_attempts}.", {"group": group}

    def _respond(self, action: str) -> Step:
        self._attempt += 1
        fault = self._fault(action)
        num_left = self.max_attempts - self._attempt
        info: dict[str, Any] = {"attempt": self._attempt}
        if fault is None:
            reward = 1 - (self._attempt - 1) / self.max_attempts
            return "Correct.", reward, True, False, info | {"success": True}
        if num_left == 0:
            return fault, 0.0, True, False, info | {"success": False}
        return f"{fault}\n\nTry again. Attempts left: {num_left}.", 0.0, False, False, info

    @abstractmethod
    def _draw(self) -> tuple[str, str]:
        """A task from `self.np_random`: what is said of it, and its group."""

    @abstractmethod
    def _fault(self, action: str) -> str | None:
        """What is wrong with an attempt; None where nothing is."""
