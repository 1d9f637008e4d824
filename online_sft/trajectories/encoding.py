"""A trajectory as the bytes that are kept in memory and written to files."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import orjson

from online_sft.trajectories.trajectory import Trajectory

__all__ = ["EncodedTrajectory"]


@dataclass(frozen=True)
class EncodedTrajectory:
    """A trajectory that nobody can change, and what is asked of it without decoding it."""

    body: bytes  # orjson.dumps(trajectory.to_dict())
    total_reward: float
    num_actions: int
    num_transitions: int  # actions whose next observation is known

    @classmethod
    def of(cls, trajectory: Trajectory) -> "EncodedTrajectory":
        """Takes a copy.

        Raises:
            ValueError: for what would not be read as it was written: what JSON has no way to say (NaN, half a
                surrogate pair, numbers above 64 bits, keys that are no strings, objects), and a return that overflows.
        """
        fields = trajectory.to_dict()
        try:
            # a copy, as orjson's own bytes keep all the room in which they grew, 2.8 times as much
            body = bytes(memoryview(orjson.dumps(fields)))
            total_reward = trajectory.total_reward
        except orjson.JSONEncodeError as error:
            raise ValueError(f"a trajectory cannot be saved: {_place_of(error, fields)}{error}") from None
        except OverflowError:
            raise ValueError("a trajectory cannot be saved: the sum of its rewards overflows") from None
        read = orjson.loads(body)
        change = _change(fields, read, "") if read != fields else None
        if change:
            raise ValueError(f"a trajectory cannot be saved: {change}")
        return cls(body, total_reward, len(trajectory), len(trajectory.observations) - 1)

    def decode(self) -> Trajectory:
        """The trajectory, a new one each time."""
        return Trajectory.from_dict(orjson.loads(self.body))

    def metadata(self) -> dict[str, Any]:
        """The trajectory's, a new one each time."""
        metadata: dict[str, Any] = orjson.loads(self.body)["metadata"]
        return metadata


def _children(value: Any) -> dict[Any, Any]:
    if isinstance(value, Mapping):
        return dict(value)
    return dict(enumerate(value)) if isinstance(value, list | tuple) else {}


def _change(value: Any, read: Any, place: str) -> str | None:
    """The first part of a value that is read as something else; a tuple is read as a list, which is no change."""
    children, others = _children(value), _children(read)
    if (children or isinstance(value, dict | list | tuple)) and children.keys() == others.keys():
        changes = (_change(each, others[key], f"{place}.{key}") for key, each in children.items())
        return next(filter(None, changes), None)
    return None if value == read else f"{place[1:]} is {value!r:.80}, which would be read as {read!r:.80}"


def _place_of(error: Exception, value: Any) -> str:
    """Where in a value the part is that JSON cannot say, as `metadata.note: `."""
    place = ""
    while "Recursion" not in str(error):  # a list that holds itself has no innermost part
        refused = ((key, each, _refusal(each)) for key, each in _children(value).items())
        found = next(((key, each, why) for key, each, why in refused if why), None)
        if found is None:
            break
        key, value, error = found
        place = f"{place}.{key}"
    return f"{place[1:]}: " if place else ""


def _refusal(value: Any) -> Exception | None:
    try:
        orjson.dumps(value)
    except orjson.JSONEncodeError as error:
        return error
    return None
