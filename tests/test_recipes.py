"""Every recipe runs: two steps each, on the files that a short quickstart leaves behind."""

import json
import math
from pathlib import Path

import pytest
import yaml

from online_sft import OnlineSFTConfig, cli, train
from online_sft.launching import parse
from recipes import tiny_models
from recipes.quickstart import __main__ as quickstart
from recipes.quickstart.problems import make_problems
from recipes.text_world import __main__ as text_world

ROOT = Path(__file__).resolve().parent.parent
YAML_RECIPES = {"online.yaml": "online", "weighted.yaml": "weighted"}
TRAJECTORY_RECIPES = ("behavioral_cloning.yaml", "collect.yaml", "combined.yaml", "world_model.yaml")
TASK_RECIPES = ("gsm8k", "math_dapo", "tldr")
# What a run of seconds on a CPU needs otherwise than the real one: paths, sizes and hardware.
MAY_DIFFER = {
    "max_filter_retries",
    *("sft_model_path", "reward_model_path", "dataset_name", "math_dataset_name", "dataset_config", "output_dir"),
    *("max_prompt_length", "response_length", "overlong_buffer_length"),
    *("per_device_train_batch_size", "gradient_accumulation_steps", "total_episodes", "eval_steps", "save_steps"),
    *("use_cpu", "bf16", "activation_checkpointing", "use_vllm", "vllm_mode", "vllm_gpu_memory_utilization"),
}


def fields_of(name):
    return yaml.safe_load((ROOT / "recipes" / f"{name}.yaml").read_text())


def test_every_yaml_recipe_is_known_here_and_in_the_readme():
    found = {path.name for path in (ROOT / "recipes").glob("*.yaml")}
    tasks = {f"{name}{suffix}.yaml" for name in TASK_RECIPES for suffix in ("", "_smoke")}
    assert found == set(YAML_RECIPES) | set(TRAJECTORY_RECIPES) | tasks
    assert all(f"({name})" in (ROOT / "recipes" / "README.md").read_text() for name in found)


@pytest.mark.parametrize("name", TASK_RECIPES)
def test_a_smoke_recipe_runs_two_steps_from_tiny_models(name, tmp_path):
    """The folders are those that its first lines say."""
    tiny_models.main([])
    (tmp_path / "tests").symlink_to(ROOT / "tests")
    train.main(["--config", str(ROOT / "recipes" / f"{name}_smoke.yaml")])
    state = json.loads((tmp_path / "runs" / f"{name}_smoke" / "checkpoint-2" / "trainer_state.json").read_text())
    assert [entry["step"] for entry in state["log_history"] if "loss" in entry] == [1, 2]
    assert any("eval_reward" in entry for entry in state["log_history"]) == (name == "gsm8k")


@pytest.mark.parametrize("name", TASK_RECIPES)
def test_a_real_recipe_is_its_smoke_recipe_but_for_paths_sizes_and_hardware(name):
    real, smoke = fields_of(name), fields_of(f"{name}_smoke")
    assert {key for key in real.keys() | smoke.keys() if real.get(key) != smoke.get(key)} <= MAY_DIFFER
    assert real["output_dir"] == f"runs/{name}"


@pytest.mark.parametrize(
    ("name", "context", "processes"), [("gsm8k", 32_768, 1), ("math_dapo", 4096, 8), ("tldr", 2048, 1)]
)
def test_a_real_recipe_is_accepted_and_fits_its_model(name, context, processes, tmp_path):
    """`context` is max_position_embeddings of the model, by its config on the hub."""
    overrides = ["--use_cpu", "true", "--bf16", "false", "--output_dir", str(tmp_path), "--use_vllm", "false"]
    arguments = ["--config", str(ROOT / "recipes" / f"{name}.yaml"), *overrides]
    task, config, _ = parse("test", arguments, (train.TaskArguments, OnlineSFTConfig))
    assert task.max_prompt_length + config.max_completion_length <= context
    samples_per_step = config.per_device_train_batch_size * config.gradient_accumulation_steps * processes
    assert samples_per_step == {"gsm8k": 256, "math_dapo": 512, "tldr": 64}[name]
    assert config.max_steps == math.ceil(processes * config.total_episodes / samples_per_step)  # of one process here
    assert samples_per_step % config.num_generations == 0


def test_no_held_out_question_is_in_the_training_problems():
    problems = make_problems(seed=0)
    assert not set(problems.train["prompt"]) & set(problems.held_out["prompt"])
    assert len(set(problems.held_out["prompt"])) == len(problems.held_out) == 400
    for row in list(problems.train)[:200]:
        assert problems.generator[row["index"]]["question"] == row["prompt"]
        assert problems.generator[row["index"]]["answer"] == row["solution"]


@pytest.mark.slow
def test_the_quickstart_and_the_recipes_that_start_from_it(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["quickstart", "--steps", "2"])
    quickstart.main()
    text = capsys.readouterr().out
    for name in ("a_imitation", "b_weighted_sft", "c_online_sft", "Held-out accuracy"):
        assert name in text
    left = tmp_path / "runs" / "quickstart"
    assert (left / "curves.png").stat().st_size > 10_000
    assert (left / "completions.csv").read_text().count("\n") == 401
    for name, command in YAML_RECIPES.items():
        assert_trains_two_steps(command, name=name)


@pytest.mark.slow
def test_the_text_world_and_the_recipes_that_start_from_it(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["text_world", "--steps", "2"])
    text_world.main()
    (tmp_path / "recipes").symlink_to(ROOT / "recipes")  # which name its environment
    for name in TRAJECTORY_RECIPES:
        assert_trains_two_steps("trajectories", "train", name=name)
    assert len(list((tmp_path / "runs" / "collect" / "trajectories").iterdir())) == 1


def assert_trains_two_steps(*command, name):
    recipe = ROOT / "recipes" / name
    steps = ["--max_steps", "2", "--logging_steps", "1", "--save_strategy", "steps", "--warmup_steps", "0"]
    cli.main([*command, "--config", str(recipe), *steps])
    output = Path(yaml.safe_load(recipe.read_text())["output_dir"])
    state = json.loads((output / "checkpoint-2" / "trainer_state.json").read_text())
    assert len([entry for entry in state["log_history"] if "loss" in entry]) == 2
