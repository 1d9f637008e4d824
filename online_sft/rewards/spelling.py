r"""One spelling for answers that differ in markup only: `\dfrac`, `$…$`, `\left(`, `34 apples`, `28 percent`."""

import re
from dataclasses import dataclass
from fractions import Fraction

from online_sft.rewards.exact_number import exact_number
from online_sft.rewards.plain_text import readable

__all__ = ["Spelling", "alternatives", "normal_form", "spelling"]

_TEXT = r"\\(?:text|textrm|textbf|textit|textnormal|mathrm|mathbf|mathit|mbox|operatorname)"
_WRAPPED = re.compile(rf"(?:\\boxed|\\fbox|{_TEXT})\s*\{{([^{{}}]*)\}}")
_QUOTED = re.compile(r"`(.*)`|\"(.*)\"|\(([A-Za-z])\)", re.DOTALL)
_FUNCTIONS = "arccos|arcsin|arctan|sinh|cosh|tanh|sin|cos|tan|cot|sec|csc|log|ln|exp|max|min|gcd|pi"
_SUBSTITUTIONS = [
    (re.compile(r"(?<=[\w)}])\s?\*\*\s?(?=[\w({-])"), "^"),
    (
        re.compile(
            r"\\?\$|(?<!\\)\\[()\[\]]|\\displaystyle|\\left(?![a-z])|\\right(?![a-z])|\\[bB]igg?[lr]?(?![a-z])|\*\*"
        ),
        "",
    ),
    (re.compile(r"\\[dtc]frac"), r"\\frac"),
    (re.compile(r",\s*\\!\s*|\{,\}"), ","),
    (re.compile(r"\\!"), ""),
    (re.compile(r"(?<=[0-9])\\,(?=[0-9]{3}(?![0-9]))"), ","),
    (re.compile(r"(?<!\\)\\[,;: ]|~|\\q?quad(?![a-z])"), " "),
    (re.compile(rf"{_TEXT}\{{([A-Za-z])\}}"), r"\1"),
    (re.compile(rf"(?:\\?%|(?:{_TEXT}\{{\s*|\b)(?:percent|per cent|pct)\b\s*\}}?)", re.IGNORECASE), r"\\%"),
    (re.compile(r"(?<![\\a-zA-Z])(?:infinity|inf)(?![a-zA-Z])", re.IGNORECASE), r"\\infty "),
    (re.compile(r"(?<![\\a-zA-Z])sqrt ?\(([^()]*)\)"), r"\\sqrt{\1}"),
    (re.compile(rf"(?<![\\a-zA-Z])({_FUNCTIONS})(?![a-zA-Z])"), r"\\\1 "),
    (re.compile(r"\\varnothing"), r"\\emptyset"),
    (re.compile(r"[€£¥]|(?<![a-zA-Z])USD(?![a-zA-Z])"), ""),
    (re.compile(rf"{_TEXT}\{{\s*(million|billion|trillion|thousand|hundred|and|or)\s*\}}", re.IGNORECASE), r" \1 "),
    (re.compile(r"\s+"), " "),
]
_ESCAPED_TWICE = re.compile(r"\\\\(?=[a-zA-Z])")
_STATEMENT = re.compile(r"(?:[A-Za-z'][\w']*[ ,]+|\\?[A-Za-z]+ )*?(?:is|are|equals)(?: equal to| about)?:? (?=[^a-z ])")
_EDGES = " \t\n$*"
_POWER = r"(?: ?\^ ?\{?(?P<power>-?[0-9])\}?)?$"
_UNIT_MARKUP = re.compile(rf" ?{_TEXT}\{{(?P<words>[^{{}}]*)\}}" + _POWER)
_DEGREES = re.compile(r" ?\^ ?(?:\{ ?\\circ ?\}|\\circ) ?[CF]?$")
_UNIT_WORDS = re.compile(
    r"(?<=[0-9})])(?P<space> ?)(?P<words>[A-Za-z]+\.?(?: ?/ ?[A-Za-z]+)?(?: [A-Za-z]+\.?){0,4})" + _POWER
)
# Words that change the value, join two, or belong to a formula; the rest after a number says what was counted.
_NO_UNITS = frozenset(
    [
        "hundred", "thousand", "million", "billion", "trillion", "dozen", "half", "percent", "and", "or",
        "not", "no", "if", "when", "where", "for", "is", "are", "was", "than", "mod", "sin", "cos", "tan",
        "cot", "sec", "csc", "log", "ln", "exp", "sqrt", "pi", "inf", "infinity", "nan", "lim", "max", "min",
        "gcd", "lcm", "det", "base", "plus", "minus", "times", "over", "frac", "choose", "cdot", "to",
    ]
)  # fmt: skip
_ABBREVIATIONS = {
    "mm": "millimeter",
    "cm": "centimeter",
    "m": "meter",
    "km": "kilometer",
    "in": "inch",
    "ft": "foot",
    "feet": "foot",
    "inches": "inch",
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


@dataclass(frozen=True)
class Spelling:
    """An answer as it is compared.

    Args:
        text: its normal form, without a unit.
        unit: a known unit of measurement in the singular, else "".
        number: its exact value, where it is a number.
        is_words: letters only, at least one word of four: a name, not a product of variables.
    """

    text: str
    unit: str
    number: Fraction | None
    is_words: bool


def spelling(answer: str) -> Spelling:
    """How `answer` is compared."""
    text, unit = _without_unit(normal_form(answer))
    is_words = bool(re.fullmatch(r"[A-Za-z][A-Za-z' ,.-]*", text) and re.search("[A-Za-z]{4}", text))
    return Spelling(text.casefold() if is_words else text, unit, exact_number(text), is_words)


def normal_form(answer: str) -> str:
    r"""The same answer without markup around it, sizes, spacing commands and currency signs, in one kind of fraction.

    `The answer is 34.` is `34`; `28 percent` and `28\%` are `28\%`; `\text{ and }` is ` and `.
    """
    text = readable(answer)
    if r"\begin" not in text:
        text = _ESCAPED_TWICE.sub(r"\\", text)
    previous = None
    while text != previous:
        previous = text
        text = text.strip(_EDGES).removesuffix("\\").removesuffix(".").rstrip(",;:")
        whole = _QUOTED.fullmatch(text) or _WRAPPED.fullmatch(text)
        if whole:
            text = next(group for group in whole.groups() if group is not None)
    for pattern, replacement in _SUBSTITUTIONS:
        text = pattern.sub(replacement, text)
    text = text.strip()
    if (statement := _STATEMENT.match(text)) and not re.search(r"\bnot\b", statement[0]):
        text = text[statement.end() :]
    return text


def alternatives(text: str) -> list[str]:
    """The parts of `text` between `and`, `or`, `,` and `;` outside all brackets. One part: a single answer."""
    if exact_number(text) is not None:
        return [text]
    parts, depth = [""], 0
    for word in re.split(r"(\\?[{}()\[\]]|[,;]|\band\b|\bor\b)", text):
        depth += word.endswith(("{", "(", "[")) - word.endswith(("}", ")", "]")) if len(word) <= 2 else 0
        if depth <= 0 and word in (",", ";", "and", "or"):
            parts.append("")
        else:
            parts[-1] += word
    return [part for part in map(str.strip, parts) if part]


def _without_unit(text: str) -> tuple[str, str]:
    """(text without a unit, the unit if it is a known one)."""
    if degrees := _DEGREES.search(text):
        return (text[: degrees.start()], "degree") if degrees.start() else (text, "")
    match = _UNIT_MARKUP.search(text)
    words = [] if match is None else re.findall(r"[A-Za-z]+", match["words"])
    if match is None:
        match = _UNIT_WORDS.search(text)
        words = [] if match is None else re.findall(r"[A-Za-z]+", match["words"])
        if match and not _reads_as_unit(words[0], glued=not match["space"]):
            return text, ""
    if match is None or not match.start() or {word.casefold() for word in words} & _NO_UNITS - {"min"}:
        return text, ""
    return text[: match.start()].rstrip(), _known_unit(" ".join(words), match["power"] or "")


def _reads_as_unit(word: str, glued: bool) -> bool:
    """Whether it is a word and not a product of variables, which letters directly after a number mostly are."""
    return len(word) >= (4 if glued else 3) or (word.casefold() in _ABBREVIATIONS and not (glued and len(word) == 1))


def _known_unit(words: str, power: str) -> str:
    """`square meters` and `m^2` are `meter^2`; "" where it is no unit that we know."""
    words = words.casefold()
    for prefix, value in {"square ": "2", "sq ": "2", "cubic ": "3", "cu ": "3"}.items():
        if words.startswith(prefix):
            words, power = words.removeprefix(prefix), value
    words = _ABBREVIATIONS.get(words, words)
    unit = words if words in _UNITS else words.removesuffix("s")
    return unit + (f"^{power}" if power else "") if unit in _UNITS else ""
