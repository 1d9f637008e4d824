"""JSON and JSON Lines, a trajectory a line."""

from collections.abc import Collection, Iterator
from typing import Any, BinaryIO

from online_sft.atropos.json_reading import read_json
from online_sft.trajectories.damage import Damage, TrajectoryFileError
from online_sft.trajectories.encoding import EncodedTrajectory
from online_sft.trajectories.rows import read_rows, row_of

__all__ = ["read_json_document", "read_json_lines", "write_json_document", "write_json_lines"]

_HEAD = b'{"trajectories": ['


def write_json_lines(file: BinaryIO, rows: Collection[EncodedTrajectory]) -> None:
    """A row a line; `datasets.load_dataset("json")` reads them if metadata and messages have the same keys in all."""
    for line in _lines_of(rows):
        file.write(line + b"\n")


def read_json_lines(file: BinaryIO, damage: Damage) -> Iterator[EncodedTrajectory]:
    """The trajectories of ours or of anybody's JSON Lines, a line at a time."""
    lines = ((f"line {number}", line) for number, line in enumerate(file, 1) if line.strip())
    yield from read_rows(lines, damage)


def write_json_document(file: BinaryIO, rows: Collection[EncodedTrajectory]) -> None:
    """MRLM's document {"trajectories": [...], "num_trajectories": n, "num_transitions": m}, a row a line."""
    file.write(_HEAD)
    for index, line in enumerate(_lines_of(rows)):
        file.write((b",\n" if index else b"\n") + line)
    file.write(b"\n" + _foot(len(rows), sum(row.num_transitions for row in rows)) + b"\n")


def read_json_document(file: BinaryIO, damage: Damage) -> Iterator[EncodedTrajectory]:
    """The trajectories of our document a line at a time, or of MRLM's own, which is read as a whole."""
    head, first = file.readline(), file.readline()
    file.seek(0)
    is_ours = head.strip() == _HEAD or first.startswith(b'{"observations":')  # either may be what is damaged
    return _line_by_line(file, damage) if is_ours else _as_a_whole(file, damage)


def _lines_of(rows: Collection[EncodedTrajectory]) -> Iterator[bytes]:
    return (row_of(row, index, len(rows) - 1 - index) for index, row in enumerate(rows))


def _foot(num_trajectories: int, num_transitions: int) -> bytes:
    return b'], "num_trajectories": %d, "num_transitions": %d}' % (num_trajectories, num_transitions)


def _line_by_line(file: BinaryIO, damage: Damage) -> Iterator[EncodedTrajectory]:
    if file.readline().strip() != _HEAD:
        damage.add("line 1", f"is not {_HEAD.decode()}")
    foot = b""

    def rows() -> Iterator[tuple[str, bytes]]:
        nonlocal foot
        for number, line in enumerate(file, 2):
            if line.startswith(b"]"):
                foot = line.strip()
            else:
                yield f"line {number}", line.strip().removesuffix(b",")

    num_trajectories = num_transitions = 0
    for encoded in read_rows(rows(), damage):
        num_trajectories += 1
        num_transitions += encoded.num_transitions
        yield encoded
    expected = _foot(num_trajectories, num_transitions)
    if foot != expected:
        damage.add("at its end", f"{expected.decode()} is missing")


def _as_a_whole(file: BinaryIO, damage: Damage) -> Iterator[EncodedTrajectory]:
    try:
        document: Any = read_json(file.read())
    except ValueError as error:
        raise TrajectoryFileError(f"{damage.path} is no JSON, and not written line by line: {error}") from None
    rows = document.get("trajectories") if isinstance(document, dict) else None
    if not isinstance(rows, list):
        raise TrajectoryFileError(f'{damage.path} is no document {{"trajectories": [...]}}')
    yield from read_rows(((f"trajectories[{index}]", row) for index, row in enumerate(rows)), damage)
    said = document.get("num_trajectories", len(rows))
    if said != len(rows):
        damage.add("num_trajectories", f"is {said!r:.40}, but there are {len(rows)}")
