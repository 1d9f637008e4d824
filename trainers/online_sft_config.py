"""Configuration of `OnlineSFTTrainer`: TRL's GRPOConfig, and fields of our own."""

import dataclasses
import logging
import math
from dataclasses import dataclass
from typing import Any

from trl import GRPOConfig

from online_sft.baselines import BASELINES, GROUP_BASELINES
from online_sft.estimators import ESTIMATORS
from online_sft.group_rewards import REWARD_SCALES
from online_sft.importance import IMPORTANCE_SAMPLING_MODES
from online_sft.ledger import Bias, bias_ledger
from online_sft.method import Method
from online_sft.proposition3 import Proposition3
from trainers.argument_checks import check_arguments
from trainers.checkpoints.options import CheckpointOptions
from trainers.engine.options import WeightSyncOptions
from trainers.options import OnlineSFTOptions
from trainers.recording.options import RecordOptions

__all__ = ["OnlineSFTConfig"]

logger = logging.getLogger(__name__)

# Options of GRPO's own loss. Proposition 3 has no use for them, and an option that is set and ignored is a surprise.
_OF_GRPOS_LOSS = (
    "delta",
    "entropy_coef",
    "entropy_coef_delta",
    "entropy_coef_max",
    "entropy_coef_min",
    "entropy_target",
    "epsilon",
    "epsilon_high",
    "importance_sampling_level",
    "loss_type",
    "multi_objective_aggregation",
    "off_policy_mask_threshold",
    "sapo_temperature_neg",
    "sapo_temperature_pos",
    "top_entropy_quantile",
    "use_adaptive_entropy",
    "use_bias_correction_kl",
    "vespo_k_neg",
    "vespo_k_pos",
    "vespo_lambda_neg",
    "vespo_lambda_pos",
    "vllm_importance_sampling_cap",
    "vllm_importance_sampling_clip_max",
    "vllm_importance_sampling_clip_min",
    "vllm_importance_sampling_correction",
    "vllm_importance_sampling_mode",
)
_INSTEAD = {
    "importance_sampling_level": "importance_sampling_mode",
    "vllm_importance_sampling_cap": "importance_sampling_clip_max",
    "vllm_importance_sampling_clip_max": "importance_sampling_clip_max",
    "vllm_importance_sampling_clip_min": "importance_sampling_clip_min",
    "vllm_importance_sampling_correction": "importance_sampling_mode",
    "vllm_importance_sampling_mode": "importance_sampling_mode",
}
_SAMPLING = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")
_CHOICES = {
    "estimator": tuple(ESTIMATORS),
    "baseline": tuple(BASELINES),
    "scale_rewards": tuple(REWARD_SCALES),
    "importance_sampling_mode": IMPORTANCE_SAMPLING_MODES,
    "unscorable_if": ("any", "all"),
}
_POSITIVE = (
    "temperature",
    "top_p",
    "repetition_penalty",
    "denom_eps",
    "clip_weight_value",
    "importance_sampling_clip_max",
    "overlong_buffer_length",
    "filter_groups_patience",
    "total_episodes",
    "response_length",
    "weight_sync_tolerance",
    "weight_sync_timeout",
)
_NOT_NEGATIVE = (
    "beta",
    "filter_groups_min_std",
    "max_filter_retries",
    "importance_sampling_clip_min",
    "weight_sync_probe_every",
    "vllm_server_reconnect_timeout",
)


class _GroupOfOne(int):
    """1, past GRPOConfig's check `num_generations < 2`: GRPO needs a group, Proposition 3 does not."""

    def __lt__(self, other: object) -> bool:
        return False


