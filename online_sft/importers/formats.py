"""The formats that `online-sft convert` reads, what tells them apart, and what a row of each becomes."""

import math
import re
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from itertools import product
from typing import Literal

from online_sft.importers.chats import Row
from online_sft.importers.ms_swift import read_ms_swift
from online_sft.importers.openai_chats import read_openai
from online_sft.importers.rewards import COMPLETIONS, REWARDS, read_reward
from online_sft.importers.tinker_datums import read_datum
from online_sft.importers.verl import read_chat, read_prompt, read_rollout

__all__ = ["FORMATS", "Importer", "columns_of", "format_of", "imported"]


@dataclass(frozen=True)
class Importer:
    """One format.

    Columns are those of the table, and `messages[].weight` for a key that messages have.
    """

    columns: tuple[tuple[str, ...], ...]  # a row has all of one of these; the more of them, the surer the format
    reads: tuple[str, ...]  # columns that `read` takes up; the others are kept as they are
    read: Callable[[Row], Row]
    becomes: str
    trainer: Literal["weighted", "online"] = "weighted"
    options: str = ""  # what the trainer must be told


_PROMPT = ("prompt", "reward_model")
_DATUM = ("model_input", "tokens", "loss_fn_inputs")
_REWARD = "prompt, completion and reward"

FORMATS = {
    "openai": Importer(
        (("messages",), ("messages", "messages[].weight")),
        ("messages", "tools"),
        read_openai,
        "OpenAI's fine-tuning chats, weight 0 or 1 on the assistant's messages -> messages, each with its weight",
    ),
    "ms-swift": Importer(
        (
            ("messages",),
            ("messages", "messages[].loss"),
            ("messages", "messages[].loss_scale"),
            ("query", "response"),
        ),
        ("messages", "system", "history", "query", "response", "tools", "chat_template_kwargs"),
        read_ms_swift,
        "ms-swift's chats with loss and loss_scale, or query and response -> messages, each with its weight",
    ),
    "tinker": Importer(
        (("model_input", "loss_fn_inputs"), ("tokens", "loss_fn_inputs")),
        _DATUM,
        read_datum,
        "Tinker's Datums -> input_ids, labels and advantages (ref_log_probs), of the tokens themselves",
    ),
    "dapo": Importer((_PROMPT,), _PROMPT, read_prompt, "DAPO's prompts -> prompt and solution", "online"),
    "verl": Importer(
        (("data_source", *_PROMPT),), _PROMPT, read_prompt, "verl's RL prompts -> prompt and solution", "online"
    ),
    "verl-sft": Importer(
        (("messages",), ("messages", "enable_thinking")),
        ("messages", "tools", "enable_thinking"),
        read_chat,
        "verl's multi-turn SFT chats -> messages, the assistant's with weight 1",
    ),
    "verl-rollouts": Importer(
        (("input", "output", "score"),),
        ("input", "output", "score", "reward"),
        read_rollout,
        f"verl's dumps of rollouts (rollout_data_dir) -> {_REWARD}",
        options="--weighting boltzmann",
    ),
    "rewards": Importer(
        tuple(product(("prompt",), COMPLETIONS, REWARDS)),
        ("prompt", *COMPLETIONS, *REWARDS),
        read_reward,
        f"prompt, {' | '.join(COMPLETIONS)}, {' | '.join(REWARDS)} -> {_REWARD}",
        options="--weighting boltzmann",
    ),
}

_PREFERENCES = (
    *("preferred_output", "non_preferred_output", "chosen", "rejected"),
    *("rejected_response", "rejected_messages", "positive_messages", "negative_messages"),
)
_MEDIA = ("image", "images", "video", "videos", "audio", "audios")
_HALF_PAIR = re.compile("[\ud800-\udfff]")
# Columns that a trainer reads: one that is merely kept would change what is trained on.
_MEANT = {
    "weighted": {
        *("messages", "conversations", "prompt", "completion", "text", "tools", "chat_template_kwargs"),
        *("input_ids", "labels", "loss_mask", "completion_mask", "assistant_masks", "seq_lengths"),
        *("advantages", "reward", "ref_log_probs", "temperatures", "has_gradient", "tokens", "masks", "scores"),
    },
    "online": {"prompt", "prompts", "completion", "completions", "completion_ids", "solution", "ground_truth"},
}


