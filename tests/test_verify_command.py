"""`online-sft verify` as a user runs it."""

import json

import pytest
import yaml

from online_sft import Method, cli, verify


def run(*arguments):
    with pytest.raises(SystemExit) as stop:
        cli.main(["verify", *arguments])
    return stop.value.code


def test_a_configuration_without_bias_passes(capsys):
    cli.main(["verify", "--beta", "0.1"])
    text = capsys.readouterr().out
    assert "expected gradient beside that of E[r] - 0.1 KL" in text
    assert "is within the tolerance of 0.01" in text


def test_a_biased_one_fails_with_a_row_and_a_sentence_for_each_option(capsys, tmp_path):
    config = {"top_p": 0.9, "baseline": "group_mean", "num_generations": 4, "output_dir": "runs/x", "use_vllm": True}
    config |= {"model_name_or_path": "Qwen/Qwen3-8B", "dataset_name": "some/data", "reward_funcs": ["math"]}
    (tmp_path / "my.yaml").write_text(yaml.safe_dump(config))  # a run's file, as it is
    assert run("--config", "my.yaml", "--json", "verify.json") == 1
    text = capsys.readouterr().out
    for expected in ("only top_p", "only baseline", "none of them", "- top_p=0.9: ", "is above the tolerance of 0.01"):
        assert expected in text
    report = json.loads((tmp_path / "verify.json").read_text())
    assert not report["within_tolerance"]
    assert [entry["option"] for entry in report["ledger"]] == ["top_p", "importance_sampling_clip_max", "baseline"]
    options = {"top_p": 0.9, "num_generations": 4, "use_vllm": True}
    expected = verify(Method(**options, baseline="group_mean", importance_sampling_clip_max=3.0))
    assert report["rows"][0] == {"options": "as configured", **vars(expected)}


def test_the_tolerance_decides():
    cli.main(["verify", "--baseline", "group_mean", "--num_generations", "4", "--tolerance", "0.26"])
    assert run("--baseline", "group_mean", "--num_generations", "4", "--tolerance", "0.24") == 1


def test_a_mistake_is_one_line(capsys):
    assert run("--baseline", "mine") == 2
    assert "online-sft verify: error: argument --baseline: invalid choice: 'mine'" in capsys.readouterr().err
