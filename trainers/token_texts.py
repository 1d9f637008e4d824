"""Tokens as texts that, joined, are the whole text."""

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

__all__ = ["token_texts"]

_UNKNOWN = "\ufffd"  # what a part of a character decodes to
_MOST = 8  # tokens that may share characters; then they are what they are
_SPACE = "\u2581"  # SentencePiece's


def token_texts(token_ids: Sequence[int], tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """The text of each token, special ones too. A character of several tokens is the text of the last of them."""
    texts: list[str] = []
    pending: list[int] = []
    told = 0  # characters of `pending` that are the texts of its tokens
    for token_id in token_ids:
        pending.append(token_id)
        text = _text(pending, tokenizer)
        whole = text.rstrip(_UNKNOWN)
        is_part = whole != text and len(pending) < _MOST and len(texts) + 1 < len(token_ids)
        texts.append(whole[told:] if is_part else text[told:])
        told = max(told, len(whole))
        if not is_part:
            pending, told = [], 0
    return texts


def _text(token_ids: list[int], tokenizer: PreTrainedTokenizerBase) -> str:
    """With the spaces before a word, which SentencePiece's decoder drops; ids where the vocabulary has no such."""
    pieces, text = tokenizer.convert_ids_to_tokens(token_ids), tokenizer.decode(token_ids)
    if None in pieces:
        return "".join(f"<{token_id}>" for token_id in token_ids)
    num_spaces = len(pieces[0]) - len(pieces[0].lstrip(_SPACE))
    return " " * max(num_spaces - (len(text) - len(text.lstrip(" "))), 0) + text
