"""The schema of configuration files says what the parser reads, no more and no less."""

import json
from pathlib import Path

import pytest
import yaml
from jsonschema import Draft202012Validator

from online_sft import cli
from online_sft.config_schema import COMMAND_LINE_ONLY, schema_of
from online_sft.launching import UsageError, parse, parser_of
from trainers.trajectories.commands import train_dataclasses

ROOT = Path(__file__).resolve().parent.parent
DATACLASSES = {
    "online": cli._online_dataclasses,
    "weighted": cli._weighted_dataclasses,
    "trajectories": train_dataclasses,
}
RECIPES = {
    "online": ["online.yaml"],
    "weighted": ["weighted.yaml", "atropos/trainer.yaml"],
    "trajectories": ["behavioral_cloning.yaml", "collect.yaml", "combined.yaml", "world_model.yaml"],
}
ON_CPU = ["--use_cpu", "true", "--bf16", "false", "--output_dir", "out"]


def parser_for(command):
    return parser_of(command, DATACLASSES[command]())


@pytest.fixture(scope="module")
def schemas():
    return {command: schema_of(parser_for(command)) for command in DATACLASSES}


def errors_of(schema, config):
    return [error.message for error in Draft202012Validator(schema).iter_errors(config)]


@pytest.mark.parametrize("command", DATACLASSES)
def test_it_is_a_schema_and_the_command_prints_it(command, capsys, tmp_path):
    cli.main(["schema", command])
    printed = json.loads(capsys.readouterr().out)
    Draft202012Validator.check_schema(printed)
    cli.main(["schema", command, "--output", str(tmp_path / "my.schema.json")])
    assert json.loads((tmp_path / "my.schema.json").read_text()) == printed
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("command", "recipe"), [(command, recipe) for command, recipes in RECIPES.items() for recipe in recipes]
)
def test_every_recipe_is_valid(schemas, command, recipe):
    assert errors_of(schemas[command], yaml.safe_load((ROOT / "recipes" / recipe).read_text())) == []


def test_no_recipe_is_forgotten_here():
    commands = ("online-sft online --config ", "online-sft weighted --config ", "trajectories train --config ")
    found = {
        str(path.relative_to(ROOT / "recipes"))
        for path in (ROOT / "recipes").rglob("*.yaml")
        if any(command in path.read_text() for command in commands)
    }
    assert found == {recipe for recipes in RECIPES.values() for recipe in recipes}


@pytest.mark.parametrize("command", DATACLASSES)
def test_it_has_the_fields_of_the_parser_and_no_other(schemas, command):
    properties = schemas[command]["properties"]
    known = {action.dest for action in parser_for(command)._actions} - set(COMMAND_LINE_ONLY)
    nested = {"data"} if command != "online" else set()
    assert set(properties) == known | {"env"} | nested
    of_atropos = properties["data"]["properties"]["atropos"]["properties"] if nested else {}
    assert {f"atropos_{name}" for name in of_atropos} == {name for name in known if name.startswith("atropos_")}


@pytest.mark.parametrize("command", DATACLASSES)
def test_every_field_has_a_type_a_description_and_a_default_that_is_valid(schemas, command):
    for name, field in schemas[command]["properties"].items():
        assert field["description"].strip(), name
        assert {"type", "anyOf"} & set(field), name
        if name not in ("data", "env"):
            assert errors_of(field, field["default"]) == [], name


@pytest.mark.parametrize("command", DATACLASSES)
def test_the_parser_reads_a_file_of_all_defaults(schemas, command, tmp_path):
    """What the schema offers as default, a file may say; `output_dir` alone has none."""
    given = {name: field["default"] for name, field in schemas[command]["properties"].items() if "default" in field}
    path = tmp_path / "all.yaml"
    path.write_text(yaml.safe_dump({**given, "output_dir": "out"}))
    plain = parse("test", ON_CPU, DATACLASSES[command]())
    read = parse("test", ["--config", str(path), *ON_CPU], DATACLASSES[command]())
    assert [str(each) for each in read] == [str(each) for each in plain]


@pytest.mark.parametrize(
    ("command", "config", "message"),
    [
        ("online", {"lerning_rate": 1e-5}, "'lerning_rate' was unexpected"),
        ("weighted", {"reward_funcs": ["math"]}, "'reward_funcs' was unexpected"),
        ("weighted", {"data": {"atropos": {"api_ulr": "x"}}}, "'api_ulr' was unexpected"),
        ("online", {"data": {"atropos": {"api_url": "x"}}}, "'data' was unexpected"),
        ("online", {"learning_rate": "fast"}, "'fast' is not of type 'number'"),
        ("online", {"num_generations": 2.5}, "2.5 is not of type 'integer'"),
        ("weighted", {"packing": "yes"}, "'yes' is not of type 'boolean'"),
        ("weighted", {"advantage_clipping": [0, "1"]}, "'1' is not of type 'number'"),
        ("weighted", {"max_length": []}, "[] is not of type 'integer', 'null'"),
        ("online", {"baseline": "mean"}, "'mean' is not one of ['optimal', 'leave_one_out'"),
        ("online", {"lr_scheduler_type": "cosin"}, "'cosin' is not one of ['linear', 'cosine'"),
        ("trajectories", {"reward_weighting": "returns"}, "'returns' is not one of ['return', 'reward_to_go'"),
        ("trajectories", {"mode": None}, "None is not one of"),
        ("online", {"env": {"X": [1]}}, "[1] is not of type"),
        *[(command, {name: True}, f"{name!r} was unexpected") for command in DATACLASSES for name in COMMAND_LINE_ONLY],
    ],
)
def test_what_is_wrong_is_refused(schemas, command, config, message):
    assert any(message in error for error in errors_of(schemas[command], config))


@pytest.mark.parametrize(
    ("command", "config"),
    [
        ("online", {"reward_funcs": "math", "env": {"A": "1", "B": 2}, "report_to": ["wandb"], "optim": "adafactor"}),
        ("online", {"lora_target_modules": "all-linear", "learning_rate": 1, "max_completion_length": 8}),
        ("weighted", {"weighting_kwargs": {"temperature": 1}, "data": {"atropos": {"api_url": None}}}),
        ("weighted", {"weighting_kwargs": '{"temperature": 1}', "advantage_clipping": [-1, 1.5], "max_length": None}),
        ("trajectories", {"environments": "online-sft/MathRetries-v0", "eval_ks": [1, 4], "reward_weighting": None}),
    ],
)
def test_what_is_right_is_not(schemas, command, config):
    assert errors_of(schemas[command], config) == []


def test_a_file_that_cannot_be_written_is_one_line(capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(["schema", "online", "--output", "no/such/folder.json"])
    assert stop.value.code == 2
    assert "online-sft schema: error: [Errno 2] No such file or directory" in capsys.readouterr().err


def test_a_dry_run_is_no_field_of_a_file(tmp_path):
    (tmp_path / "run.yaml").write_text("output_dir: out\ndry_run: true\n")
    with pytest.raises(UsageError, match="unknown argument 'dry_run'"):
        parse("test", ["--config", "run.yaml"], DATACLASSES["online"](), dry_run=True)
