"""Which checkpoint a run can go on from."""

import json
import re
from pathlib import Path

from transformers.trainer import TRAINER_STATE_NAME

__all__ = ["last_whole_checkpoint"]


def last_whole_checkpoint(output_dir: str | Path) -> str | None:
    """The newest checkpoint that was written to its end, if there is one.

    Trainer writes trainer_state.json last. Killed before, it leaves a checkpoint that `resume_from_checkpoint=True`
    would take: its weights, with step 0 and a fresh optimizer.
    """
    folders = [path for path in Path(output_dir).glob("checkpoint-*") if re.fullmatch(r"checkpoint-\d+", path.name)]
    for path in sorted(folders, key=lambda path: int(path.name.removeprefix("checkpoint-")), reverse=True):
        try:
            json.loads((path / TRAINER_STATE_NAME).read_text())
        except (OSError, ValueError):
            continue
        return str(path)
    return None
