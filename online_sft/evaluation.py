"""How often sampled completions are correct: pass@k, avg@n and maj@k per prompt, with intervals over prompts."""

import math
from collections import defaultdict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from online_sft.rewards.spelling import spelling

__all__ = ["Estimate", "GradedPrompt", "answer_value", "bootstrap_mean", "estimates", "maj_at_k", "pass_at_k"]

_Answer = TypeVar("_Answer", bound=Hashable)
_MAX_VOTES = 1000  # C(1000, 500) = 3e299 still is a float


@dataclass(frozen=True)
class Estimate:
    mean: float
    low: float  # ends of the interval
    high: float


@dataclass(frozen=True)
class GradedPrompt:
    """The samples of one prompt, in the order in which they were drawn."""

    is_correct: Sequence[bool | None]  # [n]; None where the sample cannot be scored
    answers: Sequence[Hashable | None]  # [n]; None where the sample gives no answer


def pass_at_k(num_samples: int | Tensor, num_correct: int | Tensor, k: int) -> Tensor:
    """Chance that k of n samples, drawn without replacement, hold a correct one: 1 - C(n-c, k) / C(n, k).

    Unbiased for 1 - (1 - p)^k, p the chance of a correct sample, which the plug-in 1 - (1 - c/n)^k underestimates
    (Chen et al. 2021, Eq. 1). The quotient is the product of (n-c-j) / (n-j) over j < k: exact where factorials
    overflow, and 0 where fewer than k samples are wrong, because one factor is.

    num_samples (n), num_correct (c): counts of one shape, or numbers. Returns float64 of that shape.

    Raises:
        ValueError: when k is below 1 or above n, or c is not between 0 and n.
    """
    n = torch.as_tensor(num_samples, dtype=torch.float64).unsqueeze(-1)
    c = torch.as_tensor(num_correct, dtype=torch.float64).unsqueeze(-1)
    _check_k(k, int(n.min()) if n.numel() else k)
    if ((c < 0) | (c > n)).any():
        raise ValueError(f"num_correct must be between 0 and num_samples; got {num_correct} of {num_samples}")
    drawn = torch.arange(k, dtype=torch.float64)
    return 1.0 - ((n - c - drawn) / (n - drawn)).prod(-1)


def answer_value(answer: str) -> Hashable:
    r"""What answers of equal value share: the exact number, else the normal form; `0.75` and `\frac34` vote together.

    Units are left out: 5 and 5 cm vote together, and so do 5 cm and 5 m.
    """
    spelled = spelling(answer)
    return spelled.text if spelled.number is None else spelled.number


def maj_at_k(
    answers: Sequence[_Answer | None],
    is_correct: Sequence[bool],
    k: int,
    answer_key: Callable[[_Answer], Hashable] | None = None,
) -> float:
    """Chance that the majority answer of k of n samples, drawn without replacement, is correct (Wang et al. 2023).

    The exact mean over all C(n, k) subsets, counted, not drawn: the only estimate from n samples that depends neither
    on their order nor on a seed, and it has the least variance of the unbiased ones. A tie is broken at random: the
    tied answers share it. Samples without an answer (None) do not vote; where none votes, the majority is wrong.

    answers, is_correct: [n]. answer_key: what answers that vote together have in common; default: themselves. Where
    they differ in correctness, the answer counts as correct to the share of its voters that are.

    Raises:
        ValueError: when the lengths differ, k is below 1 or above n, or n is above 1,000.
    """
    if len(answers) != len(is_correct):
        raise ValueError(f"one answer per sample is needed; got {len(answers)} answers and {len(is_correct)} samples")
    if len(answers) > _MAX_VOTES:
        raise ValueError(f"maj@k counts subsets of at most {_MAX_VOTES} samples; got {len(answers)}: pass fewer")
    _check_k(k, len(answers))
    voters: dict[Hashable, list[bool]] = defaultdict(list)
    for answer, correct in zip(answers, is_correct, strict=True):
        if answer is not None:
            voters[answer_key(answer) if answer_key else answer].append(correct)
    silent = len(answers) - sum(map(len, voters.values()))
    total = 0.0
    for key, votes in voters.items():
        if any(votes):
            others = [len(rival) for other, rival in voters.items() if other != key]
            total += sum(votes) / len(votes) * _chance_to_win(len(votes), others, silent, k)
    return total


