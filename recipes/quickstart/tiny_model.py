"""A real Qwen2 of 0.4 M parameters and a byte-pair tokenizer, both made here: nothing is downloaded."""

from collections.abc import Iterable

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

PAD, EOS = "<|pad|>", "<|end|>"


def build_tokenizer(texts: Iterable[str]) -> PreTrainedTokenizerFast:
    """Byte-pair tokenizer trained on `texts`: a digit is always a token of its own, text that recurs becomes one."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[0-9]"), behavior="isolated")
    tokenizer.decoder = decoders.Fuse()  # without one, tokens are joined by spaces
    tokenizer.train_from_iterator(texts, trainers.BpeTrainer(special_tokens=[PAD, EOS], show_progress=False))
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token=PAD, eos_token=EOS, padding_side="left")


def build_model(tokenizer: PreTrainedTokenizerFast, *, seed: int) -> Qwen2ForCausalLM:
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
