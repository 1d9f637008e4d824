"""`online-sft schema`: a JSON schema of the YAML files of `--config`, made from the parser that reads them.

Editors with a YAML language server complete and check a file whose first line names the schema.
"""

import argparse
import json
import types
import typing
from collections.abc import Callable, Mapping
from enum import Enum
from pathlib import Path
from typing import Any, Literal, Union

from online_sft.launching import UsageError, parser_of

__all__ = ["COMMAND_LINE_ONLY", "main", "schema_of"]

Schema = dict[str, Any]

# Flags that no file can set: they say which file, or look instead of train.
COMMAND_LINE_ONLY = ("config", "dry_run", "help", "help_all")

_TYPES = {bool: "boolean", int: "integer", float: "number", str: "string", dict: "object", type(None): "null"}
# Lists of which a file may name the only item, without brackets.
_ONE_OR_MORE = ("reward_funcs", "environments", "eval_environments", "lora_target_modules")
_ENVIRONMENT_VARIABLES = {
    "type": "object",
    "description": "Environment variables, set before the run starts.",
    "additionalProperties": {"type": ["string", "number", "boolean"]},
}
_ATROPOS = "atropos_"


def main(arguments: list[str], dataclasses_of: Mapping[str, Callable[[], tuple[type, ...]]]) -> None:
    """The command.

    Args:
        arguments: the command line.
        dataclasses_of: by the name of a command, what its `parse` fills.

    Raises:
        UsageError: when the file cannot be written.
    """
    parser = argparse.ArgumentParser(
        prog="online-sft schema",
        description="Print a JSON schema of the YAML files that `online-sft online|weighted --config FILE` and "
        "`online-sft trajectories train --config FILE` take. With a first line `# yaml-language-server: "
        "$schema=online.schema.json`, editors complete and check such a file.",
        allow_abbrev=False,
    )
    parser.add_argument("command", choices=dataclasses_of, help="Whose files.")
    parser.add_argument("--output", metavar="FILE", type=Path, help="Write it here instead.")
    options = parser.parse_args(arguments)
    name = "trajectories train" if options.command == "trajectories" else options.command
    schema = schema_of(parser_of(f"online-sft {name}", dataclasses_of[options.command]()))
    text = json.dumps(schema, indent=2) + "\n"
    if options.output is None:
        print(text, end="")
        return
    try:
        options.output.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UsageError(error) from error


def schema_of(parser: Any) -> Schema:
    """JSON schema (draft 2020-12) of the files that a `TrlParser` reads: a property per field, and no other.

    Fields named `atropos_x` may also be `data: {atropos: {x: ...}}`.
    """
    hints: dict[str, Any] = {}
    for each in parser.dataclass_types:
        hints |= typing.get_type_hints(each)
    fields: Schema = {}
    for action in parser._actions:
        if action.dest not in COMMAND_LINE_ONLY and action.dest not in fields:  # `--no_x` comes after `--x`
            fields[action.dest] = _field(action, hints[action.dest])
    of_atropos = {name.removeprefix(_ATROPOS): fields[name] for name in fields if name.startswith(_ATROPOS)}
    nested = {"data": _section("Settings of Atropos.", {"atropos": _section("As atropos_...", of_atropos)})}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": f"{parser.prog} --config FILE",
        **_section(
            "The fields of a run; the command line overrides them.",
            {**fields, **(nested if of_atropos else {}), "env": _ENVIRONMENT_VARIABLES},
        ),
    }


def _section(description: str, properties: Schema) -> Schema:
    return {"type": "object", "description": description, "properties": properties, "additionalProperties": False}


def _field(action: argparse.Action, hint: Any) -> Schema:
    field = _values(hint)
    if action.choices is not None:
        field = {"type": field["type"], "enum": list(action.choices)}
    if action.dest in _ONE_OR_MORE:
        field["type"] = ["string", *_listed(field["type"])]
    if action.default is None or "null" in _listed(field.get("type", [])):
        field = _or_null(field)
    default = action.default.value if isinstance(action.default, Enum) else action.default
    return {"description": (action.help or "").replace("%%", "%"), **field, "default": default}


def _values(hint: Any) -> Schema:
    """What a file may hold for a field that is annotated so."""
    origin, members = typing.get_origin(hint), typing.get_args(hint)
    if origin in (Union, types.UnionType):
        return _any_of(members)
    if origin is Literal:
        return {"type": sorted({_TYPES[type(value)] for value in members}), "enum": list(members)}
    if isinstance(hint, type) and issubclass(hint, Enum):
        return {"type": "string", "enum": [member.value for member in hint]}
    if origin is list:
        return {"type": "array", "items": _values(members[0])}
    return {"type": _TYPES.get(origin or hint, "object")}


def _any_of(members: tuple[Any, ...]) -> Schema:
    # `SchedulerType | str` lets Python's callers write the value; the values are the same
    has_enum = any(isinstance(member, type) and issubclass(member, Enum) for member in members)
    parts = [_values(each) for each in members if each is not type(None) and not (has_enum and each is str)]
    if len(parts) > 1 and any("enum" in part for part in parts):
        merged: Schema = {"anyOf": parts}
    else:  # `items` says nothing about what is no list
        merged = {name: value for part in parts for name, value in part.items()}
        merged["type"] = [kind for part in parts for kind in _listed(part["type"])]
    return _or_null(merged) if type(None) in members else merged


def _or_null(schema: Schema) -> Schema:
    if "anyOf" in schema:
        return {"anyOf": [*schema["anyOf"], {"type": "null"}]}
    kinds = [kind for kind in _listed(schema["type"]) if kind != "null"]
    enum = {"enum": [*(value for value in schema["enum"] if value is not None), None]} if "enum" in schema else {}
    return {**schema, "type": [*kinds, "null"], **enum}


def _listed(kinds: str | list[str]) -> list[str]:
    return [kinds] if isinstance(kinds, str) else kinds
