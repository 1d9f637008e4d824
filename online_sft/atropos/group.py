"""One group of Atropos: the samples of a prompt with their scores, read and checked in one place.

Atropos checks the types of what environments post, and neither lengths nor values: a group that says something else
than it means is refused here, with the reason.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["MalformedGroupError", "ScoredGroup", "ScoredSequence", "parse_group"]

_MASKED = -100
_UNKNOWN = 1.0  # the log-prob of masked tokens, and of those whose log-prob nobody knows
_DUMMY_LOG_PROB = -0.5  # what Atropos' dummy server says of tokens 0, 1, 2, ...
_LARGEST = 1e30  # beyond it sums in float32 overflow
_REQUIRED = ("tokens", "masks", "scores")
_KNOWN = {*_REQUIRED, "advantages", "inference_logprobs", "overrides", "group_overrides", "generation_params"}

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


class MalformedGroupError(ValueError):
    """A group that cannot be trained on as it is meant."""


@dataclass(frozen=True)
class ScoredSequence:
    """One sample. Arrays are [L]; entry t belongs to token t."""

    tokens: Ints  # prompt and completion
    is_loss: NDArray[np.bool_]
    score: float
    advantages: Floats | None  # final, from the environment; None: to be made of the scores
    log_probs: Floats | None  # of the engine that sampled, nats; NaN where unknown
    temperature: float  # of the sampling
    is_zeroed: bool  # the environment wants no gradient from it

    def __len__(self) -> int:
        return len(self.tokens)


@dataclass(frozen=True)
class ScoredGroup:
    """The samples of one prompt."""

    sequences: tuple[ScoredSequence, ...]
    policy_version: int | None  # that sampled them: generation_params.policy_version, where the environment says it
    others: Mapping[str, Any] = field(default_factory=dict)  # env_id, messages, images, ref_logprobs, distill_*

    @property
    def scores(self) -> Floats:
        return np.array([sequence.score for sequence in self.sequences])


def parse_group(
    group: Mapping[str, Any],
    *,
    vocab_size: int | None = None,
    advantages_of_sequences: bool = False,
    temperature: float = 1.0,
) -> ScoredGroup:
    """Reads a group of `/batch`, or a line of a file that an environment has written in process mode.

    `null` and `[]` are absent. Temperature: of the sequence's override, or else of generation_params, of
    group_overrides, or the one given here.

    Args:
        group: as parsed from JSON.
        vocab_size: token ids must be below it; None: any.
        advantages_of_sequences: rows of advantages with one entry belong to the whole sequence. Otherwise such a row is
            an error, unless the sequence has one token.
        temperature: of the sampling, where the group does not say it.

    Raises:
        MalformedGroupError: with the field, the sequence and the value.
    """
    if not isinstance(group, Mapping):
        raise MalformedGroupError(f"a group must be an object, got {type(group).__name__}")
    for name in _REQUIRED:
        if not _is_there(group.get(name)):
            raise MalformedGroupError(f"{name} is missing or empty")
    rows = _rows(group, "tokens", None)
    count = len(rows)
    scores = _numbers(group["scores"], "scores", float)
    if len(scores) != count:
        raise MalformedGroupError(f"scores has {len(scores)} entries for {count} sequences")
    masks, advantages, log_probs = (_rows(group, name, count) for name in ("masks", "advantages", "inference_logprobs"))
    overrides = _overrides(group, count)
    temperature = _group_temperature(group, temperature)
    sequences = tuple(
        _sequence(
            index,
            tokens=tokens,
            mask=masks[index],
            score=float(scores[index]),
            advantages=advantages[index] if advantages else None,
            log_probs=log_probs[index] if log_probs else None,
            override=overrides[index],
            temperature=temperature,
            vocab_size=vocab_size,
            advantages_of_sequences=advantages_of_sequences,
        )
        for index, tokens in enumerate(rows)
    )
    if not any(sequence.is_loss.any() for sequence in sequences):
        raise MalformedGroupError("all tokens are masked, so there is nothing to train on")
    others = {name: value for name, value in group.items() if name not in _KNOWN}
    return ScoredGroup(sequences, _policy_version(group), others)


def _sequence(
    index: int,
    *,
    tokens: Any,
    mask: Any,
    score: float,
    advantages: Any,
    log_probs: Any,
    override: Mapping[str, Any],
    temperature: float,
    vocab_size: int | None,
    advantages_of_sequences: bool,
) -> ScoredSequence:
    ids = _numbers(tokens, f"tokens[{index}]", int)
    if not len(ids):
        raise MalformedGroupError(f"tokens[{index}] is empty")
    limit = np.iinfo(np.int64).max if vocab_size is None else vocab_size
    outside = (ids < 0) | (ids >= limit)
    if outside.any():
        at = int(outside.argmax())
        raise MalformedGroupError(f"tokens[{index}][{at}] is {ids[at]}, outside the vocabulary of {vocab_size} tokens")
    return ScoredSequence(
        tokens=ids,
        is_loss=_mask(mask, ids, index),
        score=score,
        advantages=_advantages(advantages, len(ids), index, advantages_of_sequences),
        log_probs=_log_probs(log_probs, ids, index),
        temperature=_temperature(override, temperature, f"overrides[{index}]"),
        is_zeroed=override.get("set_advantage_to_zero") is True,
    )


def _mask(mask: Any, ids: Ints, index: int) -> NDArray[np.bool_]:
    values = _of_length(_numbers(mask, f"masks[{index}]", int), len(ids), f"masks[{index}]")
    is_loss = values != _MASKED
    wrong = is_loss & (values != ids)
    if wrong.any():
        at = int(wrong.argmax())
        zero_one = " (a mask of 0 and 1, it seems)" if np.isin(values, (0, 1)).all() else ""
        raise MalformedGroupError(
            f"masks[{index}][{at}] is {values[at]}, neither {_MASKED} nor the token {ids[at]}{zero_one}"
        )
    return is_loss


def _advantages(advantages: Any, length: int, index: int, of_sequences: bool) -> Floats | None:
    if advantages is None:
        return None
    name = f"advantages[{index}]"
    values = _numbers(advantages, name, float)
    if len(values) == 1 and of_sequences:
        return np.repeat(values, length)
    return _of_length(values, length, name)


def _log_probs(log_probs: Any, ids: Ints, index: int) -> Floats | None:
    if log_probs is None:
        return None
    name = f"inference_logprobs[{index}]"
    values = _of_length(_numbers(log_probs, name, float), len(ids), name)
    known = values != _UNKNOWN
    if (values[known] > 1e-3).any():
        at = int((known & (values > 1e-3)).argmax())
        raise MalformedGroupError(f"{name}[{at}] is {values[at]}, which is no log-probability")
    if len(ids) > 1 and np.array_equal(ids, np.arange(len(ids))) and (values[known] == _DUMMY_LOG_PROB).all():
        raise MalformedGroupError("tokens 0, 1, 2, ... with log-probs of -0.5 are those of Atropos' dummy server")
    return np.where(known, values, np.nan)


def _overrides(group: Mapping[str, Any], count: int) -> list[Mapping[str, Any]]:
    overrides = group.get("overrides")
    if not _is_there(overrides):
        return [{}] * count
    if not isinstance(overrides, list) or len(overrides) != count:
        size = len(overrides) if isinstance(overrides, list) else type(overrides).__name__
        raise MalformedGroupError(f"overrides must have an entry for each of the {count} sequences; got {size}")
    return [_object(override, f"overrides[{index}]") for index, override in enumerate(overrides)]


def _group_temperature(group: Mapping[str, Any], otherwise: float) -> float:
    temperature = _temperature(_object(group.get("group_overrides"), "group_overrides"), otherwise, "group_overrides")
    return _temperature(_object(group.get("generation_params"), "generation_params"), temperature, "generation_params")


def _policy_version(group: Mapping[str, Any]) -> int | None:
    version = _object(group.get("generation_params"), "generation_params").get("policy_version")
    if version is None:
        return None
    if isinstance(version, bool) or not isinstance(version, int) or abs(version) > _LARGEST:
        raise MalformedGroupError(f"generation_params: policy_version must be a whole number; got {version!r:.80}")
    return version


def _temperature(source: Mapping[str, Any], otherwise: float, name: str) -> float:
    value = source.get("temperature")
    if value is None:
        return otherwise
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < _LARGEST:
        raise MalformedGroupError(f"{name}: temperature must be a number above 0; got {value!r:.80}")
    return float(value)


def _object(value: Any, name: str) -> Mapping[str, Any]:
    if not _is_there(value):
        return {}
    if not isinstance(value, Mapping):
        raise MalformedGroupError(f"{name} must be an object; got {type(value).__name__}")
    return value


def _is_there(value: Any) -> bool:
    return value is not None and value != [] and value != {}


def _rows(group: Mapping[str, Any], name: str, count: int | None) -> list[Any]:
    """The rows of a field, none where it is absent."""
    rows = group.get(name)
    if not _is_there(rows):
        return []
    if not isinstance(rows, Sequence) or isinstance(rows, str):
        raise MalformedGroupError(f"{name} must be a list of rows; got {type(rows).__name__}")
    if count is not None and len(rows) != count:
        raise MalformedGroupError(f"{name} has {len(rows)} rows for {count} sequences")
    return list(rows)


def _numbers(values: Any, name: str, kind: type) -> NDArray[Any]:
    """A row of numbers that float32 can hold. Whole ones where `kind` is int."""
    try:
        array = np.asarray(values) if isinstance(values, Sequence) and not isinstance(values, str) else None
    except ValueError:  # rows of different lengths
        array = None
    kinds = "iu" if kind is int else "iuf"
    if array is None or array.ndim != 1 or (len(array) and array.dtype.kind not in kinds):
        raise MalformedGroupError(
            f"{name} must be a row of {'whole ' if kind is int else ''}numbers; got {values!r:.80}"
        )
    if kind is int:
        return array.astype(np.int64)
    array = array.astype(np.float64)
    is_usable = np.abs(array) <= _LARGEST  # NaN is not
    if not is_usable.all():
        at = int(is_usable.argmin())
        raise MalformedGroupError(f"{name}[{at}] is {array[at]}")
    return array


def _of_length(values: NDArray[Any], length: int, name: str) -> NDArray[Any]:
    if len(values) != length:
        raise MalformedGroupError(f"{name} has {len(values)} entries for {length} tokens")
    return values
