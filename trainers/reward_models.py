"""Reward models among the `reward_funcs` of a trainer: what TRL takes becomes a `NeuralRewardModel` on its device."""

from dataclasses import replace
from functools import partial
from typing import Any

from torch import nn
from transformers import AutoModelForSequenceClassification, AutoTokenizer
from trl.models import prepare_deepspeed
from trl.trainer.utils import get_config_model_id

from online_sft.rewards import CombinedReward, NeuralRewardModel
from trainers.model_files import check_model, check_weights
from trainers.online_sft_config import OnlineSFTConfig

__all__ = ["placed_reward_models", "with_reward_models"]


def with_reward_models(functions: list[Any], args: OnlineSFTConfig, processing_classes: Any) -> list[Any]:
    """The list with each path, hub id and module as a `NeuralRewardModel`; others as they are.

    processing_classes: a tokenizer, or one for each function; None is the one saved with the model.
    Paths are loaded with `args.model_init_kwargs`, as in TRL, but for `revision`, which is the policy's.

    Raises:
        ValueError: for a path without a trained score head, a model whose tokenizer cannot be found, processing classes
            of another number than functions, and `reward_*` options that no model would read.
    """
    tokenizers = processing_classes
    if not isinstance(tokenizers, list):
        tokenizers = [tokenizers] * (len(functions) if tokenizers is None else 1)
    if len(tokenizers) != len(functions):
        raise ValueError(
            f"there are {len(tokenizers)} reward_processing_classes for {len(functions)} reward_funcs; give one for "
            "each, None for a function"
        )
    converted = [_converted(*pair, args=args) for pair in zip(functions, tokenizers, strict=True)]
    if converted == functions and (args.reward_use_sigmoid or args.reward_max_length is not None):
        raise ValueError(
            "reward_use_sigmoid and reward_max_length are for reward models given as a path or a module, and "
            "reward_funcs has none; a NeuralRewardModel has arguments of its own"
        )
    return converted


def placed_reward_models(trainer: Any) -> list[Any]:
    """The trainer's `reward_funcs` with reward models, those in a `CombinedReward` too, prepared as TRL does it."""
    accelerator = trainer.accelerator
    prepare = partial(accelerator.prepare_model, evaluation_mode=True, device_placement=True)  # placement: for FSDP
    if trainer.is_deepspeed_enabled:
        prepare = partial(prepare_deepspeed, accelerator=accelerator)
    return [_placed(function, prepare, accelerator.device, trainer.eos_token_ids) for function in trainer.reward_funcs]


def _placed(function: Any, *place: Any) -> Any:
    if isinstance(function, CombinedReward):
        weights = {_placed(part, *place): weight for part, weight in function.weights.items()}
        return replace(function, weights=weights, gates=[_placed(gate, *place) for gate in function.gates])
    return function.placed(*place) if isinstance(function, NeuralRewardModel) else function


def _converted(function: Any, tokenizer: Any, args: OnlineSFTConfig) -> Any:
    if not isinstance(function, (str, nn.Module)):
        return function
    model = _loaded(function, args) if isinstance(function, str) else function
    if tokenizer is None:
        source = get_config_model_id(model.config)
        if not source:
            raise ValueError(
                f"the reward model {type(model).__name__} was built in memory and has no tokenizer; pass it in "
                "reward_processing_classes"
            )
        tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=args.trust_remote_code)
    return NeuralRewardModel(model, tokenizer, args.reward_use_sigmoid, args.reward_max_length)


def _loaded(path: str, args: OnlineSFTConfig) -> nn.Module:
    options = {"trust_remote_code": args.trust_remote_code, **(args.model_init_kwargs or {})}
    options.pop("revision", None)
    check_model(path, "reward function or model", trust_remote_code=args.trust_remote_code)
    check_weights(path)
    if args.distributed_state.distributed_type in ("MULTI_GPU", "DEEPSPEED"):
        options["device_map"] = None  # each process has the whole model
    model, report = AutoModelForSequenceClassification.from_pretrained(path, **options, output_loading_info=True)
    if report["missing_keys"]:
        raise ValueError(
            f"{path!r} is not a trained reward model: {', '.join(sorted(report['missing_keys']))} would be random"
        )
    return model
