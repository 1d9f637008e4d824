"""What a report says of runs, as JSON for the page."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import chain
from typing import Any

from online_sft.record.folder import RunRecord
from online_sft.record.sample import Sample
from online_sft.report.charts import charts_of

__all__ = ["MOST_SAMPLES", "content_of", "packed", "reward_heatmap", "thinned", "told_apart"]

MOST_SAMPLES = 10_000  # of all runs
_MOST_TOKENS = 4_000_000  # some 20 MB
_MOST_BINS = 40
_MOST_COLUMNS = 200
_LARGEST = 50_000  # with 35 added, below the surrogates of UTF-16


def content_of(runs: Sequence[RunRecord]) -> dict[str, Any]:
    """Charts, and of each run its set-up, metrics, rewards and samples."""
    logged = dict.fromkeys(chain.from_iterable(entry["metrics"] for run in runs for entry in run.entries))
    numeric = [name for name in logged if any(_is_number(e["metrics"].get(name)) for r in runs for e in r.entries)]
    return {
        "charts": [vars(chart) for chart in charts_of(numeric)],
        "runs": [_run(run, numeric, MOST_SAMPLES // len(runs), _MOST_TOKENS // len(runs)) for run in runs],
        "configuration": _configuration(runs),
    }


def told_apart(runs: Sequence[RunRecord]) -> list[RunRecord]:
    """With names that no two of them share: those that do get a number."""
    names = [run.name for run in runs]
    numbered = [f"{name} ({names[: place + 1].count(name)})" for place, name in enumerate(names)]
    chosen = [number if names.count(name) > 1 else name for name, number in zip(names, numbered, strict=True)]
    return [replace(run, name=name) for run, name in zip(runs, chosen, strict=True)]


def thinned(samples: Sequence[Sample], most: int, most_tokens: int) -> list[Sample]:
    """At most so many, evenly spaced."""
    num_tokens = sum(len(sample.tokens) for sample in samples)
    number = min(len(samples), most, math.floor(len(samples) * most_tokens / max(num_tokens, 1)))
    return [samples[index * len(samples) // number] for index in range(number)]


def reward_heatmap(entries: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """How the rewards are distributed, over the steps: the share of each value, or of each bin of values.

    Returns:
        steps [C], the last of each column; rewards [R], values or centres of bins; shares [R][C]. None without rewards.
    """
    entries = [entry for entry in entries if entry.get("rewards")]
    if not entries:
        return None
    values = sorted({value for entry in entries for value, _ in entry["rewards"]})
    is_exact = len(values) <= _MOST_BINS
    low, width = values[0], (values[-1] - values[0]) / _MOST_BINS
    rewards = values if is_exact else [low + (index + 0.5) * width for index in range(_MOST_BINS)]
    size = -(-len(entries) // _MOST_COLUMNS)
    columns = [entries[start : start + size] for start in range(0, len(entries), size)]
    shares = [[0.0] * len(columns) for _ in rewards]
    for place, column in enumerate(columns):
        whole = sum(count for entry in column for _, count in entry["rewards"])
        for value, count in chain.from_iterable(entry["rewards"] for entry in column):
            row = values.index(value) if is_exact else min(int((value - low) / width), _MOST_BINS - 1)
            shares[row][place] += count / whole
    return {"steps": [column[-1]["step"] for column in columns], "rewards": rewards, "shares": shares}


def _run(run: RunRecord, numeric: Iterable[str], most: int, most_tokens: int) -> dict[str, Any]:
    shown = thinned(run.samples, most, most_tokens)
    return {
        "name": run.name,
        "setup": {name: value for name, value in run.setup.items() if name != "configuration"},
        "metrics": {name: _series(run.entries, name) for name in numeric},
        "tokens": _series(run.entries, "num_tokens"),
        "seconds": {entry["step"]: entry["time"] - run.setup["began"] for entry in run.entries},
        "rewards": reward_heatmap(run.entries),
        "samples": [_sample(sample) for sample in shown],
        "recorded_samples": run.num_samples,
    }


def _series(entries: Iterable[Mapping[str, Any]], name: str) -> dict[str, list[float]]:
    """Steps and values; where a resume or an evaluation logs a step again, the last counts."""
    values = {e["step"]: e["metrics"][name] for e in entries if _is_number(e["metrics"].get(name))}
    return {"steps": list(values), "values": list(values.values())}


def _sample(sample: Sample) -> dict[str, Any]:
    """`lengths` are those of the tokens in UTF-16, as JavaScript counts; `runs` of how many tokens have each weight."""
    runs = [
        (min(length - start, _LARGEST), weight)
        for length, weight in sample.to_dict()["weights"]
        for start in range(0, length, _LARGEST)
    ]
    return {
        "step": sample.step,
        "text": "".join(sample.tokens),
        "lengths": packed(len(token.encode("utf-16-le", "surrogatepass")) // 2 for token in sample.tokens),
        "runs": packed(length for length, _ in runs),
        "weights": [weight for _, weight in runs],
        "values": dict(sample.values),
    }


def packed(numbers: Iterable[int]) -> str:
    """A character each, of code 35 + number, which a browser reads faster than an array; up to 50,000."""
    return "".join(chr(35 + number) for number in numbers)


def _configuration(runs: Sequence[RunRecord]) -> list[dict[str, Any]]:
    """Every field with its value in each run; whether a run changed its default, and whether the runs differ."""
    names = sorted(set().union(*(run.setup["configuration"] for run in runs)))
    rows = []
    for name in names:
        values = [run.setup["configuration"].get(name) for run in runs]
        is_changed = any(name in run.setup["changed"] for run in runs)
        differs = any(value != values[0] for value in values)
        rows.append({"name": name, "values": [_text(v) for v in values], "changed": is_changed, "differs": differs})
    return rows


def _text(value: object) -> str:
    return value if isinstance(value, str) else repr(value)


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
