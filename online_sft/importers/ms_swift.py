"""Chats of ms-swift 4: `loss` (true or false) and `loss_scale` (a factor) on messages of the assistant.

row: {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yo", "loss_scale": 0.5}]}
or   {"system": "Be brief.", "history": [["Hi", "Yo"]], "query": "How are you?", "response": "Fine."}

https://swift.readthedocs.io/en/latest/Customization/Custom-dataset.html, and swift/dataset/preprocessor/core.py,
swift/loss_scale/base.py and swift/template/base.py of its version 4.6.0, whose `loss_scale` counts with
`--is_binary_loss_scale false`; else every scale above 0 is 1 there.
"""

import ast
import json
from collections.abc import Mapping, Sequence
from typing import Any

from online_sft.importers.chats import Row, as_weighted, checked_messages, checked_tools, number

__all__ = ["read_ms_swift"]

_ALIASES = {
    "human": "user",
    "gpt": "assistant",
    "bot": "assistant",
    "function_call": "tool_call",
    "function_response": "tool_response",
    "observation": "tool_response",
    "observations": "tool_response",
}
# ms-swift takes the other keys of messages away.
_KEYS = ("role", "content", "loss", "loss_scale", "name", "tool_calls", "tool_call_id")
_ROLES = ("system", "user", "assistant", "tool", "tool_call", "tool_response", *_ALIASES)


def read_ms_swift(row: Row) -> Row:
    """{"messages" with weights, "tools", "chat_template_kwargs"}.

    As in ms-swift, messages of one side that follow each other are one turn. Where their weights differ the row is
    refused, since a turn has one weight here.

    Raises:
        ValueError: for what the format does not have.
    """
    messages = row["messages"] if row.get("messages") is not None else _from_history(row)
    if isinstance(messages, list):
        messages = [_plain(message) if isinstance(message, Mapping) else message for message in messages]
    checked = checked_messages(messages, _ROLES, weight_keys=("loss", "loss_scale"))
    for index, message in enumerate(checked):
        message["role"] = _ALIASES.get(message["role"], message["role"])
        if message["role"] not in ("assistant", "tool_call") and (message.get("loss") or "loss_scale" in message):
            raise ValueError(f"messages[{index}] has a loss, but role {message['role']!r}; ms-swift would ignore it")
    turns = _turns(as_weighted([_with_openai_role(message, i) for i, message in enumerate(checked)], _weight))
    system = row.get("system")
    if not isinstance(system, str | None):
        raise ValueError(f"system must be a text; got {system!r:.80}")
    if system is not None and turns[0]["role"] != "system":
        turns.insert(0, {"role": "system", "content": system, "weight": 0.0})
    made = {"messages": turns, **checked_tools(row.get("tools"))}
    if row.get("chat_template_kwargs") is None:
        return made
    if not isinstance(row["chat_template_kwargs"], Mapping):
        raise ValueError(f"chat_template_kwargs must be an object; got {row['chat_template_kwargs']!r:.80}")
    return {**made, "chat_template_kwargs": row["chat_template_kwargs"]}


def _from_history(row: Row) -> list[Row]:
    """Of several responses ms-swift takes the first."""
    history = row.get("history") or []
    if isinstance(history, str):
        try:
            history = ast.literal_eval(history)
        except (SyntaxError, ValueError) as error:
            raise ValueError(f"history is a text, but no list: {error}") from None
    if not isinstance(history, list) or any(not isinstance(turn, list) or len(turn) != 2 for turn in history):
        raise ValueError(f"history must be a list of [query, response]; got {history!r:.80}")
    response = row.get("response")
    if isinstance(response, list):
        response = response[0] if response else None
    if not isinstance(response, str):
        raise ValueError(f"response must be a text; got {response!r:.80}")
    turns = [*history, [row.get("query"), response]]
    sides = [(role, text) for turn in turns for role, text in zip(("user", "assistant"), turn, strict=True)]
    return [{"role": role, "content": text} for role, text in sides if text is not None]


def _plain(message: Mapping[str, Any]) -> Row:
    """A message with the keys that are read. A tool call may be an object, or its JSON text."""
    kept = {key: value for key, value in message.items() if key in (*_KEYS, "weight")}
    if isinstance(kept.get("content"), Mapping):
        kept["content"] = json.dumps(kept["content"], ensure_ascii=False)
    return kept


def _weight(message: Row, where: str) -> float:
    """0 without loss; else the scale, 1 where it is left out. ms-swift trains on nothing of a scale below 0."""
    loss = message.get("loss", True)
    if loss not in (0, 1):
        raise ValueError(f"{where} has loss {loss!r:.80}; ms-swift reads true or false, and loss_scale for a number")
    scale = number(message.get("loss_scale", 1.0), f"loss_scale of {where}")
    if scale < 0:
        raise ValueError(f"{where} has loss_scale {scale}; ms-swift masks what is below 0, write 0 for that")
    return scale if loss else 0.0


def _with_openai_role(message: Row, index: int) -> Row:
    """A call of a tool as the assistant's message with `tool_calls`, and its result as one of the role tool."""
    if message["role"] == "tool_response":
        return {**message, "role": "tool"}
    if message["role"] != "tool_call":
        return message
    try:
        call = json.loads(message["content"])
    except ValueError as error:
        raise ValueError(f"messages[{index}] calls a tool, but its content is no JSON: {error}") from None
    if not isinstance(call, Mapping) or not isinstance(call.get("name"), str) or "arguments" not in call:
        raise ValueError(f"messages[{index}] calls a tool, but has no name and arguments: {message['content']:.80}")
    arguments = call["arguments"]
    text = arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
    tool_call = {"type": "function", "function": {"name": call["name"], "arguments": text}}
    return {**message, "role": "assistant", "content": "", "tool_calls": [tool_call]}


def _turns(messages: Sequence[Row]) -> list[Row]:
    """Messages of the user, and of the assistant, that follow each other become one."""
    turns: list[Row] = []
    for index, message in enumerate(messages):
        if not turns or message["role"] != turns[-1]["role"] or message["role"] not in ("user", "assistant"):
            turns.append(message)
            continue
        before = turns[-1]
        if before["weight"] != message["weight"]:
            raise ValueError(
                f"messages[{index}] continues the turn before it, with weight {message['weight']} after "
                f"{before['weight']}; a turn has one weight here: give both the same, or tokenise the rows yourself"
            )
        turns[-1] = _joined(before, message)
    return turns


def _joined(before: Row, message: Row) -> Row:
    if message["content"] and before.get("tool_calls"):
        raise ValueError("the assistant says something behind a tool call in one turn, which chat templates put before")
    calls: list[Any] = [*before.get("tool_calls", []), *message.get("tool_calls", [])]
    joined = {**before, **message, "content": before["content"] + message["content"]}
    return {**joined, "tool_calls": calls} if calls else joined
