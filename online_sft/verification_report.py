"""What `online-sft verify` prints and writes."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from online_sft.ledger import Bias
from online_sft.verification import Verification

__all__ = ["print_verification", "write_verification"]

Rows = Sequence[tuple[str, Verification]]


def print_verification(rows: Rows, ledger: Sequence[Bias], beta: float, tolerance: float, console: Console) -> None:
    """A table of the rows, what the ledger says, and the verdict on the first row."""
    table = Table(
        title=escape(f"expected gradient beside that of E[r] - {beta:g} KL, by enumeration"),
        title_justify="left",
        caption="bias: relative. noise: variance per completion in squared exact gradients. ESS: effective sample size",
        caption_justify="left",
    )
    for column in ("", "bias", "cosine", "noise", "ESS"):
        table.add_column(column, justify="right" if column else "left", no_wrap=True)
    for name, row in rows:
        cells = (
            f"{row.relative_bias:.2g}",
            f"{row.cosine:.4f}",
            f"{row.noise:.3g}",
            f"{row.effective_sample_size:.0%}",
        )
        table.add_row(name, *cells)
    console.print(table)
    for bias in ledger:
        console.print(f"- {bias}", markup=False)
    if unmeasured := [bias.option for bias in ledger if not bias.is_measured]:
        console.print(f"not measured here: {', '.join(unmeasured)}", markup=False)
    measured = rows[0][1].relative_bias
    above = measured > tolerance
    console.print(f"bias {measured:.2g} is {'above' if above else 'within'} the tolerance of {tolerance:g}")


def write_verification(path: str, rows: Rows, ledger: Sequence[Bias], tolerance: float) -> None:
    """The same as JSON."""
    report = {
        "tolerance": tolerance,
        "within_tolerance": rows[0][1].relative_bias <= tolerance,
        "rows": [{"options": name, **asdict(row)} for name, row in rows],
        "ledger": [
            {"option": bias.option, "value": bias.value, "effect": bias.effect, "is_measured": bias.is_measured}
            for bias in ledger
        ],
    }
    Path(path).write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
