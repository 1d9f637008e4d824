"""LaTeX as a sympy expression, or nothing. Runs in `killable` workers only: it can hang.

By the parser of math-verify, but without its search for something in the text that can be parsed: that would read
`17 \\cup 42` as 42.
"""

import re
from functools import lru_cache
from typing import Any

import sympy
from latex2sympy2_extended import NormalizationConfig, latex2sympy, normalize_latex
from latex2sympy2_extended.latex2sympy2 import ConversionConfig
from latex2sympy2_extended.logic import And
from math_verify.parser import should_treat_as_complex
from sympy.core.relational import Relational

__all__ = ["parsed"]

_NORMALISATION = NormalizationConfig(units=True, malformed_operators=True, nits=True)
_CONVERSION = ConversionConfig(lowercase_symbols=False)  # R^2 - r^2 is not 0
_EQUALS = re.compile(r"(?<![\\<>!])=")


@lru_cache(1000)  # the samples of a group repeat their gold
def parsed(text: str) -> Any:
    """The expression that `text` (`spelling.normal_form`) spells; None when it spells none.

    Decimals are the rationals that they spell, `i` is the imaginary unit, other symbols are real. Of a chain of
    equations that cannot be read as one, the last part.
    """
    last = _EQUALS.split(text)[-1]
    for part in [text] if "," in text or last == text else [text, last]:
        try:
            latex = normalize_latex(part, config=_NORMALISATION)
            expression = latex2sympy(
                latex,
                is_real=not should_treat_as_complex(latex),
                normalization_config=None,
                conversion_config=_CONVERSION,
            )
            if isinstance(expression, (sympy.Basic, sympy.MatrixBase)):
                return _exact(expression)
        except (MemoryError, RecursionError):
            raise
        except Exception:  # the parser and sympy raise nearly anything on what they cannot read
            continue
    return None


def _exact(expression: Any) -> Any:
    """Relations are rebuilt unevaluated: `5/2 = 2.5` would become True."""
    if isinstance(expression, And):
        return And(*map(_exact, expression._unsorted_args), evaluate=False)
    if isinstance(expression, Relational):
        return type(expression)(*map(_exact, expression.args), evaluate=False)
    replaced: dict[Any, Any] = {number: _rational(number) for number in expression.atoms(sympy.Float)}
    for symbol in expression.free_symbols:  # not the i of a sum
        replaced[symbol] = sympy.I if symbol.name == "i" else sympy.Symbol(symbol.name, real=True)
    replaced = {old: new for old, new in replaced.items() if old != new or type(old) is not type(new)}
    return expression.xreplace(replaced) if replaced else expression


def _rational(number: sympy.Float) -> Any:
    return sympy.Rational(str(number)) if not number or 1e-300 < abs(number) < 1e300 else number
