"""The text of a completion, which TRL passes as a string or as a chat."""

from typing import Any

__all__ = ["Completion", "text_of"]

Completion = str | list[dict[str, Any]]


def text_of(messages: Completion, role: str = "assistant") -> str:
    """The text itself, or that of the last message of `role` in a chat; of a content in parts, its text parts."""
    if isinstance(messages, str):
        return messages
    contents = [message.get("content") for message in messages if message["role"] == role]
    content = contents[-1] if contents else ""
    if isinstance(content, str) or content is None:
        return content or ""
    return "".join(part.get("text", "") for part in content if part["type"] == "text")
