"""`online-sft convert` on real files: what is written, what is refused and where, and that nothing is lost between."""

import gc
import json
import math
import re
import subprocess
import sys
import tracemalloc
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import load_dataset

from online_sft import cli
from online_sft.importers.convert import convert
from online_sft.importers.formats import FORMATS

DOCUMENT = Path(__file__).resolve().parent.parent / "docs" / "convert.md"
GOOD = {"prompt": "1 + 1 =", "response": "2", "reward": 1.0}
BECAME = {"prompt": "1 + 1 =", "completion": "2", "reward": 1.0}
BAD = {"prompt": "1 + 1 =", "response": "2", "reward": None}


def write(path, *rows):
    Path(path).write_text("".join(row if isinstance(row, str) else json.dumps(row) + "\n" for row in rows))


def read(path):
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


def command(capsys, *arguments):
    cli.main(["convert", *arguments])
    return capsys.readouterr().out


def error_of(capsys, *arguments):
    with pytest.raises(SystemExit) as stop:
        cli.main(["convert", *arguments])
    assert stop.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line.removeprefix("online-sft convert: error: ")


def test_it_prints_how_many_rows_who_reads_them_and_the_next_command(capsys):
    write("in.jsonl", GOOD, GOOD)
    assert command(capsys, "in.jsonl", "out.jsonl").splitlines() == [
        "read 2 rows of in.jsonl as rewards",
        "wrote 2 to out.jsonl, put aside 0",
        "WeightedSFTTrainer reads them; see what it would train on:",
        "  online-sft inspect out.jsonl --model_name_or_path MODEL --weighting boltzmann",
    ]
    assert read("out.jsonl") == [BECAME, BECAME]
    assert sorted(path.name for path in Path().iterdir()) == ["in.jsonl", "out.jsonl"]


def test_the_next_command_runs(capsys, folder):
    write("in.jsonl", GOOD, {**GOOD, "response": "3", "reward": 0.0})
    inspect = command(capsys, "in.jsonl", "out.jsonl").splitlines()[-1].replace("MODEL", folder).split()
    cli.main(inspect[1:])
    assert "2 tokens x 1.462" in capsys.readouterr().out  # 2 exp(1) / (exp(1) + exp(0))


def test_prompts_are_for_the_other_trainer(capsys):
    write("in.jsonl", {"data_source": "a", "prompt": "1 + 1 =", "reward_model": {"ground_truth": "2"}})
    assert command(capsys, "in.jsonl", "out.parquet").splitlines()[2:] == [
        "OnlineSFTTrainer reads them; train on them:",
        "  online-sft online --dataset_name out.parquet --reward_funcs math --model_name_or_path MODEL",
    ]


def test_the_format_may_be_said_before_the_target(capsys):
    write("in.jsonl", {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]})
    assert "several formats, openai, ms-swift, verl-sft: say which with --from" in error_of(
        capsys, "in.jsonl", "o.jsonl"
    )
    assert "as verl-sft" in command(capsys, "in.jsonl", "--from", "verl-sft", "out.jsonl")


def test_a_row_that_cannot_be_read_ends_the_conversion_and_leaves_what_was_there(capsys):
    write("in.jsonl", GOOD, "\n", BAD, GOOD)
    Path("out.jsonl").write_text("before")
    assert error_of(capsys, "in.jsonl", "out.jsonl") == (
        "in.jsonl, line 3: must have one of reward, score, rating; it has none (read as rewards; --skip_bad_rows puts "
        "such rows aside)"
    )
    assert Path("out.jsonl").read_text() == "before"
    assert sorted(path.name for path in Path().iterdir()) == ["in.jsonl", "out.jsonl"]


def test_rows_that_are_skipped_are_written_with_their_place_reason_and_text(capsys):
    write("in.jsonl", GOOD, BAD, '{"prompt": \n', GOOD)
    out = command(capsys, "in.jsonl", "out.jsonl", "--skip_bad_rows")
    assert "read 4 rows of in.jsonl as rewards\nwrote 2 to out.jsonl, put aside 2\n" in out
    reason = "must have one of reward, score, rating; it has none"
    assert f"why: out.jsonl.rejected.jsonl; the first: in.jsonl, line 2: {reason}\n" in out
    assert read("out.jsonl") == [BECAME, BECAME]
    assert read("out.jsonl.rejected.jsonl") == [
        {"place": "line 2", "reason": reason, "text": json.dumps(BAD)},
        {"place": "line 3", "reason": "is no JSON: Expecting value at column 11", "text": '{"prompt":'},
    ]
    write("in.jsonl", GOOD)
    command(capsys, "in.jsonl", "out.jsonl")
    assert not Path("out.jsonl.rejected.jsonl").exists()


