"""Texts into tokens, as vLLM does it, and back."""

from collections.abc import Mapping, Sequence

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from trainers.inference_server.generation import Completion

__all__ = ["chat_text", "encode", "text_of"]


def encode(tokenizer: PreTrainedTokenizerBase, text: str, *, add_special_tokens: bool) -> tuple[int, ...]:
    """The token ids of a prompt."""
    return tuple(tokenizer.encode(text, add_special_tokens=add_special_tokens))


def chat_text(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[Mapping[str, object]], template_kwargs: Mapping[str, object]
) -> str:
    """The prompt of a chat, by the tokenizer's template, and up to where the assistant begins.

    Raises:
        ValueError: no template, one that refuses these messages, or content other than text.
    """
    flat = [{**message, "content": _as_text(message.get("content"))} for message in messages]
    try:
        # never tokenised by the template's own call: what that returns differs between versions of transformers
        return str(
            tokenizer.apply_chat_template(flat, **{"add_generation_prompt": True, **template_kwargs, "tokenize": False})
        )
    except (TemplateError, TypeError) as error:
        raise ValueError(f"the chat template cannot be applied: {error}") from error


def text_of(
    completion: Completion, tokenizer: PreTrainedTokenizerBase, *, skip_special_tokens: bool, include_end: bool
) -> str:
    """Of a completion's tokens; without the text or token that ended it, unless that is to be included."""
    tokens, end = completion.tokens, completion.ended_by
    if isinstance(end, int) and not include_end:
        tokens = tokens[:-1]
    text = str(tokenizer.decode(tokens, skip_special_tokens=skip_special_tokens))
    return text[: text.index(end) + len(end) * include_end] if isinstance(end, str) else text


def _as_text(content: object) -> str | None:
    """OpenAI's content: a text, none, or a list of parts of text."""
    if content is None or isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise ValueError(f"a message's content must be text; got {type(content).__name__}")
    for part in content:
        if not isinstance(part, dict) or not isinstance(part.get("text"), str):
            raise ValueError("a message's content must be text, or parts of the type `text`")
    return "\n".join(part["text"] for part in content)
