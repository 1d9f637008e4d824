r"""Short numeric answers: found in a completion, compared exactly.

`Answer: 42`, `**Answer:** $42$`, `\boxed{42}`; `1,000` = `1000.0`, `0.5` = `1/2`. No floating point is involved.
"""

import re
from fractions import Fraction

__all__ = ["exact_number", "extract_answer"]

_ANSWER_LINE = re.compile(r"answer\s*:[ \t]*([^\n]+)", re.IGNORECASE)
_BOXED = re.compile(r"\\boxed\{([^{}]*)\}")
_THOUSANDS = re.compile(r"[+-]?[0-9]{1,3}(,[0-9]{3})+(\.[0-9]*)?")
_NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)")
_RATIO = re.compile(r"[+-]?[0-9]+/[0-9]+")
_MAX_DIGITS = 1000  # longer "numbers" are a model gone astray; Python's int() is quadratic in the digits


def extract_answer(completion: str) -> str | None:
    r"""The text after the last `Answer:`, else in the last `\boxed{}`; None when there is neither.

    Dollar signs, asterisks, a box around it and a final full stop are not part of the answer.
    """
    lines = _ANSWER_LINE.findall(completion)
    if lines:
        answer = lines[-1]
        boxes = _BOXED.findall(answer)
        answer = boxes[-1] if boxes else answer
    else:
        boxes = _BOXED.findall(completion)
        if not boxes:
            return None
        answer = boxes[-1]
    answer = answer.strip(" \t*$")
    return answer.removesuffix(".").strip(" \t*$")


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
