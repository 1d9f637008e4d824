"""What the recipe leaves behind: the table in the terminal, and the curves."""

from dataclasses import dataclass
from pathlib import Path

import matplotlib
from rich.console import Console
from rich.table import Table

matplotlib.use("Agg")  # a picture in a file, no window
import matplotlib.pyplot as plt

__all__ = ["Stage", "print_table", "save_curves"]

_LOSSES = {"bc_loss": "actions: nats per token", "world_model_loss": "next observations: nats per token"}


@dataclass(frozen=True)
class Stage:
    name: str
    accuracy: float | None = None  # of next observations in held-out states; None where they are not learnt
    mean_return: float | None = None
    score: float | None = None  # the return as 0 (random) to 100 (shortest way)
    seconds: float | None = None  # of training
    history: list[dict[str, float]] | None = None  # the trainer's log


def print_table(stages: list[Stage], total_seconds: float) -> None:
    """A row for each stage."""
    table = Table(title="Next observations in held-out states, and fresh episodes from the others")
    table.add_column("")
    for column in ("next observation", "return", "score", "seconds"):
        table.add_column(column, justify="right")
    for stage in stages:
        table.add_row(
            stage.name,
            "" if stage.accuracy is None else f"{stage.accuracy:.2%}",
            "" if stage.mean_return is None else f"{stage.mean_return:.3f}",
            "" if stage.score is None else f"{stage.score:.1f}",
            "" if stage.seconds is None else f"{stage.seconds:.0f}",
        )
    console = Console()
    console.print(table)
    console.print(f"{total_seconds:.0f} s in all")


def save_curves(stages: list[Stage], path: Path) -> None:
    """One panel for each loss, with a line for each stage that has it."""
    figure, axes = plt.subplots(1, len(_LOSSES), figsize=(4.5 * len(_LOSSES), 3.2), layout="constrained")
    for axis, (loss, label) in zip(axes, _LOSSES.items(), strict=True):
        for stage in stages:
            points = [(entry["step"], entry[loss]) for entry in stage.history or [] if loss in entry]
            if points:
                axis.plot(*zip(*points, strict=True), label=stage.name)
        axis.set(xlabel="step", ylabel=label, yscale="log")
        axis.grid(alpha=0.3)
        axis.legend()
    figure.savefig(path, dpi=120)
    plt.close(figure)
