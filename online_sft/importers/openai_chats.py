"""OpenAI's chats for supervised fine-tuning: a `weight` of 0 or 1 on messages of the assistant, 1 where it is left out.

row: {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yo", "weight": 0}], "tools": []}
https://developers.openai.com/api/docs/api-reference/fine-tuning/chat-input
"""

from online_sft.importers.chats import Row, as_weighted, checked_messages, checked_tools

__all__ = ["read_openai"]

_ROLES = ("system", "developer", "user", "assistant", "tool")


def read_openai(row: Row) -> Row:
    """{"messages" with weights, "tools"}. The role developer, which templates of open models do not know, is system.

    Raises:
        ValueError: for what the format does not have, and for its deprecated `functions`.
    """
    if row.get("functions"):
        raise ValueError("has `functions`, which OpenAI has replaced by `tools`; write them as tools")
    messages = checked_messages(row["messages"], _ROLES, weight_keys=("weight",))
    for index, message in enumerate(messages):
        if message["role"] != "assistant" and "weight" in message:
            raise ValueError(
                f"messages[{index}] has a weight, but role {message['role']!r}; only the assistant's has one"
            )
        if message["role"] == "developer":
            message["role"] = "system"
    return {"messages": as_weighted(messages, _weight), **checked_tools(row.get("tools"))}


def _weight(message: Row, where: str) -> float:
    weight = message.get("weight", 1)
    if isinstance(weight, bool) or weight not in (0, 1):
        raise ValueError(f"{where} has weight {weight!r:.80}; OpenAI's weights are 0 and 1")
    return float(weight)
