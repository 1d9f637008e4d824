"""Any reward function with a deadline and a memory limit."""

import inspect
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

from online_sft.rewards.checked import check_dataset, is_async, name_of
from online_sft.rewards.killable import Failure, KillableWorkers

__all__ = ["SandboxedReward", "sandboxed"]

# What TRL passes that belongs to the trainer's process.
_STAY_HERE = frozenset({"log_extra", "log_metric", "environments"})


def sandboxed(
    reward_function: Callable[..., Any],
    *,
    timeout_s: float = 3.0,
    memory_gib: float = 2.0,
    failed: float | None = None,
) -> "SandboxedReward":
    """`reward_function` in processes that are killed when it hangs, and cannot take the trainer down.

    It is called with one completion at a time, so that one which hangs costs no other its reward; of the columns, it
    gets those that it names, or all if it takes `**columns`. An exception that it raises is raised here, too.

    Args:
        reward_function: in TRL's signature, synchronous.
        timeout_s: wall clock for one completion.
        memory_gib: limit on the address space of one process. torch alone takes several GiB of it.
        failed: the reward where time or memory ran out; None makes the sample unscorable.

    Raises:
        ValueError: when it is asynchronous, asks for something of the trainer's process (`log_metric`, `log_extra`,
            `environments`), or cannot be sent to another process.
    """
    name = name_of(reward_function)
    if is_async(reward_function):
        raise ValueError(f"reward function {name!r} is asynchronous and waits without holding up others; pass it as is")
    asked = _STAY_HERE & set(inspect.signature(reward_function).parameters)
    if asked:
        raise ValueError(
            f"reward function {name!r} takes {', '.join(sorted(asked))}, which cannot leave the trainer's process; "
            "remove it, or do not sandbox the function"
        )
    reward = SandboxedReward(reward_function, name, timeout_s, memory_gib, failed)
    assert reward._workers  # made now, so that a function that cannot be sent is refused before training
    return reward


@dataclass(frozen=True, eq=False)
class SandboxedReward:
    """What `sandboxed` returns; picklable if the function is."""

    reward_function: Callable[..., Any]
    name: str
    timeout_s: float
    memory_gib: float
    failed: float | None

    @property
    def __name__(self) -> str:  # TRL names the metric `rewards/<__name__>`
        return self.name

    def __call__(
        self, completions: Sequence[Any], log_metric: Callable[[str, float], None] | None = None, **columns: Any
    ) -> list[float | None]:
        """One reward per completion. Logs the shares of `timed_out` and `exhausted`."""
        columns = {"completions": completions} | {
            name: value for name, value in columns.items() if name not in _STAY_HERE and self._takes(name)
        }
        results = self._workers.run((_row(columns, index, len(completions)),) for index in range(len(completions)))
        failures = Counter(result.reason for result in results if isinstance(result, Failure))
        if log_metric:
            for reason in ("timed_out", "exhausted"):
                log_metric(f"{self.name}/{reason}", failures[reason] / len(completions))
        return [self.failed if isinstance(result, Failure) else result for result in results]

    def check_dataset(self, dataset: Mapping[str, Sequence[Any]]) -> list[str]:
        """What `checked.check_dataset` reports of the function itself."""
        return check_dataset(self.reward_function, dataset)

    def _takes(self, name: str) -> bool:
        parameters = inspect.signature(self.reward_function).parameters
        return name in parameters or any(p.kind is p.VAR_KEYWORD for p in parameters.values())

    @cached_property
    def _workers(self) -> KillableWorkers:
        return KillableWorkers(
            partial(_reward_of_one, self.reward_function), timeout_s=self.timeout_s, memory_gib=self.memory_gib
        )


def _row(columns: dict[str, Any], index: int, num_rows: int) -> dict[str, Any]:
    return {
        name: [value[index]] if isinstance(value, (list, tuple)) and len(value) == num_rows else value
        for name, value in columns.items()
    }


def _reward_of_one(reward_function: Callable[..., Any], columns: dict[str, Any]) -> float | None:
    rewards = reward_function(**columns)
    if len(rewards) != 1:
        raise ValueError(f"it returned {len(rewards)} rewards for one completion")
    return None if rewards[0] is None else float(rewards[0])
