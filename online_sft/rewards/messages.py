"""The text of a completion, which TRL passes as a string or as a chat."""

from typing import Any

__all__ = ["Completion", "text_of"]

Completion = str | list[dict[str, Any]]


def text_of(messages: Completion, role: str = "assistant") -> str:
    """The text itself, or that of the last message of `role` in a chat; of a content in parts, its text parts.

    Raises:
        ValueError: for what is neither a string nor a list of messages.
    """
    if isinstance(messages, str):
        return messages
    if not isinstance(messages, (list, tuple)):
        raise ValueError(f"a completion must be a string or a list of messages; got {messages!r:.80}")
    contents = [message.get("content") for message in messages if message.get("role") == role]
    content = contents[-1] if contents else ""
    if not isinstance(content, list):
        return content or ""
    return "".join(part.get("text") or "" for part in content if part.get("type") == "text")
