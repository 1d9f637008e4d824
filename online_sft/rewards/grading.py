"""Is an answer the gold one? Exact where both are numbers or words; by sympy, in killable workers, elsewhere."""

from collections.abc import Iterable, Sequence

from online_sft.rewards.answers import gold_answer
from online_sft.rewards.comparison import LONG_DECIMAL, compared, is_evaluated
from online_sft.rewards.killable import Failure, KillableWorkers
from online_sft.rewards.screening import why_screened
from online_sft.rewards.spelling import spelling, with_both_signs
from online_sft.rewards.verdicts import Verdict

__all__ = ["MathGrader"]

_MAX_CACHED = 10_000
_MAX_CHARACTERS_KEPT = 1000
_LONGEST = 2000  # characters as they were written; what is longer is not worth the time to normalise it
_GOLD_WAS_READ = frozenset({Verdict.CORRECT, Verdict.WRONG, Verdict.UNPARSED})
_Pair = tuple[str, str | None]  # gold and answer; with None: can the gold itself be graded against


class MathGrader:
    """Compares answers with golds; neither raises nor hangs, whatever stands in them.

    Verdicts are remembered, since the samples of a group repeat answers. Workers start when first needed.

    Args:
        timeout_s: for one comparison by sympy, wall clock.
        memory_gib: for one worker.
        num_workers: see `KillableWorkers`.
        accept_expressions: whether `3 + 5` answers 8.
    """

    def __init__(
        self,
        timeout_s: float = 2.0,
        memory_gib: float = 2.0,
        num_workers: int | None = None,
        accept_expressions: bool = True,
    ) -> None:
        self._timeout_s = timeout_s
        self._accept_expressions = accept_expressions
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
        return self._remembered.get((gold, answer)) or _without_sympy(gold, answer, self._accept_expressions)

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
    if spelled.number is None or LONG_DECIMAL.search(spelled.text):
        return with_both_signs(spelled.text)
    return rf"\frac{{{spelled.number.numerator}}}{{{spelled.number.denominator}}}"


def _without_sympy(gold_text: str, answer_text: str | None, accept_expressions: bool) -> Verdict | None:
    """The verdict where text and exact fractions decide; None where it takes sympy."""
    if len(gold_text) > _LONGEST:
        return Verdict.SCREENED if answer_text is None else Verdict.BAD_GOLD
    if answer_text is not None and len(answer_text) > _LONGEST:
        return Verdict.SCREENED
    gold = spelling(gold_text)
    fault = Verdict.SCREENED if why_screened(gold.text) else None if gold.text else Verdict.NO_ANSWER
    if answer_text is None:
        return fault or (Verdict.CORRECT if gold.number is not None or gold.is_words else None)
    if fault:
        return Verdict.BAD_GOLD
    answer = spelling(answer_text)
    verdict = compared(gold, answer)
    is_open = verdict in (None, Verdict.CORRECT) and not accept_expressions
    return Verdict.WRONG if is_open and not is_evaluated(gold, answer) else verdict
