"""A run in a terminal: a view that is drawn again and again, or a line."""

import math
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from online_sft.inspection import Token, style_of, visible
from online_sft.metric_reference import metric_of
from online_sft.record.sample import Sample
from online_sft.record.sections import SECTIONS

__all__ = ["Progress", "line_of", "view_of"]

_BLOCKS = "▁▂▃▄▅▆▇█"
_SPARKS = 24  # characters of a curve
_COLOURS = ("cyan", "yellow", "magenta", "blue", "green", "bright_black", "white")
# What is shown, as far as it is logged, in this order
_CURVES = (
    "reward",
    "score",
    "eval_pass@1",
    "eval_return",
    "eval_success",
    "collect/return",
    "eval_loss",
    "bc_loss",
    "world_model_loss",
    "nll",
    "ess",
    "kl",
    "entropy",
    "completions/mean_length",
    "groups/kept",
    "grad_norm",
)
_MOST_CURVES = 8
_SAMPLE_TOKENS = 400
_LONG = 5.0  # seconds


@dataclass
class Progress:
    """What the log has said so far."""

    title: str
    first_step: int  # done before, by the run that is resumed
    num_steps: int
    began: float  # seconds since 1970
    step: int = 0
    curves: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))

    def __post_init__(self) -> None:
        self.step = self.first_step

    def add(self, metrics: Mapping[str, Any]) -> None:
        """Takes in a log entry."""
        for name, value in metrics.items():
            if isinstance(value, (int, float)):
                self.curves[name].append(float(value))

    def latest(self, name: str) -> float | None:
        """None: not logged yet."""
        return self.curves[name][-1] if self.curves.get(name) else None

    def remaining(self, now: float) -> float | None:
        """Seconds to go, at the speed so far; None before the first step."""
        done = self.step - self.first_step
        return (now - self.began) / done * (self.num_steps - self.step) if done else None


def view_of(
    progress: Progress, sample: Sample | None, now: float, section: str = "train", seconds: float = 0.0
) -> RenderableType:
    """The view, as wide as the console.

    Args:
        now: seconds since 1970.
        section: what the run is doing, and for how many seconds; told when it takes long.
    """
    doing = f"{section} {_duration(seconds)}" if seconds >= _LONG else ""
    parts: list[RenderableType] = [_bar(progress, now, doing)]
    if names := _shown(progress):
        parts.append(_curves(progress, names))
    if any(progress.latest(f"seconds/{name}") for name in SECTIONS):
        parts.append(_costs(progress))
    if sample is not None:
        parts.append(_sample(sample))
    return Panel(Group(*parts), title=Text(progress.title, style="bold"), title_align="left", border_style="dim")


def line_of(progress: Progress, now: float) -> str:
    """The same in a line: step, metrics, time."""
    metrics = ", ".join(f"{name} {_number(progress.curves[name][-1])}" for name in _shown(progress)[:5])
    remaining = progress.remaining(now)
    left = "" if remaining is None or progress.step == progress.num_steps else f", {_duration(remaining)} to go"
    head = f"{progress.title}: step {progress.step}/{progress.num_steps}"
    return f"{head}{': ' if metrics else ''}{metrics} ({_duration(now - progress.began)}{left})"


def _shown(progress: Progress) -> list[str]:
    """The loss first, where its value means something."""
    names = [name for name in _CURVES if progress.curves.get(name)]
    if progress.curves.get("loss") and not {"reward", "bc_loss", "world_model_loss"} & set(names):
        names = ["loss", *names]
    return names[:_MOST_CURVES]


def _bar(progress: Progress, now: float, doing: str) -> Table:
    remaining = progress.remaining(now)
    row = Table.grid(expand=True, padding=(0, 1))
    row.add_column(ratio=1)
    row.add_column(justify="right", no_wrap=True)
    left = "…" if remaining is None else _duration(remaining)
    row.add_row(
        ProgressBar(total=progress.num_steps, completed=progress.step),
        f"{doing}  step {progress.step:,}/{progress.num_steps:,}  {_duration(now - progress.began)} + {left}",
    )
    return row


def _curves(progress: Progress, names: list[str]) -> Table:
    table = Table.grid(padding=(0, 2))
    for _ in range(4):
        table.add_column(no_wrap=True)
    for name in names:
        known = metric_of(name)
        unit = "" if known is None or known.unit == "-" else known.unit
        values = progress.curves[name]
        table.add_row(
            Text(name, style="bold"), _number(values[-1]), Text(_spark(values), style="cyan"), Text(unit, style="dim")
        )
    return table


def _costs(progress: Progress) -> Group:
    seconds = {name: progress.latest(f"seconds/{name}") or 0.0 for name in SECTIONS}
    whole = sum(seconds.values()) or 1.0
    width = 48
    bar, legend = Text(), Text()
    for (name, value), colour in zip(seconds.items(), _COLOURS, strict=True):
        if value / whole >= 0.005:
            bar.append("█" * max(round(width * value / whole), 1), style=colour)
            legend.append("■ ", style=colour)
            legend.append(f"{name} {value:.2g} s  ")
    rate, memory = progress.latest("tokens_per_second"), progress.latest("memory_gib")
    facts = [f"{whole:.3g} s a step"]
    facts += [] if rate is None else [f"{rate:,.0f} tokens/s"]
    facts += [] if memory is None else [f"{memory:.1f} GiB"]
    return Group(Text.assemble(bar, "  ", ("  ".join(facts), "bold")), legend)


def _sample(sample: Sample) -> Panel:
    """The sample's tokens, coloured by their weights; the largest |weight| is the strongest colour."""
    largest = max((abs(weight) for weight in sample.weights if weight), default=0.0)
    text = Text()
    for place, (token, weight) in enumerate(list(zip(sample.tokens, sample.weights, strict=True))[:_SAMPLE_TOKENS]):
        text.append(visible(token), style=style_of(Token(token, 0, place, weight, is_cut=False), largest))
    if len(sample.tokens) > _SAMPLE_TOKENS:
        text.append(f" … {len(sample.tokens) - _SAMPLE_TOKENS:,} more tokens", style="dim")
    values = [f"{name} {_number(value)}" for name, value in sample.values.items() if value is not None]
    title = ", ".join([f"sample of step {sample.step}", *values, f"|weight| up to {_number(largest)}"])
    return Panel(text, title=Text(title, style="dim"), title_align="left", border_style="dim")


def _spark(values: list[float]) -> str:
    """All values, averaged over as many as it takes, between their smallest and largest; `!` is NaN or infinite."""
    size = -(-len(values) // _SPARKS)
    means = [sum(part) / len(part) for part in (values[at : at + size] for at in range(0, len(values), size))]
    finite = [mean for mean in means if math.isfinite(mean)]
    low, high = min(finite, default=0.0), max(finite, default=0.0)
    heights = (((mean - low) / ((high - low) or 1.0), math.isfinite(mean)) for mean in means)
    return "".join(_BLOCKS[round(height * (len(_BLOCKS) - 1))] if is_finite else "!" for height, is_finite in heights)


def _number(value: float) -> str:
    return f"{value:.4g}"


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
