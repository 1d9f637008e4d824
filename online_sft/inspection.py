"""What a trainer would train on, row by row, and what looks wrong with it; and how a terminal shows it.

`trainers/inspection.py` prepares the rows, `online_sft/inspection_page.py` shows them as HTML.
"""

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby, repeat
from typing import Any

import torch
from rich.console import Console
from rich.style import Style
from rich.text import Text
from torch import Tensor

from online_sft.advantages import MASKS, is_finite_number
from online_sft.weightings import effective_sample_size

__all__ = [
    "Finding",
    "Inspection",
    "Row",
    "Summary",
    "Token",
    "findings_in",
    "mistakes_in",
    "print_inspection",
    "refusals",
    "runs_of",
    "style_of",
    "tokens_of",
    "visible",
]

_MAX_RUNS = 20
_WITHOUT_LOSS = "grey50"


@dataclass(frozen=True)
class Row:
    """A row as the trainer prepares it."""

    number: int  # in the data set, from 0
    input_ids: Tensor  # [T] int64
    loss: Tensor  # [T] bool; never the first token, which nothing predicts
    weights: Tensor  # [T] float; 0 where there is no loss
    num_kept: int  # tokens that are trained on: up to max_length, and none of a row that truncation empties


@dataclass(frozen=True)
class Token:
    """A token to show."""

    text: str  # printable
    token_id: int
    position: int
    weight: float | None  # None: no loss
    is_cut: bool
    role: str = ""  # of trajectories: action or observation

    @property
    def label(self) -> str:
        """What the token counts for: "x 1.0", "x 1.0 (action)", "without loss" or "cut"."""
        if self.is_cut:
            return "cut"
        role = f" ({self.role})" if self.role else ""
        return "without loss" if self.weight is None else f"x {_decimal(self.weight)}{role}"


@dataclass(frozen=True)
class Finding:
    """Something that looks wrong: a sentence with the way out, and the numbers of the rows, each with its detail."""

    sentence: str
    rows: dict[int, str] = field(default_factory=dict)

    def where(self, limit: int = 5) -> str:
        """For example "Rows 2 (3 tokens, 2 advantages), 7 and 4 more."; empty where all rows are meant."""
        if not self.rows:
            return ""
        named = [f"{number} ({detail})" if detail else str(number) for number, detail in self.rows.items()][:limit]
        more = f" and {len(self.rows) - limit:,} more" if len(self.rows) > limit else ""
        return f"{'Row' if len(self.rows) == 1 else 'Rows'} {', '.join(named)}{more}."


@dataclass(frozen=True)
class Summary:
    """Counts and sums over what is trained on: tokens that truncation cuts are not in them."""

    num_rows: int  # of the data set
    num_trained_rows: int
    num_tokens: int
    weights: Tensor  # [N] float64, of the loss tokens

    @classmethod
    def of(cls, num_rows: int, rows: Sequence[Row]) -> "Summary":
        weights = [row.weights[: row.num_kept][row.loss[: row.num_kept]].double() for row in rows]
        return cls(
            num_rows=num_rows,
            num_trained_rows=sum(row.num_kept > 0 for row in rows),
            num_tokens=sum(row.num_kept for row in rows),
            weights=torch.cat([torch.zeros(0, dtype=torch.float64), *weights]),
        )

    @property
    def largest(self) -> float:
        """The largest |weight|; 0 without one."""
        return self.weights.abs().max().item() if len(self.weights) else 0.0

    def lines(self) -> dict[str, str]:
        """Name and value, as a reader sees them. Effective sample size: (sum |w|)^2 / sum w^2."""
        trained = "" if self.num_trained_rows == self.num_rows else f", {self.num_trained_rows:,} of them trained on"
        num_loss_tokens = len(self.weights)
        lines = {
            "rows": f"{self.num_rows:,}{trained}",
            "tokens": f"{self.num_tokens:,}",
            "loss tokens": f"{num_loss_tokens:,} ({_share(num_loss_tokens, self.num_tokens)} of the tokens)",
            "with a weight": f"{int(self.weights.count_nonzero()):,}",
        }
        if not self.largest:
            return lines
        low, mean, high = (_decimal(w.item()) for w in (self.weights.min(), self.weights.mean(), self.weights.max()))
        negative = self.weights.clamp(max=0).abs().sum().item()
        size = effective_sample_size(self.weights)
        return lines | {
            "weight": f"min {low}, mean {mean}, max {high}",
            "negative weight": f"{_share(negative, self.weights.abs().sum().item())} of the sum of |weight|",
            "effective sample size": f"{_share(size, num_loss_tokens)} of the loss tokens",
        }


@dataclass(frozen=True)
class Inspection:
    """All there is to show."""

    findings: list[Finding]
    summary: Summary
    shown: dict[int, list[Token]]  # row number -> tokens
    notes: list[str]  # what the numbers leave out


