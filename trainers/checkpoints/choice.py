"""Which checkpoint a run goes on from, and whether it can."""

import json
import logging
import os
import re
from pathlib import Path
from typing import Any

from transformers.trainer import TRAINER_STATE_NAME

from trainers.checkpoints.atomic import put_back
from trainers.checkpoints.manifest import ResumeError, checked_manifest, differences, installed_versions

__all__ = ["checkpoint_to_resume", "last_whole_checkpoint", "optimizer_of", "setup_of", "state_file"]

logger = logging.getLogger(__name__)

# Which rows a step sees, in which order, and what random numbers are drawn
_SETTINGS = (
    "seed",
    "data_seed",
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
    "train_sampling_strategy",
    "dataloader_drop_last",
    "dataloader_num_workers",
    "num_generations",
    "num_iterations",
    "steps_per_generation",
    "shuffle_dataset",
)
# What transformers takes from the checkpoint's optimizer and schedule
_OF_OPTIMIZER = ("learning_rate", "weight_decay", "adam_beta1", "adam_beta2", "adam_epsilon", "optim")


def checkpoint_to_resume(trainer: Any, resume_from_checkpoint: str | bool | None) -> str | None:
    """The checkpoint that is meant; None for a new run.

    Args:
        resume_from_checkpoint: a folder; True, the last whole checkpoint in `output_dir`; "auto", the same, or a new
            run where there is none.

    Raises:
        ResumeError: when it is not whole, or the run would not go on as if it had never stopped (unless
            `allow_inexact_resume`, which makes it a warning).
    """
    if not resume_from_checkpoint or resume_from_checkpoint in ("false", "False"):
        return None
    insists = resume_from_checkpoint in (True, "true", "True")  # as words, on the command line
    if not insists and resume_from_checkpoint != "auto":
        checkpoint: str | None = str(resume_from_checkpoint)
    else:
        put_back(trainer.args.output_dir)
        checkpoint = last_whole_checkpoint(trainer.args.output_dir)
        if checkpoint is None and insists:
            raise ResumeError(
                f"resume_from_checkpoint=True, and there is no whole checkpoint in {trainer.args.output_dir}; "
                "'auto' starts a new run then"
            )
    if checkpoint is not None:
        _check(trainer, checkpoint)
    return checkpoint


def last_whole_checkpoint(output_dir: str | Path) -> str | None:
    """The newest checkpoint that was written to its end, if there is one.

    Also of other trainers, which write trainer_state.json last: killed before, they leave a checkpoint of which
    transformers would take the weights, with step 0 and a fresh optimizer.
    """
    folders = [path for path in Path(output_dir).glob("checkpoint-*") if re.fullmatch(r"checkpoint-\d+", path.name)]
    for path in sorted(folders, key=lambda path: int(path.name.removeprefix("checkpoint-")), reverse=True):
        try:
            json.loads((path / TRAINER_STATE_NAME).read_text())
        except (OSError, ValueError):
            continue
        return str(path)
    return None


def setup_of(trainer: Any) -> dict[str, Any]:
    """What has to be the same for the same run."""
    state, sharding = trainer.accelerator.state, "none"
    if trainer.is_fsdp_enabled:
        plugin = state.fsdp_plugin
        sharding = f"FSDP{plugin.fsdp_version}, {plugin.state_dict_type.name}"
    elif trainer.is_deepspeed_enabled:
        sharding = f"ZeRO-{state.deepspeed_plugin.zero_stage}"
    return {
        "trainer": type(trainer).__name__,
        "num_processes": trainer.accelerator.num_processes,
        "sharding": sharding,
        "within_a_step": trainer.whole_steps is not None and trainer.whole_steps.is_within,
        "data": trainer.data_digest(),
        **{name: getattr(trainer.args, name) for name in _SETTINGS if hasattr(trainer.args, name)},
    }


def optimizer_of(args: Any) -> dict[str, Any]:
    """Settings that a resume does not change."""
    return {name: str(getattr(args, name)) for name in _OF_OPTIMIZER}


def state_file(process_index: int) -> str:
    """Where in a checkpoint a process has what transformers does not save."""
    return f"online_sft_{process_index}.pt"


def _check(trainer: Any, checkpoint: str) -> None:
    if not os.path.isfile(os.path.join(checkpoint, TRAINER_STATE_NAME)):
        last = last_whole_checkpoint(trainer.args.output_dir)
        raise ResumeError(
            f"{checkpoint} is no whole checkpoint: it has no {TRAINER_STATE_NAME}. "
            + (
                f"The last whole one is {last}"
                if last
                else f"There is none in {trainer.args.output_dir}: drop resume_from_checkpoint"
            )
        )
    manifest = checked_manifest(checkpoint)
    if manifest is None:
        reasons = ["it was not written by this trainer (no online_sft.json)"]
    else:
        reasons = differences(manifest["setup"], setup_of(trainer))
        if not os.path.isfile(os.path.join(checkpoint, state_file(0))):
            reasons.append("it holds the model only (save_only_model)")
        if others := differences(manifest["versions"], installed_versions()):
            logger.warning("%s: libraries round in their own ways, so that digits may differ: %s", checkpoint, others)
        if others := differences(manifest["optimizer"], optimizer_of(trainer.args)):
            logger.warning("these stay as they are in the optimizer of %s: %s", checkpoint, "; ".join(others))
    reasons += trainer.reasons_against_exact_resume()
    if not reasons:
        return
    if not trainer.args.allow_inexact_resume:
        raise ResumeError(
            f"a run cannot go on from {checkpoint} as if it had never stopped: {'; '.join(reasons)}. Resume with "
            "what it was saved with, or set allow_inexact_resume=True for a run that goes on as another"
        )
    logger.warning("from %s the run goes on as another: %s", checkpoint, "; ".join(reasons))
