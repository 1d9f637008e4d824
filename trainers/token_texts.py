"""Tokens as texts that, joined, are the whole text."""

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

__all__ = ["token_texts"]

_UNKNOWN = "\ufffd"  # what a part of a character decodes to
_LONGEST = 4  # bytes of a character in UTF-8


def token_texts(token_ids: Sequence[int], tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """The text of each token, special ones too. A character of several tokens is the text of the last of them."""
    texts: list[str] = []
    pending: list[int] = []
    for token_id in token_ids:
        pending.append(token_id)
        text = _text(pending, tokenizer)
        is_part = _UNKNOWN in text and len(pending) < _LONGEST and len(texts) + 1 < len(token_ids)
        texts.append("" if is_part else text)
        if not is_part:
            pending = []
    return texts


def _text(token_ids: list[int], tokenizer: PreTrainedTokenizerBase) -> str:
    """With the space before a word, which SentencePiece's decoder drops; ids where the vocabulary has no such."""
    pieces, text = tokenizer.convert_ids_to_tokens(token_ids), tokenizer.decode(token_ids)
    if None in pieces:
        return "".join(f"<{token_id}>" for token_id in token_ids)
    return f" {text}" if pieces[0].startswith("\u2581") and not text.startswith(" ") else text