def mistakes_in(columns: Mapping[str, Any], num_tokens: int, advantage_lengths: Collection[int]) -> dict[str, str]:
    """What makes the trainer refuse a row: for each kind of mistake, "lengths", "masks" or "numbers", what it has.

    Args:
        columns: those of the row that the trainer reads, numbers or one number per token.
        num_tokens: of the row.
        advantage_lengths: how long a list of advantages may be: `num_tokens`; of text, its number of loss tokens too.
    """
    lists = {name: values for name, values in columns.items() if isinstance(values, list)}
    mistakes: dict[str, str] = {}
    wrong = [
        f"{len(values)} {name}"
        for name, values in lists.items()
        if len(values) not in (advantage_lengths if name == "advantages" else {num_tokens})
    ]
    if wrong:
        mistakes["lengths"] = ", ".join([_count(num_tokens, "token"), *wrong])
    odd = [f"{v} in {name}" for name in MASKS for v in lists.get(name, []) if v is not None and v not in (0, 1)]
    if odd:
        mistakes["masks"] = odd[0]
    missing = [] if num_tokens else ["no token"]
    for name, values in columns.items():
        if name not in lists and not is_finite_number(values):
            missing.append(f"{name} {values}")
        missing += [f"{name} {v} at token {t}" for t, v in enumerate(lists.get(name, [])) if not is_finite_number(v)]
    if missing:
        mistakes["numbers"] = missing[0]
    return mistakes


def refusals(mistakes: Mapping[int, Mapping[str, str]]) -> list[Finding]:
    """The mistakes of `mistakes_in`, by row number, as findings."""
    sentences = {
        "lengths": "Columns of different lengths in {}, which the trainer refuses: every column needs one entry per "
        "token, 0 where a token carries no loss.",
        "masks": "Masks that hold something other than 0 and 1 in {}, which the trainer refuses: write 1 on loss "
        "tokens and 0 elsewhere. A column that holds -100 or the token itself is `labels`.",
        "numbers": "Missing or non-finite numbers in {}, which the trainer refuses: remove the rows, or put finite "
        "numbers there.",
    }
    by_kind = {kind: {n: found[kind] for n, found in mistakes.items() if kind in found} for kind in sentences}
    return [Finding(sentences[kind].format(_count(len(rows), "row")), rows) for kind, rows in by_kind.items() if rows]


def findings_in(
    rows: Sequence[Row], *, eos_token_id: int | None, bos_token_id: int | None, max_length: int | None
) -> list[Finding]:
    """What looks wrong with rows that the trainer accepts. An id of None leaves out what needs it."""
    found = [_rows_without_loss(rows), _rows_without_weight(rows)]
    if max_length is not None:
        found.append(_cut_weights(rows, max_length))
    if eos_token_id is not None:
        found += [_masked_eos(rows, eos_token_id), _eos_of_no_row(rows, eos_token_id)]
    if bos_token_id is not None:
        found.append(_double_bos(rows, bos_token_id))
    return [finding for finding in found if finding is not None]


def tokens_of(row: Row, texts: Iterable[str], roles: Iterable[str] = repeat("")) -> list[Token]:
    """The tokens of a row, given the text of each, and its role."""
    columns = zip(texts, row.input_ids.tolist(), row.loss.tolist(), row.weights.tolist(), strict=True)
    return [
        Token(visible(text), token_id, position, weight if has_loss else None, position >= row.num_kept, role)
        for position, ((text, token_id, has_loss, weight), role) in enumerate(zip(columns, roles, strict=False))
    ]


