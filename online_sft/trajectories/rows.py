"""The rows of JSON and JSON Lines: a trajectory, its place in the file, and a checksum over both."""

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import orjson

from online_sft.atropos.json_reading import read_json
from online_sft.trajectories.damage import Damage
from online_sft.trajectories.encoding import EncodedTrajectory
from online_sft.trajectories.increments import as_increments
from online_sft.trajectories.trajectory import Trajectory

__all__ = ["VERSION", "read_rows", "row_of"]

VERSION = 1


@dataclass(frozen=True)
class _Seal:
    """Where a row stood when it was written."""

    index: int  # rows before it
    remaining: int  # rows after it

    @property
    def num_written(self) -> int:
        return self.index + 1 + self.remaining


def row_of(encoded: EncodedTrajectory, index: int, remaining: int) -> bytes:
    """The fields of `to_dict`, then `version`, `index`, `remaining` and `sha256`, on one line without its end.

    `sha256` is that of orjson.dumps of the row without it, whatever the whitespace of the file.

    Args:
        index: rows before it in the file.
        remaining: rows after it.
    """
    said = encoded.body[:-1] + b',"version":%d,"index":%d,"remaining":%d' % (VERSION, index, remaining)
    return said + b',"sha256":"%s"}' % hashlib.sha256(said + b"}").hexdigest().encode()


def read_rows(rows: Iterable[tuple[str, Any]], damage: Damage) -> Iterator[EncodedTrajectory]:
    """The trajectories of rows, each a text or its value, with the name of its place.

    Rows without version and checksum are foreign: nothing but their fields can be checked, and observations that hold
    the whole conversation become increments. Where damage is skipped, a row is read if it is intact, comes later in the
    same file than what was read before, and is of the first one's kind.
    """
    is_sealed: bool | None = None
    previous: _Seal | None = None
    for place, text in rows:
        try:
            row = read_json(text) if isinstance(text, bytes) else text
            seal = _seal(row)
            encoded = EncodedTrajectory.of(Trajectory.from_dict(row if seal else as_increments(row)))
        except (TypeError, ValueError) as error:
            damage.add(place, str(error))
            continue
        if is_sealed is None:
            is_sealed = seal is not None
        if is_sealed != (seal is not None):
            damage.add(place, "rows with and without version and sha256 are mixed in this file")
            continue
        if seal:
            fault = _fault_in_order(previous, seal)
            if fault:
                damage.add(place, fault)
            if previous and (seal.index <= previous.index or seal.num_written != previous.num_written):
                continue
            previous = seal
            damage.num_written = seal.num_written
        yield encoded
    if previous and previous.remaining:
        damage.add("at its end", f"{previous.remaining} of {previous.num_written} rows are missing")


def _seal(row: Any) -> _Seal | None:
    """The row's place, if its checksum is right; None for a foreign row."""
    if not isinstance(row, Mapping):
        raise ValueError(f"is no JSON object: {row!r:.40}")
    if "version" not in row and "sha256" not in row:
        return None
    version = row.get("version")
    if version != VERSION:
        raise ValueError(f"has version {version!r:.40}; this program reads version {VERSION}")
    rest = orjson.dumps({name: value for name, value in row.items() if name != "sha256"})
    if row.get("sha256") != hashlib.sha256(rest).hexdigest():
        raise ValueError("its checksum is not that of its content: damaged, or edited")
    if "index" not in row or "remaining" not in row:
        raise ValueError("has no index or no remaining")
    return _Seal(row["index"], row["remaining"])


def _fault_in_order(previous: _Seal | None, seal: _Seal) -> str | None:
    here = f"this is row {seal.index + 1} of {seal.num_written}"
    if previous is None:
        return f"{here}, and the rows before it are missing" if seal.index else None
    if seal.num_written != previous.num_written:
        return f"{here}, after row {previous.index + 1} of {previous.num_written}: a row of another file"
    if seal.index <= previous.index:
        return f"{here}, after row {previous.index + 1}: it is there twice, or out of order"
    if seal.index > previous.index + 1:
        return f"{here}, after row {previous.index + 1}: rows between them are missing"
    return None
