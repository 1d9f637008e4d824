"""Arithmetic, with feedback and further attempts after a wrong answer."""

import operator
from collections.abc import Callable, Sequence

from online_sft.environments.retries import RetriesEnv
from online_sft.rewards.answers import final_answer
from online_sft.rewards.spelling import spelling

__all__ = ["OPERATIONS", "MathRetriesEnv"]

OPERATIONS: dict[str, Callable[[int, int], int]] = {"+": operator.add, "-": operator.sub, "*": operator.mul}
_LONGEST_ANSWER = 200  # characters; no answer here needs more, and to normalise megabytes takes time


class MathRetriesEnv(RetriesEnv):
    """`a + b`, `a - b` or `a * b` of two whole numbers; feedback says whether a wrong answer is too small or too large.

    The answer is what `rewards.answers.final_answer` finds (after `Answer:`, or in a box) and must spell a number: no
    expression is evaluated, so that neither the question itself nor 9^9^9^9 is an answer. Rewards: see `RetriesEnv`.

    Args:
        max_attempts: per episode.
        max_operand: operands are drawn from 0 to this.
        operations: drawn from these, keys of `OPERATIONS`.

    Raises:
        ValueError: for numbers below 1, and for operations that there are not.
    """

    def __init__(
        self, max_attempts: int = 3, max_operand: int = 99, operations: Sequence[str] = tuple(OPERATIONS)
    ) -> None:
        super().__init__(max_attempts)
        if max_operand < 1:
            raise ValueError(f"max_operand must be at least 1; got {max_operand}")
        unknown = [each for each in operations if each not in OPERATIONS]
        if unknown or not operations:
            raise ValueError(f"operations must be some of {', '.join(OPERATIONS)}; got {list(operations)}")
        self.max_operand = max_operand
        self.operations = tuple(operations)

    def _draw(self) -> tuple[str, str]:
        left, right = (int(each) for each in self.np_random.integers(0, self.max_operand + 1, 2))
        operation = self.operations[self.np_random.integers(len(self.operations))]
        self._solution = OPERATIONS[operation](left, right)
        problem = f"{left} {operation} {right}"
        return f'What is {problem}? End with "Answer: " and the number.', f"math_retries/{problem}"

    def _fault(self, action: str) -> str | None:
        answer = final_answer(action)
        if answer is None:
            return 'There is no answer. End with "Answer: " and the number.'
        number = spelling(answer).number if len(answer) <= _LONGEST_ANSWER else None
        if number is None:
            return "Your answer is not a number."
        if number == self._solution:
            return None
        return f"Your answer is too {'small' if number < self._solution else 'large'}."
