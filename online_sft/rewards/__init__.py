"""Graders: completion in, number out. A reward says how good an answer is; a weight multiplies a token's loss."""

from online_sft.rewards.combined import CombinedReward
from online_sft.rewards.math_verification import MathVerificationReward
from online_sft.rewards.neural import NeuralRewardModel
from online_sft.rewards.overlong import OverlongPenalty
from online_sft.rewards.reasoning_gym import ReasoningGymReward
from online_sft.rewards.sandboxed import sandboxed

__all__ = [
    "CombinedReward",
    "MathVerificationReward",
    "NeuralRewardModel",
    "OverlongPenalty",
    "ReasoningGymReward",
    "sandboxed",
]
