"""The folder `record` in a run's `output_dir`: run.json, metrics.jsonl, samples.jsonl."""

import json
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from online_sft.record.sample import Sample
from online_sft.whole_files import appearing_whole

__all__ = ["RecordError", "RecordFolder", "RunRecord", "read_record"]

NAME = "record"
_RUN, _METRICS, _SAMPLES = "run.json", "metrics.jsonl", "samples.jsonl"
# Which a report shows
_KEYS = {"trainer", "objective", "ledger", "model", "parameters", "trained_parameters", "data", "configuration"}
_KEYS |= {"changed", "versions", "hardware", "command", "began", "resumed_at"}


class RecordError(ValueError):
    """There is no record of a run, or it cannot be read."""


@dataclass(frozen=True)
class RunRecord:
    """What was recorded of a run."""

    name: str  # of its folder
    setup: dict[str, Any]  # what `trainers.recording.setup.setup_of_run` says
    entries: list[dict[str, Any]]  # of the log: step, time (s since 1970), metrics by name, rewards with their numbers
    samples: list[Sample]
    num_samples: int  # that were recorded; `samples` may be some of them, evenly spaced


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
        for name in (_METRICS, _SAMPLES):
            self._forget(name, after=step)
        path = self._folder / _RUN
        if step > 0:
            before = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {**setup, "resumed_at": []}
            setup = {**setup, "began": before["began"], "resumed_at": [*before["resumed_at"], step]}
        _write_whole(path, [json.dumps(_finite(setup), indent=1, default=str)])

    def add_entry(self, entry: Mapping[str, Any]) -> None:
        """Adds a log entry."""
        self._append(_METRICS, [entry])

    def add_samples(self, samples: Iterable[Sample]) -> None:
        """Adds sequences that were trained on."""
        self._append(_SAMPLES, [sample.to_dict() for sample in samples])

    def _forget(self, name: str, *, after: int) -> None:
        """What came after a step. One line at a time: the samples of a long run are many gigabytes."""
        lines = _raw_lines(self._folder / name)
        _write_whole(self._folder / name, (f"{line}\n" for _, line in lines if not _is_after(line, after)))

    def _append(self, name: str, lines: Iterable[Mapping[str, Any]]) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)  # somebody may have tidied up
        with open(self._folder / name, "a", encoding="utf-8", errors="backslashreplace") as file:
            file.write("".join(f"{_json(line)}\n" for line in lines))


def read_record(run_dir: str | Path, *, most_samples: int | None = None) -> RunRecord:
    """The record of a run, while it goes on, too.

    Args:
        run_dir: its `output_dir`, or the folder `record` in it.
        most_samples: of which so many are read, evenly spaced; None: all.

    Raises:
        RecordError: there is none, or it is damaged.
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
    if missing := _KEYS - set(setup):
        raise RecordError(f"{folder / _RUN} lacks {', '.join(sorted(missing))}: another version of online-sft wrote it")
    old = folder.name.removeprefix(NAME)  # .1, .2 of earlier runs
    name = folder.resolve().parent.name + old
    path = folder / _SAMPLES
    num_samples = sum(1 for _ in _raw_lines(path))
    num_read = num_samples if most_samples is None else min(num_samples, most_samples)
    wanted = {1 + index * num_samples // num_read for index in range(num_read)}
    samples = [Sample.from_dict(_parsed(line, path, number)) for number, line in _raw_lines(path) if number in wanted]
    entries = [_parsed(line, folder / _METRICS, number) for number, line in _raw_lines(folder / _METRICS)]
    return RunRecord(name, setup, entries, samples, num_samples)


def _raw_lines(path: Path) -> Iterator[tuple[int, str]]:
    """The whole lines of a file with their numbers; the last one may be cut, where a run was killed or is writing."""
    if not path.exists():
        return
    with open(path, "rb") as file:
        for number, line in enumerate(file, 1):
            if line.endswith(b"\n"):
                yield number, line[:-1].decode("utf-8", errors="replace")


def _is_after(line: str, step: int) -> bool:
    """A line that is damaged is kept: a report names it, and the run goes on."""
    try:
        return bool(json.loads(line)["step"] > step)
    except (ValueError, LookupError, TypeError):
        return False


def _parsed(line: str, path: Path, number: int) -> dict[str, Any]:
    try:
        content: dict[str, Any] = json.loads(line)
        if not isinstance(content["step"], int):
            raise ValueError("its step is no number")
    except (ValueError, LookupError, TypeError) as error:
        raise RecordError(f"{path}, line {number}, is damaged ({error}); delete the line") from error
    return content


def _json(line: Mapping[str, Any]) -> str:
    return json.dumps(_finite(line), ensure_ascii=False, allow_nan=False, default=str)


def _finite(value: Any) -> Any:
    """NaN and infinities, which JSON does not have, as null."""
    if isinstance(value, Mapping):
        return {name: _finite(each) for name, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _write_whole(path: Path, texts: Iterable[str]) -> None:
    """The file is the old one or the new one, whenever the run is killed."""
    with appearing_whole(path) as file:
        file.writelines(text.encode("utf-8", errors="backslashreplace") for text in texts)
