"""The `online-sft` command as a user types it."""

import json
import subprocess
import sys

import pytest
import yaml

from online_sft import cli


def online_sft(*arguments, **options):
    return subprocess.run(
        [sys.executable, "-m", "online_sft", *arguments], capture_output=True, text=True, timeout=120, **options
    )


def error_of(capsys, *arguments):
    with pytest.raises(SystemExit) as stop:
        cli.main(arguments)
    assert stop.value.code == 2
    # progress bars of datasets and transformers go to stderr too, ended by \r or begun by one
    lines = [line for line in capsys.readouterr().err.replace("\r", "\n").splitlines() if line and "it/s" not in line]
    (line,) = [line for line in lines if not line.startswith(("Loading", "Generating", "Writing"))]
    return line


@pytest.mark.parametrize(
    "arguments", [["--help"], ["weighted", "--help"], ["online", "--help"], ["verify", "--help"], ["env", "--help"]]
)
def test_help_does_not_import_torch(arguments):
    """Help answers in about 0.1 s because it stays clear of torch (1 s) and transformers (3 s)."""
    run = f"import sys; from online_sft.cli import main\ntry: main({arguments})\n"
    check = "finally: assert 'torch' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", run + check], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "usage: online-sft" in done.stdout


def test_help_lists_our_fields_and_where_the_others_are(capsys):
    with pytest.raises(SystemExit):
        cli.main(["online", "--help"])
    text = capsys.readouterr().out
    for expected in ("--reward_funcs", "--baseline", "--beta", "--dataset_name", "trl.GRPOConfig", "--help_all"):
        assert expected in text


def test_help_all_lists_every_field(capsys):
    with pytest.raises(SystemExit):
        cli.main(["online", "--help_all"])
    text = capsys.readouterr().out
    for expected in ("--learning_rate", "--max_completion_length", "--use_peft", "--baseline"):
        assert expected in text


def test_env_names_versions_and_paths(capsys):
    cli.main(["env"])
    text = capsys.readouterr().out
    for name in ("online-sft 0", "torch ", "transformers ", "trl ", "python "):
        assert name in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["online", "--lerning_rate", "1"], "unknown argument 'lerning_rate'; did you mean 'learning_rate'?"),
        (["online", "--baselin=none"], "unknown argument 'baselin'; did you mean 'baseline'?"),
        (["weighted", "--max-step", "3"], "unknown argument 'max_step'; did you mean 'max_steps'?"),
        (["online", "--learning_rate", "abc"], "argument --learning_rate/--learning-rate: invalid float value: 'abc'"),
        (["online", "--max_steps", "2", "--config"], "--config needs a file"),
        (["online", "--config=missing.yaml"], "No such file or directory: 'missing.yaml'"),
        (["online", "--config", "missing.yaml"], "No such file or directory: 'missing.yaml'"),
        (["online", "--output_dir", "out", "--use_cpu", "true"], "no reward: set --reward_funcs"),
        (["weighted", "--output_dir", "out", "--use_cpu", "true"], "no model: set --model_name_or_path"),
        (["online", "--num_generations", "1", "--baseline", "group_mean"], "num_generations must be at least 2; got 1"),
        (["online", "--use_cpu", "true", "--reward_funcs", "no.such"], "reward function 'no.such' cannot be imported"),
    ],
)
def test_a_mistake_is_one_line_that_names_the_way_out(capsys, arguments, message):
    line = error_of(capsys, *arguments)
    assert line.startswith(f"online-sft {arguments[0]}: error: ")
    assert message in line


def test_an_unknown_key_in_the_config_file_is_an_error_too(capsys, tmp_path):
    (tmp_path / "run.yaml").write_text("output_dir: out\nbase_line: none\n")
    line = error_of(capsys, "online", "--config", str(tmp_path / "run.yaml"))
    assert line == "online-sft online: error: unknown argument 'base_line'; did you mean 'baseline'?"


