"""Every damage of a file of trajectories has a name, and the rest can be read."""

import json
import logging
from pathlib import Path

import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from trajectory_file_tools import EPISODES, SUFFIXES, episode, lines_of, read, read_damaged, write

from online_sft.trajectories.damage import TrajectoryFileError
from online_sft.trajectories.files import read_trajectories


def flip(line):
    """A letter of the text of the first action becomes another."""
    at = line.index(b'"content":"a') + len(b'"content":"')
    return line[:at] + bytes([line[at] ^ 1]) + line[at + 1 :]


def edited(line, **fields):
    """What somebody does in an editor, who leaves the checksum as it is or takes it out (None)."""
    row = {**json.loads(line.strip().removesuffix(b",")), **fields}
    end = b",\n" if line.endswith(b",\n") else b"\n"
    return orjson.dumps({name: value for name, value in row.items() if value is not None}) + end


UNCHECKED = dict.fromkeys(["version", "index", "remaining", "sha256"])
LAST = len(EPISODES) - 1
# of rows: what happens to their lines, the error's line (from the first row's) and words, the rows that are still read
ROW_DAMAGE = {
    "a flipped bit": (lambda r: [*r[:2], flip(r[2]), *r[3:]], 2, "checksum is not that of its content", "01345"),
    "an edited reward": (lambda r: [edited(r[0], rewards=[9, 9]), *r[1:]], 0, "damaged, or edited", "12345"),
    "an edited place": (lambda r: [*r[:-1], edited(r[-1], remaining=1)], 5, "damaged, or edited", "01234"),
    "no checksum": (lambda r: [*r[:3], edited(r[3], sha256=None), *r[4:]], 3, "damaged, or edited", "01245"),
    "another version": (lambda r: [*r[:3], edited(r[3], version=2), *r[4:]], 3, "has version 2; .* version 1", "01245"),
    "no version": (lambda r: [*r[:3], edited(r[3], version=None), *r[4:]], 3, "has version None", "01245"),
    "an unchecked row": (lambda r: [*r[:3], edited(r[3], **UNCHECKED), *r[4:]], 3, "are mixed in this file", "01245"),
    "no JSON": (lambda r: [*r[:4], r[4].replace(b"{", b"(", 1), r[5]], 4, "Expecting value", "01235"),
    "a number": (lambda r: [*r[:4], b"5\n", r[5]], 4, "is no JSON object: 5", "01235"),
    "a first row removed": (lambda r: r[1:], 0, "this is row 2 of 6, and the rows before it are missing", "12345"),
    "a row removed": (lambda r: [*r[:2], *r[3:]], 2, "row 4 of 6, after row 2: rows between .* missing", "01345"),
    "a row doubled": (lambda r: [*r[:3], r[2], *r[3:]], 3, "row 3 of 6, after row 3: it is there twice", "012345"),
    "rows swapped": (lambda r: [r[0], r[2], r[1], *r[3:]], 1, "row 3 of 6, after row 1: rows between", "02345"),
    "half a row": (lambda r: [*r[:3], r[3][:50]], 3, "unexpected end|Unterminated|Expecting", "012"),
}  # fmt: skip


@pytest.mark.parametrize("case", ROW_DAMAGE)
@pytest.mark.parametrize("suffix", ["json", "jsonl"])
def test_a_damaged_row_is_named_and_the_others_can_be_read(suffix, case, caplog):
    damage, line, reason, intact = ROW_DAMAGE[case]
    write(f"data.{suffix}")
    lines = lines_of(f"data.{suffix}")
    frame = ([lines[0]], lines[-1:]) if suffix == "json" else ([], [])
    rows = damage(lines[len(frame[0]) : len(lines) - len(frame[1])])
    broken = Path(f"data.{suffix}")
    broken.write_bytes(b"".join([*frame[0], *rows, *frame[1]]))
    before = broken.read_bytes(), broken.stat().st_mtime_ns
    number = line + 1 + len(frame[0])
    with pytest.raises(TrajectoryFileError, match=rf"^data.{suffix}, line {number}: .*({reason})") as error:
        read(broken)
    assert str(error.value).endswith("; skip_damaged=True reads the rest")
    assert isinstance(error.value, ValueError)
    got, warning = read_damaged(broken, caplog)
    assert got == intact
    assert f"data.{suffix} is damaged: read {len(intact)} of 6 trajectories; " in warning
    assert f"line {number}: " in warning
    assert (broken.read_bytes(), broken.stat().st_mtime_ns) == before


