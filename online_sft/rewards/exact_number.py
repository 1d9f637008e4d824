r"""Numbers read exactly, without floating point or sympy: `1,000`, `1/2`, `2\frac{1}{2}`, `3 \times 10^{8}`."""

import re
from fractions import Fraction

__all__ = ["exact_number"]

_MAX_DIGITS = 400  # longer "numbers" are a model gone astray, and Python's int() is quadratic in the digits
_MAX_EXPONENT = 400
_DECIMAL = r"(?:(?:[1-9][0-9]{0,2}(?:,[0-9]{3})+(?![0-9])|[0-9]+)(?:\.[0-9]*)?|\.[0-9]+)"
_SPACED = r"[1-9][0-9]{0,2}(?: [0-9]{3})+(?:\.[0-9]*)?"
_FRACTION = re.compile(
    rf"(?P<sign>[+-]?) ?(?:(?P<whole>[0-9]+)[ ]?)??"
    rf"(?:\\frac ?(?:\{{ ?(?P<n1>-?[0-9]+) ?\}}|(?P<n2>[0-9])) ?(?:\{{ ?(?P<d1>-?[0-9]+) ?\}}|(?P<d2>[0-9]))"
    rf"|(?<![0-9])(?P<n3>{_DECIMAL}) ?/ ?(?P<d3>{_DECIMAL}))"
)
_SCIENTIFIC = re.compile(
    rf"(?P<sign>[+-]?) ?(?P<mantissa>{_DECIMAL}|{_SPACED})"
    r"(?: ?(?:\\times|\\cdot|\*|x) ?10 ?(?:\^|\*\*) ?(?:\{ ?(?P<e1>[+-]?[0-9]{1,3}) ?\}|(?P<e2>[+-]?[0-9]{1,3}))"
    r"|[eE](?P<e3>[+-]?[0-9]{1,3}))?"
)
_REPEATING = re.compile(
    r"(?P<sign>-?) ?(?P<whole>[0-9]*)\.(?P<once>[0-9]*)\\(?:overline|bar|dot) ?\{(?P<again>[0-9]+)\}"
)
_SCALES = {"hundred": 2, "thousand": 3, "million": 6, "billion": 9, "trillion": 12}
_SCALE = re.compile(rf" ?({'|'.join(_SCALES)})$", re.IGNORECASE)
_IN_BASE = re.compile(r"([0-9]+) ?_ ?(?:\{ ?([0-9]{1,2}) ?\}|([0-9]))")
_PERCENT = re.compile(r" ?\\%$")


def exact_number(text: str) -> Fraction | None:
    r"""The number that `text` spells, as a fraction; None when it spells none.

    Integers, decimals, thousands (`1,000`, `1 000`), ratios (`3/4`, `\frac34`), mixed numbers (`1 1/2`), scientific
    notation, `0.1\overline{6}`, `5 million`, `204_5` (in base 5), and `\%` as hundredths. `text` is in
    `spelling.normal_form`.
    """
    if len(text) > _MAX_DIGITS:
        return None
    if _PERCENT.search(text):
        number = exact_number(_PERCENT.sub("", text))
        return None if number is None else number / 100
    if scale := _SCALE.search(text):
        number = exact_number(text[: scale.start()])
        return None if number is None else number * 10 ** _SCALES[scale[1].lower()]
    if match := _SCIENTIFIC.fullmatch(text):
        exponent = int(match["e1"] or match["e2"] or match["e3"] or 0)
        if abs(exponent) > _MAX_EXPONENT:
            return None
        return _signed(match["sign"], _decimal(match["mantissa"]) * Fraction(10) ** exponent)
    if match := _REPEATING.fullmatch(text):
        tail = Fraction(int(match["again"]), 10 ** len(match["again"]) - 1) / 10 ** len(match["once"])
        return _signed(match["sign"], Fraction(f"{match['whole'] or 0}.{match['once'] or 0}") + tail)
    if match := _IN_BASE.fullmatch(text):
        digits, base = match[1], int(match[2] or match[3])
        return Fraction(int(digits, base)) if int(max(digits)) < base and 2 <= base <= 36 else None
    if match := _FRACTION.fullmatch(text):
        numerator = _decimal(match["n1"] or match["n2"] or match["n3"])
        denominator = _decimal(match["d1"] or match["d2"] or match["d3"])
        if not denominator:
            return None
        if match["whole"] is None:
            return _signed(match["sign"], numerator / denominator)
        if 0 < numerator < denominator:  # else a product is as likely as a mixed number
            return _signed(match["sign"], int(match["whole"]) + numerator / denominator)
    return None


def _decimal(text: str) -> Fraction:
    return Fraction(re.sub("[, ]", "", text).removesuffix("."))


def _signed(sign: str, number: Fraction) -> Fraction:
    return -number if sign == "-" else number
