"""Reward functions checked where they are called: what they need, and what they return."""

import functools
import inspect
import math
from collections.abc import Callable, Iterable, Mapping, Sequence, Sized
from typing import Any, Protocol, runtime_checkable

__all__ = ["RewardError", "RewardFunction", "check_dataset", "checked", "is_async", "name_of"]

RewardFunction = Callable[..., Any]  # returns Sequence[float | None], or a coroutine of one
# What TRL passes to every reward function beside the data set's columns.
_PASSED_BY_TRL = {
    "prompts",
    "completions",
    "completion_ids",
    "trainer_state",
    "log_extra",
    "log_metric",
    "environments",
}


class RewardError(ValueError):
    """A reward function returned what is no reward, or raised: then that is the cause."""


@runtime_checkable
class _ChecksData(Protocol):
    """A reward function that can tell which rows it will not be able to score."""

    def check_dataset(self, dataset: Mapping[str, Sequence[Any]]) -> list[str]: ...


def check_dataset(reward_function: RewardFunction, dataset: Mapping[str, Sequence[Any]]) -> list[str]:
    """One line per row of `dataset` (columns by name) that the function says it cannot score; empty columns are fine.

    Raises:
        ValueError: when the function needs a column that is not there.
    """
    name = getattr(reward_function, "__name__", repr(reward_function))
    missing = _missing_columns(reward_function, dataset)
    if not missing or "completion" in missing:
        _check_signature(reward_function, name)
    if missing:
        raise ValueError(
            f"reward function {name!r} needs the column {', '.join(missing)}; the dataset has {', '.join(dataset)}"
        )
    return reward_function.check_dataset(dataset) if isinstance(reward_function, _ChecksData) else []


def _check_signature(reward_function: RewardFunction, name: str) -> None:
    parameters = inspect.signature(reward_function).parameters.values()
    takes_all = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters)
    if not takes_all or any(parameter.name == "completion" for parameter in parameters):
        raise ValueError(
            f"reward function {name!r} has the parameters ({', '.join(map(str, parameters))}); it is called with "
            "completions and, by name, the columns of the data set and more: write (completions, **columns), and "
            "return a list with one number per completion"
        )


def _missing_columns(reward_function: RewardFunction, columns: Iterable[str]) -> list[str]:
    """Parameters without a default that neither TRL nor the data set's `columns` provide."""
    required = [
        name
        for name, parameter in inspect.signature(reward_function).parameters.items()
        if parameter.default is parameter.empty
        and parameter.kind not in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL)
    ]
    return [name for name in required if name not in _PASSED_BY_TRL and name not in set(columns)]


def checked(reward_function: RewardFunction, name: str) -> RewardFunction:
    """The same function, sync or async, that refuses to return too few, too many, NaN or infinite rewards.

    None, "this function cannot score this sample", is allowed. TRL turns None into NaN, so a NaN that a function
    computed by mistake would pass for it unseen.

    Raises (when called):
        RewardError: names the function, the completion and the value; or the function raised.
    """

    def check(rewards: Sequence[float | None], num_expected: int) -> Sequence[float | None]:
        if not isinstance(rewards, Sized) or isinstance(rewards, (str, Mapping)):
            raise RewardError(
                f"reward function {name!r} returned {rewards!r:.60}; it must return a list with one number per "
                "completion, None where it cannot score"
            )
        if len(rewards) != num_expected:
            raise RewardError(
                f"reward function {name!r} returned {len(rewards)} rewards for {num_expected} completions; "
                "it must return exactly one per completion, None where it cannot score"
            )
        for index, reward in enumerate(rewards):
            if reward is not None and not _is_finite(reward):
                raise RewardError(
                    f"reward function {name!r} returned {reward!r:.60} for completion {index} of {num_expected}; "
                    "return a finite number, or None where it cannot score"
                )
        return rewards

    def raised(error: Exception) -> RewardError:
        return RewardError(f"reward function {name!r} raised {type(error).__name__}: {error}")

    @functools.wraps(reward_function)
    def wrapper(completions: Sequence[Any], **kwargs: Any) -> Sequence[float | None]:
        try:
            rewards = reward_function(completions=completions, **kwargs)
        except Exception as error:  # a user's code may raise anything
            raise raised(error) from error
        return check(rewards, len(completions))

    @functools.wraps(reward_function)
    async def async_wrapper(completions: Sequence[Any], **kwargs: Any) -> Sequence[float | None]:
        try:
            rewards = await reward_function(completions=completions, **kwargs)
        except Exception as error:
            raise raised(error) from error
        return check(rewards, len(completions))

    chosen: RewardFunction = async_wrapper if is_async(reward_function) else wrapper
    chosen.__name__ = name
    return chosen


def _is_finite(reward: Any) -> bool:
    try:
        return math.isfinite(reward)
    except (TypeError, ValueError):  # a text; a row of a tensor
        return False


def name_of(reward_function: RewardFunction) -> str:
    """Its own name, or that of its class."""
    return getattr(reward_function, "__name__", type(reward_function).__name__)


def is_async(reward_function: RewardFunction) -> bool:
    """Whether calling it gives a coroutine; a callable object carries the `async` on its `__call__`."""
    return any(map(inspect.iscoroutinefunction, (reward_function, type(reward_function).__call__)))
