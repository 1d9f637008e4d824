"""What was delivered and not trained on: one line of JSON per group, with the reason."""

import hashlib
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import BinaryIO

from online_sft.atropos.batch import Quarantined

__all__ = ["Quarantine"]


class Quarantine:
    """A file of groups. A resumed run meets the same batches again and does not write their groups twice.

    Args:
        path: of the file; made with the first group.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._known = {
            _key(entry["batch"], Quarantined(entry["group"], entry["reason"], entry["raw"]))
            for entry in map(_read, self.path.read_text().splitlines() if self.path.exists() else [])
            if entry is not None
        }

    def __len__(self) -> int:
        return len(self._known)

    def add(self, batch: int, groups: Iterable[Quarantined]) -> None:
        """Keeps groups of the batch with this index."""
        new = [each for each in groups if _key(batch, each) not in self._known]
        if not new:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a+b") as file:
            file.write(_end_of_half_a_line(file))
            for each in new:
                entry = {"batch": batch, "group": each.group, "reason": each.reason, "raw": each.raw}
                file.write(json.dumps(entry).encode() + b"\n")
        self._known |= {_key(batch, each) for each in new}


def _key(batch: int, quarantined: Quarantined) -> tuple[int, int, str]:
    """Another run may write to the same file: its batches have the same numbers and hold other groups."""
    content = json.dumps([quarantined.reason, quarantined.raw])
    return batch, quarantined.group, hashlib.sha256(content.encode()).hexdigest()


def _end_of_half_a_line(file: BinaryIO) -> bytes:
    if not file.tell():
        return b""
    file.seek(-1, os.SEEK_END)
    return b"" if file.read() == b"\n" else b"\n"


def _read(line: str) -> dict | None:
    try:
        return json.loads(line)
    except ValueError:
        return None  # the process died while it wrote the line, and will write it again