@dataclass
class OnlineSFTConfig(OnlineSFTOptions, WeightSyncOptions, CheckpointOptions, RecordOptions, GRPOConfig):
    """Every field of `trl.GRPOConfig`, and of the options of ours that are its bases.

    Options that bias the gradient or change the objective are allowed and logged as warnings (`bias_ledger`); options
    that only GRPO's loss reads are refused.

    Raises:
        ValueError: for values that cannot be, options that need another, and options that would be ignored.
    """

    def __post_init__(self) -> None:
        check_arguments(self, "num_generations", "max_completion_length", "num_iterations", "steps_per_generation")
        self._refuse_impossible_values()
        self.check_recording()
        self._resolve_response_length()
        single = self.num_generations == 1
        if single:
            self.num_generations = _GroupOfOne(1)
        super().__post_init__()
        if single:
            self.num_generations = 1
        self._refuse_options_without_effect()
        self._refuse_split_groups()
        self._resolve_total_episodes()
        if self.process_index == 0:
            for bias in self.bias_ledger():
                logger.warning("bias: %s", bias)

    @property
    def method(self) -> Method:
        """What is optimised, and how."""
        same = {field.name for field in dataclasses.fields(Proposition3)} | {*_SAMPLING, "mask_truncated_completions"}
        same |= {"baseline", "baseline_value", "num_generations", "scale_rewards", "use_vllm", "sync_ref_model"}
        same |= {"num_iterations", "use_transformers_continuous_batching", "disable_dropout"}
        values = {name: getattr(self, name) for name in same}
        values |= {"top_k": max(self.top_k or 0, 0), "min_p": self.min_p or 0.0}  # vLLM says -1 for "all tokens"
        return Method(
            **values,
            filter_groups_min_std=self.filter_groups_min_std if self.filter_groups_enable else None,
            other_sampling_options=tuple(self.generation_kwargs or ()),
            # TRL's own condition for samples that may be older than the policy
            stale_samples=self.gradient_accumulation_steps % (self.steps_per_generation * self.num_iterations) != 0,
        )

    def bias_ledger(self) -> list[Bias]:
        """What this configuration optimises other than E[r] - beta KL, one sentence per option in force."""
        return bias_ledger(self.method)

    def to_dict(self) -> dict[str, Any]:
        """The fields, and the ledger: trackers store this as the run's configuration."""
        return {**super().to_dict(), "bias_ledger": [str(bias) for bias in self.bias_ledger()]}

    def _refuse_impossible_values(self) -> None:
        if isinstance(self.scale_rewards, bool):  # as in TRL
            self.scale_rewards = "group" if self.scale_rewards else "none"
        for name, choices in _CHOICES.items():
            if getattr(self, name) not in choices:
                raise ValueError(f"{name} must be one of {', '.join(sorted(choices))}; got {getattr(self, name)!r}")
        for name in _POSITIVE:
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ValueError(f"{name} must be greater than 0; got {value}")
        for name in _NOT_NEGATIVE:
            value = getattr(self, name)
            if value is not None and not value >= 0:
                raise ValueError(f"{name} must be 0 or more; got {value}")
        if self.top_p > 1:
            raise ValueError(f"top_p is a share of the probability, at most 1; got {self.top_p}")
        if self.top_k is not None and self.top_k < -1:
            raise ValueError(f"top_k counts tokens; 0 or -1 takes all of them; got {self.top_k}")
        low, high = self.importance_sampling_clip_min, self.importance_sampling_clip_max
        if low is not None and high is not None and low >= high:
            raise ValueError(
                f"importance_sampling_clip_min={low} must be less than importance_sampling_clip_max={high}"
            )
        needs_a_group = {
            f"baseline={self.baseline}": self.baseline in GROUP_BASELINES,
            "scale_rewards=group": self.scale_rewards == "group",
            "filter_groups_enable": self.filter_groups_enable,
        }
        for option, is_on in needs_a_group.items():
            if is_on and self.num_generations == 1:
                raise ValueError(
                    f"{option} compares answers within a group, so num_generations must be at least 2; got 1. Raise "
                    "it, or use baseline=none, constant or running_mean, without groups"
                )

    def _refuse_options_without_effect(self) -> None:
        defaults = {field.name: field.default for field in dataclasses.fields(GRPOConfig)}
        for name in _OF_GRPOS_LOSS:
            if getattr(self, name) != defaults[name]:
                instead = f"Set {_INSTEAD[name]} instead" if name in _INSTEAD else "Remove it"
                raise ValueError(
                    f"{name}={getattr(self, name)!r} belongs to GRPO's loss; online SFT would ignore it. {instead}"
                )
        if self.baseline_value != 0.0 and self.baseline != "constant":
            raise ValueError(
                f"baseline_value={self.baseline_value} is for baseline=constant; got baseline={self.baseline}"
            )
        if self.clip_weight_value is not None and self.estimator != "prop3":
            raise ValueError(
                f"clip_weight_value={self.clip_weight_value} cuts the weight w = A/s, which estimator={self.estimator} "
                "does not compute; set estimator=prop3, or remove it"
            )
        for name in _SAMPLING:
            if name in (self.generation_kwargs or {}):
                raise ValueError(
                    f"generation_kwargs sets {name}, which would change the sampling but not the log-probs; "
                    f"set the field {name} instead"
                )

    def _refuse_split_groups(self) -> None:
        rows = self.per_device_train_batch_size * self.steps_per_generation
        if self.filter_groups_enable and rows % self.num_generations:
            raise ValueError(
                f"filter_groups_enable replaces whole groups on each process, so per_device_train_batch_size * "
                f"steps_per_generation ({rows}) must be a multiple of num_generations ({self.num_generations}); raise "
                "steps_per_generation and gradient_accumulation_steps"
            )

    def _resolve_response_length(self) -> None:
        if self.response_length is None:
            return
        (default,) = {f.default for f in dataclasses.fields(GRPOConfig) if f.name == "max_completion_length"}
        if self.max_completion_length not in (default, self.response_length):
            raise ValueError(
                f"response_length={self.response_length} and max_completion_length={self.max_completion_length} are "
                "two names of one limit; set one of them"
            )
        self.max_completion_length = self.response_length

    def _resolve_total_episodes(self) -> None:
        if self.total_episodes is None:
            return
        # each generation batch is used for `num_iterations` times its share of the steps
        per_step = self.per_device_train_batch_size * self.world_size * self.gradient_accumulation_steps
        steps = math.ceil(self.total_episodes * self.num_iterations / per_step)
        if self.max_steps not in (-1, steps):
            raise ValueError(
                f"total_episodes={self.total_episodes} is {steps} steps of {per_step} completions, and max_steps="
                f"{self.max_steps}; set one of them"
            )
        self.max_steps = steps