def test_a_config_file_that_is_not_yaml_is_an_error_too(capsys, tmp_path):
    (tmp_path / "run.yaml").write_text("max_steps: [1, 2\n")
    line = error_of(capsys, "online", "--config=run.yaml")
    assert line.startswith("online-sft online: error: the config file run.yaml is no YAML")
    assert "while parsing a flow sequence" in line


def test_an_unknown_command_is_refused(capsys):
    with pytest.raises(SystemExit):
        cli.main(["onlin"])
    assert "invalid choice: 'onlin'" in capsys.readouterr().err


@pytest.fixture
def run_dir(saved_model, tmp_path):
    """A model folder, data files and the arguments that both commands share."""
    rows = [{"prompt": f"{a} + 1 =", "solution": str(a + 1)} for a in range(8)]
    demonstrations = [
        {"prompt": row["prompt"], "completion": f" Answer: {row['solution']}", "advantages": 1.0} for row in rows
    ]
    for name, data in (("prompts", rows), ("demonstrations", demonstrations)):
        (tmp_path / f"{name}.jsonl").write_text("\n".join(json.dumps(row) for row in data))
    config = {
        "model_name_or_path": str(tmp_path / "model"),
        "output_dir": str(tmp_path / "out"),
        "use_cpu": True,
        "bf16": False,
        "activation_checkpointing": False,
        "report_to": "none",
        "max_steps": 5,
        "logging_steps": 1,
        "per_device_train_batch_size": 8,
    }
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(config))
    return tmp_path


def test_weighted_trains_from_a_config_file_with_overrides_and_saves(run_dir):
    cli.main(["weighted", "--config", "run.yaml", "--dataset_name", "demonstrations.jsonl", "--max_steps", "2"])
    assert (run_dir / "out" / "model.safetensors").exists()
    state = json.loads((run_dir / "out" / "checkpoint-2" / "trainer_state.json").read_text())
    assert state["max_steps"] == 2
    assert [entry["step"] for entry in state["log_history"] if "loss" in entry] == [1, 2]


def test_online_trains_with_a_reward_of_the_users_own(run_dir):
    (run_dir / "my_rewards.py").write_text(
        "def short(completions, **columns):\n    return [-float(len(text)) for text in completions]\n"
    )
    arguments = ["--config", "run.yaml", "--dataset_name", "prompts.jsonl", "--max_steps", "2"]
    options = ["--num_generations", "4", "--max_completion_length", "4"]
    cli.main(["online", *arguments, *options, "--reward_funcs", "my_rewards.short", "math"])
    state = json.loads((run_dir / "out" / "checkpoint-2" / "trainer_state.json").read_text())
    assert {"rewards/short/mean", "rewards/math_verification/mean"} <= set(state["log_history"][0])


def test_one_reward_in_yaml_needs_no_list(run_dir):
    with (run_dir / "run.yaml").open("a") as file:
        file.write("reward_funcs: math\nnum_generations: 4\nmax_completion_length: 4\n")
    cli.main(["online", "--config=run.yaml", "--dataset_name", "prompts.jsonl", "--max_steps", "1"])
    assert (run_dir / "out" / "model.safetensors").exists()


@pytest.mark.parametrize("option", ["--model_name_or_path", "--reward_funcs"])
def test_a_model_that_does_not_exist_is_named(run_dir, capsys, option):
    given = ["--config", "run.yaml", "--dataset_name", "prompts.jsonl", "--reward_funcs", "math", option, "./no-model"]
    assert "no-model" in error_of(capsys, "online", *given)


def test_a_single_file_has_no_test_split(run_dir, capsys):
    arguments = ["--config", "run.yaml", "--dataset_name", "demonstrations.jsonl", "--eval_strategy", "steps"]
    assert "a single file has one split only" in error_of(capsys, "weighted", *arguments)


def test_bad_data_is_one_line_too(run_dir, capsys):
    line = error_of(capsys, "weighted", "--config", "run.yaml", "--dataset_name", "prompts.jsonl")
    assert "the train dataset needs an `advantages` column" in line


