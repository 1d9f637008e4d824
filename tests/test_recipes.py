"""Every recipe runs: two steps each, on the files that a short quickstart leaves behind."""

import json
from pathlib import Path

import pytest
import yaml

from online_sft import cli
from recipes.quickstart import __main__ as quickstart
from recipes.quickstart.problems import make_problems

ROOT = Path(__file__).resolve().parent.parent
YAML_RECIPES = {"online.yaml": "online", "weighted.yaml": "weighted"}


def test_every_yaml_recipe_is_known_here_and_in_the_readme():
    found = {path.name for path in (ROOT / "recipes").glob("*.yaml")}
    assert found == set(YAML_RECIPES)
    assert all(f"({name})" in (ROOT / "recipes" / "README.md").read_text() for name in found)


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
        recipe = ROOT / "recipes" / name
        cli.main(
            [command, "--config", str(recipe), "--max_steps", "2", "--logging_steps", "1", "--save_strategy", "steps"]
        )
        output = Path(yaml.safe_load(recipe.read_text())["output_dir"])
        state = json.loads((output / "checkpoint-2" / "trainer_state.json").read_text())
        assert len([entry for entry in state["log_history"] if "loss" in entry]) == 2
