"""What text and exact fractions say of an answer. It settles most; the rest goes to sympy (`symbolic.py`)."""

import re
from fractions import Fraction

from online_sft.rewards.exact_number import exact_number
from online_sft.rewards.screening import why_screened
from online_sft.rewards.spelling import Spelling, alternatives, spelling, without_text_markup
from online_sft.rewards.verdicts import Verdict

__all__ = ["LONG_DECIMAL", "compared", "is_evaluated"]

LONG_DECIMAL = re.compile(r"\.[0-9]{10,}")
_DECIMAL_COMMA = re.compile(r"[+-]?[0-9]+,[0-9]+")
_SPACE_BESIDE_NO_DIGIT = re.compile(r"(?<![0-9]) | (?![0-9])")
_MULTIPLE_OF_A_VARIABLE = re.compile(r"[+-]?[0-9.]+[A-Za-z]")
_CHOICE = re.compile(r"\(?([A-Z])(?:\)|[.:])\s*(?!(?:or|and|not|is)\b)(?!.*(?:\([A-Z]\)|\b[A-Z][.):]))(\S.*)")
_ASSIGNED = re.compile(r"[A-Za-z]\w* ?= ?(?=[^=]*$)")
_SEVERAL_VALUES = re.compile(r"[,;<>=]|\\(?:[pm]{2}|cup|\{|[lg]eq?|in)(?![a-z])|\b(?:and|or)\b")


def compared(gold: Spelling, answer: Spelling) -> Verdict | None:
    """The verdict on `answer`; None where it takes sympy."""
    if not answer.text:
        return Verdict.NO_ANSWER
    if gold.unit and answer.unit and gold.unit != answer.unit:
        return Verdict.WRONG
    if _tight(gold.text) == _tight(answer.text):
        return Verdict.CORRECT
    pairs = (gold, answer), (answer, gold)
    if gold.text.isalpha() and gold.text.swapcase()[:1] + gold.text[1:] == answer.text:  # no, No
        return Verdict.CORRECT
    if gold.is_words or answer.is_words:
        return Verdict.CORRECT if gold.text.casefold() == answer.text.casefold() else Verdict.WRONG
    for one, other in pairs:
        if choice := _CHOICE.fullmatch(one.text):  # the letter and what it stands for
            if len(other.text) == 1 and other.text.isalpha():
                return Verdict.CORRECT if choice[1] == other.text else Verdict.WRONG
            if other.number is not None:
                return compared(other, spelling(choice[2]))
    if any(_MULTIPLE_OF_A_VARIABLE.fullmatch(one.text) and other.number is not None for one, other in pairs):
        return Verdict.WRONG  # math-verify takes the variable for a unit
    numbers = _numbers(gold, answer)
    if numbers and numbers[0] == numbers[1]:
        return Verdict.CORRECT
    # sympy forgives a calculator's 16 digits of a value that has no end; an integer needs no digits
    if numbers and (numbers[0].denominator == 1 or not LONG_DECIMAL.search(gold.text + answer.text)):
        return Verdict.WRONG
    if numbers is None and (lists := _number_lists(gold, answer)):
        return Verdict.CORRECT if sorted(lists[0]) == sorted(lists[1]) else Verdict.WRONG
    if len(alternatives(answer.text)) > 1 and (gold.number is not None or not _SEVERAL_VALUES.search(gold.text)):
        return Verdict.WRONG
    return Verdict.SCREENED if why_screened(answer.text) else None


def is_evaluated(gold: Spelling, answer: Spelling) -> bool:
    """Whether a number is answered by a number: neither `3 + 5` nor `16/2` for 8. Other golds take any answer."""
    if gold.number is None:
        return True
    is_ratio = re.search(r"/|\\frac", answer.text) and gold.number.denominator == 1
    return _number(answer, beside=gold.text) is not None and not is_ratio


def _tight(text: str) -> str:
    return _SPACE_BESIDE_NO_DIGIT.sub("", without_text_markup(text))


def _numbers(gold: Spelling, answer: Spelling) -> tuple[Fraction, Fraction] | None:
    left, right = _number(gold, beside=answer.text), _number(answer, beside=gold.text)
    return None if left is None or right is None else (left, right)


def _number_lists(*sides: Spelling) -> list[list[Fraction]] | None:
    """The numbers that each side lists; None where one lists something else."""
    lists = [[exact_number(part) for part in alternatives(side.text)] for side in sides]
    exact = [[number for number in numbers if number is not None] for numbers in lists]
    return exact if exact == lists and not any(LONG_DECIMAL.search(side.text) for side in sides) else None


def _number(side: Spelling, beside: str) -> Fraction | None:
    """Its exact number; of `x = 5`, where the other side is no equation; of `1,5`, where it has a decimal point."""
    if side.number is not None:
        return side.number
    if "=" not in beside and (assigned := _ASSIGNED.match(side.text)):
        return exact_number(side.text[assigned.end() :])
    return exact_number(side.text.replace(",", ".")) if "." in beside and _DECIMAL_COMMA.fullmatch(side.text) else None
