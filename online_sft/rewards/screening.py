r"""Answers that must not reach sympy: evaluating `9^{9^{9^9}}` takes for ever, or all memory.

The screen spares the time of a killed worker, no more: what passes it can still hang, and is then killed.
"""

import re

__all__ = ["why_screened"]

_MAX_CHARACTERS = 1000
_MAX_NESTING = 30
_MAX_EXPONENT = 100_000
_EXPONENT = re.compile(r"(?P<base>[\d)}\]]?) ?(?:\^|\*\*) ?(?P<open>[{(]|\\left ?[({])?")
_NUMBER = re.compile(r"\d+")
_HUGE_SCIENTIFIC = re.compile(r"\d ?[eE][+-]?\d{4,}")
_HUGE_FACTORIAL = re.compile(r"!\s*!\s*!|\d{4,}\s*!\s*!|\d{5,}\s*!|(?:\d{4,}|[\^!])[^()]*[)}\]]\s*!")
_BINOMIAL = re.compile(r"\\[dt]?binom ?\{ ?([^{}]*)\} ?\{([^{}]*)\}|(\d+) ?\\choose ?(\d+)")
_LONG_SUM = re.compile(r"\\(?:sum|prod)[^a-zA-Z]*.*?\^ ?(?:\{[^{}]*(?:\^|\d{6})|\d{6})")
_VARIABLE = re.compile(r"(?<![\\a-zA-Z])[a-zA-Z]|\\(?:alpha|beta|theta|phi|lambda|pi)")


def why_screened(text: str) -> str | None:
    """What makes evaluating `text` hopeless; None when nothing does."""
    if len(text) > _MAX_CHARACTERS:
        return f"longer than {_MAX_CHARACTERS} characters"
    if _nesting(text) > _MAX_NESTING:
        return f"nested more than {_MAX_NESTING} deep"
    if _has_huge_power(text) or _HUGE_SCIENTIFIC.search(text):
        return "a huge power"
    if _HUGE_FACTORIAL.search(text):
        return "a huge factorial"
    if any(_is_huge_binomial(*filter(None, match.groups())) for match in _BINOMIAL.finditer(text)):
        return "a huge binomial"
    if _LONG_SUM.search(text):
        return "a long sum or product"
    return None


def _nesting(text: str) -> int:
    depth = deepest = 0
    for character in text:
        if character in "{([":
            depth += 1
            deepest = max(deepest, depth)
        elif character in "})]":
            depth -= 1
    return deepest


def _has_huge_power(text: str) -> bool:
    """A number above 100,000 in an exponent, or a power of numbers in an exponent (a tower) that is above it."""
    for match in _EXPONENT.finditer(text):
        exponent = _group(text, match.end()) if match["open"] else text[match.end() : match.end() + 1]
        if any(int(number) >= _MAX_EXPONENT for number in _NUMBER.findall(exponent)):
            return True
        if _VARIABLE.search(exponent):
            continue  # a power with a variable in it is not evaluated
        for inner in _EXPONENT.finditer(exponent):
            if inner["base"] and not _is_small_power(exponent):
                return True
    return False


def _is_huge_binomial(upper: str, lower: str = "") -> bool:
    """By its arguments: `\\binom{10000}{2}` is small, `\\binom{10000}{5000}` has 3,000 digits, which is enough."""
    if "^" in upper + lower or "!" in upper + lower:
        return True
    if not (upper.strip().isdecimal() and lower.strip().isdecimal()):
        return False
    return min(int(lower), abs(int(upper) - int(lower))) * len(upper) > 50_000


def _is_small_power(text: str) -> bool:
    """`2^{10}` or `2^3`, and nothing else."""
    match = re.fullmatch(r"(\d{1,3}) ?\^ ?(?:\{ ?(\d{1,2}) ?\}|(\d))", text.strip())
    return match is not None and int(match[1]) ** int(match[2] or match[3]) < _MAX_EXPONENT


def _group(text: str, start: int) -> str:
    """From `start`, which is inside a bracket, to where that closes."""
    depth = 1
    for position in range(start, len(text)):
        depth += (text[position] in "{([") - (text[position] in "})]")
        if depth == 0:
            return text[start:position]
    return text[start:]
