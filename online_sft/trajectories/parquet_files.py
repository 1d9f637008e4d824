"""Parquet: a trajectory a row, its parts as JSON, with a checksum on every page."""

from collections.abc import Collection, Iterator
from itertools import islice
from typing import TYPE_CHECKING, Any, BinaryIO

import orjson

from online_sft.trajectories.damage import Damage, TrajectoryFileError
from online_sft.trajectories.encoding import EncodedTrajectory
from online_sft.trajectories.rows import VERSION
from online_sft.trajectories.trajectory import Trajectory

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq

__all__ = ["read_parquet", "write_parquet"]

_VERSION, _COUNT = b"online_sft.trajectories.version", b"online_sft.trajectories.count"
_TEXTS = ("observations", "actions", "metadata")
_QUERIED = ("total_reward", "length")
_ROWS_OF_A_GROUP = 1000  # what is held at once, and lost at once when damaged


def write_parquet(file: BinaryIO, rows: Collection[EncodedTrajectory]) -> None:
    """Columns: `observations`, `actions` and `metadata` (JSON), `rewards`, and for queries `total_reward`, `length`."""
    import pyarrow as pa  # half a second, which those who write JSON need not wait
    import pyarrow.parquet as pq

    schema = pa.schema(
        [(name, pa.string()) for name in _TEXTS]
        + [("rewards", pa.list_(pa.float64())), ("total_reward", pa.float64()), ("length", pa.int64())],
        metadata={_VERSION: str(VERSION), _COUNT: str(len(rows))},
    )
    options = {
        "compression": "zstd",
        "write_page_checksum": True,
        "write_statistics": list(_QUERIED),  # those of texts repeat whole conversations
        "use_dictionary": False,
    }
    with pq.ParquetWriter(file, schema, **options) as writer:
        left = iter(rows)
        while chunk := list(islice(left, _ROWS_OF_A_GROUP)):
            writer.write_table(pa.Table.from_pylist([_columns(row) for row in chunk], schema))


def read_parquet(file: BinaryIO, damage: Damage) -> Iterator[EncodedTrajectory]:
    """The trajectories of our Parquet, a row group at a time.

    Raises:
        TrajectoryFileError: its footer is damaged, or it is not ours.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        opened = pq.ParquetFile(file, page_checksum_verification=True)
        schema = opened.schema_arrow
    except (pa.ArrowException, OSError, ValueError) as error:  # whatever a footer of wrong bytes may say
        raise TrajectoryFileError(f"{damage.path} has no whole Parquet footer, nothing can be read: {error}") from None
    with opened:
        damage.num_written = _count(schema, damage)
        end = 0
        for group in range(opened.num_row_groups):
            start, end = end, end + opened.metadata.row_group(group).num_rows
            try:
                rows = _group(opened, group)
            except (pa.ArrowException, OSError, TypeError, ValueError) as error:
                damage.add(f"row group {group + 1} (rows {start + 1} to {end})", str(error))
                continue
            yield from rows
        if end != damage.num_written:
            damage.add("at its end", f"it was written with {damage.num_written} rows and has {end}")


def _columns(encoded: EncodedTrajectory) -> dict[str, Any]:
    fields = orjson.loads(encoded.body)
    texts = {name: orjson.dumps(fields[name]).decode() for name in _TEXTS}
    rewards = [reward["value"] for reward in fields["rewards"]]
    return texts | {"rewards": rewards, "total_reward": encoded.total_reward, "length": encoded.num_actions}


def _count(schema: "pa.Schema", damage: Damage) -> int:
    metadata = schema.metadata or {}
    if not {_VERSION, _COUNT} <= metadata.keys() or not {*_TEXTS, "rewards"} <= set(schema.names):
        raise TrajectoryFileError(
            f"{damage.path} was not written by TrajectoryDataset.save, whose files have {_VERSION.decode()} in their "
            f"schema and the columns {', '.join(_TEXTS)} (JSON) and rewards (numbers); its columns are "
            f"{', '.join(schema.names)}. Make Trajectory objects of its rows and save those"
        )
    version, count = (metadata[name].decode(errors="replace") for name in (_VERSION, _COUNT))
    if version != str(VERSION):
        raise TrajectoryFileError(f"{damage.path} has version {version}; this program reads version {VERSION}")
    if not count.isdecimal():
        raise TrajectoryFileError(f"{damage.path} is damaged: it was written with {count!r} rows, says its schema")
    return int(count)


def _group(opened: "pq.ParquetFile", group: int) -> list[EncodedTrajectory]:
    rows = opened.read_row_group(group, columns=[*_TEXTS, "rewards"]).to_pylist()
    parts = ({name: orjson.loads(row[name]) for name in _TEXTS} | {"rewards": row["rewards"]} for row in rows)
    return [EncodedTrajectory.of(Trajectory.from_dict(each)) for each in parts]
