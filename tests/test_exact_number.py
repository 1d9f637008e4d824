"""Numbers are read exactly or not at all."""

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from online_sft.rewards.exact_number import exact_number

NUMBERS = [
    ("42", Fraction(42)),
    ("+042", Fraction(42)),
    ("-3", Fraction(-3)),
    ("- 3", Fraction(-3)),
    ("42.", Fraction(42)),
    ("0.50", Fraction(1, 2)),
    (".5", Fraction(1, 2)),
    ("-1/2", Fraction(-1, 2)),
    ("1.5/2", Fraction(3, 4)),
    ("1,234,567.0", Fraction(1234567)),
    ("1 234", Fraction(1234)),
    ("1,234/2", Fraction(617)),
    (r"\frac{1}{2}", Fraction(1, 2)),
    (r"\frac12", Fraction(1, 2)),
    (r"\frac 1 2", Fraction(1, 2)),
    (r"-\frac{-1}{2}", Fraction(1, 2)),
    (r"2\frac{1}{2}", Fraction(5, 2)),
    ("1 1/2", Fraction(3, 2)),
    ("-1 1/2", Fraction(-3, 2)),
    ("11/2", Fraction(11, 2)),
    (r"3 \times 10^{8}", Fraction(3 * 10**8)),
    (r"1.5\cdot10^{-2}", Fraction(3, 200)),
    ("2.1E-5", Fraction(21, 10**6)),
    ("5 million", Fraction(5_000_000)),
    (r"28\%", Fraction(28, 100)),
    ("204_5", Fraction(54)),
    ("101_{2}", Fraction(5)),
    ("5_5", None),  # no digit of base 5
    (r"2\frac{5}{3}", None),  # a mixed number or a product
    ("0,111", None),  # neither thousands nor a decimal point
    ("1,23", None),
    ("1,2345", None),
    ("12 34", None),
    ("1/0", None),
    ("--3", None),
    ("1e400000000", None),  # would take for ever to write out
    ("1e999", None),
    ("\N{ARABIC-INDIC DIGIT ONE}", None),  # a digit, but not ASCII
    ("1_000", None),
    ("4 2", None),
    ("9" * 5000, None),
    ("", None),
    ("x", None),
]


@pytest.mark.parametrize(("text", "number"), NUMBERS)
def test_a_number_is_read_exactly_or_not_at_all(text, number):
    assert exact_number(text) == number


@given(st.integers(-(10**12), 10**12), st.integers(1, 10**6), st.integers(0, 8))
def test_every_spelling_of_a_number_is_that_number(numerator, denominator, places):
    exact = Fraction(numerator, denominator)
    assert exact_number(f"{numerator}/{denominator}") == exact
    sign = "-" if numerator < 0 else ""
    assert exact_number(rf"{sign}\frac{{{abs(numerator)}}}{{{denominator}}}") == exact
    whole, rest = divmod(abs(numerator), denominator)
    if whole and rest:
        assert exact_number(f"{sign}{whole} {rest}/{denominator}") == exact
        assert exact_number(rf"{sign}{whole}\frac{{{rest}}}{{{denominator}}}") == exact
    assert exact_number(f"{numerator:,}") == numerator
    assert exact_number(f"{numerator:,}".replace(",", " ")) == numerator
    assert exact_number(f"{numerator}e-{places}") == Fraction(numerator, 10**places)
    digits = f"{abs(numerator):0{places + 1}d}"
    decimal = f"{sign}{digits[: len(digits) - places]}.{digits[len(digits) - places :]}"
    assert exact_number(decimal) == Fraction(numerator, 10**places)
