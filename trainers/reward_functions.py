"""The reward functions of a run: names become functions, and the options that are rewards join them."""

from typing import Any

from online_sft.rewards import MathVerificationReward, OverlongPenalty, ReasoningGymReward
from trainers.online_sft_config import OnlineSFTConfig

__all__ = ["NAMED_REWARDS", "reward_functions"]

NAMED_REWARDS = ("math", "reasoning_gym")


def reward_functions(reward_funcs: Any, args: OnlineSFTConfig) -> list[Any]:
    """What the user passed, as a list, with `math` and `reasoning_gym` made, and the overlong penalty if it is on.

    With `reward_weights` for what the user passed, the penalty's weight is 1.

    Raises:
        ValueError: for options of a reward that is not there.
    """
    passed = reward_funcs if isinstance(reward_funcs, list) else [reward_funcs] if reward_funcs is not None else []
    if "math" not in passed and (args.correct_reward, args.incorrect_reward) != (1.0, -1.0):
        raise ValueError(
            f"correct_reward={args.correct_reward} and incorrect_reward={args.incorrect_reward} are for the reward "
            "function named 'math', which is not among reward_funcs; give your MathVerificationReward its own"
        )
    made = [_named(reward, args) if isinstance(reward, str) else reward for reward in passed]
    if args.apply_overlong_penalty:
        if args.max_completion_length is None:
            raise ValueError("apply_overlong_penalty needs a max_completion_length; got None")
        buffer_length = args.overlong_buffer_length or max(args.max_completion_length // 5, 1)
        made.append(OverlongPenalty(args.max_completion_length, buffer_length, args.overlong_penalty_factor))
        if args.reward_weights is not None and len(args.reward_weights) == len(passed):
            args.reward_weights = [*args.reward_weights, 1.0]
    return made


def _named(name: str, args: OnlineSFTConfig) -> Any:
    if name == "math":
        return MathVerificationReward(correct_reward=args.correct_reward, incorrect_reward=args.incorrect_reward)
    if name == "reasoning_gym":
        return ReasoningGymReward()
    return name  # the path of a reward model
