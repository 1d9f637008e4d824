"""Whether two expressions have the same value, by sympy and math-verify. Runs in `killable` workers only: it can hang.

Numbers are compared here, because math-verify rounds to six decimals, which makes 10^-20 equal to 2·10^-20, and reads
34 % as 34.
"""

import logging
import re
from typing import Any, Literal

import sympy
from math_verify import verify

from online_sft.rewards.expressions import parsed

__all__ = ["compare"]

logging.getLogger("math_verify").setLevel(logging.CRITICAL)  # it warns that nothing stops it; the parent process does
_DIGITS = 40
_ROUNDING = sympy.Rational(1, 10**25)
# So many digits are a calculator's; fewer are an approximation, which is not the value.
_LONG_DECIMAL = re.compile(r"(?=[0-9]*\.[0-9])(?:0*\.0*)?([1-9](?:\.?[0-9]){11,})")
_DIGITS_OF_A_DOUBLE = 16


def compare(gold: str, answer: str | None) -> Literal["correct", "wrong", "unparsed", "bad_gold"]:
    """The verdict on `answer`, both in normal form; without one, whether `gold` can be read and has a value."""
    parsed_gold = parsed(gold)
    if parsed_gold is None or not _has_a_value(parsed_gold):
        return "unparsed" if answer is None else "bad_gold"
    if answer is None:
        return "correct"
    parsed_answer = parsed(answer)
    if parsed_answer is None:
        return "unparsed"
    try:
        return "correct" if _are_equal(parsed_gold, parsed_answer, _tolerance(f"{gold} {answer}")) else "wrong"
    except (MemoryError, RecursionError):
        raise
    except Exception:  # sympy raises nearly anything on what cannot be evaluated
        return "wrong"


def _tolerance(text: str) -> sympy.Rational:
    """Relative: one unit of the last digit of a long decimal, if there is one."""
    digits = [len(number.replace(".", "")) for number in _LONG_DECIMAL.findall(text)]
    return sympy.Rational(10) ** (1 - min(*digits, _DIGITS_OF_A_DOUBLE)) if digits else _ROUNDING


def _has_a_value(expression: Any) -> bool:
    """Not 0/0, nor infinity in the complex plane; evaluated here, so that a gold that hangs is found before answers."""
    try:
        return not any(value.has(sympy.nan, sympy.zoo) for value in _sorted(_values(expression)))
    except (MemoryError, RecursionError):
        raise
    except Exception:  # as above
        return False


def _are_equal(gold: Any, answer: Any, tolerance: sympy.Rational) -> bool:
    gold_values, answer_values = _sorted(_values(gold)), _sorted(_values(answer))
    if gold_values and len(gold_values) == len(answer_values):
        if not all(_are_close(*pair, tolerance=tolerance) for pair in zip(gold_values, answer_values, strict=True)):
            return False
        if _is_number(gold) and _is_number(answer):
            return True
    if isinstance(gold, sympy.Expr) and isinstance(answer, sympy.Expr) and _differ_somewhere(gold, answer):
        return False
    if isinstance(gold, sympy.Eq) and isinstance(answer, sympy.Eq) and not _have_solutions(gold, answer):
        return False
    return verify(gold, answer, allow_set_relation_comp=True, timeout_seconds=None)


def _have_solutions(gold: sympy.Eq, answer: sympy.Eq) -> bool:
    """False where neither has one, which math-verify takes for equal, unless they are multiples of each other."""
    left, right = (sympy.expand(equation.lhs - equation.rhs) for equation in (gold, answer))
    if right != 0 and sympy.simplify(left / right).is_number:
        return bool(left != 0)
    return bool(sympy.solve(left, *left.free_symbols, dict=True)) if left.free_symbols else False


def _differ_somewhere(gold: sympy.Expr, answer: sympy.Expr) -> bool:
    """Whether the two have different values at one point, which `simplify` may take for ever to find out."""
    symbols = gold.free_symbols | answer.free_symbols
    names = sorted({symbol.name for symbol in symbols})
    point = {symbol: sympy.Rational(13 + 4 * names.index(symbol.name), 11) for symbol in symbols}
    left, right = (expression.subs(point).evalf(15) for expression in (gold, answer))
    return bool(left.is_finite and right.is_finite and abs(left - right) > 1e-6 * (abs(left) + abs(right)))


def _is_number(expression: Any) -> bool:
    return isinstance(expression, sympy.Expr) and bool(expression.is_number)


def _values(expression: Any) -> list[sympy.Expr]:
    """The number, or the numbers in a set, tuple, interval or matrix of nothing else; else nothing."""
    if _is_number(expression):
        return [expression.doit()]
    if isinstance(expression, sympy.MatrixBase):
        parts = list(expression)
    elif isinstance(expression, sympy.Interval):
        parts = [expression.start, expression.end]
    elif isinstance(expression, (sympy.FiniteSet, sympy.Tuple)):
        parts = list(expression.args)
    else:
        return []
    values = [_values(part) for part in parts]
    return [value for inner in values for value in inner] if all(values) else []


def _sorted(values: list[sympy.Expr]) -> list[sympy.Expr]:
    return sorted(values, key=lambda value: tuple(map(float, value.evalf(15).as_real_imag())))


def _are_close(gold: sympy.Expr, answer: sympy.Expr, *, tolerance: sympy.Rational) -> bool:
    if gold.is_Rational and answer.is_Rational and tolerance == _ROUNDING:
        return bool(gold == answer)
    if gold.is_infinite or answer.is_infinite:
        return bool(gold == answer)
    distance, size = abs((gold - answer).evalf(_DIGITS)), abs(gold.evalf(_DIGITS))
    return bool(distance <= tolerance * size)
