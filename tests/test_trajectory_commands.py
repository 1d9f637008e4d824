"""`online-sft trajectories` as a user types it."""

import json
from pathlib import Path

import pytest
from test_cli import error_of, online_sft
from trajectory_tools import ragged_trajectories

from online_sft import TrajectoryDataset, cli
from recipes import tiny_models

ON_CPU = ["--use_cpu", "true", "--bf16", "false", "--report_to", "none", "--max_completion_length", "8"]
MODEL = ["--model_name_or_path", "runs/tiny/qwen2_chat"]


@pytest.fixture
def model(tmp_path):
    tiny_models.main([])


@pytest.fixture
def file():
    TrajectoryDataset(ragged_trajectories(20)).save("t.jsonl")
    return "t.jsonl"


def train(*arguments):
    cli.main(["trajectories", "train", *MODEL, *ON_CPU, "--output_dir", "out", "--max_steps", "2", *arguments])
    return json.loads(Path("out/checkpoint-2/trainer_state.json").read_text())["log_history"]


@pytest.mark.parametrize("command", ["collect", "train"])
def test_help_does_not_import_torch_and_names_our_fields(command):
    done = online_sft("trajectories", command, "--help")
    assert "--environments" in done.stdout
    assert ("--bc_weight" in done.stdout) == (command == "train")
    assert "trl.SFTConfig" in done.stdout


def test_stats_describes_each_file(file, capsys):
    TrajectoryDataset(ragged_trajectories(3)).save("u.parquet")
    cli.main(["trajectories", "stats", "t.jsonl", "u.parquet"])
    text = capsys.readouterr().out
    assert text.index("t.jsonl:") < text.index("trajectories     20") < text.index("u.parquet:")
    assert text.index("u.parquet:") < text.index("trajectories     3")


def test_stats_of_a_damaged_file_name_the_line_and_the_way_out(file, capsys):
    lines = Path(file).read_text().splitlines(keepends=True)
    Path(file).write_text("".join(lines[:7]) + lines[7].replace("user", "uses", 1) + "".join(lines[8:]))
    assert "t.jsonl, line 8" in error_of(capsys, "trajectories", "stats", file)
    cli.main(["trajectories", "stats", "--skip_damaged", file])
    assert "trajectories     19" in capsys.readouterr().out


@pytest.mark.parametrize("mode", ["behavioral_cloning", "world_model", "combined"])
def test_train_learns_what_the_mode_says(mode, model, file):
    log = train("--dataset_name", file, "--mode", mode, "--logging_steps", "1")
    assert [entry["step"] for entry in log if "loss" in entry] == [1, 2]
    assert ("bc_loss" in log[0]) == (mode != "world_model")
    assert ("world_model_loss" in log[0]) == (mode != "behavioral_cloning")


def test_train_evaluates_on_whole_tasks_that_are_held_out_and_in_environments(model, file):
    data = ["--dataset_name", file, "--eval_strategy", "steps", "--eval_steps", "2", "--eval_share", "0.5"]
    log = train(*data, "--eval_environments", "online-sft/MathRetries-v0", "--eval_tasks", "2", "--eval_ks", "1", "2")
    assert any("eval_bc_loss" in entry for entry in log)
    assert any("eval_pass@2_high" in entry for entry in log)


def test_a_stream_of_a_file_gives_the_same_losses_as_the_file(model, file):
    same = ["--dataset_name", file, "--logging_steps", "1", "--train_sampling_strategy", "sequential"]
    logs = [train(*same, "--dataset_streaming", streaming) for streaming in ("false", "true")]
    losses = [[entry["loss"] for entry in log if "loss" in entry] for log in logs]
    assert losses[0] == losses[1]


def test_collect_keeps_episodes_of_all_environments_and_train_collects_too(model, capsys):
    where = ["--environments", "online-sft/MathRetries-v0", "online-sft/GuessingGame-v0"]
    cli.main(["trajectories", "collect", *MODEL, *ON_CPU, *where, "--episodes", "6", "--output", "c.parquet"])
    assert "trajectories     6" in capsys.readouterr().out
    names = [each.metadata["environment"] for each in TrajectoryDataset.load("c.parquet")]
    assert names == where[1:] * 3
    log = train(*where, "--collect_episodes", "4", "--logging_steps", "1")
    assert log[0]["collect/trajectories"] == 4
    assert len(TrajectoryDataset.load("out/trajectories/round-00001.jsonl")) == 4


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["train"], "no model: set --model_name_or_path"),
        (["train", *MODEL], "no trajectories: set --dataset_name to a file of them, or --environments"),
        (["train", *MODEL, "--dataset_name", "none.jsonl"], "none.jsonl"),
        (["train", *MODEL, "--environments", "Nope-v0", "--max_steps", "1"], "no environment 'Nope-v0'"),
        (["train", *MODEL, "--dataset_name", "t.jsonl", "--mode", "bc"], "argument --mode: invalid choice: 'bc'"),
        (["collect", *MODEL], "no environment: set --environments"),
        (["collect", *MODEL, "--environments", "x", "--output", "a.txt"], "must name a file that ends in .json"),
        (["collect", *MODEL, "--environments", "x", "--output", "t.jsonl"], "t.jsonl exists"),
        (["stats", "none.jsonl"], "none.jsonl"),
    ],
    ids=str,
)
def test_what_cannot_be_is_one_line(arguments, words, model, file, capsys):
    options = [] if arguments[0] == "stats" else ON_CPU
    assert words in error_of(capsys, "trajectories", *arguments, *options)
