"""The fields that our configs add to TRL's. Free of heavy imports, so that `online-sft online --help` is quick."""

from dataclasses import dataclass, field

__all__ = ["OnlineSFTOptions"]


@dataclass
class OnlineSFTOptions:
    """Fields of `OnlineSFTConfig` that `trl.GRPOConfig` does not have, or has with another default.

    Args:
        estimator: how the policy gradient is estimated, a key of `online_sft.estimators.ESTIMATORS`.
        baseline: what a reward is compared with, a key of `online_sft.baselines.BASELINES`.
        baseline_value: the constant of `baseline="constant"`, in reward units.
        beta: price of the KL divergence from the reference model, in reward units per nat. 0 loads no reference.
        scale_rewards: must be "none": Proposition 3 uses the rewards as they are.
    """

    estimator: str = field(
        default="prop3_stable",
        metadata={
            "help": "Gradient estimator: `prop3_stable` (no division), or `prop3`, the same gradient as "
            "the proposition writes it.",
            "choices": ["prop3", "prop3_stable"],
        },
    )
    baseline: str = field(
        default="leave_one_out",
        metadata={
            "help": "What a reward is compared with: `none`, `constant` (`baseline_value`), `leave_one_out` (mean of "
            "the other samples of the prompt) or `group_mean`. The first two allow num_generations=1.",
            "choices": ["none", "constant", "leave_one_out", "group_mean"],
        },
    )
    baseline_value: float = field(
        default=0.0, metadata={"help": "The constant of `baseline=constant`, in reward units."}
    )
    beta: float = field(
        default=0.0,
        metadata={
            "help": "Price of the KL divergence from the reference model, in reward units per nat. 0 loads no "
            "reference model."
        },
    )
    scale_rewards: str = field(
        default="none",
        metadata={"help": "Only `none`: dividing rewards by their spread would change the objective."},
    )
