"""What is wrong with a file of trajectories: said at once, or counted while the rest is read."""

import logging
from pathlib import Path

__all__ = ["Damage", "TrajectoryFileError"]

logger = logging.getLogger(__name__)


class TrajectoryFileError(ValueError):
    """A file of trajectories that cannot be read, or not all of it."""


class Damage:
    """What is found on the way through one file.

    Args:
        skip: whether the rest is wanted; else the first find is an error.
    """

    def __init__(self, path: Path, *, skip: bool) -> None:
        self.path = path
        self.skip = skip
        self.num_written: int | None = None  # rows of the file when it was whole, where it says so
        self._found: list[str] = []

    def add(self, place: str, reason: str) -> None:
        """Notes a fault, or raises it.

        Raises:
            TrajectoryFileError: unless damage is skipped.
        """
        if not self.skip:
            raise TrajectoryFileError(f"{self.path}, {place}: {reason}; skip_damaged=True reads the rest")
        self._found.append(f"{place}: {reason}")

    def conclude(self, num_read: int) -> None:
        """Warns once of what was lost.

        Raises:
            TrajectoryFileError: nothing is left of the file.
        """
        if not self._found and num_read:
            return
        first = self._found[0] if self._found else "it has no row"
        if not num_read:
            raise TrajectoryFileError(f"{self.path} holds no trajectory that can be read; {first}")
        of = "" if self.num_written is None else f" of {self.num_written}"
        logger.warning(
            "%s is damaged: read %d%s trajectories; %d faults, the first: %s",
            self.path,
            num_read,
            of,
            len(self._found),
            first,
        )
