"""The fields of our configs that say what is seen and kept of a run. Free of heavy imports."""

from dataclasses import dataclass, field

__all__ = ["RecordOptions"]


@dataclass
class RecordOptions:
    """What is seen of a run while it goes on, and kept of it in `output_dir/record`.

    Args:
        record_samples: sequences of each optimizer step that are kept, token by token with their weights.
        live_view: "auto" takes the place of transformers' progress bar: a view in a terminal, a line now and then in
            a file or in CI; "off" leaves it as it is. `disable_tqdm` turns it off, too.
        show_sample_steps: optimizer steps after which the view shows another sample; 0 is none.
    """

    record_samples: int = field(
        default=4,
        metadata={
            "help": "Sequences of each optimizer step that `output_dir/record` keeps with the weights of their tokens, "
            "for `online-sft report`."
        },
    )
    live_view: str = field(
        default="auto",
        metadata={
            "help": "`auto`: progress, curves and samples in a terminal, a line a minute in files and CI; `off`: the "
            "progress bar of transformers.",
            "choices": ["auto", "off"],
        },
    )
    show_sample_steps: int = field(
        default=20, metadata={"help": "Steps after which the view in the terminal shows another sample; 0: none."}
    )

    def check_recording(self) -> None:
        """Raises ValueError for what is out of range."""
        for name in ("record_samples", "show_sample_steps"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must be 0 or more; got {getattr(self, name)}")
        if self.live_view not in ("auto", "off"):  # argparse does not compare what a file says with the choices
            raise ValueError(f"live_view must be auto or off; got {self.live_view!r}")
