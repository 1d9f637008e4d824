"""What Atropos has delivered, on disk before it is trained on: `/batch` gives each batch once and keeps no copy."""

import fcntl
import hashlib
import json
import logging
import os
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Journal", "JournalBusyError", "JournalEntry", "JournalError", "num_entries", "read_entry"]

logger = logging.getLogger(__name__)


class JournalError(RuntimeError):
    """A journal that cannot be trusted."""


class JournalBusyError(JournalError):
    """A journal that another process writes to."""


@dataclass(frozen=True)
class JournalEntry:
    """One batch, as it came."""

    index: int  # its place in the order of delivery, from 0
    body: bytes
    policy_version: int  # optimizer steps made when it was delivered


class Journal:
    """A folder with a file for each batch: `00000000.batch`, a line of JSON and the bytes of the answer.

    An entry is there once `append` has returned, whatever happens then, and is whole or not there at all: it is written
    beside its place, synced, and renamed. An entry that was whole but not yet renamed when the process died is taken
    over.

    Args:
        folder: made if it is not there. One process at a time.

    Raises:
        JournalBusyError: another process writes to it.
        JournalError: an entry is missing.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        self._lock = (self.folder / "lock").open("w")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._lock.close()
            raise JournalBusyError(
                f"another process writes to the journal {self.folder}; give each run its own"
            ) from None
        try:
            self._length = self._take_stock()
        except JournalError:
            self.close()
            raise

    def __len__(self) -> int:
        return self._length

    def append(self, body: bytes, *, policy_version: int) -> int:
        """Keeps a batch for good, and returns its index."""
        index = self._length
        header = {"sha256": hashlib.sha256(body).hexdigest(), "bytes": len(body), "policy_version": policy_version}
        part = _path(self.folder, index).with_suffix(".part")
        with part.open("wb") as file:
            file.write(json.dumps(header).encode() + b"\n")
            file.write(body)
            file.flush()
            os.fsync(file.fileno())
        self._rename(part)
        self._length += 1
        return index

    def close(self) -> None:
        """Lets another process write to it."""
        self._lock.close()

    def _take_stock(self) -> int:
        for part in self.folder.glob("*.part"):
            self._take_over(part)
        return num_entries(self.folder)

    def _take_over(self, part: Path) -> None:
        if _whole(part) is not None:
            self._rename(part)
            return
        logger.warning("%s was not written to its end, when the process died; it is removed", part)
        part.unlink()

    def _rename(self, part: Path) -> None:
        part.replace(part.with_suffix(".batch"))
        folder = os.open(self.folder, os.O_RDONLY)
        try:
            os.fsync(folder)  # the name, too, must outlive a power cut
        finally:
            os.close(folder)


def num_entries(folder: str | Path) -> int:
    """How many batches a journal holds.

    Raises:
        JournalError: an entry is missing.
    """
    indices = sorted(int(path.stem) for path in Path(folder).glob("*.batch"))
    for index, found in enumerate(indices):
        if index != found:
            raise JournalError(f"entry {index} of the journal {folder} is missing; what follows it cannot be replayed")
    return len(indices)


def read_entry(folder: str | Path, index: int) -> JournalEntry:
    """One batch of a journal, whoever writes to it.

    Raises:
        JournalError: it is not there, or its bytes are not those that were written.
    """
    path = _path(Path(folder), index)
    if not path.exists():
        raise JournalError(f"entry {index} of the journal {folder} is missing")
    entry = _whole(path)
    if entry is None:
        raise JournalError(f"{path} is damaged: its checksum is not that of its bytes")
    return entry


def _path(folder: Path, index: int) -> Path:
    return folder / f"{index:08d}.batch"


def _whole(path: Path) -> JournalEntry | None:
    """The entry of a file; None if its bytes are not those that were written."""
    line, _, body = path.read_bytes().partition(b"\n")
    try:
        header = json.loads(line)
        is_whole = header["bytes"] == len(body) and header["sha256"] == hashlib.sha256(body).hexdigest()
        return JournalEntry(int(path.stem), body, int(header["policy_version"])) if is_whole else None
    except (ValueError, KeyError, TypeError):
        return None
