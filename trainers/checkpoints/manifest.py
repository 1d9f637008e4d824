"""What a checkpoint says of itself, and what a run must have in common with it to go on as if it had never stopped."""

import hashlib
import json
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from transformers.trainer import TRAINER_STATE_NAME

__all__ = [
    "FORMAT_VERSION",
    "MANIFEST",
    "ResumeError",
    "checked_manifest",
    "differences",
    "digest_of",
    "installed_versions",
    "written_manifest",
]

MANIFEST = "online_sft.json"
FORMAT_VERSION = 1
_LIBRARIES = ("torch", "transformers", "trl", "accelerate", "peft")


class ResumeError(ValueError):
    """From this checkpoint the run does not go on as it would have without a stop."""


def written_manifest(checkpoint: str | Path, setup: Mapping[str, Any], optimizer: Mapping[str, Any]) -> None:
    """Adds the manifest to a checkpoint that is otherwise complete: format, versions, set-up, and size of each file.

    Args:
        setup: what a run has to have in common with it.
        optimizer: settings that the checkpoint's optimizer keeps, whatever a run is told.
    """
    folder = Path(checkpoint)
    files = {str(path.relative_to(folder)): path.stat().st_size for path in sorted(folder.rglob("*")) if path.is_file()}
    del files[TRAINER_STATE_NAME]  # callbacks may write to it
    manifest = {
        "format_version": FORMAT_VERSION,
        "versions": installed_versions(),
        "setup": dict(setup),
        "optimizer": dict(optimizer),
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
    try:
        manifest: dict[str, Any] = json.loads((folder / MANIFEST).read_text())
        format_version = manifest["format_version"]
    except (ValueError, LookupError, TypeError) as error:
        raise ResumeError(
            f"{folder} is damaged: {MANIFEST} cannot be read; resume from an earlier checkpoint"
        ) from error
    if format_version != FORMAT_VERSION:
        raise ResumeError(
            f"{folder} has format_version={format_version}, and this version of online-sft reads "
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


def differences(saved: Mapping[str, Any], here: Mapping[str, Any]) -> list[str]:
    """What is another than it was when the checkpoint was written, a sentence each."""
    return [
        f"{name} was {saved.get(name)!r} and is {here.get(name)!r}"
        for name in sorted({*saved, *here})
        if saved.get(name) != here.get(name)
    ]


def installed_versions() -> dict[str, str]:
    """Of the libraries that compute."""
    return {name: version(name) for name in _LIBRARIES}


def digest_of(num_rows: int, row: Callable[[int], object]) -> str:
    """Tells two data sets apart by their number of rows and three of them."""
    rows = [row(index) for index in sorted({0, num_rows // 2, num_rows - 1})] if num_rows else []
    content = json.dumps(rows, sort_keys=True, default=lambda value: type(value).__name__)
    return f"{num_rows} rows, sha256 {hashlib.sha256(content.encode()).hexdigest()[:16]}"
