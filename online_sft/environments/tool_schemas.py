"""The JSON schema of a tool, from its signature and docstring, as chat templates show it."""

import inspect
import re
import types
from collections.abc import Callable
from typing import Any, Union, get_args, get_origin, get_type_hints

__all__ = ["tool_schema"]

_TYPES: dict[Any, dict[str, Any]] = {
    int: {"type": "integer"},
    float: {"type": "number"},
    str: {"type": "string"},
    bool: {"type": "boolean"},
    list: {"type": "array"},
    dict: {"type": "object"},
    type(None): {"type": "null"},
}
_SECTIONS = re.compile(r"^(Args|Returns|Raises):[ \t]*$", re.MULTILINE)
_ARGUMENT = re.compile(r"(\w+)(?: ?\([^)]*\))?:[ ]*(.*)", re.DOTALL)


def tool_schema(tool: Callable[..., Any]) -> dict[str, Any]:
    """What `transformers.utils.get_json_schema` returns, for tools whose arguments are annotated with plain types.

    These are `int`, `float`, `str`, `bool`, `list`, `dict`, `list[...]`, `dict[str, ...]`, and each of them `| None`.

    Args:
        tool: a function or a bound method with a docstring in Google's style.

    Raises:
        ValueError: for a missing docstring, description or annotation, or one of another type.
    """
    name = tool.__name__
    sections = _sections(inspect.getdoc(tool) or "")
    if not sections[""]:
        raise ValueError(f"the tool {name!r} has no docstring, from which a model could learn what it does")
    described = _described_arguments(sections.get("Args", ""))
    hints = get_type_hints(tool)
    properties: dict[str, Any] = {}
    required: list[str] = []
    for argument, parameter in inspect.signature(tool).parameters.items():
        if argument not in hints or argument not in described:
            what = "annotation" if argument not in hints else "description under `Args:`"
            raise ValueError(f"the argument {argument!r} of the tool {name!r} has no {what}")
        properties[argument] = _type(hints[argument], name) | {"description": described[argument]}
        if parameter.default is parameter.empty:
            required.append(argument)
    parameters: dict[str, Any] = {"type": "object", "properties": properties} | (
        {"required": required} if required else {}
    )
    function: dict[str, Any] = {"name": name, "description": sections[""], "parameters": parameters}
    if "return" in hints:
        function["return"] = _type(hints["return"], name)
        if "Returns" in sections:
            function["return"]["description"] = sections["Returns"]
    return {"type": "function", "function": function}


def _sections(docstring: str) -> dict[str, str]:
    """The text by section; what stands before the first one has the name ""."""
    parts = _SECTIONS.split(docstring)
    return {name: text.strip() for name, text in zip(["", *parts[1::2]], parts[::2], strict=True)}


def _described_arguments(section: str) -> dict[str, str]:
    """The description by argument; a line that is indented deeper continues the one before."""
    entries: list[str] = []
    lines = inspect.cleandoc(section).splitlines()
    for line in lines:
        if line[:1].isspace() and entries:
            entries[-1] += f" {line.strip()}"
        else:
            entries.append(line)
    return {match[1]: match[2].strip() for match in map(_ARGUMENT.fullmatch, entries) if match}


def _type(hint: Any, tool: str) -> dict[str, Any]:
    if hint in _TYPES:
        return dict(_TYPES[hint])
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType) and len(arguments) == 2 and type(None) in arguments:
        (kind,) = (each for each in arguments if each is not type(None))
        return _type(kind, tool) | {"nullable": True}
    if origin is list:
        return {"type": "array", "items": _type(arguments[0], tool)}
    if origin is dict:
        return {"type": "object", "additionalProperties": _type(arguments[1], tool)}
    raise ValueError(
        f"the tool {tool!r} is annotated with {hint!r}; use int, float, str, bool, list, dict or `| None`, or pass the "
        "schemas yourself, like tools=[transformers.utils.get_json_schema(tool), ...]"
    )
