"""Files of trajectories: whole or not at all; of other programs, too."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import tracemalloc
from pathlib import Path

import datasets
import orjson
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from trajectory_file_tools import EPISODES, SUFFIXES, episode, lines_of, read, read_damaged, write

from online_sft.trajectories.damage import TrajectoryFileError
from online_sft.trajectories.encoding import EncodedTrajectory
from online_sft.trajectories.files import read_trajectories, write_trajectories
from online_sft.trajectories.trajectory import Trajectory

json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda children: st.lists(children, max_size=3) | st.dictionaries(st.text(), children, max_size=3),
    max_leaves=8,
)
messages = st.builds(
    lambda role, content, more: {**more, "role": role, "content": content},
    st.sampled_from(["system", "user", "tool"]),
    st.text() | json_values,
    st.dictionaries(st.text(), json_values, max_size=2),
)


@st.composite
def trajectories(draw):
    num_turns = draw(st.integers(1, 3))
    observations = draw(st.lists(st.lists(messages, max_size=2), min_size=num_turns, max_size=num_turns + 1))
    actions = [{**draw(messages), "role": "assistant"} for _ in range(num_turns)]
    rewards = draw(st.lists(st.floats(-1e300, 1e300), min_size=num_turns, max_size=num_turns))
    metadata = draw(st.dictionaries(st.text(), json_values, max_size=4))
    return Trajectory([[draw(messages)], *observations[1:]], actions, rewards, metadata)


@pytest.mark.parametrize("suffix", SUFFIXES)
@settings(max_examples=60, deadline=None)
@given(written=st.lists(trajectories(), min_size=1, max_size=3))
def test_what_is_written_is_read(suffix, written):
    write(f"data.{suffix}", written)
    assert read(f"data.{suffix}") == written
    assert read(f"data.{suffix}", skip_damaged=True) == written


def test_a_line_is_a_row_with_its_place_and_the_checksum_of_both():
    write("data.jsonl")
    rows = [json.loads(line) for line in lines_of("data.jsonl")]
    for index, (row, trajectory) in enumerate(zip(rows, EPISODES, strict=True)):
        checksum = row.pop("sha256")
        assert row == {**trajectory.to_dict(), "version": 1, "index": index, "remaining": 5 - index}
        assert checksum == hashlib.sha256(orjson.dumps(row)).hexdigest()


def test_a_document_has_the_rows_of_the_lines_and_the_counts_of_mrlm():
    unknown_end = Trajectory(["o0", "o1"], ["a0", "a1"], [0, 0])
    for suffix in ("json", "jsonl"):
        write(f"data.{suffix}", [*EPISODES, unknown_end])
    document = json.loads(Path("data.json").read_bytes())
    assert list(document) == ["trajectories", "num_trajectories", "num_transitions"]
    assert document["trajectories"] == [json.loads(line) for line in lines_of("data.jsonl")]
    assert (document["num_trajectories"], document["num_transitions"]) == (7, 13)


def test_mrlm_reads_our_document():
    """Its `TrajectoryDataset.load` asks for these keys, and knows these roles."""
    write("data.json")
    for row, trajectory in zip(json.loads(Path("data.json").read_text())["trajectories"], EPISODES, strict=True):
        assert [each["done"] for each in row["observations"]] == [False, False, True]
        said = [message for each in row["observations"] for message in each["messages"]] + row["actions"]
        assert {message["role"] for message in said} <= {"system", "user", "assistant", "environment"}
        assert [message["content"] for message in row["actions"]] == [each["content"] for each in trajectory.actions]
        assert [reward["value"] for reward in row["rewards"]] == trajectory.rewards


@pytest.mark.parametrize(("kind", "suffix"), [("json", "jsonl"), ("parquet", "parquet")])
def test_datasets_loads_the_rows(kind, suffix, tmp_path):
    write(f"data.{suffix}")
    rows = datasets.load_dataset(kind, data_files=f"data.{suffix}", split="train", cache_dir=str(tmp_path / "cache"))
    of = json.loads if kind == "parquet" else lambda value: value
    assert [of(row["actions"]) for row in rows] == [each.actions for each in EPISODES]
    assert [of(row["metadata"]) for row in rows] == [each.metadata for each in EPISODES]


def test_parquet_has_columns_for_queries_and_bounded_row_groups():
    write("data.parquet", [episode(name, 1 + name % 3) for name in range(2100)])
    with pq.ParquetFile("data.parquet") as file:
        assert [file.metadata.row_group(group).num_rows for group in range(3)] == [1000, 1000, 100]
        assert file.metadata.row_group(0).column(0).compression == "ZSTD"
    table = pq.read_table("data.parquet", columns=["total_reward", "length"], filters=[("length", "=", 3)])
    assert table["length"].to_pylist() == [3] * 700
    assert table["total_reward"].to_pylist() == [episode(name, 3).total_reward for name in range(2, 2100, 3)]


@pytest.mark.parametrize("indent", [None, 2])
@pytest.mark.parametrize("suffix", ["json", "jsonl"])
def test_whitespace_does_no_harm(suffix, indent):
    write(f"data.{suffix}")
    if suffix == "json":
        text = json.dumps(json.loads(Path("data.json").read_text()), indent=indent)
    else:
        text = "\r\n\r\n".join(json.dumps(json.loads(line)) for line in lines_of("data.jsonl"))
    Path(f"data.{suffix}").write_text(text)
    assert read(f"data.{suffix}") == EPISODES


class Breaking(list):
    """Rows of which one cannot be had."""

    def __init__(self, rows, error):
        super().__init__(rows)
        self.error = error

    def __iter__(self):
        yield from list.__iter__(self)
        raise self.error


@pytest.mark.parametrize("error", [RuntimeError("no such row"), KeyboardInterrupt()], ids=["error", "interrupt"])
@pytest.mark.parametrize("suffix", SUFFIXES)
def test_writing_that_fails_leaves_the_old_file_and_nothing_else(suffix, error):
    rows = Breaking([EncodedTrajectory.of(episode(name)) for name in range(1500)], error)
    with pytest.raises(type(error)):
        write_trajectories(f"data.{suffix}", rows)
    assert os.listdir() == []
    write(f"data.{suffix}")
    whole = Path(f"data.{suffix}").read_bytes()
    with pytest.raises(type(error)):
        write_trajectories(f"data.{suffix}", rows)
    assert os.listdir() == [f"data.{suffix}"]
    assert Path(f"data.{suffix}").read_bytes() == whole


WRITER = """
import sys, time
from online_sft.trajectories.encoding import EncodedTrajectory
from online_sft.trajectories.files import write_trajectories
from online_sft.trajectories.trajectory import Trajectory

