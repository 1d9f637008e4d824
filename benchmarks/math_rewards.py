"""The math reward beside math-verify in this process, on the same answers: answers per second, and who is right.

python benchmarks/math_rewards.py [--rounds 5]

Items: GSM8K solutions of four models with their labels, and the golds of MATH-500, each answered by itself and by the
gold of the next problem. math-verify gets both sides as boxed text, its best known setting. Then the same items with
1 % hostile ones mixed in, which only our side can be given: they hang or kill the other.
"""

import argparse
import gzip
import json
import random
import statistics
import time
from collections.abc import Sequence
from pathlib import Path

from math_verify import parse, verify

from online_sft import MathVerificationReward
from online_sft.rewards.answers import final_answer

DATA = Path(__file__).resolve().parent.parent / "tests" / "data" / "math"
Item = tuple[str, str, bool | None]  # completion, gold, label


def gsm8k(rng: random.Random) -> list[Item]:
    with gzip.open(DATA / "gsm8k_model_solutions.jsonl.gz", "rt", encoding="utf-8") as file:
        rows = rng.sample([json.loads(line) for line in file], 1000)
    return [(row["solution"].replace("\nA: ", "\nAnswer: "), row["gold"], row["is_correct"]) for row in rows]


def math_500(rng: random.Random) -> list[Item]:
    with open(DATA / "math500_answers.jsonl", encoding="utf-8") as file:
        golds = [json.loads(line)["answer"] for line in file]
    pairs = [*zip(golds, golds, strict=True), *zip(golds, golds[1:] + golds[:1], strict=True)]
    items = [(rf"So the answer is $\boxed{{{answer}}}$.", gold, answer == gold) for gold, answer in pairs]
    return rng.sample(items, len(items))


def hostile() -> list[Item]:
    with gzip.open(DATA / "adversarial_answers.jsonl.gz", "rt", encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    return [(row["completion"], row["gold"], None) for row in rows]


def by_math_verify(items: Sequence[Item]) -> list[bool | None]:
    return [
        verify(parse(rf"\boxed{{{gold}}}"), parse(rf"\boxed{{{final_answer(completion) or ''}}}"))
        for completion, gold, _ in items
    ]


def by_us(items: Sequence[Item]) -> list[bool | None]:
    """A new reward each time: the start of its workers counts, and nothing is remembered."""
    completions, golds, _ = zip(*items, strict=True)
    return [verdict.is_correct for verdict in MathVerificationReward().verdicts(completions, golds)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    rng = random.Random(0)
    sets = {"GSM8K": gsm8k(rng), "MATH-500": math_500(rng)}
    sets["both"] = rng.sample(sets["GSM8K"] + sets["MATH-500"], 2000)
    parse(r"\boxed{1}")  # imports and caches of its first call
    print("| items | math-verify, in process: per s (min to max) | ours: per s (min to max) | ratio | right |")
    print("|---|---|---|---|---|")
    for name, items in sets.items():
        rates: dict[str, list[float]] = {"peer": [], "ours": []}
        right = {}
        for _ in range(options.rounds):
            for who, grade in {"peer": by_math_verify, "ours": by_us}.items():
                start = time.perf_counter()
                outcomes = grade(items)
                rates[who].append(len(items) / (time.perf_counter() - start))
                right[who] = sum(outcome == label for outcome, (_, _, label) in zip(outcomes, items, strict=True))
        peer, ours = (f"{statistics.median(r):.0f} ({min(r):.0f} to {max(r):.0f})" for r in rates.values())
        ratio = statistics.median(rates["ours"]) / statistics.median(rates["peer"])
        print(f"| {name} | {peer} | {ours} | {ratio:.1f} | {right['peer']} and {right['ours']} of {len(items)} |")

    honest = sets["both"]
    mixed = rng.sample(honest + rng.sample(hostile(), len(honest) // 100), len(honest) + len(honest) // 100)
    start = time.perf_counter()
    outcomes = by_us(mixed)
    rate = len(mixed) / (time.perf_counter() - start)
    right_honest = sum(o == label for o, (_, _, label) in zip(outcomes, mixed, strict=True) if label is not None)
    print(f"| both and 1 % hostile | - | {rate:.0f} | - | {right_honest} of {len(honest)} honest ones |")


if __name__ == "__main__":
    main()
