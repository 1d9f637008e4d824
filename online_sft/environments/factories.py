"""Environments by name."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import gymnasium

__all__ = ["environment_factories"]


def environment_factories(environments: Sequence[Callable[[], Any] | str]) -> list[Callable[[], Any]]:
    """Functions that make environments, as they are; ids as such functions.

    Args:
        environments: ids of Gymnasium's registry, ours among them; `module:Id-v0` imports the module first.

    Raises:
        ValueError: for an id that Gymnasium does not know.
    """
    return [_factory(each) if isinstance(each, str) else each for each in environments]


def _factory(name: str) -> Callable[[], Any]:
    import online_sft.environments  # noqa: F401  registers ours

    try:
        gymnasium.spec(name)
    except (gymnasium.error.Error, ImportError) as error:
        ours = ", ".join(each for each in gymnasium.registry if each.startswith("online-sft/"))
        raise ValueError(f"no environment {name!r}: {error} Ours are {ours}; others are module:Id-v0") from error
    # its checker is for spaces of numbers, and an agent of text says what it likes
    return partial(gymnasium.make, name, disable_env_checker=True)
