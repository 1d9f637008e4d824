"""The report's page: content, style, script and plotting library in one file."""

import json
from collections.abc import Sequence
from pathlib import Path
from string import Template

from online_sft.record.folder import RunRecord
from online_sft.report.content import content_of

__all__ = ["html_report"]

_FOLDER = Path(__file__).parent


def html_report(runs: Sequence[RunRecord]) -> str:
    """The whole page. It asks for nothing, and its content security policy would not let it."""
    from plotly.offline import get_plotlyjs  # takes a while

    return Template(_read("page.html")).substitute(
        title=_escaped(" and ".join(run.name for run in runs)),
        style=_read("page.css"),
        plotly=get_plotlyjs(),
        content=_as_script(content_of(runs)),
        script=_read("page.js"),
    )


def _as_script(content: object) -> str:
    """JSON in which no text can end the script that holds it."""
    return json.dumps(content, ensure_ascii=False, allow_nan=False, default=str).replace("<", "\\u003c")


def _escaped(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _read(name: str) -> str:
    return (_FOLDER / name).read_text(encoding="utf-8")
