"""A checkpoint has its name when all of it is there, and not before."""

import os
import shutil
from pathlib import Path

from accelerate import Accelerator

__all__ = ["ASIDE", "clear_aside", "publish"]

# Where a checkpoint is written. What begins with an underscore is not pushed to the hub.
ASIDE = "_saving"


def clear_aside(accelerator: Accelerator, run_dir: str, *, is_writer: bool) -> str:
    """An empty place to write a checkpoint in; what a killed run has left there is gone. A collective call.

    Args:
        is_writer: whether this process saves the model, alone on its file system.
    """
    aside = os.path.join(run_dir, ASIDE)
    if is_writer:
        shutil.rmtree(aside, ignore_errors=True)
    accelerator.wait_for_everyone()
    return aside


def publish(accelerator: Accelerator, written: str, final: str, *, is_writer: bool) -> None:
    """Moves what all processes have written to its place. A collective call."""
    if is_writer:
        _replace(Path(written), Path(final))
    accelerator.wait_for_everyone()
    if accelerator.is_local_main_process and os.path.exists(written):  # of a node with a file system of its own
        _replace(Path(written), Path(final))
    accelerator.wait_for_everyone()


def _replace(written: Path, final: Path) -> None:
    if final.exists():  # of a run that went on from an earlier one
        os.rename(final, written.with_name("replaced"))
    os.rename(written, final)
    shutil.rmtree(written.parent)
