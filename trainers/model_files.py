"""The files of a model, looked at before it is loaded: what is missing, broken, or another kind of model."""

import os
from pathlib import Path
from typing import Any

import transformers
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError, safe_open
from transformers import AutoConfig

__all__ = ["check_model", "check_policy", "check_weights", "vocabulary_size_of"]

_TOKENIZERS = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json", "vocab.txt", "tekken.json")


def check_policy(path: str, args: Any, *, needs_tokenizer: bool) -> Any:
    """The config of a model that is to be trained, which must be a causal language model.

    Args:
        path: a folder or a hub id.
        args: with TRL's `model_init_kwargs`, for the revision, and `trust_remote_code`.
        needs_tokenizer: the folder must hold one, because none is given.

    Raises:
        ValueError
    """
    kwargs = args.model_init_kwargs or {}
    remote = {name: kwargs[name] for name in ("revision", "trust_remote_code") if name in kwargs}
    config = check_model(path, "model", **{"trust_remote_code": args.trust_remote_code, **remote})
    if needs_tokenizer and os.path.isdir(path) and not any(Path(path, name).exists() for name in _TOKENIZERS):
        raise ValueError(
            f"the folder {path!r} has no tokenizer ({_TOKENIZERS[0]}); save the model's there with "
            "tokenizer.save_pretrained"
        )
    if not config.architectures:
        raise ValueError(
            f"config.json of the model {path!r} names no `architectures`; save the model with save_pretrained"
        )
    architecture = config.architectures[0]
    model_class = getattr(transformers, architecture, None)  # not of remote code
    if config.is_encoder_decoder or (model_class is not None and not model_class.can_generate()):
        raise ValueError(
            f"the model {path!r} is a {architecture}, which does not continue a text; give a causal language model, "
            "whose architecture ends in ForCausalLM"
        )
    return config


def vocabulary_size_of(model: Any, args: Any, *, needs_tokenizer: bool) -> int:
    """Of a model, or of the one in a folder or on the hub, which is checked (`check_policy`)."""
    if isinstance(model, str):
        check_weights(model)
        config = check_policy(model, args, needs_tokenizer=needs_tokenizer)
    else:
        config = model.config
    return config.get_text_config().vocab_size


def check_weights(path: str) -> None:
    """Refuses a folder in which a file of weights is not whole.

    Raises:
        ValueError: names the file.
    """
    for file in Path(path).glob("*.safetensors"):
        try:
            with safe_open(file, framework="pt"):
                pass  # its header says how long the file has to be
        except SafetensorError as error:
            raise ValueError(f"{file} is broken ({error}); copy or download it again") from error


def check_model(path: str, what: str, **remote: Any) -> Any:
    """The config of a model in a folder or on the hub.

    Args:
        what: it is called in messages.
        remote: options of `from_pretrained`.

    Raises:
        ValueError: there is none, or it is no config.
    """
    named, is_folder = f"the {what} {path!r}", os.path.isdir(path)
    if os.path.isfile(path):
        raise ValueError(f"{named} is a file; give the folder with config.json that save_pretrained writes")
    if is_folder and not Path(path, "config.json").exists():
        if Path(path, "adapter_config.json").exists():
            raise ValueError(
                f"{named} is an adapter without its base model; merge them (a run with save_merged_model=True writes "
                "OUTPUT_DIR/merged, or PEFT's merge_and_unload) and give the merged folder"
            )
        raise ValueError(f"{named} has no config.json; give a folder that save_pretrained has written")
    if not is_folder and path.startswith((".", "/", "~")):
        raise ValueError(f"{named} is no folder, seen from {os.getcwd()}; check the path, or give a hub id OWNER/NAME")
    try:
        return AutoConfig.from_pretrained(path, **remote)
    except (OSError, ValueError, StrictDataclassError) as error:
        way_out = "correct its config.json" if is_folder else "check the name, give a folder, or go online to fetch it"
        raise ValueError(f"{named} cannot be loaded; {way_out}: {error}") from error
