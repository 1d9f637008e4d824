"""online-sft: weighted SFT and online SFT for Hugging Face TRL.

Importing this package loads neither torch nor transformers; names are imported when they are first used.
"""

import importlib
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from online_sft.atropos import AtroposBatchProcessor
    from online_sft.baselines import BASELINES
    from online_sft.denominators import DENOMINATORS
    from online_sft.estimators import ESTIMATORS, prop3, prop3_stable
    from online_sft.evaluation import pass_at_k
    from online_sft.fused_cross_entropy import LogitTransform, weighted_linear_cross_entropy
    from online_sft.interface import WeightedSFTInterface
    from online_sft.ledger import bias_ledger
    from online_sft.losses import token_log_probs, weighted_log_probs, weighted_nll, weighted_nll_from_logits
    from online_sft.method import Method
    from online_sft.normalisation import normalise
    from online_sft.patterns import PATTERNS, pattern_dataset
    from online_sft.proposition3 import Proposition3
    from online_sft.rewards import (
        CombinedReward,
        MathVerificationReward,
        NeuralRewardModel,
        OverlongPenalty,
        ReasoningGymReward,
        sandboxed,
    )
    from online_sft.tasks import prepare_dataset
    from online_sft.trajectories.dataset import TrajectoryDataset
    from online_sft.trajectories.losses import (
        compute_behavioral_cloning_loss,
        compute_combined_sft_loss,
        compute_next_state_loss,
    )
    from online_sft.trajectories.trajectory import Trajectory
    from online_sft.verification import verify
    from online_sft.weightings import WEIGHTINGS, effective_sample_size, fit_temperature
    from trainers.atropos.environment import WeightedSFTEnvironment
    from trainers.atropos.policy_sync import PolicySyncError
    from trainers.engine.faults import ServerLostError
    from trainers.engine.weight_sync import WeightSyncError
    from trainers.evaluation import SampledEvaluationCallback
    from trainers.online_sft_config import OnlineSFTConfig
    from trainers.online_sft_trainer import OnlineSFTTrainer
    from trainers.trajectories.evaluation import EnvironmentEvaluationCallback
    from trainers.trajectory_sft_config import TrajectorySFTConfig
    from trainers.trajectory_sft_trainer import TrajectorySFTTrainer
    from trainers.weighted_sft_config import WeightedSFTConfig
    from trainers.weighted_sft_trainer import WeightedSFTTrainer

__version__ = "0.1.0.dev0"

_HOME_OF = {
    "BASELINES": "online_sft.baselines",
    "DENOMINATORS": "online_sft.denominators",
    "ESTIMATORS": "online_sft.estimators",
    "PATTERNS": "online_sft.patterns",
    "WEIGHTINGS": "online_sft.weightings",
    "AtroposBatchProcessor": "online_sft.atropos",
    "CombinedReward": "online_sft.rewards",
    "EnvironmentEvaluationCallback": "trainers.trajectories.evaluation",
    "LogitTransform": "online_sft.fused_cross_entropy",
    "MathVerificationReward": "online_sft.rewards",
    "Method": "online_sft.method",
    "NeuralRewardModel": "online_sft.rewards",
    "OnlineSFTConfig": "trainers.online_sft_config",
    "OnlineSFTTrainer": "trainers.online_sft_trainer",
    "OverlongPenalty": "online_sft.rewards",
    "PolicySyncError": "trainers.atropos.policy_sync",
    "Proposition3": "online_sft.proposition3",
    "ReasoningGymReward": "online_sft.rewards",
    "SampledEvaluationCallback": "trainers.evaluation",
    "ServerLostError": "trainers.engine.faults",
    "Trajectory": "online_sft.trajectories.trajectory",
    "TrajectoryDataset": "online_sft.trajectories.dataset",
    "TrajectorySFTConfig": "trainers.trajectory_sft_config",
    "TrajectorySFTTrainer": "trainers.trajectory_sft_trainer",
    "WeightSyncError": "trainers.engine.weight_sync",
    "WeightedSFTConfig": "trainers.weighted_sft_config",
    "WeightedSFTEnvironment": "trainers.atropos.environment",
    "WeightedSFTInterface": "online_sft.interface",
    "WeightedSFTTrainer": "trainers.weighted_sft_trainer",
    "bias_ledger": "online_sft.ledger",
    "compute_behavioral_cloning_loss": "online_sft.trajectories.losses",
    "compute_combined_sft_loss": "online_sft.trajectories.losses",
    "compute_next_state_loss": "online_sft.trajectories.losses",
    "effective_sample_size": "online_sft.weightings",
    "fit_temperature": "online_sft.weightings",
    "normalise": "online_sft.normalisation",
    "pass_at_k": "online_sft.evaluation",
    "pattern_dataset": "online_sft.patterns",
    "prepare_dataset": "online_sft.tasks",
    "prop3": "online_sft.estimators",
    "prop3_stable": "online_sft.estimators",
    "sandboxed": "online_sft.rewards",
    "token_log_probs": "online_sft.losses",
    "verify": "online_sft.verification",
    "weighted_linear_cross_entropy": "online_sft.fused_cross_entropy",
    "weighted_log_probs": "online_sft.losses",
    "weighted_nll": "online_sft.losses",
    "weighted_nll_from_logits": "online_sft.losses",
}

__all__ = [
    "BASELINES",
    "DENOMINATORS",
    "ESTIMATORS",
    "PATTERNS",
    "WEIGHTINGS",
    "AtroposBatchProcessor",
    "CombinedReward",
    "EnvironmentEvaluationCallback",
    "LogitTransform",
    "MathVerificationReward",
    "Method",
    "NeuralRewardModel",
    "OnlineSFTConfig",
    "OnlineSFTTrainer",
    "OverlongPenalty",
    "PolicySyncError",
    "Proposition3",
    "ReasoningGymReward",
    "SampledEvaluationCallback",
    "ServerLostError",
    "Trajectory",
    "TrajectoryDataset",
    "TrajectorySFTConfig",
    "TrajectorySFTTrainer",
    "WeightSyncError",
    "WeightedSFTConfig",
    "WeightedSFTEnvironment",
    "WeightedSFTInterface",
    "WeightedSFTTrainer",
    "bias_ledger",
    "compute_behavioral_cloning_loss",
    "compute_combined_sft_loss",
    "compute_next_state_loss",
    "effective_sample_size",
    "fit_temperature",
    "normalise",
    "pass_at_k",
    "pattern_dataset",
    "prepare_dataset",
    "prop3",
    "prop3_stable",
    "sandboxed",
    "token_log_probs",
    "verify",
    "weighted_linear_cross_entropy",
    "weighted_log_probs",
    "weighted_nll",
    "weighted_nll_from_logits",
]


def __getattr__(name: str) -> object:
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if _HOME_OF[name].startswith("trainers."):
        _own_trainers()
    value = getattr(importlib.import_module(_HOME_OF[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(__all__))


def _own_trainers() -> ModuleType:
    """`trainers` is a common folder name: one in the current directory would shadow ours under `python script.py`."""
    trainers = importlib.import_module("trainers")
    ours = Path(__file__).resolve().parent.parent / "trainers"
    found = [Path(place).resolve() for place in getattr(trainers, "__path__", [trainers.__file__])]
    if ours not in found:
        raise ImportError(
            f"online_sft needs its own `trainers` package in {ours}, but Python found another one in {found[0]}. "
            "Run from another directory, or use the `online-sft` command, which does not look there."
        )
    return trainers