def test_without_a_row_that_can_be_read_there_is_no_file_but_the_reasons(capsys):
    write("in.jsonl", BAD)
    assert "in.jsonl holds no row that can be read; in.jsonl, line 1: must" in error_of(
        capsys, "in.jsonl", "out.jsonl", "--skip_bad_rows"
    )
    assert not Path("out.jsonl").exists()
    assert read("out.jsonl.rejected.jsonl")[0]["place"] == "line 1"


# what a line of the file holds, and what is said of it
LINES = [
    (b'{"prompt": "a", "resp', "line 2: is no JSON: Unterminated string starting at at column 17"),
    (b"[1]", r"line 2: is '\[1\]', and a line must hold an object"),
    (b"null", "line 2: is 'null', and a line must hold an object"),
    (b'{"prompt": "a", "response": "b", "reward": 1, "reward": 0}', "line 2: has the key 'reward' twice"),
    (b'{"prompt": "a", "x": {"y": 1, "y": 1}}', "line 2: has the key 'y' twice"),
    (b'{"prompt": "a", "response": "b", "reward": NaN}', "line 2: reward is nan, and no number in a row may be"),
    (b'{"prompt": "a", "response": "b", "reward": 1e999}', "line 2: reward is inf, and no number in a row may be"),
    (b'{"prompt": "a", "response": "b", "reward": 1' + b"0" * 30 + b"}", "line 2: reward is 1000.* more than 64 bits"),
    (b'{"reward": ' + b"1" * 5000 + b"}", "line 2: Exceeds the limit"),
    (b'{"prompt": "\xff", "response": "b", "reward": 1}', "line 2: is no UTF-8 from byte 13"),
    (b'{"prompt": "\\ud83d", "response": "b", "reward": 1}', "line 2: prompt has half a surrogate pair"),
    (b"[" * 100_000, "line 2: is nested too deeply"),
    (b"{}", "line 2: has the columns none; rewards needs prompt, completion, reward or"),
]


@pytest.mark.parametrize(("line", "message"), LINES, ids=[message[:30] for _, message in LINES])
def test_a_line_that_is_no_row_is_named(line, message):
    Path("in.jsonl").write_bytes(json.dumps(GOOD).encode() + b"\n" + line)
    with pytest.raises(ValueError, match=f"in.jsonl, {message}"):
        convert(Path("in.jsonl"), Path("out.jsonl"))
    done = convert(Path("in.jsonl"), Path("out.jsonl"), skip_bad_rows=True)
    assert (done.num_read, done.num_rejected) == (2, 1)
    assert read("out.jsonl") == [BECAME]


def test_a_byte_order_mark_windows_line_ends_and_empty_lines_are_no_fault():
    line = json.dumps(GOOD).encode()
    Path("in.jsonl").write_bytes(b"\xef\xbb\xbf" + line + b"\r\n\r\n" + line + b"\r\n\n")
    assert convert(Path("in.jsonl"), Path("out.jsonl")).num_read == 2
    assert read("out.jsonl") == [BECAME, BECAME]


@pytest.mark.parametrize(
    ("source", "target", "message"),
    [
        ("empty.jsonl", "out.jsonl", "empty.jsonl holds no row whose columns could tell its format; it is empty"),
        (
            "utf16.jsonl",
            "out.jsonl",
            "utf16.jsonl holds no row whose columns could tell its format; line 1: is no UTF-8",
        ),
        ("in.json", "out.jsonl", "in.json must be a file that ends in .jsonl or .parquet"),
        ("in.jsonl", "out.csv", "out.csv must be a file that ends in .jsonl or .parquet"),
        ("in.jsonl", "in.jsonl", "in.jsonl would be replaced by what it becomes"),
        ("none.jsonl", "out.jsonl", "No such file or directory: 'none.jsonl'"),
        ("cut.parquet", "out.jsonl", "cut.parquet is no whole Parquet file"),
        ("other.jsonl", "out.jsonl", "other.jsonl: the columns a, b are of no format known. Known are: openai"),
    ],
)
def test_files_that_cannot_be_converted(capsys, source, target, message):
    write("empty.jsonl")
    Path("utf16.jsonl").write_text(json.dumps(GOOD), encoding="utf-16")
    write("in.jsonl", GOOD)
    write("cut.parquet", "PAR1")
    write("other.jsonl", {"a": 1, "b": 2})
    assert message in error_of(capsys, source, target)
    assert not Path("out.jsonl").exists()


def test_an_empty_file_of_a_format_that_is_said_holds_no_row(capsys):
    write("in.jsonl", "\n")
    assert "in.jsonl holds no row that can be read; it is empty" in error_of(
        capsys, "in.jsonl", "out.jsonl", "--from", "rewards"
    )


