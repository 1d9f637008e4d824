"""A checkpoint has its name when all of it is there, and not before."""

import os
import shutil
from pathlib import Path

from accelerate import Accelerator

__all__ = ["clear_aside", "publish", "put_back"]

# Where a checkpoint is written. What begins with an underscore is not pushed to the hub.
_ASIDE, _REPLACED = "_saving", "replaced-"


def clear_aside(accelerator: Accelerator, run_dir: str, *, is_writer: bool) -> str:
    """An empty place to write a checkpoint in; what a killed run has left there is gone. A collective call.

    Args:
        is_writer: whether this process saves the model, alone on its file system.
    """
    aside = os.path.join(run_dir, _ASIDE)
    if is_writer:
        put_back(run_dir)
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


def put_back(run_dir: str) -> None:
    """A checkpoint that was to be replaced by one of the same step, when the run was killed between the two moves."""
    for replaced in Path(run_dir, _ASIDE).glob(f"{_REPLACED}*"):
        place = Path(run_dir, replaced.name.removeprefix(_REPLACED))
        if not place.exists():
            os.rename(replaced, place)


def _replace(written: Path, final: Path) -> None:
    if final.exists():  # of a run that went on from an earlier one
        os.rename(final, written.with_name(f"{_REPLACED}{final.name}"))
    os.rename(written, final)
    shutil.rmtree(written.parent)
