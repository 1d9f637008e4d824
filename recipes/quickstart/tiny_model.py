"""A real Qwen2 of 0.4 M parameters and its tokenizer, both made here: nothing is downloaded."""

from collections.abc import Sequence

import torch
from transformers import Qwen2Config, Qwen2ForCausalLM, Qwen2Tokenizer

PAD, EOS = "<|pad|>", "<|end|>"


def build_tokenizer(phrases: Sequence[str]) -> Qwen2Tokenizer:
    """Qwen2's tokenizer with a tiny vocabulary: the digits, the minus sign, and each of `phrases` as one token."""
    tokenizer = Qwen2Tokenizer(
        vocab={token: index for index, token in enumerate([PAD, EOS, *"0123456789-"])},
        merges=[],
        unk_token=PAD,
        pad_token=PAD,
        eos_token=EOS,
        padding_side="left",
    )
    tokenizer.add_tokens(list(phrases))
    return tokenizer


def build_model(tokenizer: Qwen2Tokenizer, *, seed: int) -> Qwen2ForCausalLM:
    """Two layers, 128 wide, random weights drawn with `seed`."""
    config = Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=128,
        tie_word_embeddings=True,
        initializer_range=0.04,  # at Qwen2's 0.02 so narrow a model learns the sums markedly later
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return Qwen2ForCausalLM(config)
