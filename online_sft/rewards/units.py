r"""What was counted: `34 apples`, `10 cm^2`, `90^{\circ}`, `5 \text{ square meters}`."""

import re

__all__ = ["TEXT", "without_unit"]

TEXT = r"\\(?:text|textrm|textbf|textit|textnormal|mathrm|mathbf|mathit|mbox|operatorname)"
_POWER = r"(?: ?\^ ?\{?(?P<power>-?[0-9])\}?)?$"
_MARKED = re.compile(rf" ?{TEXT}\{{(?P<words>[^{{}}]*)\}}" + _POWER)
_DEGREES = re.compile(r" ?(?:\^ ?(?:\{ ?\\circ ?\}|\\circ)|\\degree) ?[CF]?$")
_PLAIN = re.compile(
    r"(?:(?<=[0-9})])|(?<=\\pi)|(?<=\\pi ))(?P<space> ?)"
    r"(?P<words>[A-Za-z]+\.?(?: ?/ ?[A-Za-z]+)?(?: [A-Za-z]+\.?){0,4})" + _POWER
)
_SCALES = ("hundred", "thousand", "million", "billion", "trillion")
# Words that change the value, join two values, or belong to a formula; others after a number say what was counted.
_NO_UNITS = frozenset(
    [
        *_SCALES,
        "hundreds", "thousands", "millions", "billions", "trillions", "dozen", "dozens", "half", "halves", "third",
        "thirds", "quarter", "quarters", "fifths", "sixths", "sevenths", "eighths", "ninths", "tenth", "tenths",
        "hundredth", "hundredths", "thousandths", "squared", "cubed", "factorial", "point", "root", "percent",
        "and", "or", "not", "no", "if", "when", "where", "for", "is", "are", "was", "than", "so", "negative",
        "mod", "sin", "cos", "tan", "cot", "sec", "csc", "log", "ln", "exp", "sqrt", "pi", "inf", "infinity",
        "nan", "lim", "max", "min", "gcd", "lcm", "det", "base", "plus", "minus", "times", "over", "frac",
        "choose", "cdot", "to", "more", "less",
    ]
)  # fmt: skip
_TIMES = frozenset({"min", "sec"})  # units, though functions too
_ABBREVIATIONS = {
    "mm": "millimeter",
    "cm": "centimeter",
    "m": "meter",
    "km": "kilometer",
    "in": "inch",
    "inches": "inch",
    "ft": "foot",
    "feet": "foot",
    "yd": "yard",
    "mi": "mile",
    "mg": "milligram",
    "g": "gram",
    "kg": "kilogram",
    "lb": "pound",
    "lbs": "pound",
    "oz": "ounce",
    "ml": "milliliter",
    "l": "liter",
    "ms": "millisecond",
    "s": "second",
    "sec": "second",
    "min": "minute",
    "h": "hour",
    "hr": "hour",
    "hrs": "hour",
    "mph": "mile per hour",
    "usd": "dollar",
}
_UNITS = frozenset(_ABBREVIATIONS.values()) | {"cent", "day", "week", "month", "year", "degree", "radian"}
_POWERS = {"square": "2", "sq": "2", "cubic": "3", "cu": "3"}


def without_unit(text: str) -> tuple[str, str]:
    """(text without its unit, the unit in the singular if it is a known one, else "").

    A single letter directly after a number is a variable, not a unit. Text after a number that changes its value stays:
    `5 dozen`, `5 \\text{ million}`, `34 is wrong`.
    """
    if degrees := _DEGREES.search(text):
        return (text[: degrees.start()], "degree") if degrees.start() else (text, "")
    match = _MARKED.search(text) or _PLAIN.search(text)
    if match is None or not match.start():
        return text, ""
    words = re.findall(r"[A-Za-z]+", match["words"].casefold())
    core = text[: match.start()].rstrip()
    if words and words[0] in _SCALES:
        core, words = f"{core} {words[0]}", words[1:]
    if _NO_UNITS.intersection(words) - _TIMES:  # as plain text, which is read as a product and so equal to no number
        return f"{core} {' '.join(words)}", ""
    glued_to = match.groupdict().get("space")
    if words and glued_to is not None and not _reads_as_unit(words[0], glued=not glued_to):
        return text, ""
    return core, _known_unit(words, match["power"] or "")


def _reads_as_unit(word: str, glued: bool) -> bool:
    """Whether it is a word and not a product of variables, which letters directly after a number mostly are."""
    known = word in _ABBREVIATIONS or word in _POWERS
    return len(word) >= (4 if glued else 3) or (known and not (glued and len(word) == 1))


def _known_unit(words: list[str], power: str) -> str:
    """`square meters` and `m^2` are `meter^2`; "" where it is no unit that we know."""
    if words and words[0] in _POWERS:
        power, words = _POWERS[words[0]], words[1:]
    name = " ".join(words)
    name = _ABBREVIATIONS.get(name, name)
    unit = name if name in _UNITS else name.removesuffix("s")
    return unit + (f"^{power}" if power else "") if unit in _UNITS else ""
