"""What an action is worth, from the rewards of its episode: the weights of behaviour cloning, or what they are made of.

(rewards [T], discount) -> [T], in reward units.
"""

from collections.abc import Callable, Sequence
from itertools import accumulate

__all__ = ["ACTION_VALUES", "per_step", "reward_to_go", "total"]

ActionValues = Callable[[Sequence[float], float], list[float]]


def total(rewards: Sequence[float], discount: float = 1.0) -> list[float]:
    """The episode's return, sum_k discount^k r_k, for each of its actions."""
    return [reward_to_go(rewards, discount)[0]] * len(rewards)


def reward_to_go(rewards: Sequence[float], discount: float = 1.0) -> list[float]:
    """sum_{k >= t} discount^(k - t) r_k: what an action cannot have caused does not count for it."""
    return list(accumulate(reversed(rewards), lambda later, reward: reward + discount * later))[::-1]


def per_step(rewards: Sequence[float], discount: float = 1.0) -> list[float]:
    """r_t: what the action itself earned."""
    return list(rewards)


ACTION_VALUES: dict[str, ActionValues] = {"per_step": per_step, "return": total, "reward_to_go": reward_to_go}
