"""Graders: completion in, number out. A reward says how good an answer is; a weight multiplies a token's loss."""

from online_sft.rewards.math_verification import MathVerificationReward

__all__ = ["MathVerificationReward"]