class Stopping(list):
    def __iter__(self):
        yield from list.__iter__(self)
        print("nearly done", flush=True)
        time.sleep(60)

rows = [EncodedTrajectory.of(Trajectory([f"o{i}"], ["a" * 200], [i])) for i in range(3000)]
write_trajectories(sys.argv[1], Stopping(rows))
"""


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_process_that_is_killed_while_it_writes_leaves_the_old_file_whole(suffix):
    path = f"data.{suffix}"
    write(path)
    writer = subprocess.Popen([sys.executable, "-c", WRITER, path], stdout=subprocess.PIPE, text=True)
    assert writer.stdout.readline() == "nearly done\n"
    writer.send_signal(signal.SIGKILL)
    writer.communicate()
    (part,) = Path().glob(f".{path}.*.part")
    assert part.stat().st_size > 1000  # it was at it
    assert read(path) == EPISODES
    write(path, EPISODES[:1])  # what it left is in nobody's way
    assert read(path) == EPISODES[:1]


def test_the_folder_is_made_a_link_stays_a_link_and_others_may_read():
    Path("link.jsonl").symlink_to("runs/1/data.jsonl")
    write("link.jsonl")
    assert Path("link.jsonl").is_symlink()
    assert read("runs/1/data.jsonl") == EPISODES
    Path("plain").touch()
    assert Path("runs/1/data.jsonl").stat().st_mode == Path("plain").stat().st_mode


def test_the_suffix_is_the_format():
    for path in ("data.txt", "data", "data.jsonl.gz"):
        with pytest.raises(
            ValueError, match=rf"{path} has the suffix '.*'; trajectories are in files of .json, .jsonl, .p"
        ):
            write(path)
        with pytest.raises(ValueError, match=f"{path} has the suffix"):
            read_trajectories(path)
    assert os.listdir() == []


def test_no_trajectory_is_not_written():
    with pytest.raises(
        ValueError, match=r"there is no trajectory to write to data.jsonl; a file without one looks like"
    ):
        write("data.jsonl", [])
    assert os.listdir() == []


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_reading_takes_memory_for_a_few_rows_and_not_for_the_file(suffix):
    long = [Trajectory(["o" * 5000, ""], [f"{name}" * 1000], [name]) for name in range(4000)]
    write(f"data.{suffix}", long)
    del long
    tracemalloc.start()
    try:
        num_read = sum(1 for _ in read_trajectories(f"data.{suffix}"))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert num_read == 4000
    assert peak < (30e6 if suffix == "parquet" else 1e6)  # a row group of 1000 rows, or a line; all are 35 MB


def of_mrlm(trajectories, path="data.json", **more):
    """What MRLM's TrajectoryDataset.save writes."""
    rows = [each.to_dict() if isinstance(each, Trajectory) else each for each in trajectories]
    Path(path).write_text(json.dumps({"trajectories": rows, "num_trajectories": len(rows), **more}, indent=2))


