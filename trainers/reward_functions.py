"""The reward functions of a run: names become functions, and the options that are rewards join them."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from online_sft.rewards import MathVerificationReward, OverlongPenalty, ReasoningGymReward
from online_sft.rewards.checked import RewardError
from trainers.checkpoints.choice import last_whole_checkpoint
from trainers.online_sft_config import OnlineSFTConfig

__all__ = ["named_rewards", "told_when", "with_overlong_penalty"]


def named_rewards(reward_funcs: Any, args: OnlineSFTConfig) -> list[Any]:
    """What the user passed, as a list, with the functions that `math` and `reasoning_gym` name.

    Raises:
        ValueError: for what is no function, and for options of the math reward without it.
    """
    passed = reward_funcs if isinstance(reward_funcs, list) else [reward_funcs] if reward_funcs is not None else []
    for reward in passed:
        if not (isinstance(reward, str) or callable(reward)) or isinstance(reward, type):
            raise ValueError(
                f"{reward!r} is no reward function; give one that takes (completions, **columns) and returns a list "
                "of numbers, the path of a reward model, or the name math or reasoning_gym"
            )
    if "math" not in passed and (args.correct_reward, args.incorrect_reward) != (1.0, -1.0):
        raise ValueError(
            f"correct_reward={args.correct_reward} and incorrect_reward={args.incorrect_reward} are for the reward "
            "function named 'math', which is not among reward_funcs; give your MathVerificationReward its own"
        )
    return [_named(reward, args) if isinstance(reward, str) else reward for reward in passed]


def with_overlong_penalty(reward_funcs: list[Any], args: OnlineSFTConfig) -> list[Any]:
    """The penalty at the end, if it is on; with `reward_weights` for the others its weight is 1."""
    if not args.apply_overlong_penalty:
        return reward_funcs
    if args.max_completion_length is None:
        raise ValueError("apply_overlong_penalty needs a max_completion_length; got None")
    buffer_length = args.overlong_buffer_length or max(args.max_completion_length // 5, 1)
    penalty = OverlongPenalty(args.max_completion_length, buffer_length, args.overlong_penalty_factor)
    if args.reward_weights is not None and len(args.reward_weights) == len(reward_funcs):
        args.reward_weights = [*args.reward_weights, 1.0]
    return [*reward_funcs, penalty]


@contextmanager
def told_when(trainer: Any) -> Iterator[None]:
    """The error of a reward function says in which step, and what is saved."""
    try:
        yield
    except RewardError as error:
        last = last_whole_checkpoint(trainer.args.output_dir)
        saved = f"{last} is saved: set resume_from_checkpoint=auto to go on from it" if last else "no step is saved yet"
        step = trainer.state.global_step + 1
        raise RewardError(f"{error}. This was step {step} of {trainer.state.max_steps}; {saved}") from error.__cause__


def _named(name: str, args: OnlineSFTConfig) -> Any:
    if name == "math":
        return MathVerificationReward(correct_reward=args.correct_reward, incorrect_reward=args.incorrect_reward)
    if name == "reasoning_gym":
        return ReasoningGymReward()
    return name  # the path of a reward model
