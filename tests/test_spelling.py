"""Markup that changes nothing, units, and lists."""

import pytest

from online_sft.rewards.plain_text import readable
from online_sft.rewards.spelling import alternatives, normal_form, spelling

NORMAL_FORMS = [
    ("$42$.", "42"),
    (r"\[ \dfrac{1}{2} \]", r"\frac{1}{2}"),
    (r"\left( 1, 2 \right)", "( 1, 2 )"),
    (r"11,\! 111", "11111"),
    ("1{,}000", "1000"),
    (r"1\,000", "1000"),
    (r"\$10", "10"),
    (r"28 percent", r"28 \%"),
    (r"28\text{ percent}", r"28\%"),
    (r"\text{Evelyn}", "Evelyn"),
    (r"\text{(C)}", "C"),
    (r"7, -2, \text{ and } -5", "7, -2, and -5"),
    (r"\\left(\\frac{4}{5}\\right)", r"(\frac{4}{5})"),
    (r"\begin{pmatrix} 1 \\ 2 \end{pmatrix}", r"\begin{pmatrix} 1 \\ 2 \end{pmatrix}"),
    ("The answer is 34.", "34"),
    ("The largest $n$ is $34$", "34"),
    ("x is not 34", "x is not 34"),
    ("2**3", "2^3"),
    ("**42**", "42"),
    ("sqrt(2) + sin(x)", r"\sqrt{2} + \sin (x)"),
    (r"34 \\", "34"),
    ("5!", "5!"),
]
UNITS = [
    # answer, without unit, unit
    ("34 apples", "34", ""),
    ("10weeks", "10", "week"),
    ("10 cm^2", "10", "centimeter^2"),
    ("10 square centimeters", "10", "centimeter^2"),
    (r"10 \text{ cm}^2", "10", "centimeter^2"),
    (r"\frac{1}{3} \text{meters}", r"\frac{1}{3}", "meter"),
    (r"90^{\circ}", "90", "degree"),
    ("90 degrees", "90", "degree"),
    ("5 miles per hour", "5", ""),
    ("5 m", "5", "meter"),
    ("5m", "5m", ""),  # a variable as likely
    ("5xy", "5xy", ""),
    ("5 million", "5 million", ""),
    ("33 or 34", "33 or 34", ""),
    ("34 is wrong", "34 is wrong", ""),
    (r"\text{odd}", "odd", ""),
]


@pytest.mark.parametrize(("answer", "expected"), NORMAL_FORMS)
def test_normal_form(answer, expected):
    assert normal_form(answer) == expected
    assert normal_form(expected) == expected


@pytest.mark.parametrize(("answer", "text", "unit"), UNITS)
def test_units(answer, text, unit):
    found = spelling(answer)
    assert (found.text, found.unit) == (text, unit)


@pytest.mark.parametrize(
    ("text", "num_parts"),
    [("34", 1), ("1,000", 1), ("33, 34", 2), ("33 or 34", 2), ("(1, 2)", 1), ("(1, 2), (3, 4)", 2), (r"\{1, 2\}", 1)],
)
def test_alternatives_stand_outside_brackets(text, num_parts):
    assert len(alternatives(text)) == num_parts


def test_unicode_becomes_what_a_grader_reads():
    assert readable("x\N{SUPERSCRIPT TWO}") == "x^{2}"
    assert readable("1\N{VULGAR FRACTION ONE HALF}") == "1 1/2"
    assert readable("\N{MINUS SIGN}\N{GREEK SMALL LETTER PI}") == r"-\pi "
    assert readable("4\x002") == readable("4\ud8002") == "4 2"  # two numbers must not become one
    assert readable("\N{ZERO WIDTH SPACE}42</s><|endoftext|>") == "42  "
