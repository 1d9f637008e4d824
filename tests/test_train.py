"""`python -m online_sft.train` as people know it from the commands it came with."""

import json
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

from online_sft import train
from recipes.tiny_models import save_tiny_models

ROOT = Path(__file__).resolve().parent.parent
DATA = ROOT / "tests" / "data" / "tasks"
HERE = "--use_cpu true --bf16 false --activation_checkpointing false --report_to none --output_dir out"

TLDR = f"""
    --task_type tldr
    --dataset_name "posts.jsonl"
    --sft_model_path "tiny/gpt_neox"
    --reward_model_path "tiny/gpt_neox_reward"
    --total_episodes 128
    --per_device_train_batch_size 16
    {HERE} --response_length 2 --logging_steps 1 --num_generations 8
"""
MATH = f"""
    --task_type math
    --math_dataset_name "{DATA}/dapo"
    --sft_model_path "tiny/qwen2_chat"
    --total_episodes 16
    --per_device_train_batch_size 1
    --gradient_accumulation_steps 8
    {HERE} --response_length 5 --logging_steps 1
"""


@pytest.fixture(scope="session")
def tiny_models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    save_tiny_models(folder)
    return folder


@pytest.fixture(autouse=True)
def models_and_posts(tiny_models, tmp_path):
    """A step of the TL;DR command is of 16 prompts, and 5 % are held out: 24 posts."""
    (tmp_path / "tiny").symlink_to(tiny_models)
    posts = (DATA / "tldr" / "posts.jsonl").read_text()
    (tmp_path / "posts.jsonl").write_text("".join(posts.replace("TITLE: ", f"TITLE: {n}. ") for n in range(3)))


def run(*arguments):
    """The configuration that the run had, and its log; the last checkpoint is that of its last step."""
    train.main([word for words in arguments for word in shlex.split(words)])
    (checkpoint,) = Path("out").glob("checkpoint-*")
    state = json.loads((checkpoint / "trainer_state.json").read_text())
    return torch.load("out/training_args.bin", weights_only=False), state


def error_of(capsys, *arguments):
    with pytest.raises(SystemExit) as stop:
        train.main([word for words in arguments for word in shlex.split(words)])
    assert stop.value.code == 2
    lines = [line for line in capsys.readouterr().err.replace("\r", "\n").splitlines() if line and "it/s" not in line]
    (line,) = [line for line in lines if not line.startswith(("Loading", "Generating", "Writing", "merged"))]
    assert line.startswith("python -m online_sft.train: error: ")
    return line


def test_the_tldr_command_with_its_defaults():
    """128 episodes are a step of 16 x 8 (the default accumulation)."""
    config, state = run(TLDR)
    assert (config.learning_rate, config.beta, config.gradient_accumulation_steps) == (3e-6, 0.1, 8)
    assert (config.max_completion_length, config.apply_overlong_penalty) == (2, False)
    logged = [entry for entry in state["log_history"] if "loss" in entry]
    assert [entry["step"] for entry in logged] == [1]
    assert logged[0]["rewards/gpt_neox_reward/std"] > 0
    assert logged[0]["kl"] == pytest.approx(0.0, abs=1e-4)


def test_the_math_command_with_its_defaults():
    config, state = run(MATH)
    assert state["global_step"] == state["max_steps"] == 2
    assert (config.correct_reward, config.incorrect_reward) == (1.0, -1.0)
    assert (config.apply_overlong_penalty, config.overlong_penalty_factor) == (True, 1.0)
    entry = next(entry for entry in state["log_history"] if "loss" in entry)
    assert entry["rewards/math_verification/mean"] == -1.0  # noise answers nothing
    assert -1.0 <= entry["rewards/overlong_penalty/mean"] < 0.0  # and does not end


def test_the_rewards_are_those_that_are_asked_for():
    _, state = run(MATH, "--incorrect_reward -0.5 --apply_overlong_penalty false --total_episodes 8")
    entry = state["log_history"][0]
    assert entry["reward"] == entry["rewards/math_verification/mean"] == -0.5
    assert "rewards/overlong_penalty/mean" not in entry