def test_the_document_of_mrlm_is_read():
    of_mrlm(EPISODES, num_transitions=12)
    assert read("data.json") == EPISODES


def test_lines_without_version_are_read():
    Path("data.jsonl").write_text("".join(json.dumps(each.to_dict()) + "\n" for each in EPISODES))
    assert read("data.jsonl") == EPISODES


def test_a_foreign_row_that_is_none_is_named(caplog):
    rows = [json.loads(json.dumps(each.to_dict())) for each in EPISODES]
    rows[1]["rewards"] = [{"value": None}] * 2
    rows[2]["rewards"] = [{"value": float("nan")}] * 2
    rows[3]["actions"] = []
    rows[4]["actions"][0]["content"] = "\ud800"
    of_mrlm(rows)
    with pytest.raises(
        TrajectoryFileError, match=r"^data.json, trajectories\[1\]: .*; skip_damaged=True reads the rest"
    ):
        read("data.json")
    got, warning = read_damaged("data.json", caplog)
    assert got == "05"
    assert "data.json is damaged: read 2 trajectories; 4 faults, the first: trajectories[1]: " in warning


NO_DOCUMENT = {
    "a list": ("[]", "data.json is no document .*trajectories"),
    "an object": ('{"rows": []}', "data.json is no document .*trajectories"),
    "rows in an object": ('{"trajectories": {"0": {}}}', "data.json is no document .*trajectories"),
    "half a document": ('{\n  "trajectories": [\n    {', "data.json is no JSON, and not written line by line: "),
}


@pytest.mark.parametrize("case", NO_DOCUMENT)
def test_json_that_is_no_document_is_refused(case):
    text, message = NO_DOCUMENT[case]
    Path("data.json").write_text(text)
    for skip_damaged in (False, True):
        with pytest.raises(TrajectoryFileError, match=message):
            read("data.json", skip_damaged=skip_damaged)


def test_a_foreign_document_whose_count_is_wrong_is_damaged(caplog):
    of_mrlm(EPISODES)
    text = Path("data.json").read_text()
    Path("data.json").write_text(text.replace('"num_trajectories": 6', '"num_trajectories": 7'))
    with pytest.raises(TrajectoryFileError, match=r"data.json, num_trajectories: is 7, but there are 6; skip_"):
        read("data.json")
    assert read_damaged("data.json", caplog)[0] == "012345"


def user(text):
    return {"role": "user", "content": text}


def assistant(text):
    return {"role": "assistant", "content": text}


def row_of(*observations, actions=("a0", "a1")):
    return {
        "observations": [{"messages": list(each), "done": False} for each in observations],
        "actions": [assistant(action) for action in actions],
        "rewards": [{"value": 1.0}] * len(actions),
        "metadata": {},
    }


FIRST = [user("o0")]
SECOND = [*FIRST, assistant("a0"), user("o1")]
THIRD = [*SECOND, assistant("a1") | {"metadata": {}}, user("o2")]  # role and content are compared
CUMULATIVE = {
    "the whole conversation each time": (row_of(FIRST, SECOND, THIRD), [FIRST, [user("o1")], [user("o2")]]),
    "nothing new at the end": (row_of(FIRST, SECOND, THIRD[:-1]), [FIRST, [user("o1")], []]),
    "the last one unknown": (row_of(FIRST, SECOND), [FIRST, [user("o1")]]),
    "another action": (row_of(FIRST, SECOND, THIRD, actions=("a0", "b1")), [FIRST, SECOND, THIRD]),
    "one that is not": (row_of(FIRST, SECOND, [user("o2")]), [FIRST, SECOND, [user("o2")]]),
    "without the action": (row_of(FIRST, [*FIRST, user("o1")], actions=("a0",)), [FIRST, [*FIRST, user("o1")]]),
    "the action each time": (row_of(FIRST, SECOND[-2:], THIRD[-2:]), [FIRST, [user("o1")], [user("o2")]]),
    "the action once": (row_of(FIRST, SECOND[-2:], [user("o2")]), [FIRST, SECOND[-2:], [user("o2")]]),
    "nothing to compare": (row_of(SECOND, actions=("a0",)), [SECOND]),
}


@pytest.mark.parametrize("case", CUMULATIVE)
def test_observations_of_the_whole_conversation_become_increments_where_all_of_them_are(case):
    row, observations = CUMULATIVE[case]
    of_mrlm([row])
    (trajectory,) = read("data.json")
    assert trajectory.observations == observations
    if case == "the whole conversation each time":
        said = [(message["role"], message["content"]) for message in trajectory.messages()]
        assert said == [(message["role"], message["content"]) for message in row["observations"][-1]["messages"]]


def test_our_own_observations_are_never_taken_apart():
    echo = Trajectory([FIRST, SECOND], ["a0"], [1])
    for suffix in SUFFIXES:
        write(f"data.{suffix}", [echo])
        assert read(f"data.{suffix}") == [echo]