CHATS = [
    {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}], "tools": None, "id": 1},
    {
        "messages": [
            {"role": "user", "content": "a"},
            {
                "role": "assistant",
                "content": None,
                "tool_calls": [{"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}],
                "weight": 0,
            },
        ],
        "tools": [{"type": "function", "function": {"name": "f"}}],
        "id": 2.5,
    },
]
DATUMS = [
    {"tokens": [5, 7], "loss_fn_inputs": {"target_tokens": [7, 9], "weights": [0, 1]}},
    {"tokens": [5], "loss_fn_inputs": {"target_tokens": [7], "weights": [0.1]}},
]
PROMPTS = [
    {
        "data_source": "gsm8k",
        "prompt": [{"role": "user", "content": f"{n} + 1 ="}],
        "reward_model": {"ground_truth": str(n + 1), "style": "rule"},
        "extra_info": {"index": n} if n < 2400 else {"split": "train"},
    }
    for n in range(2500)  # more than is held at once
]


@pytest.mark.parametrize("rows", [CHATS, DATUMS, PROMPTS], ids=["chats", "datums", "prompts"])
def test_all_four_ways_between_lines_and_tables_give_the_trainer_the_same_rows(rows):
    write("in.jsonl", *rows)
    pq.write_table(pa.Table.from_pylist(rows), "in.parquet")
    loaded = []
    for source in ("in.jsonl", "in.parquet"):
        for target in ("out.jsonl", "out.parquet"):
            assert convert(Path(source), Path(target)).num_read == len(rows)
            builder = {".jsonl": "json", ".parquet": "parquet"}[Path(target).suffix]
            table = load_dataset(builder, data_files=target, split="train", cache_dir=f"{source}_{target}")
            loaded.append([without_nulls(row) for row in table])
    assert loaded[0] == [without_nulls(row) for row in read("out.jsonl")]
    assert loaded[0] == loaded[1] == loaded[2] == loaded[3]


def without_nulls(value):
    """A table has every column in every row, null where the row has not."""
    if isinstance(value, dict):
        return {key: without_nulls(entry) for key, entry in value.items() if entry is not None}
    return [without_nulls(entry) for entry in value] if isinstance(value, list) else value


def test_a_column_of_two_types_fits_lines_but_no_table(capsys):
    write("in.jsonl", {**GOOD, "id": 1}, {**GOOD, "id": "x"})
    assert "`id` has not one type in all rows, as a column of Parquet must; write .jsonl" in error_of(
        capsys, "in.jsonl", "out.parquet"
    )
    command(capsys, "in.jsonl", "out.jsonl")
    assert [row["id"] for row in read("out.jsonl")] == [1, "x"]


def test_an_object_without_keys_fits_lines_but_no_table(capsys):
    write("in.jsonl", {**GOOD, "extra": {}})
    assert "Parquet cannot hold these rows, write .jsonl" in error_of(capsys, "in.jsonl", "out.parquet")


def test_a_row_of_a_table_is_named_and_kept(capsys):
    pq.write_table(pa.Table.from_pylist([GOOD, {**GOOD, "reward": math.nan}]), "in.parquet")
    assert "in.parquet, row 2: reward is nan" in error_of(capsys, "in.parquet", "out.jsonl")
    command(capsys, "in.parquet", "out.jsonl", "--skip_bad_rows")
    (rejected,) = read("out.jsonl.rejected.jsonl")
    assert rejected["place"] == "row 2"
    assert json.loads(rejected["text"])["response"] == "2"


@pytest.mark.parametrize("target", ["out.jsonl", "out.parquet"])
def test_memory_does_not_grow_with_the_file(target):
    def peak(num_rows):
        with Path("in.jsonl").open("w") as file:
            for number in range(num_rows):
                file.write(json.dumps({**GOOD, "response": str(number) * 50}) + "\n")
        gc.collect()
        tracemalloc.start()
        convert(Path("in.jsonl"), Path(target))
        try:
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    peak(2_000)  # imports
    assert peak(6_000) < 1.2 * peak(2_000)


def test_help_lists_every_format_and_what_it_becomes(capsys):
    with pytest.raises(SystemExit):
        cli.main(["convert", "--help"])
    text = capsys.readouterr().out
    for name, importer in FORMATS.items():
        assert re.search(rf"^  {name} +{re.escape(importer.becomes)}$", text, re.MULTILINE)
    check = "import sys; import online_sft.importers.convert; assert not {'torch', 'pyarrow'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", check], check=True)


def test_the_document_names_every_format_and_its_block_runs(capsys):
    document = DOCUMENT.read_text()
    for name in FORMATS:
        assert f"| `{name}` |" in document
    (block,) = re.findall(r"```bash\n(.*?)```", document, re.DOTALL)
    command = block.replace("online-sft convert", f"{sys.executable} -m online_sft convert")
    done = subprocess.run(["bash", "-euc", command], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (output,) = re.findall(r"```text\n(.*?)```", document, re.DOTALL)
    assert done.stdout == output