def test_trls_words_take_the_place_of_the_defaults_on_the_command_line_and_in_a_file():
    config = {"task_type": "math", "max_completion_length": 3, "use_cpu": True, "bf16": False, "report_to": "none"}
    Path("run.yaml").write_text(yaml.safe_dump({**config, "output_dir": "out", "gradient_accumulation_steps": 1}))
    config, state = run(
        f"--config=run.yaml --dataset_name {DATA}/gsm8k --model_name_or_path tiny/qwen2_chat --max_steps 1",
        "--per_device_train_batch_size 8 --activation_checkpointing=false",
    )
    assert state["global_step"] == config.max_steps == 1
    assert config.max_completion_length == 3
    assert config.apply_overlong_penalty is True


def test_what_is_left_out_is_said(caplog):
    run(MATH, "--total_episodes 8", "--max_prompt_length 600")
    assert "merged 24 copies of prompts" in caplog.text
    assert "which have more than max_prompt_length=600 tokens" in caplog.text


def test_evaluation_is_on_the_validation_part():
    _, state = run(MATH, "--total_episodes 8 --eval_strategy steps --eval_steps 1 --per_device_eval_batch_size 8")
    assert any("eval_reward" in entry for entry in state["log_history"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--total_episode 3"], "unknown argument 'total_episode'; did you mean 'total_episodes'?"),
        (["--task_type code"], "argument --task_type/--task-type: invalid choice: 'code' (choose from"),
        (["--config no.yaml"], "No such file or directory: 'no.yaml'"),
        (["--config"], "--config needs a file"),
        (["--task_type math", HERE], "no model: set --sft_model_path to a hub id or a folder"),
        ([HERE], "no reward: set --reward_model_path to a hub id or a folder, or --task_type math"),
        ([MATH, "--reward_model_path tiny/x"], "task_type=math compares answers and has no reward model; remove"),
        ([TLDR, "--math_dataset_name x"], "dataset_name and math_dataset_name are two names of one thing; got"),
        (
            [HERE, "--task_type tldr --math_dataset_name x"],
            "math_dataset_name is for task_type=math; set dataset_name, or",
        ),
        ([MATH, "--model_name_or_path tiny/x"], "sft_model_path and model_name_or_path are two names of one thing"),
        ([MATH, "--math_dataset_name missing.jsonl"], "cannot load 'missing.jsonl'"),
        ([MATH, f"--math_dataset_name {DATA}/tldr/posts.jsonl"], "of no layout known for math. Known are: DAPO"),
        ([MATH, "--max_prompt_length 1"], "is left to train on"),
        ([MATH, "--sft_model_path ./no-model"], "no-model"),
        ([TLDR, "--reward_model_path ./no-model"], "no-model"),
        ([TLDR, "--num_generations 4"], "has 22 rows and one batch takes 32 prompts (generation_batch_size=128 over"),
        ([MATH, "--num_generations 3"], "must be divisible by num_generations"),
    ],
)
def test_a_mistake_is_one_line_that_names_the_way_out(capsys, arguments, message):
    assert message in error_of(capsys, *arguments)


def test_a_task_in_a_file_is_checked_too(capsys):
    Path("run.yaml").write_text("task_type: code\noutput_dir: out\nuse_cpu: true\nbf16: false\n")
    assert "task_type must be one of tldr, math; got 'code'" in error_of(capsys, "--config run.yaml")


def test_help_is_short_and_knows_the_defaults_of_the_tasks():
    run = "import sys; from online_sft.train import main\ntry: main(['--help'])\n"
    check = "finally: assert 'torch' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", run + check], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    text = " ".join(done.stdout.split())
    assert "usage: python -m online_sft.train " in text
    for field in ("--task_type", "--sft_model_path", "--reward_model_path", "--beta", "--help_all"):
        assert field in text
    assert "(default: 10000)" in text


@pytest.mark.slow
def test_train_distributed_is_the_same_under_accelerate_launch():
    done = subprocess.run(
        [sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_processes", "1", "--num_machines", "1"]
        + ["--mixed_precision", "no", "--dynamo_backend", "no", "-m", "online_sft.train_distributed"]
        + ["--model_name_or_path", "tiny/qwen2_chat", "--dtype", "float32", "--use_vllm", "false"]
        + ["--vllm_gpu_memory_utilization", "0.3", "--vllm_tensor_parallel_size", "1"]
        + shlex.split(MATH.replace('--sft_model_path "tiny/qwen2_chat"', "")),
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr
    assert Path("out/model.safetensors").exists()