def columns_of(rows: Iterable[Row]) -> list[str]:
    """The columns of the rows, sorted, and the keys of their messages as `messages[].key`."""
    found: set[str] = set()
    for row in rows:
        found |= row.keys()
        messages = row.get("messages")
        for message in messages if isinstance(messages, list) else []:
            if isinstance(message, Mapping):
                found |= {f"messages[].{key}" for key, value in message.items() if value is not None}
    return sorted(found)


def format_of(columns: Collection[str]) -> str:
    """The name of the format that knows most of the columns.

    Raises:
        ValueError: when there is none or several; names the columns found and the formats known.
    """
    _refuse_preferences(columns)
    num_known = {
        name: max((len(group) for group in importer.columns if set(group) <= set(columns)), default=0)
        for name, importer in FORMATS.items()
    }
    most = max(num_known.values())
    best = [name for name, num in num_known.items() if num == most > 0]
    if len(best) == 1:
        return best[0]
    which = f"of several formats, {', '.join(best)}: say which with --from" if best else "of no format known"
    of_all = "; ".join(f"{name} ({_told_by(importer)})" for name, importer in FORMATS.items())
    raise ValueError(f"the columns {', '.join(columns)} are {which}. Known are: {of_all}")


def _told_by(importer: Importer) -> str:
    groups = [", ".join(group) for group in importer.columns]
    return " or ".join(groups[:2]) + (" or ..." if len(groups) > 2 else "")


def imported(name: str, row: Row) -> Row:
    """What the trainer reads of a row of the format, and the row's other columns.

    Columns of images, video and sound go if they are empty.

    Raises:
        ValueError: for a row that cannot be read, or not without loss.
    """
    importer = FORMATS[name]
    given = {column for column, value in row.items() if value is not None}
    _refuse_preferences(given)
    needed = [[column for column in group if "[]" not in column] for group in importer.columns]
    if not any(set(group) <= row.keys() for group in needed):
        raise ValueError(f"has the columns {', '.join(row) or 'none'}; {name} needs {_told_by(importer)}")
    if media := [column for column in _MEDIA if row.get(column)]:
        raise ValueError(f"has `{media[0]}`, and only text can be read")
    if fault := _fault(row):
        raise ValueError(f"{fault[0].removeprefix('.')} {fault[1]}")
    made = importer.read(row)
    kept = {column: value for column, value in row.items() if column not in (*importer.reads, *_MEDIA)}
    if taken := sorted(kept.keys() & (_MEANT[importer.trainer] | made.keys())):
        raise ValueError(f"has `{taken[0]}`, which is not of {name} and has a meaning in training: rename or remove it")
    return {**made, **kept}


def _refuse_preferences(columns: Collection[str]) -> None:
    if found := [column for column in _PREFERENCES if column in columns]:
        raise ValueError(
            f"has `{found[0]}`, a column of preference data, which weighs no answer by itself; make a row of each "
            "answer, with its reward, and read those as rewards"
        )


def _fault(value: object) -> tuple[str, str] | None:
    """Where in the value, and why, JSON or Parquet cannot hold it, or only a part."""
    if isinstance(value, float):
        return None if math.isfinite(value) else ("", f"is {value}, and no number in a row may be")
    if isinstance(value, int):
        is_short = -(2**63) <= value < 2**63
        return None if is_short else ("", f"is {value!r:.30}, a whole number of more than 64 bits; write it as a text")
    if isinstance(value, str):
        return ("", "has half a surrogate pair, which is no text") if _HALF_PAIR.search(value) else None
    if isinstance(value, list):
        for index, entry in enumerate(value):
            if fault := _fault(entry):
                return f"[{index}]{fault[0]}", fault[1]
        return None
    if isinstance(value, dict):
        for key, entry in value.items():
            if fault := _fault(key) or _fault(entry):
                return f".{key}{fault[0]}", fault[1]
        return None
    if value is None:
        return None
    return "", f"is of type {type(value).__name__}, which JSON does not have; write it as a text"
