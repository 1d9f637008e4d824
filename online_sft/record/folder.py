"""The folder `record` in a run's `output_dir`: run.json, metrics.jsonl, samples.jsonl."""

import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from online_sft.record.sample import Sample

__all__ = ["RecordError", "RecordFolder", "RunRecord", "read_record"]

NAME = "record"
_RUN, _METRICS, _SAMPLES = "run.json", "metrics.jsonl", "samples.jsonl"


class RecordError(ValueError):
    """There is no record of a run, or it cannot be read."""


@dataclass(frozen=True)
class RunRecord:
    """What was recorded of a run."""

    name: str  # of its folder
    setup: dict[str, Any]  # what `trainers.recording.setup.setup_of_run` says
    entries: list[dict[str, Any]]  # of the log: step, time (s since 1970), metrics by name, rewards with their numbers
    samples: list[Sample]


class RecordFolder:
    """Writes the record of a run, line by line, so that a run that is killed has one too.

    Args:
        output_dir: of the run.
    """

    def __init__(self, output_dir: str | Path) -> None:
        self._folder = Path(output_dir) / NAME

    def begin(self, setup: Mapping[str, Any], *, step: int) -> None:
        """Starts the record of a run that has done `step` optimizer steps.

        At step 0 a record that is there is another run's and gets a number (`record.1`, ...). Later, what that run
        recorded after the step is forgotten, for it is about to happen again.
        """
        if step == 0 and self._folder.exists():
            suffixes = [path.suffix[1:] for path in self._folder.parent.glob(f"{NAME}.*")]
            number = 1 + max((int(suffix) for suffix in suffixes if suffix.isdigit()), default=0)
            self._folder.rename(self._folder.with_name(f"{NAME}.{number}"))
        self._folder.mkdir(parents=True, exist_ok=True)
        for name in (_METRICS, _SAMPLES):
            kept = [line for line in _lines(self._folder / name) if line["step"] <= step]
            _write_whole(self._folder / name, "".join(f"{_json(line)}\n" for line in kept))
        before = json.loads((self._folder / _RUN).read_text()) if (self._folder / _RUN).exists() else None
        if before is not None:
            setup = {**setup, "began": before["began"], "resumed_at": [*before["resumed_at"], step]}
        _write_whole(self._folder / _RUN, json.dumps(_finite(setup), indent=1, default=str))

    def add_entry(self, entry: Mapping[str, Any]) -> None:
        """Adds a log entry."""
        self._append(_METRICS, [entry])

    def add_samples(self, samples: Iterable[Sample]) -> None:
        """Adds sequences that were trained on."""
        self._append(_SAMPLES, [sample.to_dict() for sample in samples])

    def _append(self, name: str, lines: Iterable[Mapping[str, Any]]) -> None:
        with open(self._folder / name, "a", encoding="utf-8") as file:
            file.write("".join(f"{_json(line)}\n" for line in lines))


def read_record(run_dir: str | Path) -> RunRecord:
    """The record of a run, while it goes on, too.

    Args:
        run_dir: its `output_dir`, or the folder `record` in it.

    Raises:
        RecordError: there is none.
    """
    run_dir = Path(run_dir)
    folder = run_dir if (run_dir / _RUN).is_file() else run_dir / NAME
    if not (folder / _RUN).is_file():
        found = sorted(str(path.parent.parent) for path in run_dir.glob(f"*/{NAME}/{_RUN}"))
        way_out = f"; there are some in {', '.join(found)}" if found else ": is it the output_dir of a run?"
        raise RecordError(f"{run_dir} holds no record of a run ({NAME}/{_RUN}){way_out}")
    try:
        setup = json.loads((folder / _RUN).read_text(encoding="utf-8"))
    except ValueError as error:
        raise RecordError(f"{folder / _RUN} cannot be read: {error}") from error
    name = folder.resolve().parent.name if folder.name.startswith(NAME) else folder.name
    samples = [Sample.from_dict(line) for line in _lines(folder / _SAMPLES)]
    return RunRecord(name, setup, list(_lines(folder / _METRICS)), samples)


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    """The whole lines of a file; the last one may be cut, where a run was killed or is writing."""
    if not path.exists():
        return
    with open(path, encoding="utf-8") as file:
        for line in file:
            if line.endswith("\n"):
                yield json.loads(line)


def _json(line: Mapping[str, Any]) -> str:
    return json.dumps(_finite(line), ensure_ascii=False, allow_nan=False, default=str)


def _finite(value: Any) -> Any:
    """NaN and infinities, which JSON does not have, as null."""
    if isinstance(value, Mapping):
        return {name: _finite(each) for name, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _write_whole(path: Path, text: str) -> None:
    """The file is the old one or the new one, whenever the run is killed."""
    aside = path.with_name(f"{path.name}.new")
    aside.write_text(text, encoding="utf-8")
    os.replace(aside, path)
