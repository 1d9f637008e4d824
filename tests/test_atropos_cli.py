"""Atropos from the command line, and the synthetic environment that the seed's users know."""

import asyncio
import json
import random
import threading
from pathlib import Path

import pytest
import torch
import yaml
from atropos_tools import RunApi, ScriptedAtropos, batch, group
from exact_on_cpu import EXACT_ON_CPU
from safetensors.torch import load_file
from test_cli import error_of

from online_sft import WeightedSFTConfig, WeightedSFTEnvironment, WeightedSFTTrainer, cli
from online_sft.atropos.journal import read_entry
from online_sft.launching import parse
from online_sft.patterns import PATTERNS

MODEL = str(Path(__file__).parent / "data" / "atropos" / "model")
ON_CPU = ["--use_cpu", "true", "--bf16", "false", "--activation_checkpointing", "false", "--save_strategy", "no"]
TRAIN = ["--model_name_or_path", MODEL, "--per_device_train_batch_size", "2", "--logging_steps", "1", *ON_CPU]


def trained(folder):
    return json.loads((Path(folder) / "trainer_state.json").read_text())


def test_the_seeds_nested_settings_are_fields(tmp_path):
    settings = {"api_url": "http://127.0.0.1:8000", "batch_size": 16, "refresh_interval": 10, "data_path": None}
    (tmp_path / "a.yaml").write_text(
        yaml.safe_dump({"data": {"atropos": settings}, "max_steps": 3, "per_device_train_batch_size": 16})
    )
    (config, _) = parse("test", ["--config", str(tmp_path / "a.yaml"), *ON_CPU[:4]], (WeightedSFTConfig,))
    assert (config.atropos_api_url, config.atropos_batch_size) == ("http://127.0.0.1:8000", 16)
    assert config.atropos_refresh_interval == 10
    overridden = ["--data.atropos.refresh_interval", "1", "--data.atropos.api_url=http://127.0.0.1:8001"]
    (config, _) = parse("test", ["--config", str(tmp_path / "a.yaml"), *overridden, *ON_CPU[:4]], (WeightedSFTConfig,))
    assert (config.atropos_api_url, config.atropos_refresh_interval) == ("http://127.0.0.1:8001", 1)


@pytest.mark.parametrize("data", [{"atropos": {"api": 1}}, {"verl": {}}, 3])
def test_nested_settings_that_do_not_exist_are_refused(data, tmp_path, capsys):
    (tmp_path / "a.yaml").write_text(yaml.safe_dump({"data": data}))
    error = error_of(capsys, "weighted", "--config", str(tmp_path / "a.yaml"))
    assert "unknown argument 'atropos_api'" in error or "data holds settings of atropos only" in error


def test_the_command_trains_on_a_server_and_replays_its_journal(tmp_path):
    groups = [group(scores=(1.0, 0.0)), group(scores=(0.5, 0.0), length=6)]
    with ScriptedAtropos(*map(batch, groups)) as server:
        source = ["--data.atropos.api_url", server.url, "--data.atropos.refresh_interval", "0.05"]
        cli.main(["weighted", *TRAIN, *source, "--max_steps", "2", "--max_length", "99", "--output_dir", "run"])
        assert server.info == (2, 99)
    cli.main(["replay", "run/journal", *TRAIN, *source, "--output_dir", "again"])
    options = ["--atropos_score_normalization", "none", "--output_dir", "otherwise"]
    cli.main(["replay", "run/journal", *TRAIN, *options])
    live, again, otherwise = (load_file(f"{run}/model.safetensors") for run in ("run", "again", "otherwise"))
    assert all(torch.equal(live[name], again[name]) for name in live)
    assert not all(torch.equal(live[name], otherwise[name]) for name in live)


def test_a_replay_gives_the_same_run_or_one_with_other_weights():
    with ScriptedAtropos(*[batch(group(scores=(1.0 * k, 0.5))) for k in range(3)]) as server:
        source = {"atropos_api_url": server.url, "atropos_refresh_interval": 0.05}
        live = run_of(**source, max_steps=3)
    again = run_of(atropos_replay="out/journal", output_dir="again")
    otherwise = run_of(atropos_replay="out/journal", output_dir="other", atropos_score_normalization="none")
    assert again == live
    assert otherwise[0] != live[0]


