"""Texts into tokens, as vLLM does it, and back."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from trainers.inference_server.generation import Completion

__all__ = ["TextStyle", "chat_text", "encode", "text_of"]


@dataclass(frozen=True)
class TextStyle:
    """What of a completion's tokens its text shows."""

    skip_special_tokens: bool = True
    include_stop_str_in_output: bool = False  # the text or token that ended it


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


def text_of(completion: Completion, tokenizer: PreTrainedTokenizerBase, style: TextStyle) -> str:
    """Without what ended it, unless the style wants that."""
    tokens, end = completion.tokens, completion.ended_by
    if isinstance(end, int) and not style.include_stop_str_in_output:
        tokens = tokens[:-1]
    text = str(tokenizer.decode(tokens, skip_special_tokens=style.skip_special_tokens))
    if isinstance(end, str) and end in text:
        return text[: text.index(end) + len(end) * style.include_stop_str_in_output]
    return text


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
