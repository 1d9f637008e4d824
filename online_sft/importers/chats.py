"""What the chat formats share: messages that are well-formed, with text for content and a weight each."""

import json
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, TypeAlias

__all__ = ["Row", "as_weighted", "checked_messages", "checked_tools", "number"]

Row: TypeAlias = dict[str, Any]

# Who calls a message's weight what. A key of another format would be passed on, and mean nothing to the trainer.
_WEIGHT_KEYS = {"weight": "openai", "loss": "ms-swift", "loss_scale": "ms-swift"}
_NOT_READ = {
    **dict.fromkeys(("loss_mask", "trainable"), "which no format here has as a weight"),  # verl's pull request 5472
    **dict.fromkeys(("audio", "function_call", "refusal"), "which no chat template renders"),
}


def checked_messages(
    value: object, roles: Collection[str], *, column: str = "messages", weight_keys: Collection[str] = ()
) -> list[Row]:
    """Copies of the messages, without keys that are null, with text for content.

    Args:
        value: of the column.
        roles: that the format has.
        column: what to call it in an error.
        weight_keys: under which the format has weights.

    Raises:
        ValueError: for anything that is not a list of messages, or would be lost in a chat template.
    """
    if not isinstance(value, list):
        raise ValueError(f"{column} must be a list of messages; got {value!r:.80}")
    if not value:
        raise ValueError(f"{column} is empty")
    return [_checked(message, f"{column}[{index}]", roles, weight_keys) for index, message in enumerate(value)]


def _checked(message: object, where: str, roles: Collection[str], weight_keys: Collection[str]) -> Row:
    if not isinstance(message, Mapping):
        raise ValueError(f"{where} must be an object with a role and a content; got {message!r:.80}")
    given = {key: value for key, value in message.items() if value is not None}
    if given.get("role") not in roles:
        raise ValueError(f"{where} has role {given.get('role')!r:.80}; the roles are {', '.join(roles)}")
    for key, owner in _WEIGHT_KEYS.items():
        if key in given and key not in weight_keys:
            raise ValueError(f"{where} has `{key}`, a weight of {owner} ({given[key]!r:.80}): --from {owner} reads it")
    for key, reason in _NOT_READ.items():
        if key in given:
            raise ValueError(f"{where} has `{key}`, {reason}")
    calls = given.get("tool_calls", [])
    if not isinstance(calls, list) or not all(isinstance(call, Mapping) for call in calls):
        raise ValueError(f"{where} has the tool_calls {calls!r:.80}; they must be a list of objects")
    if "content" not in given and not ("tool_calls" in given and given["role"] == "assistant"):
        raise ValueError(f"{where} has no content")
    return {"role": given["role"], "content": "", **given} | {"content": _text(given.get("content", ""), where)}


def _text(content: object, where: str) -> str:
    """A content, or its text parts one after the other."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise ValueError(f"{where} has the content {content!r:.80}; it must be a text or a list of text parts")
    texts = [part.get("text") if isinstance(part, Mapping) else None for part in content]
    for part, text in zip(content, texts, strict=True):
        if not isinstance(text, str) or part.get("type") != "text":
            raise ValueError(f"{where} has the part {part!r:.80}; only parts of type text, with a text, can be read")
    return "".join(text for text in texts if text)


def as_weighted(messages: Sequence[Row], weight_of: Callable[[Row, str], float]) -> list[Row]:
    """Each message with a `weight` as its last key: the assistant's by `weight_of`, the others' 0.

    Args:
        weight_of: from a message of the assistant, and what to call it in an error.

    Raises:
        ValueError: when no message is the assistant's.
    """
    if not any(message["role"] == "assistant" for message in messages):
        raise ValueError("no message is the assistant's, so there is nothing to learn")
    weighted = []
    for index, message in enumerate(messages):
        weight = weight_of(message, f"messages[{index}]") if message["role"] == "assistant" else 0.0
        rest = {key: value for key, value in message.items() if key not in _WEIGHT_KEYS}
        weighted.append({**rest, "weight": weight})
    return weighted


def checked_tools(value: object) -> dict[str, str]:
    """{"tools": JSON text}, or nothing where there are none.

    As text, because a table would give each schema the keys of all the others; TRL reads it. A bare function is put
    into {"type": "function", "function": ...}, and tools that are JSON texts themselves are read.

    Raises:
        ValueError: for what is not a list of schemas.
    """
    tools = _parsed(value, "tools")
    if not tools:
        return {}
    if not isinstance(tools, list):
        raise ValueError(f"tools must be a list of function schemas; got {tools!r:.80}")
    parsed = [_parsed(tool, f"tools[{index}]") for index, tool in enumerate(tools)]
    for index, tool in enumerate(parsed):
        function = tool.get("function", tool) if isinstance(tool, dict) else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise ValueError(f"tools[{index}] must be a function schema with a name; got {tool!r:.80}")
    wrapped = [tool if "function" in tool else {"type": "function", "function": tool} for tool in parsed]
    return {"tools": json.dumps(wrapped, ensure_ascii=False)}


def _parsed(value: object, where: str) -> Any:
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except ValueError as error:
        raise ValueError(f"{where} is a text, but no JSON: {error}") from None


def number(value: object, where: str) -> float:
    """A number; true and false are 1 and 0.

    Raises:
        ValueError: for anything else.
    """
    if not isinstance(value, int | float):
        raise ValueError(f"{where} must be a number; got {value!r:.80}")
    return float(value)
