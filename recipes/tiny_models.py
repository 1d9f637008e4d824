"""Tiny models of the architectures that the big recipes train, for their smoke versions: nothing is downloaded.

python -m recipes.tiny_models [runs/tiny]
"""

import argparse
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    GPTNeoXForSequenceClassification,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
)

PAD, EOS = "<|pad|>", "<|end|>"
CHAT_TEMPLATE = (
    "{% for message in messages %}<{{ message['role'] }}>{{ message['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
_SIZE = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m recipes.tiny_models", description=__doc__.splitlines()[0])
    parser.add_argument("folder", nargs="?", type=Path, default=Path("runs/tiny"), help="(default: %(default)s)")
    save_tiny_models(parser.parse_args(arguments).folder)


def save_tiny_models(folder: Path) -> None:
    """`qwen2_chat` (a policy with a chat template), `gpt_neox` (one without) and `gpt_neox_reward`."""
    plain, chat = build_byte_tokenizer(), build_byte_tokenizer(CHAT_TEMPLATE)
    tokens = {"vocab_size": len(plain), "pad_token_id": plain.pad_token_id, "eos_token_id": plain.eos_token_id}
    common = {**_SIZE, **tokens, "bos_token_id": None, "max_position_embeddings": 4096}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        _save(Qwen2ForCausalLM(Qwen2Config(**common, num_key_value_heads=2)), chat, folder / "qwen2_chat")
        _save(GPTNeoXForCausalLM(GPTNeoXConfig(**common)), plain, folder / "gpt_neox")
        reward_model = GPTNeoXForSequenceClassification(GPTNeoXConfig(**common, num_labels=1))
        _save(reward_model, plain, folder / "gpt_neox_reward")


def build_byte_tokenizer(chat_template: str | None = None) -> PreTrainedTokenizerFast:
    """One token per byte, so that it knows every text."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate([PAD, EOS, *alphabet])}
    bytes_only = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    bytes_only.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    bytes_only.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bytes_only, pad_token=PAD, eos_token=EOS, padding_side="left", model_max_length=4096
    )
    tokenizer.chat_template = chat_template
    return tokenizer


def _save(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


if __name__ == "__main__":
    main()
