"""Rows of .jsonl and .parquet files, one after the other, in memory that does not grow with them."""

import json
import tempfile
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple

from online_sft.importers.chats import Row

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["READERS", "WRITERS", "Record", "json_line"]

_ROWS_AT_A_TIME = 1_000


class Record(NamedTuple):
    """A row, or why it is none."""

    place: str  # `line 3` of JSON lines, `row 3` of a table, from 1
    row: Row | None
    line: bytes = b""  # of JSON lines
    fault: str = ""

    @property
    def text(self) -> str:
        """What the file says there."""
        if self.line:
            return self.line.decode(errors="replace")
        return json.dumps(self.row, ensure_ascii=False, default=str)


def _read_json_lines(path: Path) -> Iterator[Record]:
    """A byte order mark, Windows' line ends and empty lines are no fault."""
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            stripped = (line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line).strip()
            if stripped:
                yield _json_record(f"line {number}", stripped)


def _json_record(place: str, line: bytes) -> Record:
    try:
        row = json.loads(line.decode(), object_pairs_hook=_object)
    except UnicodeDecodeError as error:
        return Record(place, None, line, f"is no UTF-8 from byte {error.start + 1}")
    except RecursionError:
        return Record(place, None, line, "is nested too deeply")
    except json.JSONDecodeError as error:
        return Record(place, None, line, f"is no JSON: {error.msg} at column {error.colno}")
    except ValueError as error:  # a key that is there twice, or a number of thousands of digits
        return Record(place, None, line, str(error).partition(";")[0])
    if not isinstance(row, dict):
        return Record(place, None, line, f"is {line.decode()!r:.40}, and a line must hold an object")
    return Record(place, row, line)


def _object(pairs: list[tuple[str, Any]]) -> Row:
    """JSON lets the last of two equal keys win; here nobody knows which is meant."""
    row = dict(pairs)
    if len(row) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"has the key {next(name for name in names if names.count(name) > 1)!r} twice")
    return row


def _read_parquet(path: Path) -> Iterator[Record]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            rows = (row for batch in file.iter_batches(_ROWS_AT_A_TIME) for row in batch.to_pylist())
            for number, row in enumerate(rows, 1):
                yield Record(f"row {number}", row)
    except pa.ArrowException as error:
        raise ValueError(f"{path} is no whole Parquet file: {error}") from None


def _write_json_lines(file: BinaryIO, rows: Iterable[Row]) -> None:
    for row in rows:
        file.write(json_line(row))


def json_line(row: Row) -> bytes:
    """A row as a line of JSON."""
    return json.dumps(row, ensure_ascii=False, allow_nan=False).encode() + b"\n"


def _write_parquet(file: BinaryIO, rows: Iterable[Row]) -> None:
    """The type of a column is known when its last row is: rows wait on the disk, not in memory."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = pa.schema([])
    with tempfile.TemporaryFile() as waiting:
        for chunk in _chunks(rows):
            _write_json_lines(waiting, chunk)
            schema = _unified(schema, chunk)
        waiting.seek(0)
        try:
            with pq.ParquetWriter(file, schema, compression="zstd") as writer:
                for chunk in _chunks(json.loads(line) for line in waiting):
                    writer.write_table(pa.Table.from_pylist(chunk, schema))
        except pa.ArrowNotImplementedError as error:  # of objects without keys
            raise ValueError(f"Parquet cannot hold these rows, write .jsonl: {error}") from None


def _unified(schema: "pa.Schema", rows: list[Row]) -> "pa.Schema":
    """The schema that holds these rows, too."""
    import pyarrow as pa

    for column in dict.fromkeys(name for row in rows for name in row):
        try:
            field = pa.field(column, pa.array([row.get(column) for row in rows]).type)
            schema = pa.unify_schemas([schema, pa.schema([field])], promote_options="permissive")
        except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
            raise ValueError(
                f"`{column}` has not one type in all rows, as a column of Parquet must; write .jsonl: {error}"
            ) from None
    return schema


def _chunks(rows: Iterable[Row]) -> Iterator[list[Row]]:
    left = iter(rows)
    while chunk := list(islice(left, _ROWS_AT_A_TIME)):
        yield chunk


READERS: dict[str, Callable[[Path], Iterator[Record]]] = {".jsonl": _read_json_lines, ".parquet": _read_parquet}
WRITERS: dict[str, Callable[[BinaryIO, Iterable[Row]], None]] = {
    ".jsonl": _write_json_lines,
    ".parquet": _write_parquet,
}
