"""What one process does for all."""

from collections.abc import Callable
from typing import Any, TypeVar

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list

__all__ = ["on_main_process"]

T = TypeVar("T")


def on_main_process(accelerator: Accelerator, call: Callable[[], T]) -> T:
    """What the call returns on the main process, or raises there, on all processes."""
    outcome: list[Any] = [None, None]
    if accelerator.is_main_process:
        try:
            outcome[0] = call()
        except Exception as error:
            outcome[1] = error
    broadcast_object_list(outcome)
    if outcome[1] is not None:
        raise outcome[1]
    return outcome[0]
