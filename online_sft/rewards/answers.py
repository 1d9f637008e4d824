r"""Short numeric answers: found in a completion, compared exactly.

`Answer: 42`, `**Answer:** $42$`, `\boxed{42}`; `1,000` = `1000.0`, `0.5` = `1/2`. No floating point is involved.
"""

import re
from fractions import Fraction

__all__ = ["exact_number", "extract_answer"]

_ANSWER_LINE = re.compile(r"answer\s*:[ \t]*([^\n]+)", re.IGNORECASE)
_THOUSANDS = re.compile(r"[+-]?[0-9]{1,3}(,[0-9]{3})+(\.[0-9]*)?")
_NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)")
_RATIO = re.compile(r"[+-]?[0-9]+/[0-9]+")
_MAX_DIGITS = 1000  # longer "numbers" are a model gone astray; Python's int() is quadratic in the digits


def extract_answer(completion: str) -> str | None:
    r"""The text after the last `Answer:`, else in the last `\boxed{}`; None when there is neither.

    Dollar signs, asterisks, a box around it and a final full stop are not part of the answer.
    """
    lines = _ANSWER_LINE.findall(completion)
    answer = (_last_box(lines[-1]) or lines[-1]) if lines else _last_box(completion)
    if answer is None:
        return None
    answer = answer.strip(" \t*$")
    return answer.removesuffix(".").strip(" \t*$")


def _last_box(text: str) -> str | None:
    r"""What is in the last `\boxed{}`, up to its own closing brace; None when there is none, or it never closes."""
    _, box, rest = text.rpartition(r"\boxed{")
    depth = 1
    for position, character in enumerate(rest if box else ""):
        depth += {"{": 1, "}": -1}.get(character, 0)
        if depth == 0:
            return rest[:position]
    return None


def exact_number(text: str) -> Fraction | None:
    """The number that `text` spells (integer, decimal, thousands, ratio), as a fraction; None when it spells none."""
    if len(text) > _MAX_DIGITS:
        return None
    if _THOUSANDS.fullmatch(text):
        text = text.replace(",", "")
    if _RATIO.fullmatch(text):
        numerator, denominator = map(int, text.split("/"))
        return Fraction(numerator, denominator) if denominator else None
    return Fraction(text.removesuffix(".")) if _NUMBER.fullmatch(text) else None
