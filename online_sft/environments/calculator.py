"""Shopping lists with unknown prices: an environment class in TRL's format, with a table and a calculator."""

import ast
import math
import operator
import random
from collections.abc import Callable
from typing import Any

from online_sft.environments.tool_use import ToolEnv

__all__ = ["CalculatorEnvironment", "calculator_env", "evaluate"]

_ITEMS = ("apples", "bread", "cheese", "eggs", "honey", "milk", "pears", "rice", "soap", "tea")
_PROMPT = "Use the tools: look prices up, calculate the total, and give it by `answer`, once. "

_LONGEST = 200  # characters of an expression
_MAX_BITS = 1024  # of a number
_OPERATIONS: dict[type[ast.AST], Callable[..., Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.UAdd: operator.pos,
    ast.USub: operator.neg,
}


class CalculatorEnvironment:
    """What do so many of these and those cost? Prices must be looked up; the answer is given by a tool.

    TRL calls `get_reward()` without what the policy has said, so that an answer counts only if a tool has taken it. The
    first one counts: otherwise a policy could try them all.
    """

    def reset(self, seed: int = 0, **row: Any) -> str:
        """Prices from 1 to 20, and two or three items of which 2 to 9 pieces are bought; all are drawn by `seed`."""
        generator = random.Random(seed)
        self._prices = {item: generator.randint(1, 20) for item in _ITEMS}
        bought = {item: generator.randint(2, 9) for item in generator.sample(_ITEMS, generator.randint(2, 3))}
        self._total = sum(number * self._prices[item] for item, number in bought.items())
        self._answer: float | None = None
        return f"What do {' and '.join(f'{number} {item}' for item, number in bought.items())} cost together?"

    def lookup(self, item: str) -> int:
        """
        Looks up a price.

        Args:
            item: What is bought, in the plural, like "apples"

        Returns:
            The price of one piece.
        """
        if item not in self._prices:
            raise ValueError(f"there is no price of {item!r}; there are prices of {', '.join(_ITEMS)}")
        return self._prices[item]

    def calculate(self, expression: str) -> float:
        """
        Evaluates an arithmetic expression.

        Args:
            expression: Numbers, parentheses and + - * / // % **, like "3 * (4 + 5)"

        Returns:
            Its value.
        """
        return evaluate(expression)

    def answer(self, total: float) -> str:
        """
        Gives the final answer. Only the first one counts.

        Args:
            total: What everything costs together

        Returns:
            Whether it was noted.
        """
        if self._answer is not None:
            raise ValueError(f"the answer was given already: {self._answer}")
        if isinstance(total, bool) or not isinstance(total, (int, float)):
            raise ValueError(f"total must be a number; got {total!r:.80}")
        self._answer = total
        return "noted"

    def get_reward(self) -> float:
        """1 when the first answer is the total, else 0."""
        return float(self._answer == self._total)


def calculator_env(num_tasks: int = 1000, max_turns: int = 8) -> ToolEnv:
    """`ToolEnv` of `CalculatorEnvironment`, with the seeds 0 to `num_tasks` - 1."""
    rows = [{"prompt": [{"role": "user", "content": _PROMPT}], "seed": seed} for seed in range(num_tasks)]
    return ToolEnv(CalculatorEnvironment, rows, max_turns=max_turns)


def evaluate(expression: str) -> int | float:
    """The value of an arithmetic expression, without `eval`, in bounded time and memory.

    Args:
        expression: at most 200 characters: numbers, parentheses, + - * / // % and **.

    Raises:
        ValueError: for anything else, and when a number on the way has more than 1024 bits or is not real and finite.
    """
    if not isinstance(expression, str) or len(expression) > _LONGEST:
        raise ValueError(f"an expression is a string of at most {_LONGEST} characters")
    try:
        return _value(ast.parse(expression.strip(), mode="eval").body)
    except ZeroDivisionError:
        raise ValueError("division by zero") from None
    except OverflowError:
        raise ValueError("a number is too large") from None
    except (SyntaxError, MemoryError, RecursionError):  # the parser's words for what is nested too deeply
        raise ValueError(f"not an arithmetic expression: {expression!r}") from None


def _value(node: ast.expr) -> int | float:
    if isinstance(node, ast.Constant) and type(node.value) in (int, float):
        return _bounded(node.value)
    if isinstance(node, ast.UnaryOp) and type(node.op) in _OPERATIONS:
        return _OPERATIONS[type(node.op)](_value(node.operand))
    if isinstance(node, ast.BinOp):
        left, right = _value(node.left), _value(node.right)
        if isinstance(node.op, ast.Pow):
            return _bounded(_power(left, right))
        if type(node.op) in _OPERATIONS:
            return _bounded(_OPERATIONS[type(node.op)](left, right))
    raise ValueError(f"only numbers, parentheses and + - * / // % ** are calculated; got {ast.unparse(node)!r:.80}")


def _power(base: int | float, exponent: int | float) -> Any:
    # told before it is calculated: 9 ** 9 ** 9 would not end
    if isinstance(base, int) and isinstance(exponent, int) and (base.bit_length() - 1) * abs(exponent) > _MAX_BITS:
        raise ValueError(f"a number is longer than {_MAX_BITS} bits")
    return base**exponent


def _bounded(number: Any) -> int | float:
    if isinstance(number, complex) or (isinstance(number, float) and not math.isfinite(number)):
        raise ValueError("a number is not real and finite")
    if isinstance(number, int) and number.bit_length() > _MAX_BITS:
        raise ValueError(f"a number is longer than {_MAX_BITS} bits")
    return number
