"""Programming problems: the model writes a function, which is run against tests, and may mend it after feedback."""

import math
from collections.abc import Sequence
from typing import Any

from online_sft.environments.code_problems import PROBLEMS, CodeProblem
from online_sft.environments.retries import RetriesEnv
from online_sft.environments.sandbox import Outcome, Sandbox
from online_sft.environments.text_env import quoted

__all__ = ["CodeExecutionEnv", "is_same", "last_code_block"]

_FENCE = "```"
_LONGEST_SOURCE = 20_000  # characters
_REL_TOLERANCE = 1e-9


class CodeExecutionEnv(RetriesEnv):
    """A function to be written in Python. An attempt is right if all tests of the problem pass.

    The code is what stands in the last block between ``` and ```. It runs in a `Sandbox`, which never learns the
    results that are right. Feedback names the first test that failed, its arguments, and what the function returned or
    raised; not what it should have returned, which a model could copy into its next attempt. Rewards: `RetriesEnv`.

    Args:
        problems: drawn from these.
        max_attempts: per episode.
        timeout_s: wall clock for all tests of a problem together.
        memory_gib: limit on the address space of the process that runs them.

    Raises:
        RuntimeError: on platforms without seccomp; see `Sandbox`.
        ValueError: for limits as in `Sandbox`, max_attempts below 1, and without problems.
    """

    def __init__(
        self,
        problems: Sequence[CodeProblem] = PROBLEMS,
        max_attempts: int = 3,
        timeout_s: float = 2.0,
        memory_gib: float = 0.5,
    ) -> None:
        super().__init__(max_attempts)
        if not problems:
            raise ValueError("problems is empty; one at least is needed to draw from")
        self.problems = tuple(problems)
        self.sandbox = Sandbox(timeout_s, memory_gib)

    def _draw(self) -> tuple[str, str]:
        self._problem = problem = self.problems[self.np_random.integers(len(self.problems))]
        arguments, expected = problem.tests[0]
        task = (
            f"Write a Python function {problem.task}\n\n"
            f"For example, {_call(problem, arguments)} returns {expected!r}. Only the standard library is there; "
            f"files, threads and the network are not. End with the function between {_FENCE}python and {_FENCE}."
        )
        return task, f"code_execution/{problem.function}"

    def _fault(self, action: str) -> str | None:
        source = last_code_block(action)
        if source is None:
            return f"There is no code between {_FENCE}python and {_FENCE}."
        if len(source) > _LONGEST_SOURCE:
            return f"The code is longer than {_LONGEST_SOURCE} characters."
        tests = self._problem.tests
        outcomes = self.sandbox.run(source, self._problem.function, [arguments for arguments, _ in tests])
        for index, ((arguments, expected), outcome) in enumerate(zip(tests, outcomes, strict=True)):
            if outcome.error is not None or not is_same(outcome.value, expected):
                told = f"Test {index + 1} of {len(tests)} failed: {_call(self._problem, arguments)}"
                return f"{told} {_told(outcome)}."
        return None


def last_code_block(text: str) -> str | None:
    """What stands in the last closed block between ``` and ```, without the name of the language; None without one."""
    parts = text.split(_FENCE)
    blocks = parts[1::2] if len(parts) % 2 else parts[1:-1:2]
    if not blocks:
        return None
    language, _, rest = blocks[-1].partition("\n")
    return rest if language.strip().isalnum() or not language.strip() else blocks[-1]


def is_same(value: Any, expected: Any) -> bool:
    """Whether two JSON values are equal: True is not 1, 3.0 is 3, and floats may differ by a relative 1e-9."""
    if isinstance(expected, bool) or isinstance(value, bool):
        return value is expected
    if isinstance(expected, (int, float)) and isinstance(value, (int, float)):
        try:
            return value == expected or (
                float in (type(value), type(expected)) and math.isclose(value, expected, rel_tol=_REL_TOLERANCE)
            )
        except OverflowError:  # an integer beyond all floats
            return False
    if isinstance(expected, list) and isinstance(value, list):
        return len(value) == len(expected) and all(map(is_same, value, expected))
    if isinstance(expected, dict) and isinstance(value, dict):
        return value.keys() == expected.keys() and all(is_same(value[key], expected[key]) for key in expected)
    return type(value) is type(expected) and value == expected


def _call(problem: CodeProblem, arguments: Sequence[Any]) -> str:
    return f"{problem.function}({quoted(', '.join(map(repr, arguments)), 200)})"


def _told(outcome: Outcome) -> str:
    if outcome.error is not None:
        return f"did not return: {quoted(outcome.error)}"
    return f"returned {quoted(repr(outcome.value))}"
