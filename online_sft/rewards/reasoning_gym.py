"""The scorers of reasoning-gym as a reward function."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from online_sft.rewards.answers import final_answer
from online_sft.rewards.killable import Failure, KillableWorkers
from online_sft.rewards.messages import text_of

__all__ = ["ReasoningGymReward"]


@dataclass(frozen=True, eq=False)
class ReasoningGymReward:
    """The score, 0 to 1, that a problem's own data set of reasoning-gym gives the final answer.

    The answer is what stands in the last `<answer>...</answer>`, else after the last `Answer:`, else in the last box.
    Rows have the columns of reasoning-gym's items: `answer` and `metadata`, a mapping or JSON (data sets of mixed
    problems need JSON), whose `source_dataset` names the scorer; `question` where the scorer reads it. Scorers run in
    processes of their own, killed after `timeout_s`: no answer, and one whose scoring runs out of time or memory or
    raises, earns 0. Unscorable: a row without a known `source_dataset`.

    Args:
        timeout_s: wall clock for one answer.
        memory_gib: for each worker process.
    """

    timeout_s: float = 3.0
    memory_gib: float = 4.0

    @property
    def __name__(self) -> str:  # TRL names the metric `rewards/<__name__>`
        return "reasoning_gym"

    def __call__(
        self,
        completions: Sequence[Any],
        answer: Sequence[Any],
        metadata: Sequence[Any],
        question: Sequence[Any] | None = None,
        log_metric: Callable[[str, float], None] | None = None,
        **columns: Any,
    ) -> list[float | None]:
        """One score per completion. Logs the shares of completions without an answer and of scorers that failed."""
        answers = [_answer(text_of(completion)) for completion in completions]
        scores = self._scores(answers, _entries(answer, metadata, question))
        if log_metric:
            log_metric("reasoning_gym/no_answer", answers.count(None) / len(answers))
            for reason in ("timed_out", "exhausted", "raised"):
                log_metric(f"reasoning_gym/{reason}", scores.count(reason) / len(scores))
        return [0.0 if isinstance(score, str) else score for score in scores]

    def check_dataset(self, dataset: Mapping[str, Sequence[Any]]) -> list[str]:
        """One line per row of `dataset` (columns by name) whose own answer the scorer does not accept.

        Raises:
            ValueError: when no row has a scorer.
        """
        entries = _entries(dataset["answer"], dataset["metadata"], dataset.get("question"))
        scores = self._scores([entry["answer"] for entry in entries], entries)
        if scores and all(score is None for score in scores):
            raise ValueError(
                "no row has a `source_dataset` in its `metadata` that reasoning-gym knows; row 0 has "
                f"{entries[0]['metadata']!r:.60}: keep the `metadata` of reasoning-gym's items"
            )
        return [
            f"row {row}: {_fault(score)}"
            for row, score in enumerate(scores)
            # problems with many solutions have no `answer` of their own
            if _fault(score) and (entries[row]["answer"] is not None or score != 0.0)
        ]

    def _scores(self, answers: Sequence[str | None], entries: Sequence[dict[str, Any]]) -> list[Any]:
        """A score, None where there is no scorer, or the reason why it failed."""
        results = self._workers.run(zip(answers, entries, strict=True))
        return [result.reason if isinstance(result, Failure) else result for result in results]

    @cached_property
    def _workers(self) -> KillableWorkers:
        return KillableWorkers(_score, timeout_s=self.timeout_s, memory_gib=self.memory_gib, warm_up=(None, {}))


def _fault(score: float | str | None) -> str | None:
    if score is None:
        return "no known source_dataset"
    return score if isinstance(score, str) else None if score >= 1 else f"its own answer scores {score:g}"


def _answer(completion: str) -> str | None:
    # no pattern: to find none in an answer of spaces that stays open takes hours
    before, closing, _ = completion.rpartition("</answer>")
    _, opening, answer = before.rpartition("<answer>")
    return answer.partition("</answer>")[0].strip() if opening and closing else final_answer(completion)


def _entries(answers: Sequence[Any], metadata: Sequence[Any], questions: Sequence[Any] | None) -> list[dict[str, Any]]:
    return [
        {
            "question": questions[row] if questions is not None else "",
            "answer": answer,
            "metadata": _mapping(metadata[row], row),
        }
        for row, answer in enumerate(answers)
    ]


def _mapping(metadata: Any, row: int) -> Any:
    if not isinstance(metadata, str):
        return metadata
    try:
        return json.loads(metadata)
    except json.JSONDecodeError as error:
        raise ValueError(
            f"row {row} has the metadata {metadata!r:.60}, which is no JSON ({error}); write json.dumps of "
            "reasoning-gym's own"
        ) from error


def _score(answer: str | None, entry: dict[str, Any]) -> float | str | None:
    try:
        from reasoning_gym.factory import DATASETS, get_score_answer_fn
    except ImportError as error:
        raise ImportError("this reward needs reasoning-gym: pip install 'online-sft[reasoning-gym]'") from error

    source = (entry.get("metadata") or {}).get("source_dataset")
    if source not in DATASETS:
        return None
    try:
        return float(get_score_answer_fn(source)(answer, entry))
    except Exception:  # a scorer of another library, on an answer that a model made up
        return "raised"
