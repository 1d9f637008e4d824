"""The model that answers, and what a server has to know of it."""

from dataclasses import dataclass

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

__all__ = ["Policy"]


@dataclass(frozen=True)
class Policy:
    """A causal language model in eval mode, and its tokenizer.

    Built by `of` or `load`, which also take the sampling options out of the model's generation config: a server that
    is asked for temperature 1 shall not find a top_k there.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    eos_token_ids: frozenset[int]  # of the generation config and of the tokenizer, as in vLLM
    context_length: int  # tokens of prompt and completion
    vocab_size: int

    @classmethod
    def of(cls, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> "Policy":
        """From what is loaded.

        Raises:
            ValueError: the model's config does not tell how long its context is.
        """
        context_length = getattr(model.config.get_text_config(), "max_position_embeddings", None)
        if context_length is None:
            raise ValueError(f"the config of {model.config.name_or_path} tells no max_position_embeddings")
        found = model.generation_config.eos_token_id
        eos = {*(found if isinstance(found, list) else [found]), tokenizer.eos_token_id} - {None}
        model.generation_config = GenerationConfig()
        return cls(
            model=model.eval(),
            tokenizer=tokenizer,
            eos_token_ids=frozenset(eos),
            context_length=context_length,
            vocab_size=model.get_input_embeddings().weight.shape[0],
        )

    @classmethod
    def load(cls, path: str, *, dtype: str, device: str | None) -> "Policy":
        """From a folder or the hub; `device` None is the first GPU where there is one.

        Raises:
            OSError: nothing there to load.
            ValueError: not a causal language model.
        """
        device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        model = AutoModelForCausalLM.from_pretrained(path, dtype=getattr(torch, dtype))
        return cls.of(model.to(device), AutoTokenizer.from_pretrained(path))
