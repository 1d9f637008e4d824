"""What a checkpoint says of itself, and what a run must have in common with it to go on as if it had never stopped."""

import hashlib
import json
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from datasets import Dataset

__all__ = [
    "FORMAT_VERSION",
    "MANIFEST",
    "ResumeError",
    "checked_manifest",
    "differences",
    "digest_of",
    "written_manifest",
]

MANIFEST = "online_sft.json"
FORMAT_VERSION = 1
_LIBRARIES = ("torch", "transformers", "trl", "accelerate", "peft")


class ResumeError(ValueError):
    """From this checkpoint the run does not go on as it would have without a stop."""


def written_manifest(checkpoint: str | Path, setup: Mapping[str, Any]) -> None:
    """Adds the manifest to a checkpoint that is otherwise complete: format, versions, set-up, and size of each file."""
    folder = Path(checkpoint)
    files = {str(path.relative_to(folder)): path.stat().st_size for path in sorted(folder.rglob("*")) if path.is_file()}
    manifest = {
        "format_version": FORMAT_VERSION,
        "versions": {name: version(name) for name in _LIBRARIES},
        "setup": dict(setup),
        "files": files,
    }
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=1))


def checked_manifest(checkpoint: str | Path) -> dict[str, Any] | None:
    """The manifest of a checkpoint, all of whose files are there; None if it has none.

    Raises:
        ResumeError: for another format, and when files are missing or cut.
    """
    folder = Path(checkpoint)
    if not (folder / MANIFEST).exists():
        return None
    manifest: dict[str, Any] = json.loads((folder / MANIFEST).read_text())
    if manifest["format_version"] != FORMAT_VERSION:
        raise ResumeError(
            f"{folder} has format_version={manifest['format_version']}, and this version of online-sft reads "
            f"{FORMAT_VERSION} only; resume with the version that wrote it"
        )
    for name, size in manifest["files"].items():
        path = folder / name
        if not path.exists():
            raise ResumeError(f"{folder} is damaged: {name} is missing; resume from an earlier checkpoint")
        if path.stat().st_size != size:
            raise ResumeError(
                f"{folder} is damaged: {name} has {path.stat().st_size} bytes instead of {size}; resume from an "
                "earlier checkpoint"
            )
    return manifest


def differences(manifest: Mapping[str, Any], setup: Mapping[str, Any]) -> list[str]:
    """What is another than it was when the checkpoint was written, a sentence each."""
    saved = manifest["setup"]
    return [
        f"{name} was {saved.get(name)!r} and is {setup.get(name)!r}"
        for name in sorted({*saved, *setup})
        if saved.get(name) != setup.get(name)
    ]


def digest_of(dataset: object) -> str | None:
    """Tells two data sets apart by their number of rows and three of them; None for a stream."""
    if not isinstance(dataset, Dataset):
        return None
    rows = [dataset[index] for index in sorted({0, len(dataset) // 2, len(dataset) - 1})]
    content = json.dumps(rows, sort_keys=True, default=lambda value: type(value).__name__)
    return f"{len(dataset)} rows, sha256 {hashlib.sha256(content.encode()).hexdigest()[:16]}"