@pytest.mark.parametrize("num_lines", [1, 3, 5])
def test_lines_cut_off_at_a_boundary_are_missed(num_lines, caplog):
    write("data.jsonl")
    Path("data.jsonl").write_bytes(b"".join(lines_of("data.jsonl")[:num_lines]))
    missing = 6 - num_lines
    with pytest.raises(TrajectoryFileError, match=rf"data.jsonl, at its end: {missing} of 6 rows are missing; skip_"):
        read("data.jsonl")
    got, warning = read_damaged("data.jsonl", caplog)
    assert got == "012345"[:num_lines]
    assert f"read {num_lines} of 6 trajectories; 1 faults, the first: at its end: " in warning


@pytest.mark.parametrize(
    ("num_first", "reason"), [(6, "row 1 of 2, after row 6 of 6"), (2, "row 1 of 6, after row 2 of 2")]
)
def test_rows_of_another_file_are_not_taken_for_more_of_this_one(num_first, reason, caplog):
    write("other.jsonl", [episode(name) for name in range(8 - num_first)])
    write("data.jsonl", EPISODES[:num_first])
    Path("data.jsonl").write_bytes(Path("data.jsonl").read_bytes() + Path("other.jsonl").read_bytes())
    with pytest.raises(TrajectoryFileError, match=f"line {num_first + 1}: this is {reason}: a row of another file"):
        read("data.jsonl")
    assert read_damaged("data.jsonl", caplog)[0] == "012345"[:num_first]


FRAME_DAMAGE = {
    "the first line": (lambda lines: [b'{"trajectoriez": [\n', *lines[1:]], "line 1: is not "),
    "no last line": (
        lambda lines: lines[:-1],
        'at its end: .* "num_trajectories": 6, "num_transitions": 12} is missing',
    ),
    "another count": (lambda lines: [*lines[:-1], lines[-1].replace(b"12", b"13")], "at its end: "),
}


@pytest.mark.parametrize("case", FRAME_DAMAGE)
def test_a_document_without_its_first_or_last_line_is_damaged_and_its_rows_are_not(case, caplog):
    damage, message = FRAME_DAMAGE[case]
    write("data.json")
    Path("data.json").write_bytes(b"".join(damage(lines_of("data.json"))))
    with pytest.raises(TrajectoryFileError, match=f"^data.json, {message}"):
        read("data.json")
    got, warning = read_damaged("data.json", caplog)
    assert got == "012345"
    assert "read 6 of 6 trajectories" in warning


@pytest.mark.parametrize(("suffix", "step"), [("json", 3), ("jsonl", 3), ("parquet", 17)])
def test_no_flipped_byte_gives_another_trajectory(suffix, step):
    path = Path(f"data.{suffix}")
    write(path, EPISODES[:2])
    whole = path.read_bytes()
    num_noticed = 0
    for at in range(0, len(whole), step):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1 << at % 8]) + whole[at + 1 :])
        try:
            assert read(path) == EPISODES[:2]  # of what Parquet writes between pages, not everything has a meaning
        except TrajectoryFileError:
            num_noticed += 1
    assert num_noticed > len(range(0, len(whole), step)) / 2


def test_a_damaged_row_group_is_named_and_the_others_can_be_read(caplog):
    episodes = [episode(name, 1) for name in range(2500)]
    write("data.parquet", episodes)
    with pq.ParquetFile("data.parquet") as file:
        at = file.metadata.row_group(1).column(1).data_page_offset + 200
    damaged = bytearray(Path("data.parquet").read_bytes())
    damaged[at] ^= 1
    Path("data.parquet").write_bytes(damaged)
    with pytest.raises(
        TrajectoryFileError, match=r"^data.parquet, row group 2 \(rows 1001 to 2000\): .*; skip_damaged="
    ):
        read("data.parquet")
    assert Path("data.parquet").read_bytes() == damaged
    with caplog.at_level(logging.WARNING):
        assert read("data.parquet", skip_damaged=True) == [*episodes[:1000], *episodes[2000:]]
    assert "read 1500 of 2500 trajectories; 1 faults, the first: row group 2" in caplog.text


