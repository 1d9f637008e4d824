"""Graded files: how the verdicts of the math reward are distributed, and whether labels agree with them."""

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from online_sft.rewards.verdicts import Verdict

__all__ = ["as_label", "print_confusion", "print_verdicts", "write_verdicts"]

_ROWS_NAMED = 10


def as_label(value: object) -> bool | None:
    """A label as true, false or (None) absent: booleans, 1 and 0, the words `true` and `false`.

    Raises:
        ValueError: for anything else.
    """
    labels = {"true": True, "1": True, "1.0": True, "false": False, "0": False, "0.0": False, "none": None, "": None}
    text = str(value).strip().casefold()
    if text not in labels:
        raise ValueError(f"a label must be true or false, or 1 or 0; got {value!r}")
    return labels[text]


def print_verdicts(verdicts: Sequence[Verdict], console: Console) -> None:
    """How many rows had each verdict, and the accuracy among those that can be scored."""
    counts = Counter(verdicts)
    table = Table("verdict", "rows", "share")
    for column in table.columns[1:]:
        column.justify = "right"
    for verdict in Verdict:
        if counts[verdict]:
            table.add_row(verdict.value, str(counts[verdict]), f"{counts[verdict] / len(verdicts):.2%}")
    console.print(table)
    scorable = len(verdicts) - counts[Verdict.BAD_GOLD]
    accuracy = f"{counts[Verdict.CORRECT] / scorable:.2%}" if scorable else "undefined"
    console.print(f"accuracy {accuracy}: {counts[Verdict.CORRECT]} correct of {scorable} rows that can be scored")


def print_confusion(verdicts: Sequence[Verdict], labels: Sequence[bool | None], console: Console) -> None:
    """Outcome against label, how far they agree, and the first rows where they do not."""
    outcomes = [verdict.is_correct for verdict in verdicts]
    counts = Counter(zip(outcomes, labels, strict=True))
    table = Table("", "label true", "label false", "no label")
    for column in table.columns[1:]:
        column.justify = "right"
    for name, outcome in {"correct": True, "wrong": False, "unscorable": None}.items():
        table.add_row(name, *(str(counts[outcome, label]) for label in (True, False, None)))
    console.print(table)
    both = sum(counts[outcome, label] for outcome in (True, False) for label in (True, False))
    agree = counts[True, True] + counts[False, False]
    if both:
        console.print(f"agreement {agree / both:.2%}: {agree} of {both} rows with a grade and a label")
    rows = [row for row, pair in enumerate(zip(outcomes, labels, strict=True)) if set(pair) == {True, False}]
    for row in rows[:_ROWS_NAMED]:
        console.print(f"  row {row}: {verdicts[row].value}, but its label is {str(labels[row]).lower()}")
    if len(rows) > _ROWS_NAMED:
        console.print(f"  and {len(rows) - _ROWS_NAMED} more")


def write_verdicts(path: str, rows: Iterable[Mapping[str, Any]], verdicts: Sequence[Verdict]) -> None:
    """The rows as JSON lines, each with a `verdict`."""
    with open(path, "w", encoding="utf-8") as file:
        for row, verdict in zip(rows, verdicts, strict=True):
            file.write(json.dumps({**row, "verdict": verdict.value}, default=str) + "\n")
