"""Shows a report in a terminal of any width; no colour is needed to read it."""

from typing import TYPE_CHECKING

from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from online_sft.inspection import Inspection, print_inspection
from trainers.dry_run.examples import Prompts
from trainers.dry_run.memory import Part, total

if TYPE_CHECKING:
    from trainers.dry_run.report import Report

__all__ = ["print_report"]

_GIB = 2**30


def print_report(report: "Report", console: Console | None = None) -> None:
    """Batches, memory, bias ledger, examples.

    Args:
        report: what to print.
        console: where; None: the standard output.
    """
    console = Console(highlight=False) if console is None else console
    _heading(console, "Batches")
    _table(console, [[name, sentence] for name, sentence in report.batches.items()])
    _heading(console, "Memory of each process, in GiB")
    _memory(console, report.parts)
    _heading(console, "Bias ledger")
    for line in report.ledger or ["none"]:
        console.print(Padding(Text(line), (0, 2)))
    _heading(console, "Examples")
    if isinstance(report.examples, Inspection):
        print_inspection(report.examples, console)
    elif isinstance(report.examples, Prompts):
        _prompts(console, report.examples)
    else:
        console.print(Padding(Text(report.examples), (0, 2)))
    for note in report.notes:
        console.print(Text(note))
    console.print(Text("\nDry run: nothing was trained, no weights were loaded."))


def _memory(console: Console, parts: list[Part]) -> None:
    rows = [
        [part.name, _gib(part.num_bytes), "exact" if part.is_exact else "about", part.formula]
        if part.num_bytes is not None
        else [part.name, "?", "unknown", part.formula]
        for part in parts
    ]
    sampled = [part.name for part in parts if part.phase == "sampling"]
    trained = [part.name for part in parts if part.phase == "training"]
    of = "at most: those of training and of sampling are not there together" if sampled and trained else "their sum"
    unknown = ", and what is unknown" if any(part.num_bytes is None for part in parts) else ""
    rows.append(["in all", _gib(total(parts)), "about", f"{of}{unknown}"])
    _table(console, rows)


def _gib(num_bytes: int) -> str:
    return f"{num_bytes / _GIB:,.2f}" if num_bytes >= _GIB / 10 else f"{num_bytes / _GIB:.2g}"


def _prompts(console: Console, prompts: Prompts) -> None:
    for number, (text, length) in enumerate(zip(prompts.shown, prompts.lengths, strict=False)):
        console.print(Text(f"prompt {number}, {length} tokens", style="bold"))
        console.print(Text(text), end="\n\n")
    for name, columns in prompts.columns_of.items():
        console.print(Text(f"Reward function {name} gets {columns}."))


def _heading(console: Console, text: str) -> None:
    console.print(Text(f"\n{text}", style="bold"))


def _table(console: Console, rows: list[list[str]]) -> None:
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0), pad_edge=False)
    for column in range(len(rows[0]) - 1):
        table.add_column(no_wrap=column > 0, overflow="fold")
    table.add_column(overflow="fold")
    for row in rows:
        table.add_row(*map(Text, row))
    console.print(Padding(table, (0, 2)))