def with_schema(**metadata):
    """The same rows, as another program may write them."""
    table = pq.read_table("data.parquet")
    kept = {**table.schema.metadata, **{f"online_sft.trajectories.{k}".encode(): v for k, v in metadata.items()}}
    pq.write_table(table.replace_schema_metadata(kept if metadata else None), "data.parquet")


PARQUET_DAMAGE = {
    "cut": (lambda path: path.write_bytes(path.read_bytes()[:-100]), "data.parquet has no whole Parquet footer"),
    "no Parquet": (lambda path: path.write_bytes(b"{}" * 50), "data.parquet has no whole Parquet footer"),
    "another version": (lambda path: with_schema(version=b"2"), "has version 2; this program reads version 1"),
    "a count that is none": (lambda path: with_schema(count=b"x"), "it was written with 'x' rows"),
    "foreign": (
        lambda path: with_schema(),
        r"not written by TrajectoryDataset.save, .* the columns observations, actions, metadata \(JSON\) and rewards ",
    ),
    "another table": (
        lambda path: pq.write_table(pa.table({"text": ["a"]}), path),
        "its columns are text. Make Trajectory objects of its rows and save those",
    ),
}


@pytest.mark.parametrize("skip_damaged", [False, True])
@pytest.mark.parametrize("case", PARQUET_DAMAGE)
def test_of_parquet_that_is_not_ours_or_has_no_footer_nothing_is_read(case, skip_damaged):
    damage, message = PARQUET_DAMAGE[case]
    write("data.parquet")
    damage(Path("data.parquet"))
    with pytest.raises(TrajectoryFileError, match=message):
        read("data.parquet", skip_damaged=skip_damaged)


def test_rows_that_were_taken_out_of_parquet_are_missed(caplog):
    write("data.parquet")
    pq.write_table(pq.read_table("data.parquet").slice(0, 4), "data.parquet")
    with pytest.raises(TrajectoryFileError, match="at its end: it was written with 6 rows and has 4"):
        read("data.parquet")
    assert read_damaged("data.parquet", caplog)[0] == "0123"


@pytest.mark.parametrize("skip_damaged", [False, True])
@pytest.mark.parametrize("suffix", SUFFIXES)
def test_files_of_which_nothing_is_left_are_refused(suffix, skip_damaged):
    with pytest.raises(TrajectoryFileError, match=f"data.{suffix} cannot be read: No such file"):
        read(f"data.{suffix}", skip_damaged=skip_damaged)
    Path(f"data.{suffix}").touch()
    with pytest.raises(TrajectoryFileError, match=f"data.{suffix} is empty"):
        read(f"data.{suffix}", skip_damaged=skip_damaged)
    Path(f"folder.{suffix}").mkdir()
    with pytest.raises(TrajectoryFileError, match="cannot be read: Is a directory"):
        read(f"folder.{suffix}", skip_damaged=skip_damaged)


def test_a_file_without_an_intact_row_is_refused_with_what_is_wrong_with_the_first():
    Path("data.jsonl").write_text("nothing\nat all\n")
    with pytest.raises(
        TrajectoryFileError, match=r"data.jsonl holds no trajectory that can be read; line 1: Expecting"
    ):
        read("data.jsonl", skip_damaged=True)
    for path, text in {"data.jsonl": "\n \n", "data.json": '{"trajectories": []}'}.items():
        Path(path).write_text(text)
        with pytest.raises(TrajectoryFileError, match=f"{path} holds no trajectory that can be read; it has no row"):
            read(path)


def test_trajectories_before_the_damage_are_read():
    write("data.jsonl")
    Path("data.jsonl").write_bytes(b"".join(lines_of("data.jsonl")[:3]))
    rows = read_trajectories("data.jsonl")
    assert [next(rows) for _ in range(3)] == EPISODES[:3]
    with pytest.raises(TrajectoryFileError, match="3 of 6 rows are missing"):
        next(rows)