def visible(text: str) -> str:
    """Line ends as ⏎, and every other character that does not print (an escape sequence, say) as its Python escape."""
    return "".join("⏎" if c == "\n" else c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def runs_of(tokens: Iterable[Token]) -> str:
    """How many tokens in a row count for the same: "2 tokens without loss, 3 tokens x 1.0"."""
    runs = [(label, len(list(run))) for label, run in groupby(token.label for token in tokens)]
    named = [f"{_count(length, 'token')} {label}" for label, length in runs[:_MAX_RUNS]]
    more = len(runs) - _MAX_RUNS
    return ", ".join([*named, f"and {_count(more, 'more run')}"] if more > 0 else named)


def print_inspection(inspection: Inspection, console: Console) -> None:
    """Rows, summary, findings. Colours show the weights where the console has them; the runs say them everywhere."""
    largest = inspection.summary.largest
    for number, tokens in inspection.shown.items():
        console.print(Text(f"row {number}, {_count(len(tokens), 'token')}", style="bold"))
        console.print(Text.assemble(*((token.text, style_of(token, largest)) for token in tokens)))
        console.print(Text(runs_of(tokens), style="italic"), end="\n\n")
    if inspection.shown:
        console.print(_legend(largest), end="\n\n")
    lines = inspection.summary.lines()
    width = max(map(len, lines))
    for name, value in lines.items():
        console.print(Text.assemble((f"{name:<{width}}  ", "bold"), value))
    for note in inspection.notes:
        console.print(Text(note, style="italic"))
    console.print()
    for finding in inspection.findings:
        console.print(Text.assemble(("! ", "bold red"), f"{finding.sentence} ", (finding.where(), "bold")))
    if not inspection.findings:
        console.print(Text("Nothing looks wrong.", style="green"))


def _rows_without_loss(rows: Sequence[Row]) -> Finding | None:
    found = {row.number: "" for row in rows if not row.loss.any()}
    return _if_any(found, "No loss token in {}: nothing is learned there. Check the labels or masks.")


def _rows_without_weight(rows: Sequence[Row]) -> Finding | None:
    found = {row.number: "" for row in rows if row.loss.any() and not row.weights.any()}
    return _if_any(
        found,
        "Weight 0 on every loss token of {}: nothing is learned there. Check the advantages, or drop such rows.",
    )


def _cut_weights(rows: Sequence[Row], max_length: int) -> Finding | None:
    cut = {row.number: row.weights[row.num_kept :] for row in rows if row.weights[row.num_kept :].any()}
    num_lost = {number: int(weights.count_nonzero()) for number, weights in cut.items()}
    lost = sum(weights.abs().double().sum().item() for weights in cut.values())
    whole = sum(row.weights.abs().double().sum().item() for row in rows)
    dropped = sum(row.num_kept == 0 for row in rows if row.number in cut)
    consequence = f" Dropped, without a loss token left: {_count(dropped, 'row')}." if dropped else ""
    return _if_any(
        {number: _count(count, "token") for number, count in num_lost.items()},
        f"max_length={max_length} cuts {_count(sum(num_lost.values()), 'token')} with a weight from {{}}, "
        f"{_share(lost, whole)} of the sum of |weight|.{consequence} Raise max_length, or shorten such rows.",
    )


def _masked_eos(rows: Sequence[Row], eos_token_id: int) -> Finding | None:
    """At the end, or next to it: many chat templates write a line end after EOS."""
    ends = [row for row in rows if row.weights.any() and (row.input_ids[-2:] == eos_token_id).any()]
    found = {row.number: "" for row in ends if not row.weights[row.input_ids == eos_token_id].any()}
    return _if_any(
        found, "EOS ends {} without being trained: extend the labels or masks to it, with a weight other than 0."
    )


def _eos_of_no_row(rows: Sequence[Row], eos_token_id: int) -> Finding | None:
    eos_weights = [row.weights[: row.num_kept][row.input_ids[: row.num_kept] == eos_token_id] for row in rows]
    if not rows or any((weights > 0).any() for weights in eos_weights):
        return None
    return Finding(
        f"No row trains EOS (token {eos_token_id}) with a positive weight: the model will not learn to stop. End the "
        "completions in EOS, as a loss token, or name the token that ends them with --eos_token."
    )


def _double_bos(rows: Sequence[Row], bos_token_id: int) -> Finding | None:
    double = torch.tensor([bos_token_id] * 2)
    found = {row.number: "" for row in rows if torch.equal(row.input_ids[:2], double)}
    return _if_any(found, "Two BOS tokens start {}: remove the one in the text, which the tokenizer adds as well.")


def _if_any(found: dict[int, str], sentence: str) -> Finding | None:
    return Finding(sentence.format(_count(len(found), "row")), found) if found else None


def style_of(token: Token, largest: float) -> Style:
    """Black on green or red, the stronger the larger |weight| is; grey without loss; underlined where it is 0."""
    if token.is_cut:
        return Style(color=_WITHOUT_LOSS, strike=True)
    if token.weight is None:
        return Style(color=_WITHOUT_LOSS)
    if not token.weight:
        return Style(underline=True)
    pale, strong = ((214, 240, 214), (70, 190, 90)) if token.weight > 0 else ((250, 220, 220), (235, 85, 85))
    share = abs(token.weight) / largest
    share = share if math.isfinite(share) else 1.0
    red, green, blue = (round(a + (b - a) * share) for a, b in zip(pale, strong, strict=True))
    return Style.parse(f"black on rgb({red},{green},{blue})")


def _legend(largest: float) -> Text:
    samples = {
        f"weight up to {_decimal(largest)}": largest,
        f"down to {_decimal(-largest)}": -largest,
        "weight 0": 0.0,
        "without loss": None,
    }
    tokens = [Token(text, 0, 0, weight, is_cut=False) for text, weight in samples.items()]
    tokens.append(Token("cut", 0, 0, None, is_cut=True))
    return Text("  ").join(Text(token.text, style=style_of(token, largest)) for token in tokens)


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def _share(part: float, whole: float) -> str:
    return f"{100 * part / whole if whole else 0:.1f} %"


def _decimal(number: float) -> str:
    """Four digits, with a decimal point even where it is whole."""
    text = f"{number:.4g}"
    return text if set(text) & set(".en") else f"{text}.0"
