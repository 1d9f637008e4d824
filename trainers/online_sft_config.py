"""Configuration of `OnlineSFTTrainer`: TRL's GRPOConfig and the fields of `OnlineSFTOptions`."""

import dataclasses
import logging
import math
from dataclasses import dataclass

from trl import GRPOConfig

from online_sft.baselines import BASELINES, GROUP_BASELINES
from online_sft.estimators import ESTIMATORS
from online_sft.ledger import bias_ledger
from trainers.options import OnlineSFTOptions

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
    "vllm_importance_sampling_mode",
)
_SAMPLING = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")


class _GroupOfOne(int):
    """1, past GRPOConfig's check `num_generations < 2`: GRPO needs a group, Proposition 3 does not."""

    def __lt__(self, other: object) -> bool:
        return False


@dataclass
class OnlineSFTConfig(OnlineSFTOptions, GRPOConfig):
    """Every field of `trl.GRPOConfig` and of `OnlineSFTOptions`.

    Options that bias the gradient or change the objective are allowed and logged as warnings (`bias_ledger`); options
    that only GRPO's loss reads are refused.

    Raises:
        ValueError: for unknown estimators and baselines, a group baseline with `num_generations=1`, and options that
            would be ignored.
    """

    def __post_init__(self) -> None:
        named = {"estimator": ESTIMATORS, "baseline": BASELINES, "unscorable_if": ("any", "all")}
        for name, choices in named.items():
            if getattr(self, name) not in choices:
                raise ValueError(f"{name} must be one of {', '.join(sorted(choices))}; got {getattr(self, name)!r}")
        single = self.num_generations == 1
        if single:
            if self.baseline in GROUP_BASELINES:
                raise ValueError(
                    f"baseline={self.baseline} compares answers within a group, so num_generations must be at least 2; "
                    "got 1. Raise it, or use baseline=none or baseline=constant"
                )
            self.num_generations: int = _GroupOfOne(1)
        if self.response_length is not None:
            self.max_completion_length: int | None = self.response_length
        super().__post_init__()
        if single:
            self.num_generations = 1
        if self.total_episodes is not None:
            episodes_per_step = self.per_device_train_batch_size * self.gradient_accumulation_steps * self.world_size
            self.max_steps = math.ceil(self.total_episodes / episodes_per_step)
        self._refuse_options_without_effect()
        if self.process_index == 0:
            for bias in self.bias_ledger():
                logger.warning("bias: %s", bias)

    def bias_ledger(self) -> list[str]:
        """What this configuration optimises other than E[r] - beta KL, one sentence per option in force."""
        return bias_ledger(
            **{name: getattr(self, name) for name in _SAMPLING},
            other_sampling_options=self.generation_kwargs or (),
            updates_per_rollout=self.num_iterations * self.steps_per_generation / self.gradient_accumulation_steps,
            use_vllm=self.use_vllm,
            mask_truncated_completions=self.mask_truncated_completions,
            sync_ref_model=self.sync_ref_model,
            baseline=self.baseline,
            beta=self.beta,
        )

    def _refuse_options_without_effect(self) -> None:
        defaults = {field.name: field.default for field in dataclasses.fields(GRPOConfig)}
        for name in _OF_GRPOS_LOSS:
            if getattr(self, name) != defaults[name]:
                raise ValueError(
                    f"{name}={getattr(self, name)!r} belongs to GRPO's loss; online SFT would ignore it. Remove it"
                )
        if self.scale_rewards != "none":
            raise ValueError(
                f"scale_rewards={self.scale_rewards!r} would change the objective; the only supported value is 'none'"
            )
        if self.baseline_value != 0.0 and self.baseline != "constant":
            raise ValueError(
                f"baseline_value={self.baseline_value} is for baseline=constant; got baseline={self.baseline}"
            )
        for name in _SAMPLING:
            if name in (self.generation_kwargs or {}):
                raise ValueError(
                    f"generation_kwargs sets {name}, which would change the sampling but not the log-probs; "
                    f"set the field {name} instead"
                )
