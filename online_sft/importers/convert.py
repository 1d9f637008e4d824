"""`online-sft convert`: a file of weighted data that somebody has becomes one that our trainers read."""

import argparse
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import BinaryIO, TypeVar

from online_sft.importers.chats import Row
from online_sft.importers.formats import FORMATS, columns_of, format_of, imported
from online_sft.importers.tables import READERS, WRITERS, Record, json_line
from online_sft.launching import UsageError
from online_sft.whole_files import appearing_whole

__all__ = ["Conversion", "convert", "main"]

_T = TypeVar("_T")

_ROWS_LOOKED_AT = 100  # for the columns that tell the format: weights may be left out in the first rows


@dataclass
class Conversion:
    """What became of a file."""

    format: str
    num_read: int = 0
    num_rejected: int = 0
    first_fault: str = ""


def main(arguments: list[str]) -> None:
    """The command.

    Raises:
        UsageError: for what cannot be converted.
    """
    formats = "\n".join(f"  {name:14}{importer.becomes}" for name, importer in FORMATS.items())
    parser = argparse.ArgumentParser(
        prog="online-sft convert",
        description="Weighted data that you already have, as rows that the trainers read.",
        epilog=f"formats, and what they become:\n{formats}\n\nOther columns are kept. Meaning and sources: "
        "docs/convert.md",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("source", metavar="IN", type=Path, help="A .jsonl or .parquet file.")
    parser.add_argument("target", metavar="OUT", type=Path, help="The .jsonl or .parquet file to write.")
    parser.add_argument(
        "--from", dest="format", choices=FORMATS, help="The format; else the columns tell.", metavar="FORMAT"
    )
    parser.add_argument(
        "--skip_bad_rows",
        action="store_true",
        help="Leave out rows that cannot be read, and write them with the reason to OUT.rejected.jsonl. Else the first "
        "one ends the conversion, and there is no OUT.",
    )
    options = parser.parse_args(arguments)
    try:
        done = convert(options.source, options.target, options.format, skip_bad_rows=options.skip_bad_rows)
    except (OSError, ValueError) as error:
        raise UsageError(error) from error
    _print(done, options.source, options.target)


def convert(source: Path, target: Path, format: str | None = None, *, skip_bad_rows: bool = False) -> Conversion:
    """Writes the rows of a file as the trainers read them. The target appears when it is whole.

    Args:
        source, target: .jsonl or .parquet.
        format: of `FORMATS`; None: by the columns of the first rows.
        skip_bad_rows: write rows that cannot be read to `<target>.rejected.jsonl`; else the first one is an error.

    Raises:
        ValueError: for a row that cannot be read, a file without any that can, and another kind of file.
        OSError: for files that cannot be read or written.
    """
    read, write = _of_suffix(READERS, source), _of_suffix(WRITERS, target)
    if source.resolve() == target.resolve():
        raise ValueError(f"{source} would be replaced by what it becomes; name another file")
    done = Conversion(format or _detected(read(source), source))
    rejects = target.with_name(f"{target.name}.rejected.jsonl")
    with tempfile.TemporaryFile() as rejected:
        try:
            with appearing_whole(target) as file:
                write(file, _rows(read(source), source, done, rejected if skip_bad_rows else None))
                if done.num_read == done.num_rejected:
                    raise ValueError(f"{source} holds no row that can be read; {done.first_fault or 'it is empty'}")
        finally:
            if done.num_rejected and skip_bad_rows:
                rejected.seek(0)
                with appearing_whole(rejects) as file:
                    shutil.copyfileobj(rejected, file)
    if not done.num_rejected:
        rejects.unlink(missing_ok=True)  # of an earlier conversion
    return done


def _of_suffix(choices: Mapping[str, _T], path: Path) -> _T:
    if path.suffix not in choices:
        raise ValueError(f"{path} must be a file that ends in {' or '.join(choices)}")
    return choices[path.suffix]


def _detected(records: Iterator[Record], source: Path) -> str:
    looked_at = list(islice(records, _ROWS_LOOKED_AT))
    rows = [record.row for record in looked_at if record.row is not None]
    if not rows:
        first = f"{looked_at[0].place}: {looked_at[0].fault}" if looked_at else "it is empty"
        raise ValueError(f"{source} holds no row whose columns could tell its format; {first}")
    try:
        return format_of(columns_of(rows))
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from None


def _rows(records: Iterator[Record], source: Path, done: Conversion, rejected: BinaryIO | None) -> Iterator[Row]:
    """The rows as they become, counted; those that cannot be read go to `rejected`, or raise."""
    for record in records:
        done.num_read += 1
        row, fault = None, record.fault
        if record.row is not None:
            try:
                row = imported(done.format, record.row)
            except ValueError as error:
                fault = str(error)
        if row is not None:
            yield row
            continue
        fault_there = f"{source}, {record.place}: {fault}"
        if rejected is None:
            raise ValueError(f"{fault_there} (read as {done.format}; --skip_bad_rows puts such rows aside)")
        done.num_rejected += 1
        done.first_fault = done.first_fault or fault_there
        rejected.write(json_line({"place": record.place, "reason": fault, "text": record.text}))


def _print(done: Conversion, source: Path, target: Path) -> None:
    importer = FORMATS[done.format]
    print(f"read {done.num_read} rows of {source} as {done.format}")
    print(f"wrote {done.num_read - done.num_rejected} to {target}, put aside {done.num_rejected}")
    if done.num_rejected:
        print(f"why: {target}.rejected.jsonl; the first: {done.first_fault}")
    options = f" {importer.options}" if importer.options else ""
    if importer.trainer == "weighted":
        print("WeightedSFTTrainer reads them; see what it would train on:")
        print(f"  online-sft inspect {target} --model_name_or_path MODEL{options}")
    else:
        print("OnlineSFTTrainer reads them; train on them:")
        print(f"  online-sft online --dataset_name {target} --reward_funcs math --model_name_or_path MODEL{options}")
