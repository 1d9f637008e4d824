"""An inspection as one HTML file, which loads nothing from elsewhere."""

from html import escape

from online_sft.inspection import Inspection, Token, runs_of

__all__ = ["html_page"]

_STYLE = """
:root { color-scheme: light dark; --grey: light-dark(#6e7781, #8b949e); --line: light-dark(#d0d7de, #30363d);
  --positive: 46, 160, 67; --negative: 228, 63, 63; }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 72rem; margin: 2rem auto; padding: 0 1rem;
  background: light-dark(#fff, #0d1117); color: light-dark(#1f2328, #e6edf3); }
h1 { font-size: 1.4rem; } h2 { font-size: 1.1rem; margin: 2rem 0 .5rem; }
h3 { font-size: 1rem; margin: 1.5rem 0 .3rem; }
table { border-collapse: collapse; } th { text-align: left; padding-right: 2rem; font-weight: 600; }
.findings li { margin: .4rem 0; } .runs, .notes { color: var(--grey); font-size: .87rem; }
.row { font: 14px/1.75 ui-monospace, monospace; white-space: pre-wrap; overflow-wrap: anywhere; padding: .6rem .8rem;
  border: 1px solid var(--line); border-radius: 6px; }
.row span, .legend span { border-radius: 3px; padding: .1em 0; }
.legend span { padding: .1em .5em; margin-right: .6em; }
.row span:hover { outline: 1px solid currentColor; }
.positive { background: rgba(var(--positive), var(--strength)); }
.negative { background: rgba(var(--negative), var(--strength)); }
.zero { text-decoration: underline dotted; } .none { color: var(--grey); }
.cut { color: var(--grey); text-decoration: line-through; }
"""


def html_page(inspection: Inspection) -> str:
    """The whole page. What the data set says is escaped; pointing at a token tells its weight, id and position."""
    largest = inspection.summary.largest
    findings = "".join(
        f"<li>{escape(finding.sentence)} <b>{escape(finding.where(limit=20))}</b></li>"
        for finding in inspection.findings
    )
    lines = "".join(
        f"<tr><th>{escape(name)}</th><td>{escape(value)}</td></tr>"
        for name, value in inspection.summary.lines().items()
    )
    notes = "".join(f'<p class="notes">{escape(note)}</p>' for note in inspection.notes)
    rows = "".join(_row(number, tokens, largest) for number, tokens in inspection.shown.items())
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head><meta charset="utf-8"><title>online-sft inspect</title>'
        f'<meta name="viewport" content="width=device-width">\n<style>{_STYLE}</style></head>\n<body>\n'
        "<h1>What WeightedSFTTrainer trains on</h1>\n"
        f'<h2>Findings</h2>\n<ul class="findings">{findings or "<li>Nothing looks wrong.</li>"}</ul>\n'
        f"<h2>Summary</h2>\n<table>{lines}</table>\n{notes}\n"
        f"<h2>First rows</h2>\n{_legend(largest)}\n{rows}\n</body>\n</html>\n"
    )


def _row(number: int, tokens: list[Token], largest: float) -> str:
    spans = "".join(_span(token, largest) for token in tokens)
    return f'<h3>row {number}</h3>\n<div class="row">{spans}</div>\n<div class="runs">{escape(runs_of(tokens))}</div>\n'


def _span(token: Token, largest: float) -> str:
    weight = "no loss" if token.weight is None else f"weight {token.weight:.6g}"
    title = f"{weight}, id {token.token_id}, position {token.position}{', cut' if token.is_cut else ''}"
    text = escape(token.text).replace("⏎", "⏎\n")
    return f'<span title="{title}" {_look(token, largest)}>{text}</span>'


def _look(token: Token, largest: float) -> str:
    """The class of a token, and how strong its colour is: |weight| as a share of the largest."""
    if token.is_cut or not token.weight:
        return f'class="{"cut" if token.is_cut else "none" if token.weight is None else "zero"}"'
    sign = "positive" if token.weight > 0 else "negative"
    return f'class="{sign}" style="--strength: {0.12 + 0.58 * abs(token.weight) / largest:.3f}"'


def _legend(largest: float) -> str:
    samples = {f"weight up to {largest:.4g}": largest, f"down to {-largest:.4g}": -largest, "weight 0": 0.0}
    looks = {text: _look(Token(text, 0, 0, weight, is_cut=False), largest) for text, weight in samples.items()}
    looks |= {"without loss": 'class="none"', "cut": 'class="cut"'}
    return f'<p class="legend">{"".join(f"<span {look}>{text}</span>" for text, look in looks.items())}</p>'
