"""Is an answer the gold one? Exact where both are numbers or words; by sympy, in killable workers, elsewhere."""

import re
from collections.abc import Iterable, Sequence
from enum import Enum
from fractions import Fraction

from online_sft.rewards.answers import gold_answer
from online_sft.rewards.exact_number import exact_number
from online_sft.rewards.killable import Failure, KillableWorkers
from online_sft.rewards.screening import why_screened
from online_sft.rewards.spelling import Spelling, alternatives, spelling, with_both_signs

__all__ = ["MathGrader", "Verdict"]

_MAX_CACHED = 10_000
_MAX_CHARACTERS_KEPT = 1000
_LONGEST = 2000  # characters as they were written; what is longer is not worth the time to normalise it
_DECIMAL_COMMA = re.compile(r"[+-]?[0-9]+,[0-9]+")
_SPACE_BESIDE_NO_DIGIT = re.compile(r"(?<![0-9]) | (?![0-9])")
_DIGITS_APART = re.compile(r"[+-]?[0-9.]+(?: [0-9.]+)+")
_MULTIPLE_OF_A_VARIABLE = re.compile(r"[+-]?[0-9.]+[A-Za-z]")
_CHOICE = re.compile(r"\(?([A-Z])(?:\)|[.:])\s*(?!(?:or|and|not|is)\b)(?!.*(?:\([A-Z]\)|\b[A-Z][.):]))(\S.*)")
_ASSIGNED = re.compile(r"[A-Za-z]\w* ?= ?(?=[^=]*$)")
_LONG_DECIMAL = re.compile(r"\.[0-9]{10,}")
_SEVERAL_VALUES = re.compile(r"[,;<>=]|\\(?:[pm]{2}|cup|\{|[lg]eq?|in)(?![a-z])|\b(?:and|or)\b")


class Verdict(Enum):
    """What became of a sample: correct; wrong in one of six ways; or unscorable, when the gold is to blame."""

    CORRECT = "correct"
    WRONG = "wrong"
    NO_ANSWER = "no_answer"
    UNPARSED = "unparsed"
    SCREENED = "screened"
    TIMED_OUT = "timed_out"
    EXHAUSTED = "exhausted"
    BAD_GOLD = "bad_gold"

    @property
    def is_correct(self) -> bool | None:
        """True, False, or None where no grade is possible."""
        return None if self is Verdict.BAD_GOLD else self is Verdict.CORRECT


_GOLD_WAS_READ = frozenset({Verdict.CORRECT, Verdict.WRONG, Verdict.UNPARSED})
_Pair = tuple[str, str | None]  # gold and answer; with None: can the gold itself be graded against


class MathGrader:
    """Compares answers with golds; neither raises nor hangs, whatever stands in them.

    Verdicts are remembered, since the samples of a group repeat answers. Workers start when first needed.

    Args:
        timeout_s: for one comparison by sympy, wall clock.
        memory_gib: for one worker.
        num_workers: see `KillableWorkers`.
    """

    def __init__(self, timeout_s: float = 2.0, memory_gib: float = 2.0, num_workers: int | None = None) -> None:
        self._timeout_s = timeout_s
        self._workers = KillableWorkers(
            _compare,
            timeout_s=timeout_s,
            memory_gib=memory_gib,
            num_workers=num_workers,
            warm_up=(r"\frac{1}{2}", r"\sqrt{2}"),
        )
        self._remembered: dict[_Pair, Verdict] = {}

    def grade(self, golds: Sequence[object], answers: Sequence[str | None]) -> list[Verdict]:
        """One verdict per pair. A gold may be a whole solution (`gold_answer`); the answer None is none.

        A gold that cannot be read makes an equal answer unscorable too: were equal answers accepted and the others
        left out, that problem's reward would always be positive.
        """
        texts = [gold_answer(gold) for gold in golds]
        pairs: list[_Pair] = [(gold, answer or "") for gold, answer in zip(texts, answers, strict=True)]
        verdicts = self._verdicts(pairs)
        # an answer that has timed out says nothing of its gold; a quarter of the time is enough to read that alone
        faults = self._faults(texts, timeout_s=self._timeout_s / 4)
        return [Verdict.BAD_GOLD if faults[pair[0]] else verdicts[pair] for pair in pairs]

    def faults(self, golds: Iterable[object]) -> list[Verdict | None]:
        """Why each gold cannot be graded against, in the words of a verdict; None where it can."""
        texts = [gold_answer(gold) for gold in golds]
        faults = self._faults(texts)
        return [faults[text] for text in texts]

    def _faults(self, golds: Iterable[str], timeout_s: float | None = None) -> dict[str, Verdict | None]:
        verdicts = self._verdicts(((gold, None) for gold in golds), timeout_s)
        return {gold: None if verdict.is_correct else verdict for (gold, _), verdict in verdicts.items()}

    def _verdicts(self, pairs: Iterable[_Pair], timeout_s: float | None = None) -> dict[_Pair, Verdict]:
        known = {pair: self._known(*pair) for pair in dict.fromkeys(pairs)}
        verdicts = {pair: verdict for pair, verdict in known.items() if verdict}
        asked = [pair for pair in known if pair not in verdicts]
        if asked:
            tasks = [(_for_sympy(gold), None if answer is None else _for_sympy(answer)) for gold, answer in asked]
            for pair, result in zip(asked, self._workers.run(tasks, timeout_s), strict=True):
                verdicts[pair] = Verdict(result.reason if isinstance(result, Failure) else result)
        self._remember(verdicts)
        # an answer that sympy has compared tells that its gold can be read
        compared = [pair for pair in asked if pair[1] is not None and verdicts[pair] in _GOLD_WAS_READ]
        self._remember({(gold, None): Verdict.CORRECT for gold, _ in compared})
        return verdicts

    def _known(self, gold: str, answer: str | None) -> Verdict | None:
        if answer is not None and self._remembered.get((gold, None), Verdict.CORRECT) is not Verdict.CORRECT:
            return Verdict.BAD_GOLD
        return self._remembered.get((gold, answer)) or _without_sympy(gold, answer)

    def _remember(self, verdicts: dict[_Pair, Verdict]) -> None:
        self._remembered |= {
            pair: verdict
            for pair, verdict in verdicts.items()
            if sum(map(len, filter(None, pair))) < _MAX_CHARACTERS_KEPT
        }
        for pair in list(self._remembered)[: max(0, len(self._remembered) - _MAX_CACHED)]:
            del self._remembered[pair]


