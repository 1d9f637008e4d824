"""The tables of configuration.md, made from the dataclasses themselves."""

import dataclasses
import html
import importlib
import json
import re
from inspect import get_annotations
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import Files
from mkdocs.structure.pages import Page
from transformers import TrainingArguments

_TABLE = re.compile(r"<!-- fields of ([\w.]+)(?: \(([\w.]+)\))? -->")
_INHERITED = re.compile(r"<!-- inherited fields of ([\w.]+) from ([\w.]+) -->")


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """`<!-- fields of OURS (THEIRS) -->`: a table; `<!-- inherited fields of OURS from THEIRS -->`: names."""
    if page.file.src_uri != "configuration.md":
        return markdown
    markdown = _TABLE.sub(lambda match: _table(_class(match[1]), _class(match[2]) if match[2] else None), markdown)
    return _INHERITED.sub(lambda match: _inherited(_class(match[1]), _class(match[2])), markdown)


def _class(path: str) -> Any:
    module, _, name = path.rpartition(".")
    return getattr(importlib.import_module(module), name)


def _table(ours: type, theirs: type | None) -> str:
    """A line for each field; with THEIRS, its default too where ours is another."""
    upstream = {field.name: _default(field) for field in dataclasses.fields(theirs)} if theirs else {}
    lines = ["| field, type or choices | default | |", "|---|---|---|"]
    for field in dataclasses.fields(ours):
        default = _default(field)
        of_upstream = upstream.get(field.name, default)
        overrides = f" (TRL: `{of_upstream}`)" if of_upstream != default else ""
        name = f"`{field.name}`<br><small>{_type(field)}</small>"
        lines.append(f"| {name} | `{default}`{overrides} | {_text(field.metadata['help'])} |")
    return "\n".join(lines)


def _inherited(ours: type, theirs: type) -> str:
    """Names of the fields of THEIRS that neither a class of ours declares again nor transformers has already."""
    of_ours = {
        name for base in ours.__mro__ if base.__module__.startswith("trainers.") for name in get_annotations(base)
    }
    of_transformers = set() if theirs is TrainingArguments else _names(TrainingArguments)
    return ", ".join(f"`{name}`" for name in sorted(_names(theirs) - of_ours - of_transformers))


def _names(config: type) -> set[str]:
    return {field.name for field in dataclasses.fields(config)}


def _default(field: dataclasses.Field[Any]) -> str:
    """As in YAML."""
    made = field.default_factory is not dataclasses.MISSING
    value = field.default_factory() if made else field.default
    return value if isinstance(value, str) else json.dumps(value)


def _type(field: dataclasses.Field[Any]) -> str:
    if choices := field.metadata.get("choices"):
        return ", ".join(choices)
    name = field.type.__name__ if isinstance(field.type, type) else str(field.type)
    return _text(name.replace("typing.", ""))


def _text(words: str) -> str:
    """A help text in a cell of a table: outside of backticks, what looks like HTML or a border stays text."""
    parts = words.split("`")
    parts[::2] = [html.escape(part, quote=False).replace("|", "&#124;") for part in parts[::2]]
    return "`".join(parts)
