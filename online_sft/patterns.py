"""Advantage patterns for tests and demonstrations: made-up advantages of a known shape over a sequence."""

import random
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from datasets import Features, IterableDataset, List, Value

__all__ = [
    "PATTERNS",
    "alternating",
    "decreasing",
    "end_weighted",
    "increasing",
    "pattern_dataset",
    "random_normal",
    "sparse_positive",
    "uniform",
]

# (number of tokens, generator) -> one advantage per token
Pattern = Callable[[int, random.Random], list[float]]


def uniform(num_tokens: int, generator: random.Random) -> list[float]:
    """1 everywhere: plain SFT."""
    return [1.0] * num_tokens


def increasing(num_tokens: int, generator: random.Random) -> list[float]:
    """From 0 at the first token to 1 at the last."""
    return [t / max(num_tokens - 1, 1) for t in range(num_tokens)]


def decreasing(num_tokens: int, generator: random.Random) -> list[float]:
    """From 1 at the first token to 0 at the last."""
    return increasing(num_tokens, generator)[::-1]


def end_weighted(num_tokens: int, generator: random.Random) -> list[float]:
    """2 on the last quarter (one token at least), 0.5 before."""
    tail = max(num_tokens // 4, 1)
    return [0.5] * (num_tokens - tail) + [2.0] * tail


def sparse_positive(num_tokens: int, generator: random.Random) -> list[float]:
    """1 on about one token in five, 0 elsewhere; one token at least."""
    kept = generator.sample(range(num_tokens), k=max(num_tokens // 5, 1))
    return [float(t in kept) for t in range(num_tokens)]


def alternating(num_tokens: int, generator: random.Random) -> list[float]:
    """1, -1, 1, -1, ..."""
    return [1.0 - 2.0 * (t % 2) for t in range(num_tokens)]


def random_normal(num_tokens: int, generator: random.Random) -> list[float]:
    """Independent standard normal."""
    return [generator.gauss(0.0, 1.0) for _ in range(num_tokens)]


PATTERNS: dict[str, Pattern] = {
    "alternating": alternating,
    "decreasing": decreasing,
    "end_weighted": end_weighted,
    "increasing": increasing,
    "random": random_normal,
    "sparse_positive": sparse_positive,
    "uniform": uniform,
}


def pattern_dataset(
    vocab_size: int,
    *,
    patterns: Sequence[str] = tuple(PATTERNS),
    num_rows: int = 1000,
    lengths: tuple[int, int] = (8, 64),
    prompt_share: float = 0.25,
    seed: int = 0,
) -> IterableDataset:
    """Rows of random tokens, made as they are read: `input_ids`, `loss_mask`, `advantages`, `pattern`.

    Args:
        vocab_size: tokens are drawn from it uniformly.
        patterns: names from `PATTERNS`, one row after the other.
        num_rows: after which the stream ends.
        lengths: shortest and longest row, in tokens.
        prompt_share: of each row's tokens that come first and carry no loss.
        seed: equal seeds give equal rows.

    Raises:
        ValueError: for a pattern that does not exist, or lengths in the wrong order.
    """
    for name in patterns:
        if name not in PATTERNS:
            raise ValueError(f"patterns must be among {', '.join(PATTERNS)}; got {name!r}")
    if not 2 <= lengths[0] <= lengths[1]:
        raise ValueError(f"lengths must be (shortest, longest) with at least 2 tokens; got {lengths}")

    def rows() -> Iterator[dict[str, Any]]:
        generator = random.Random(seed)
        for index in range(num_rows):
            name = patterns[index % len(patterns)]
            num_tokens = generator.randint(*lengths)
            num_prompt = min(int(prompt_share * num_tokens), num_tokens - 1)
            yield {
                "input_ids": [generator.randrange(vocab_size) for _ in range(num_tokens)],
                "loss_mask": [0] * num_prompt + [1] * (num_tokens - num_prompt),
                "advantages": [0.0] * num_prompt + PATTERNS[name](num_tokens - num_prompt, generator),
                "pattern": name,
            }

    numbers, ids = List(Value("float64")), List(Value("int64"))
    features = Features(input_ids=ids, loss_mask=ids, advantages=numbers, pattern=Value("string"))
    return IterableDataset.from_generator(rows, features=features)
