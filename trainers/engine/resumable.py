"""A checkpoint in the middle of a step, for a run that has to stop: the state after the last whole step."""

from pathlib import Path

from trl import GRPOTrainer

__all__ = ["save_resumable"]


def save_resumable(trainer: GRPOTrainer) -> str:
    """Saves what `resume_from_checkpoint` continues from, and says where. A collective call, with all processes.

    The parameters change at the end of a step only, so that before it they are those of the step before.
    """
    if not trainer.state.global_step:
        return "No step has been made, so nothing was saved."
    folder = Path(trainer.args.output_dir) / f"checkpoint-{trainer.state.global_step}"
    if not (folder / "trainer_state.json").exists():
        trainer._save_checkpoint(trainer.model_wrapped, trial=None)
        trainer.callback_handler.on_save(trainer.args, trainer.state, trainer.control)
    return f"Resume with resume_from_checkpoint={str(folder)!r}."