@pytest.mark.parametrize(("text", "message"), [("", "it holds no rows"), ('{"a": 1', "JSON parse error")])
def test_a_file_that_cannot_be_read_is_named(run_dir, capsys, text, message):
    (run_dir / "broken.jsonl").write_text(text)
    line = error_of(capsys, "weighted", "--config", "run.yaml", "--dataset_name", "broken.jsonl")
    assert "cannot read split 'train' of 'broken.jsonl'" in line
    assert message in line


def test_reasoning_gyms_scorers_are_a_reward_by_name(run_dir):
    import reasoning_gym

    items = reasoning_gym.create_dataset("chain_sum", seed=0, size=4)
    with (run_dir / "gym.jsonl").open("w") as file:
        for item in items:
            row = {"prompt": item["question"], "answer": item["answer"], "metadata": json.dumps(item["metadata"])}
            file.write(json.dumps(row) + "\n")
    arguments = ["--config", "run.yaml", "--dataset_name", "gym.jsonl", "--reward_funcs", "reasoning_gym"]
    cli.main(["online", *arguments, "--max_steps", "1", "--num_generations", "4", "--max_completion_length", "4"])
    state = json.loads((run_dir / "out" / "checkpoint-1" / "trainer_state.json").read_text())
    assert "rewards/reasoning_gym/mean" in state["log_history"][0]


# --- score

ROWS = [
    {"response": "Answer: 1", "solution": "1", "label": True},
    {"response": "Answer: 2", "solution": "1", "label": False},
    {"response": "Answer: 2", "solution": "1", "label": True},
    {"response": "no idea", "solution": "1", "label": None},
    {"response": [{"role": "assistant", "content": "x"}], "solution": "", "label": False},
]


@pytest.fixture
def graded(tmp_path):
    with (tmp_path / "graded.jsonl").open("w") as file:
        for row in ROWS:
            file.write(json.dumps({**row, "response": str(row["response"])}) + "\n")
    return ["score", "graded.jsonl", "--gold", "solution", "--completion", "response"]


def test_score_prints_verdicts_accuracy_and_the_confusion_with_labels(graded, capsys):
    cli.main([*graded, "--output", "out.jsonl"])
    printed = capsys.readouterr().out
    assert "bad gold: row 4: gold '': no_answer" in printed
    assert "accuracy 25.00%: 1 correct of 4 rows that can be scored" in printed
    cells = [
        [cell.strip() for cell in line.split("\N{BOX DRAWINGS LIGHT VERTICAL}")[1:-1]] for line in printed.split("\n")
    ]
    assert ["no_answer", "1", "20.00%"] in cells
    for row in (["correct", "1", "0", "0"], ["wrong", "1", "1", "1"], ["unscorable", "0", "1", "0"]):
        assert row in cells
    assert "agreement 66.67%: 2 of 3 rows with a grade and a label" in printed
    assert "row 2: wrong, but its label is true" in printed
    with open("out.jsonl") as file:
        assert [json.loads(line)["verdict"] for line in file] == ["correct", "wrong", "wrong", "no_answer", "bad_gold"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--label", "is_correct"], "graded.jsonl has no column 'is_correct'; it has response, solution, label"),
        (["--label", "response"], "a label must be true or false, or 1 or 0; got 'Answer: 1'"),
        (["--timeout_s", "0"], "timeout_s must be positive; got 0.0"),
        (["--output", "no/folder/out.jsonl"], "No such file or directory"),
    ],
)
def test_what_score_cannot_do_is_one_line(graded, capsys, options, message):
    assert message in error_of(capsys, *graded, *options)


@pytest.mark.slow
def test_it_runs_under_accelerate_launch(run_dir):
    done = subprocess.run(
        [sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_processes", "1", "--num_machines", "1"]
        + ["--mixed_precision", "no", "--dynamo_backend", "no", "-m", "online_sft", "weighted"]
        + ["--config", "run.yaml", "--dataset_name", "demonstrations.jsonl", "--max_steps", "1"],
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr
    assert (run_dir / "out" / "model.safetensors").exists()