def run_of(**options):
    options = {**EXACT_ON_CPU, "per_device_train_batch_size": 2, "learning_rate": 1e-2, **options}
    trainer = WeightedSFTTrainer(MODEL, WeightedSFTConfig(**options))
    trainer.train()
    names = ("loss", "grad_norm", "score")
    return [tuple(entry[name] for name in names) for entry in trainer.state.log_history if "loss" in entry]


def test_mistakes_are_told_in_a_line(tmp_path, capsys):
    assert "no journal: online-sft replay JOURNAL" in error_of(capsys, "replay", *TRAIN)
    assert "no batch in the journal" in error_of(capsys, "replay", "nowhere", *TRAIN)
    with ScriptedAtropos(batch(group())) as server:
        source = ["--data.atropos.api_url", server.url, "--max_steps", "1"]
        cli.main(["weighted", *TRAIN, *source, "--output_dir", "run"])
        capsys.readouterr()
        error = error_of(capsys, "weighted", *TRAIN, *source, "--dataset_name", "a.jsonl")
        assert "dataset_name='a.jsonl' beside atropos_api_url" in error
    error = error_of(capsys, "replay", "run/journal", *TRAIN, "--output_dir", "run")
    assert "output_dir='run' holds the run that wrote the journal" in error
    Path("of_the_run.yaml").write_text(yaml.safe_dump({"atropos_journal": "run/journal", "output_dir": "elsewhere"}))
    error = error_of(capsys, "replay", "run/journal", *TRAIN, "--config", "of_the_run.yaml")
    assert "output_dir='elsewhere' holds the run that wrote the journal" in error
    with pytest.raises(SystemExit, match="2"):
        cli.main(["weighted", *TRAIN, "--data.atropos.api_url", "127.0.0.1:8000", "--max_steps", "1"])
    assert "atropos_api_url must begin with http:// or https://; got '127.0.0.1:8000'" in capsys.readouterr().err


def test_resume_auto_begins_anew_where_there_is_no_checkpoint_and_goes_on_where_there_is_one(tmp_path):
    with ScriptedAtropos(*[batch(group()) for _ in range(2)]) as server:
        source = ["--data.atropos.api_url", server.url, "--data.atropos.refresh_interval", "0.05"]
        common = [*TRAIN[:-2], *source, "--output_dir", "run", "--resume_from_checkpoint", "auto", "--save_steps", "1"]
        cli.main(["weighted", *common, "--max_steps", "1"])
        cli.main(["weighted", *common, "--max_steps", "2"])
        assert server.num_requests("/batch") == 2
    state = trained("run/checkpoint-2")
    assert [entry["step"] for entry in state["log_history"] if "loss" in entry] == [1, 2]


def test_the_synthetic_environment_posts_groups_of_the_patterns_to_a_real_server():
    patterns = ["increasing", "end_weighted", "sparse_positive"]
    environment = WeightedSFTEnvironment(MODEL, advantage_patterns=patterns, group_size=2, max_token_length=20)
    with RunApi() as api:
        environment = WeightedSFTEnvironment(MODEL, patterns, api_url=api.url, group_size=2, max_token_length=20)
        thread = threading.Thread(target=asyncio.run, args=(environment.run_environment(num_samples=12),))
        thread.start()
        run_of(atropos_api_url=api.url, atropos_refresh_interval=0.05, max_steps=3, per_device_train_batch_size=4)
        thread.join()
        assert api.get("/status")["queue_size"] == 0
    assert not Path("out/quarantine.jsonl").exists()
    posted = list(environment.groups(12))
    found = [json.loads(read_entry("out/journal", index).body)["batch"] for index in range(3)]
    assert sorted(group["scores"] for batch in found for group in batch) == sorted(group["scores"] for group in posted)
    rows = [row for group in posted for row in zip(group["advantages"], group["masks"], strict=True)]
    for place, name in enumerate(("increasing", "end_weighted")):
        advantages = [advantage for advantage, mask in zip(*rows[place], strict=True) if mask != -100]
        assert advantages == PATTERNS[name](len(advantages), random.Random(0))


def test_a_pattern_that_does_not_exist_is_named():
    with pytest.raises(ValueError, match=r"patterns must be among alternating, .*; got 'wavy'"):
        WeightedSFTEnvironment(MODEL, ["wavy"])
