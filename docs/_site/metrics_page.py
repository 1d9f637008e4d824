"""The tables of metrics.md, made from `online_sft.metric_reference`."""

from itertools import groupby

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import Files
from mkdocs.structure.pages import Page


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """`<!-- metrics -->`: a table for each kind of trainer."""
    return markdown.replace("<!-- metrics -->", _tables()) if page.file.src_uri == "metrics.md" else markdown


def _tables() -> str:
    from online_sft.metric_reference import METRICS

    lines = []
    for trainers, metrics in groupby(METRICS.items(), key=lambda item: item[1].trainers):
        lines += ["", f"## {trainers[0].upper()}{trainers[1:]}", "", "| name | unit | |", "|---|---|---|"]
        lines += [f"| `{name}` | {metric.unit} | {_cell(metric.meaning)} |" for name, metric in metrics]
    return "\n".join(lines)


def _cell(text: str) -> str:
    return text.replace("|", "\\|")
