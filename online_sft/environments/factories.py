"""Environments by name."""

from collections.abc import Callable, Sequence
from functools import partial
from importlib import import_module
from typing import Any

import gymnasium

__all__ = ["environment_factories"]


def environment_factories(environments: Sequence[Callable[[], Any] | str]) -> list[Callable[[], Any]]:
    """Functions that make environments: those that are given, and those that ids stand for.

    Args:
        environments: ids of Gymnasium's registry, ours among them; `module:Id-v0` imports the module first.

    Raises:
        ValueError: for an id that Gymnasium does not know, what is neither, or nothing at all.
    """
    if isinstance(environments, str) or not environments:
        raise ValueError(f"environments is a list of functions or ids, with one at least; got {environments!r}")
    return [_factory(each) for each in environments]


def _factory(name: Callable[[], Any] | str) -> Callable[[], Any]:
    if callable(name):
        return name
    if not isinstance(name, str):
        raise ValueError(
            f"an environment is given as an id or as a function that makes one, such as its class; got a "
            f"{type(name).__name__}"
        )
    import online_sft.environments  # noqa: F401  registers ours

    module, _, name_there = name.rpartition(":")
    try:
        if module:
            import_module(module)
        gymnasium.spec(name_there)
    except (gymnasium.error.Error, ImportError) as error:
        ours = ", ".join(each for each in gymnasium.registry if each.startswith("online-sft/"))
        raise ValueError(f"no environment {name!r}: {error} Ours are {ours}; others are module:Id-v0") from error
    # its checker is for spaces of numbers, and an agent of text says what it likes
    return partial(gymnasium.make, name, disable_env_checker=True)