def _chance_to_win(own: int, others: Sequence[int], silent: int, k: int) -> float:
    """Expected share of the majority for an answer of `own` samples, over the subsets of k of all samples.

    `ways[s, t]`: how many sets of s other samples give no rival more than the answer's own votes, and t rivals as many.
    """
    total = 0.0
    for votes in range(1, min(own, k) + 1):
        room = k - votes
        ways = np.zeros((room + 1, room // votes + 1))
        ways[:, 0] = [math.comb(silent, size) for size in range(room + 1)]
        for count in others:
            longer = np.zeros_like(ways)
            for size in range(min(count, votes, room) + 1):
                tied = int(size == votes)
                longer[size:, tied:] += float(math.comb(count, size)) * ways[: room + 1 - size, : ways.shape[1] - tied]
            ways = longer
        total += math.comb(own, votes) * float((ways[room] / np.arange(1, ways.shape[1] + 1)).sum())
    return total / math.comb(own + sum(others) + silent, k)


def bootstrap_mean(
    values: Tensor, *, generator: torch.Generator | None = None, level: float = 0.95, num_resamples: int = 2000
) -> Estimate:
    """Mean of `values` with a percentile bootstrap interval (Efron 1979): of the means of P values drawn with repeats.

    values: [P], one per prompt, so that the interval speaks of other prompts; the samples of one prompt depend on each
    other through it, and drawing them one by one would make the interval too narrow. Where all values are equal it has
    no width, which says little about a small P.

    Raises:
        ValueError: when there are no values.
    """
    if values.ndim != 1 or len(values) == 0:
        raise ValueError(f"one value per prompt is needed, at least one; got the shape {tuple(values.shape)}")
    values = values.to(torch.float64)
    drawn = torch.randint(len(values), (num_resamples, len(values)), generator=generator)
    means = values[drawn].mean(1)
    ends = torch.tensor([(1 - level) / 2, (1 + level) / 2], dtype=torch.float64)
    low, high = means.quantile(ends).tolist()
    return Estimate(values.mean().item(), low, high)


def estimates(
    prompts: Sequence[GradedPrompt],
    ks: Sequence[int],
    *,
    answer_key: Callable[[Hashable], Hashable] | None = None,
    seed: int = 0,
) -> dict[str, Estimate]:
    """`avg@n`, and for each of `ks` `pass@k` and (k > 1) `maj@k`: means over prompts with 95 % intervals.

    n: samples per prompt. avg@n is the mean share of correct samples, which is pass@1 too. Samples that cannot be
    scored are left out, and a prompt with fewer than k others is left out of pass@k and maj@k; where no prompt is left
    the estimate is NaN. `seed`: of the resampling, which draws the same prompts for each estimate.

    Raises:
        ValueError: when the prompts differ in their number of samples, or a k is below 1 or above it.
    """
    counts = {len(prompt.is_correct) for prompt in prompts}
    if len(counts) != 1:
        raise ValueError(f"every prompt needs the same number of samples; got {sorted(counts)}")
    num_samples = counts.pop()
    for k in ks:
        _check_k(k, num_samples)
    scored = [
        GradedPrompt(
            [correct for correct in prompt.is_correct if correct is not None],
            [answer for answer, c in zip(prompt.answers, prompt.is_correct, strict=True) if c is not None],
        )
        for prompt in prompts
    ]
    values = {f"avg@{num_samples}": [_pass(prompt, 1) for prompt in scored if prompt.is_correct]}
    for k in ks:
        enough = [prompt for prompt in scored if len(prompt.is_correct) >= k]
        values[f"pass@{k}"] = [_pass(prompt, k) for prompt in enough]
        if k > 1:
            values[f"maj@{k}"] = [
                maj_at_k(prompt.answers, list(map(bool, prompt.is_correct)), k, answer_key) for prompt in enough
            ]
    return {
        name: bootstrap_mean(
            torch.tensor(per_prompt, dtype=torch.float64), generator=torch.Generator().manual_seed(seed)
        )
        if per_prompt
        else Estimate(math.nan, math.nan, math.nan)
        for name, per_prompt in values.items()
    }


def _pass(prompt: GradedPrompt, k: int) -> float:
    return pass_at_k(len(prompt.is_correct), sum(map(bool, prompt.is_correct)), k).item()


def _check_k(k: int, num_samples: int) -> None:
    if not 1 <= k <= num_samples:
        raise ValueError(f"k must be between 1 and the number of samples per prompt, {num_samples}; got k={k}")
