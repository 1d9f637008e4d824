"""The math reward: is the completion's final answer the solution's number?"""

from collections.abc import Sequence
from dataclasses import dataclass

from online_sft.rewards.answers import exact_number, extract_answer

__all__ = ["MathVerificationReward"]

Completion = str | list[dict[str, str]]


@dataclass(frozen=True)
class MathVerificationReward:
    r"""A reward function in TRL's signature that compares the final answer with the `solution` column, exactly.

    Correct: the answer after the last `Answer:` (or in the last `\boxed{}`) is the same number as the solution.
    Wrong: another number, no number, or no answer at all. Unscorable: the solution itself is not a number; the reward
    is then None, which keeps the sample out of baselines and loss.

    Args:
        correct_reward: for a correct answer.
        incorrect_reward: for a wrong one.
    """

    correct_reward: float = 1.0
    incorrect_reward: float = -1.0

    @property
    def __name__(self) -> str:  # TRL names the metric `rewards/<__name__>`
        return "math_verification"

    def __call__(
        self, completions: Sequence[Completion], solution: Sequence[str], **columns: object
    ) -> list[float | None]:
        """Rewards of `completions` (strings, or chats whose last message is the answer), one per completion."""
        return [self.score(completion, gold) for completion, gold in zip(completions, solution, strict=True)]

    def score(self, completion: Completion, solution: str) -> float | None:
        """The reward of one completion; None when `solution` is not a number."""
        gold = exact_number(str(solution).strip())
        if gold is None:
            return None
        text = completion if isinstance(completion, str) else completion[-1]["content"]
        answer = extract_answer(text)
        correct = answer is not None and exact_number(answer) == gold
        return self.correct_reward if correct else self.incorrect_reward
