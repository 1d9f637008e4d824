"""Files that Atropos' tools write without a server: groups of process mode, and samples of atropos-sft-gen."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np

from online_sft.atropos.batch import BatchReader, Quarantined, WeightedRow
from online_sft.atropos.json_reading import read_json

__all__ = ["read_file"]


def read_file(path: str | Path, reader: BatchReader) -> tuple[list[dict[str, Any]], list[tuple[int, Quarantined]]]:
    """The rows of a file as `WeightedSFTTrainer` takes them, and what is malformed, with its line (from 0).

    A group gives a row for each sequence: `input_ids`, `labels`, `advantages`, `group` (the line) and, where any row
    of the file needs them, `temperatures` and `has_gradient`; `ref_log_probs` where every loss token of the file has
    one. A sample of atropos-sft-gen gives `prompt` and `completion` (a conversation's last message), and its score as
    it is.

    Raises:
        ValueError: for pairs of atropos-dpo-gen, lines that are none of these, different kinds of lines, or a file
            without a row.
    """
    rows: list[dict[str, Any]] = []
    quarantined: list[tuple[int, Quarantined]] = []
    for line, raw in _lines(Path(path)):
        if "tokens" in raw:
            groups, malformed = reader.groups([raw])
            quarantined += [(line, each) for each in malformed]
            rows += [_row(row, line) for group in groups.values() for row in reader.rows(0, group)]
        else:
            rows.append(_sample(raw, f"{path}, line {line + 1}"))
    if not rows:
        reason = f"line {quarantined[0][0] + 1}: {quarantined[0][1].reason}" if quarantined else "it is empty"
        raise ValueError(f"{path} holds no row that can be trained on: {reason}")
    kinds = sorted(set(map(_kind, rows)))
    if len(kinds) > 1:
        raise ValueError(f"{path} mixes {' and '.join(kinds)}; make a file of each kind")
    return _with_the_same_columns(rows, reader.temperature), quarantined


def _lines(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    with path.open("rb") as file:
        for line, text in enumerate(file):
            if not text.strip():
                continue
            try:
                raw = read_json(text)
            except ValueError as error:
                raise ValueError(f"{path}, line {line + 1} is no JSON: {error}") from None
            if not isinstance(raw, dict):
                raise ValueError(f"{path}, line {line + 1} is no object")
            yield line, raw


def _row(row: WeightedRow, line: int) -> dict[str, Any]:
    log_probs = np.where(row.is_loss, row.log_probs, 0.0)
    return {
        "input_ids": row.tokens.tolist(),
        "labels": np.where(row.is_loss, row.tokens, -100).tolist(),
        "advantages": row.weights.tolist(),
        "group": line,
        "temperatures": [row.temperature] * len(row),
        "has_gradient": [int(row.has_gradient)] * len(row),
        "ref_log_probs": None if np.isnan(log_probs).any() else log_probs.tolist(),
    }


def _sample(raw: dict[str, Any], name: str) -> dict[str, Any]:
    if "neg" in raw:
        raise ValueError(f"{name} is a pair of atropos-dpo-gen; train on pairs with trl.DPOTrainer")
    score = raw.get("score")
    if isinstance(score, bool) or not isinstance(score, int | float) or not np.isfinite(score):
        raise ValueError(f"{name} has score {score!r}; it must be a finite number")
    prefix, completion, messages = (raw.get(key) for key in ("prefix", "completion", "messages"))
    if isinstance(prefix, str) and isinstance(completion, str):
        return {"prompt": prefix, "completion": completion, "advantages": float(score)}
    if not _is_conversation(messages):
        raise ValueError(
            f"{name} is neither a group (`tokens`) nor a sample of atropos-sft-gen (`prefix` and `completion`, or "
            f"`messages` that end with the assistant's); it has {', '.join(raw)}"
        )
    return {"prompt": messages[:-1], "completion": messages[-1:], "advantages": float(score)}


def _is_conversation(messages: Any) -> TypeGuard[list[dict[str, Any]]]:
    is_list = isinstance(messages, list) and all(isinstance(message, dict) for message in messages)
    return is_list and len(messages) > 0 and messages[-1].get("role") == "assistant"


def _kind(row: dict[str, Any]) -> str:
    if "input_ids" in row:
        return "groups"
    return "texts" if isinstance(row["prompt"], str) else "conversations"


def _with_the_same_columns(rows: list[dict[str, Any]], temperature: float) -> list[dict[str, Any]]:
    dropped = set()
    if any(row.get("ref_log_probs") is None for row in rows):
        dropped.add("ref_log_probs")
    for name, usual in (("temperatures", temperature), ("has_gradient", 1)):
        if all(row.get(name, [usual])[0] == usual for row in rows):
            dropped.add(name)
    return [{name: value for name, value in row.items() if name not in dropped} for row in rows]
