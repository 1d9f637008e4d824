"""Files of trajectories: written whole or not at all, read a few rows at a time."""

from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import BinaryIO, TypeAlias, TypeVar

from online_sft.trajectories.damage import Damage, TrajectoryFileError
from online_sft.trajectories.encoding import EncodedTrajectory
from online_sft.trajectories.json_files import (
    read_json_document,
    read_json_lines,
    write_json_document,
    write_json_lines,
)
from online_sft.trajectories.parquet_files import read_parquet, write_parquet
from online_sft.trajectories.trajectory import Trajectory
from online_sft.whole_files import appearing_whole

__all__ = ["read_encoded", "read_trajectories", "write_trajectories"]

_Reader: TypeAlias = Callable[[BinaryIO, Damage], Iterator[EncodedTrajectory]]
_Writer: TypeAlias = Callable[[BinaryIO, Collection[EncodedTrajectory]], None]
_T = TypeVar("_T")

_READERS: dict[str, _Reader] = {
    ".json": read_json_document,
    ".jsonl": read_json_lines,
    ".parquet": read_parquet,
}
_WRITERS: dict[str, _Writer] = {
    ".json": write_json_document,
    ".jsonl": write_json_lines,
    ".parquet": write_parquet,
}


def write_trajectories(path: str | Path, rows: Collection[EncodedTrajectory]) -> None:
    """Writes a file in the format of its suffix: .json, .jsonl or .parquet. Makes its folder where there is none.

    The file appears when it is whole and on the disk; what went by its name before stays as it was until then, and for
    good if writing fails. A process that is killed may leave a hidden `.<name>.<8 digits>.part` beside it.

    Raises:
        ValueError: for another suffix, or no row.
    """
    write = _of_suffix(_WRITERS, path)
    if not rows:
        raise ValueError(f"there is no trajectory to write to {path}; a file without one looks like one that was cut")
    with appearing_whole(Path(path)) as file:
        write(file, rows)


def read_trajectories(path: str | Path, *, skip_damaged: bool = False) -> Iterator[Trajectory]:
    """The trajectories of a file, one after the other, in memory that does not grow with it.

    Only a .json document that `write_trajectories` has not written is read as a whole.

    Args:
        skip_damaged: read what is intact (of Parquet: intact row groups), and log one warning of what is not. Else the
            first damage is an error, after the trajectories before it.

    Raises:
        TrajectoryFileError: when the file cannot be read, or not as it was written.
        ValueError: for another suffix.
    """
    return (encoded.decode() for encoded in read_encoded(path, skip_damaged=skip_damaged))


def read_encoded(path: str | Path, *, skip_damaged: bool = False) -> Iterator[EncodedTrajectory]:
    """As `read_trajectories`, for who keeps them."""
    return _read(Path(path), _of_suffix(_READERS, path), Damage(Path(path), skip=skip_damaged))


def _read(path: Path, read: _Reader, damage: Damage) -> Iterator[EncodedTrajectory]:
    try:
        file = path.open("rb")
    except OSError as error:
        raise TrajectoryFileError(f"{path} cannot be read: {error.strerror}") from None
    with file:
        if not path.stat().st_size:
            raise TrajectoryFileError(f"{path} is empty; not even a file of no trajectories is")
        num_read = 0
        for encoded in read(file, damage):
            num_read += 1
            yield encoded
    damage.conclude(num_read)


def _of_suffix(choices: dict[str, _T], path: str | Path) -> _T:
    suffix = Path(path).suffix
    if suffix not in choices:
        raise ValueError(f"{path} has the suffix {suffix!r}; trajectories are in files of {', '.join(choices)}")
    return choices[suffix]
