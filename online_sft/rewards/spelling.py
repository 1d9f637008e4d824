r"""One spelling for answers that differ in markup only: `\dfrac`, `$…$`, `\left(`, `The answer is 34`, `28 percent`."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache

from online_sft.rewards.exact_number import exact_number
from online_sft.rewards.plain_text import readable
from online_sft.rewards.units import TEXT, without_unit

__all__ = ["Spelling", "alternatives", "normal_form", "spelling", "with_both_signs", "without_text_markup"]

_TEXT = re.compile(rf"{TEXT}\{{([^{{}}]*)\}}")
_WRAPPED = re.compile(rf"(?:\\boxed|\\fbox|\\underline|{TEXT})\s*\{{([^{{}}]*)\}}")
_QUOTED = re.compile(r"`(.*)`|\"(.*)\"|\(([A-Za-z])\)|([A-Z])\)", re.DOTALL)
_FUNCTIONS = "arccos|arcsin|arctan|sinh|cosh|tanh|sin|cos|tan|cot|sec|csc|log|ln|exp|max|min|gcd"
_INVISIBLE = (
    r"(?:\\?\$|(?<!\\)\\[()\[\]]|\\displaystyle(?![a-z])|\\(?:left|right)(?![a-zA-Z])|\\[bB]igg?[lr]?(?![a-z])|\*\*"
    r"|\\(?:bf|rm|it|sf|tt|large|Large|huge|Huge)(?![a-zA-Z])|\\textdollar|\\pounds|\\yen|[€£¥₹]|(?<![a-zA-Z])USD(?![a-zA-Z])|\\checkmark|\\textcolor\{\w+\}|\\color\{\w+\})"
)
_SUBSTITUTIONS: list[tuple[re.Pattern[str], str | Callable[[re.Match[str]], str]]] = [
    (re.compile(r"(?<=[\w)}])\s?\*\*\s?(?=[\w({-])"), "^"),
    (re.compile(rf"(?<=[0-9]){_INVISIBLE}+(?=[0-9])"), " "),  # 3\$4 is not 34
    (re.compile(_INVISIBLE), ""),
    (re.compile(r"\\[dtc]frac"), r"\\frac"),
    (re.compile(r"(?<=[0-9])(?:\{,\}|,\s*\\!\s*|\\!|\\,)(?=[0-9]{3}(?![0-9]))"), ""),
    (re.compile(r"\{,\}"), ","),
    (re.compile(r"\\!"), ""),
    (re.compile(r"\\begin\{cases\}(.*?)\\end\{cases\}", re.DOTALL), lambda cases: cases[1].replace(r"\\", ",")),
    (re.compile(r"(?<!\\)\\[,;: ]|~|\\q?quad(?![a-z])"), " "),
    (re.compile(rf"{TEXT}\{{([ei])\}}|(?<![0-9])(?<![0-9] ){TEXT}\{{([A-Za-z])\}}"), r"\1\2"),
    (re.compile(rf"{TEXT}\{{[^{{}}]*: *\}}|^(?i:answer) ?: ?"), ""),  # \text{Answer: }
    (
        re.compile(r"^(?:\\(?:approx|sim|therefore)(?![a-z])|(?i:about|approximately|option|choice|=)(?![a-zA-Z])) ?"),
        "",
    ),
    (re.compile(r"^(?:negative|minus) (?=[0-9\\])"), "-"),
    (re.compile(rf"^{TEXT}\{{ ?\(([A-Z])\) ?\}}(?= ?\S)"), r"(\1) "),
    (
        re.compile(
            rf"(?:\\?%|(?:{TEXT}\{{\s*|\b)(?:percent|per cent|pct)\b\s*\}}?|{TEXT}\{{\s*\\?%\s*\}})", re.IGNORECASE
        ),
        r"\\%",
    ),
    (re.compile(r"(?<![\\a-zA-Z])(?:infinity|inf)(?![a-zA-Z])", re.IGNORECASE), r"\\infty "),
    (re.compile(r"(?<![\\a-zA-Z])sqrt"), r"\\sqrt "),
    (re.compile(r"\\sqrt ?(\[[0-9]\])? ?\(([^()]*)\)"), r"\\sqrt\1{\2}"),
    (re.compile(rf"(?<![\\a-zA-Z])({_FUNCTIONS})(?= ?[(\\{{a-zA-Z0-9^_])(?![a-zA-Z])"), r"\\\1 "),
    (re.compile(r"(?<![\\a-zA-Z])pi(?![a-zA-Z])"), r"\\pi "),
    (re.compile(r"\^ ?(-[0-9]+|-[a-z])"), r"^{\1}"),
    (re.compile(r"\\not ?="), r"\\ne "),
    (re.compile(r"\\varnothing"), r"\\emptyset"),
    (re.compile(r"\\lbrace(?![a-z])"), r"\\{"),
    (re.compile(r"\\rbrace(?![a-z])"), r"\\}"),
    (re.compile(r"\\langle(?![a-z])"), "("),
    (re.compile(r"\\rangle(?![a-z])"), ")"),
    (re.compile(rf"{TEXT}\{{\s*(million|billion|trillion|thousand|hundred|and|or|,|;)\s*\}}", re.IGNORECASE), r" \1 "),
    (re.compile(r"\s+"), " "),
]
_SEMICOLON_IN_BRACKETS = re.compile(r"([\[(][^\[\]();]*);(?=[^\[\]()]*[\])])")
_ESCAPED_TWICE = re.compile(r"\\\\(?=[a-zA-Z])")
_STATEMENT = re.compile(r"(?:\\?[A-Za-z'][\w']*[ ,]+)*?(?:is|are|equals)(?: equal to| about)?:? (?=[^a-z ])")
_TIME_OF_DAY = re.compile(r"(\d{1,2}:\d\d)\s*([ap])\.? ?m\.?\s*")
_WORDS = re.compile(r"[A-Za-z][A-Za-z' ,.-]*")
# a word, an abbreviation or a name; other letters are a product of variables
_NAME = re.compile(r"[A-Za-z]{4}|(?:^|[ ,])[A-Z][a-z]{2}|[A-Z]{2}")
_SIGN = re.compile(r"\\(pm|mp)(?![a-z])")


@dataclass(frozen=True)
class Spelling:
    """An answer as it is compared.

    Args:
        text: its normal form, without a unit.
        unit: a known unit of measurement in the singular, else "".
        number: its exact value, where it is a number.
        is_words: a name, not a product of variables; `text` is in lower case then.
    """

    text: str
    unit: str
    number: Fraction | None
    is_words: bool


@lru_cache(2000)  # the samples of a group repeat their gold
def spelling(answer: str) -> Spelling:
    """How `answer` is compared."""
    whole = normal_form(answer)
    if time := _TIME_OF_DAY.fullmatch(without_text_markup(whole).casefold()):
        return Spelling(f"{time[1]} {time[2]}m", "", None, is_words=True)
    text, unit = without_unit(whole)
    in_text = re.fullmatch(rf"[\s$\\()\[\]]*{TEXT}\{{.*\}}[\s$.\\()\[\]]*", answer) and len(text) > 1
    is_words = bool(_WORDS.fullmatch(text) and (in_text or _NAME.search(text)))
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
        text = text.strip(" \t\n$*").removesuffix("\\").removesuffix(".").rstrip(",;:?")
        whole = _QUOTED.fullmatch(text) or _WRAPPED.fullmatch(text)
        if whole:
            text = next(group for group in whole.groups() if group is not None)
    for pattern, replacement in _SUBSTITUTIONS:
        text = pattern.sub(replacement, text)
    text = _SEMICOLON_IN_BRACKETS.sub(r"\1,", _SEMICOLON_IN_BRACKETS.sub(r"\1,", text)).strip()
    if (statement := _STATEMENT.match(text)) and not re.search(r"\bnot\b", statement[0]):
        text = text[statement.end() :]
    return text


def without_text_markup(text: str) -> str:
    r"""`3 \text{ hours}` is `3  hours`."""
    return _TEXT.sub(r"\1", text)


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


def with_both_signs(text: str) -> str:
    r"""`\pm` written out: `x = 1 \pm 2, 3` is `x = 1 + 2, x = 1 - 2, 3`; inside the braces of a set, too."""
    if not _SIGN.search(text):
        return text
    if text.startswith(r"\{") and text.endswith(r"\}"):
        return rf"\{{{with_both_signs(text[2:-2])}\}}"
    parts = []
    for part in alternatives(text):
        signs = [{"pm": "+", "mp": "-"}, {"pm": "-", "mp": "+"}] if _SIGN.search(part) else [{}]
        parts += [_SIGN.sub(lambda match: sign[match[1]], part) for sign in signs]  # noqa: B023  # called at once
    return ", ".join(parts)
