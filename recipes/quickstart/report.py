"""What the quickstart leaves behind: the table in the terminal, the curves, the completions."""

import csv
from dataclasses import dataclass
from pathlib import Path

import matplotlib
from datasets import Dataset
from rich.console import Console
from rich.table import Table

from recipes.quickstart.evaluate import Evaluation

matplotlib.use("Agg")  # a picture in a file, no window
import matplotlib.pyplot as plt


@dataclass(frozen=True)
class Stage:
    name: str
    before: Evaluation
    after: Evaluation
    samples: int  # sequences trained on: demonstrations, or the policy's own completions
    seconds: float
    curve_label: str
    curve: list[tuple[int, float]]  # (step, what the label says)


def print_table(stages: list[Stage], total_seconds: float) -> None:
    """Accuracy on held-out problems before and after each stage."""
    table = Table(title="Held-out accuracy, before → after")
    table.add_column("stage")
    for column in ("greedy", "sampled", "samples", "seconds"):
        table.add_column(column, justify="right")
    for stage in stages:
        table.add_row(
            stage.name,
            f"{stage.before.greedy:.3f} → {stage.after.greedy:.3f}",
            f"{stage.before.sampled:.3f} → {stage.after.sampled:.3f}",
            f"{stage.samples:,}",
            f"{stage.seconds:.0f}",
        )
    console = Console()
    console.print(table)
    console.print(f"{total_seconds:.0f} s in all")


def save_curves(stages: list[Stage], path: Path) -> None:
    """One panel a stage: the loss it imitated with, or the reward it earned."""
    figure, axes = plt.subplots(1, len(stages), figsize=(4 * len(stages), 3.2), layout="constrained")
    for axis, stage in zip(axes, stages, strict=True):
        axis.plot(*zip(*stage.curve, strict=True))
        axis.set(title=stage.name, xlabel="step", ylabel=stage.curve_label)
        axis.grid(alpha=0.3)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def save_completions(stages: list[Stage], problems: Dataset, path: Path) -> None:
    """CSV: every held-out problem, its solution, and the most likely completion after each stage."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["prompt", "solution", *(stage.name for stage in stages)])
        writer.writerows(
            zip(problems["prompt"], problems["solution"], *(s.after.completions for s in stages), strict=True)
        )
