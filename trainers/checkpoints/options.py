"""The fields about saving and resuming that all our configs share. No heavy imports: `--help` reads this file."""

from dataclasses import dataclass, field

__all__ = ["CheckpointOptions"]


@dataclass
class CheckpointOptions:
    """What is saved at the end, and how strictly a run goes on from a checkpoint.

    Args:
        allow_inexact_resume: also from a checkpoint from which the run goes on as another than the uninterrupted one,
            with a warning instead of an error.
        save_merged_model: the command line writes the model with its adapters merged into `output_dir/merged`, too.
    """

    allow_inexact_resume: bool = field(
        default=False,
        metadata={
            "help": "Resume also where the run cannot go on to the bit as if it had never stopped (another number of "
            "processes, batch size, seed or data set; rollouts of a vLLM server), with a warning that says why."
        },
    )
    save_merged_model: bool = field(
        default=False,
        metadata={"help": "At the end of a run with adapters, also write the merged model to OUTPUT_DIR/merged."},
    )
