"""The model of a run without its weights: every parameter has shape and dtype, and no memory (the meta device)."""

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification, PretrainedConfig

from trainers.dry_run.memory import Layers

__all__ = ["BlankModel", "blank_reward_model"]

# As of a model on several devices, which neither Trainer nor accelerate moves: there is nothing to move
_NOWHERE = {"embeddings": "meta", "head": "meta"}


@dataclass(frozen=True)
class BlankModel:
    """What a trainer would load; once it has added adapters or tokens, what it holds and trains."""

    model: Any  # a model of transformers, or of peft
    quantised: list[Tensor]  # parameters that bitsandbytes would hold in `bits` bits
    bits: int | None

    @classmethod
    def of(cls, path: str, init_kwargs: dict[str, Any], trust_remote_code: bool, bits: int | None) -> "BlankModel":
        """From the configuration alone, as TRL builds it.

        Args:
            path: folder or hub id.
            init_kwargs: of `from_pretrained`: `revision` and `dtype` matter.
            trust_remote_code: as in `from_pretrained`.
            bits: 4 or 8: of bitsandbytes.

        Raises:
            OSError: there is no configuration.
            ValueError: for a dtype that does not exist.
        """
        remote = {"revision": init_kwargs.get("revision") or "main", "trust_remote_code": trust_remote_code}
        config = AutoConfig.from_pretrained(path, **remote)
        architecture = getattr(transformers, (config.architectures or [""])[0], None)
        dtype = _dtype(init_kwargs.get("dtype", "float32"), config)
        with torch.device("meta"):
            if architecture is None:
                model = AutoModelForCausalLM.from_config(config, dtype=dtype, trust_remote_code=trust_remote_code)
            else:
                model = architecture._from_config(config, dtype=dtype)
        # a chat template may bring tokens, whose embeddings there is nothing to average for
        model.resize_token_embeddings = partial(model.resize_token_embeddings, mean_resizing=False)
        head = model.get_output_embeddings()
        matrices = [m.weight for m in model.modules() if isinstance(m, nn.Linear) and m is not head]
        model.hf_device_map = _NOWHERE
        return cls(model, matrices if bits else [], bits)

    @property
    def held(self) -> list[Tensor]:
        """All parameters, each once."""
        return list(self.model.parameters())

    @property
    def trained(self) -> list[Tensor]:
        """Those that have gradients."""
        return [each for each in self.model.parameters() if each.requires_grad]

    @property
    def trains_head(self) -> bool:
        """Whether the LM head is among them."""
        return self.model.get_output_embeddings().weight.requires_grad

    @property
    def context(self) -> int | None:
        """Tokens that the model can read, if its configuration says so."""
        return getattr(self.model.config.get_text_config(), "max_position_embeddings", None)

    @property
    def layers(self) -> Layers | None:
        """Its sizes; None where the configuration names them otherwise."""
        config = self.model.config.get_text_config()
        names = ("num_hidden_layers", "hidden_size", "num_attention_heads", "vocab_size")
        if any(getattr(config, name, None) is None for name in names):
            return None
        heads, hidden = config.num_attention_heads, config.hidden_size
        size = getattr(config, "head_dim", None) or hidden // heads
        return Layers(
            num_layers=config.num_hidden_layers,
            hidden=hidden,
            attention=heads * size,
            key_value=(getattr(config, "num_key_value_heads", None) or heads) * size,
            intermediate=getattr(config, "intermediate_size", None) or 4 * hidden,
            vocabulary=config.vocab_size,
        )


def blank_reward_model(path: str, init_kwargs: dict[str, Any], trust_remote_code: bool) -> nn.Module:
    """As `BlankModel`, of a reward model.

    Raises:
        OSError: there is no configuration.
    """
    config = AutoConfig.from_pretrained(path, trust_remote_code=trust_remote_code)
    with torch.device("meta"):
        model = AutoModelForSequenceClassification.from_config(
            config, dtype=_dtype(init_kwargs.get("dtype", "float32"), config), trust_remote_code=trust_remote_code
        )
    model.hf_device_map = _NOWHERE
    return model


def _dtype(dtype: Any, config: PretrainedConfig) -> torch.dtype:
    if dtype in ("auto", None):
        return config.dtype or torch.float32
    if dtype in ("bfloat16", "float16", "float32"):
        return getattr(torch, dtype)
    raise ValueError(f"dtype must be auto, bfloat16, float16 or float32; got {dtype!r}")
