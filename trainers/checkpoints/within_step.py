"""A checkpoint in the middle of a step, for a run that has to stop: the state after the last whole step."""

from pathlib import Path

from trainers.checkpoints.resumable import ResumableTrainer

__all__ = ["save_resumable"]


def save_resumable(trainer: ResumableTrainer) -> str:
    """Saves what `resume_from_checkpoint` continues from, and says where. A collective call, with all processes.

    The parameters change at the end of a step only, so that before it they are those of the step before. With optimizer
    and random numbers, whatever `save_only_model` says; the random numbers are of now, so that the run goes on as
    another.
    """
    step, args = trainer.state.global_step, trainer.args
    if not step:
        return "No step has been made, so nothing was saved."
    save_only_model, args.save_only_model = args.save_only_model, False
    try:
        trainer._save_checkpoint(trainer.model_wrapped, trial=None)
    finally:
        args.save_only_model = save_only_model
    trainer.callback_handler.on_save(args, trainer.state, trainer.control)
    checkpoint = str(Path(args.output_dir) / f"checkpoint-{step}")
    return f"Resume with resume_from_checkpoint={checkpoint!r} and allow_inexact_resume=True."
