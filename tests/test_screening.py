"""What never reaches sympy, and what must."""

import pytest

from online_sft.rewards.screening import why_screened

HOPELESS = [
    "9^{9^{9^{9}}}",
    r"5^{\left(5^{\left(5^5\right)} - 4\right)}",
    "9**(9**9)",
    r"\sqrt{7^{100000001}}",
    "1.5^{1000000000000}",
    "1e999999999",
    "9!!!!!",
    "(10^9)!",
    "123456!",
    r"\binom{9^{9^{9^{9}}}}{3}",
    r"\binom{1000000}{500000}",
    r"\sum_{i=1}^{10^9} \frac{1}{i}",
    r"\prod_{i=1}^{1000000} i",
    "(" * 31 + "1" + ")" * 31,
    "x+" * 501,
]
HONEST = [
    "42",
    "x^{100}",
    "10^{5000}",
    "1999^{1999}",
    "2^{2^{10}}",
    "e^{-x^{2}}",
    "x^{2^{3}}",
    "10!",
    r"\frac{1}{2006!}",
    r"\binom{100}{50}",
    r"\sum_{k=0}^{n-1} F_k F_{n-k-1}",
    r"\begin{pmatrix} 1 & 2 \\ 3 & 4 \end{pmatrix}",
    r"[2^{\frac{1}{1000}}, \infty)",
]


@pytest.mark.parametrize("text", HOPELESS)
def test_the_hopeless_is_screened(text):
    assert why_screened(text)


@pytest.mark.parametrize("text", HONEST)
def test_the_honest_is_not(text):
    assert why_screened(text) is None
