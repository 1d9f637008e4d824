"""The math reward: is the completion's final answer equal to the problem's?"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from online_sft.rewards.answers import final_answer
from online_sft.rewards.grading import MathGrader
from online_sft.rewards.messages import Completion, text_of
from online_sft.rewards.verdicts import Verdict

__all__ = ["MathVerificationReward"]

_GOLD_COLUMNS = ("solution", "ground_truth", "reward_model")


@dataclass(frozen=True, eq=False)
class MathVerificationReward:
    r"""A reward function in TRL's signature: is the final answer equal to the gold one?

    Correct: what stands after the last `Answer:` (else in the last `\boxed{}`) has the value of the gold: the same
    text, the same exact number, or equal by sympy (math-verify). Wrong: another value, no answer, or an answer that
    cannot be read in time. Unscorable: the gold itself cannot be read; the sample stays out of baseline and loss.

    The gold is the `solution`, the `ground_truth`, or `reward_model["ground_truth"]` (DAPO) of the row: a bare answer,
    or a text that ends in `#### 42`, `\boxed{42}` or `Answer: 42`. Percent signs count: 34 % is 0.34. Units count only
    where both sides have one. sympy runs in processes of its own, which are killed after `timeout_s`; they start with
    the first answer that needs them and are not pickled.

    Args:
        correct_reward: for a correct answer.
        incorrect_reward: for a wrong one.
        unscorable: where the gold is bad; None keeps the sample out of everything.
        gold_column: the column of the golds, where it is none of the three.
        reward_lookup: golds by prompt (of a chat: its last user message), instead of a column.
        accept_expressions: whether `3 + 5`, which a policy can copy from the question, answers 8.
        timeout_s: wall clock for one comparison by sympy.
        memory_gib: for each worker process.
    """

    correct_reward: float = 1.0
    incorrect_reward: float = -1.0
    unscorable: float | None = None
    gold_column: str | None = None
    reward_lookup: Mapping[str, object] | None = None
    accept_expressions: bool = True
    timeout_s: float = 2.0
    memory_gib: float = 2.0

    def __post_init__(self) -> None:
        if self.gold_column is not None and self.reward_lookup is not None:
            raise ValueError("set gold_column or reward_lookup, not both: each says where the golds are")

    @property
    def __name__(self) -> str:  # TRL names the metric `rewards/<__name__>`
        return "math_verification"

    def __call__(
        self,
        completions: Sequence[Completion],
        solution: Sequence[object] | None = None,
        *,
        prompts: Sequence[Any] | None = None,
        log_metric: Callable[[str, float], None] | None = None,
        **columns: Any,
    ) -> list[float | None]:
        """Rewards of `completions` (strings, or chats whose last assistant message is the answer), one each.

        Logs the share of each verdict among the completions, and `accuracy`, the share of correct ones among those
        that can be scored.

        Raises:
            ValueError: when the columns hold no golds, or more than one column does.
        """
        if solution is not None:
            columns["solution"] = solution
        verdicts = self.verdicts(completions, self.golds(columns, prompts))
        if log_metric:
            for name, share in _shares(verdicts).items():
                log_metric(f"math_verification/{name}", share)
        rewards = {True: self.correct_reward, False: self.incorrect_reward, None: self.unscorable}
        return [rewards[verdict.is_correct] for verdict in verdicts]

    def verdicts(self, completions: Sequence[Completion], golds: Sequence[object]) -> list[Verdict]:
        """What became of each completion."""
        return self._grader.grade(golds, [final_answer(text_of(completion)) for completion in completions])

    def check_dataset(self, dataset: Mapping[str, Sequence[Any]]) -> list[str]:
        """One line per row of `dataset` (columns by name) whose gold cannot be graded against: row, gold and reason.

        Raises:
            ValueError: when there is no column of golds, or none of the golds can be graded against.
        """
        golds = self.golds(dataset, dataset.get("prompt"))
        report = [
            f"row {row}: gold {str(gold)[:80]!r}: {fault.value}"
            for row, (gold, fault) in enumerate(zip(golds, self._grader.faults(golds), strict=True))
            if fault
        ]
        if golds and len(report) == len(golds):
            raise ValueError(f"no gold of {len(golds)} can be graded against; {report[0]}")
        return report

    @cached_property
    def _grader(self) -> MathGrader:
        return MathGrader(self.timeout_s, self.memory_gib, accept_expressions=self.accept_expressions)

    def golds(self, columns: Mapping[str, Sequence[Any]], prompts: Sequence[Any] | None = None) -> list[object]:
        """The gold of each row, from `reward_lookup` or from the one column that holds them.

        Raises:
            ValueError: when no column holds golds, or several do.
        """
        if self.reward_lookup is not None:
            if prompts is None:
                raise ValueError("reward_lookup finds golds by prompt, and no prompts were passed")
            return [self.reward_lookup.get(text_of(prompt, role="user")) for prompt in prompts]
        candidates = _GOLD_COLUMNS if self.gold_column is None else (self.gold_column,)
        present = [name for name in candidates if name in columns]
        if len(present) != 1:
            found = f"has {' and '.join(present)}" if present else f"has none of {', '.join(candidates)}"
            raise ValueError(f"the math reward needs one column of golds, and the data {found}; set gold_column")
        return [gold["ground_truth"] if isinstance(gold, Mapping) else gold for gold in columns[present[0]]]


def _shares(verdicts: Sequence[Verdict]) -> dict[str, float]:
    counts = Counter(verdicts)
    shares = {verdict.value: counts[verdict] / len(verdicts) for verdict in Verdict if verdict is not Verdict.CORRECT}
    scorable = len(verdicts) - counts[Verdict.BAD_GOLD]
    return shares | ({"accuracy": counts[Verdict.CORRECT] / scorable} if scorable else {})