def _compare(gold: str, answer: str | None) -> str:
    from online_sft.rewards.symbolic import compare  # sympy, in the workers only

    return compare(gold, answer)


def _for_sympy(text: str) -> str:
    spelled = spelling(text)
    if spelled.number is None or _LONG_DECIMAL.search(spelled.text):
        return with_both_signs(spelled.text)
    return rf"\frac{{{spelled.number.numerator}}}{{{spelled.number.denominator}}}"


def _without_sympy(gold_text: str, answer_text: str | None) -> Verdict | None:
    """The verdict where text and exact fractions decide; None where it takes sympy."""
    if len(gold_text) > _LONGEST:
        return Verdict.SCREENED if answer_text is None else Verdict.BAD_GOLD
    if answer_text is not None and len(answer_text) > _LONGEST:
        return Verdict.SCREENED
    gold = spelling(gold_text)
    fault = Verdict.SCREENED if why_screened(gold.text) else None if gold.text else Verdict.NO_ANSWER
    if answer_text is not None:
        return Verdict.BAD_GOLD if fault else _compared(gold, spelling(answer_text))
    return fault or (Verdict.CORRECT if gold.number is not None or gold.is_words else None)


def _compared(gold: Spelling, answer: Spelling) -> Verdict | None:
    if not answer.text:
        return Verdict.NO_ANSWER
    if gold.unit and answer.unit and gold.unit != answer.unit:
        return Verdict.WRONG
    if _tight(gold.text) == _tight(answer.text):
        return Verdict.CORRECT
    pairs = (gold, answer), (answer, gold)
    if gold.is_words or answer.is_words:
        return Verdict.CORRECT if gold.text.casefold() == answer.text.casefold() else Verdict.WRONG
    if answer.number is None and _DIGITS_APART.fullmatch(answer.text):
        return Verdict.WRONG
    for one, other in pairs:
        if choice := _CHOICE.fullmatch(one.text):  # the letter and what it stands for
            if len(other.text) == 1 and other.text.isalpha():
                return Verdict.CORRECT if choice[1] == other.text else Verdict.WRONG
            if other.number is not None:
                return _compared(other, spelling(choice[2]))
    if any(_MULTIPLE_OF_A_VARIABLE.fullmatch(one.text) and other.number is not None for one, other in pairs):
        return Verdict.WRONG  # math-verify takes the variable for a unit
    numbers = _numbers(gold, answer)
    if numbers and numbers[0] == numbers[1]:
        return Verdict.CORRECT
    # sympy forgives a calculator's 16 digits of a value that has no end; an integer needs no digits
    if numbers and (numbers[0].denominator == 1 or not _LONG_DECIMAL.search(gold.text + answer.text)):
        return Verdict.WRONG
    if numbers is None and (lists := _number_lists(gold, answer)):
        return Verdict.CORRECT if sorted(lists[0]) == sorted(lists[1]) else Verdict.WRONG
    if len(alternatives(answer.text)) > 1 and (gold.number is not None or not _SEVERAL_VALUES.search(gold.text)):
        return Verdict.WRONG
    return Verdict.SCREENED if why_screened(answer.text) else None


def _tight(text: str) -> str:
    return _SPACE_BESIDE_NO_DIGIT.sub("", text)


def _numbers(gold: Spelling, answer: Spelling) -> tuple[Fraction, Fraction] | None:
    left, right = _number(gold, beside=answer.text), _number(answer, beside=gold.text)
    return None if left is None or right is None else (left, right)


def _number_lists(*sides: Spelling) -> list[list[Fraction]] | None:
    """The numbers that each side lists; None where one lists something else."""
    lists = [[exact_number(part) for part in alternatives(side.text)] for side in sides]
    exact = [[number for number in numbers if number is not None] for numbers in lists]
    return exact if exact == lists and not any(_LONG_DECIMAL.search(side.text) for side in sides) else None


def _number(side: Spelling, beside: str) -> Fraction | None:
    """Its exact number; of `x = 5`, where the other side is no equation; of `1,5`, where it has a decimal point."""
    if side.number is not None:
        return side.number
    if "=" not in beside and (assigned := _ASSIGNED.match(side.text)):
        return exact_number(side.text[assigned.end() :])
    return exact_number(side.text.replace(",", ".")) if "." in beside and _DECIMAL_COMMA.fullmatch(side.text) else None
