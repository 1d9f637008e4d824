"""What is pushed to the hub, by a run as users start it, to a hub on this machine."""

import os
import subprocess
import sys

import pytest
from fake_hub import running_hub


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["end", "every_save", "checkpoint"])
def test_a_run_pushes_whole_models_only(strategy, folder, tmp_path):
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"prompt": "1 + 1 =", "completion": " 2", "advantages": 1.0}\n' * 4)
    output = tmp_path / "run"
    options = f"--dataset_name {rows} --output_dir {output} --max_steps 3 --save_steps 1 --save_total_limit 1 "
    options += f"--per_device_train_batch_size 2 --use_cpu true --bf16 false --report_to none --hub_strategy {strategy}"
    with running_hub() as hub:
        environment = {**os.environ, "HF_ENDPOINT": hub.url, "HF_TOKEN": "hf_test", "OMP_NUM_THREADS": "1"}
        environment.pop("HF_HUB_OFFLINE")
        done = subprocess.run(
            [sys.executable, "-m", "online_sft", "weighted", "--model_name_or_path", folder, *options.split()]
            + ["--push_to_hub", "true", "--hub_always_push", "true"],
            env=environment,
            capture_output=True,
            text=True,
            timeout=200,
        )
        assert done.returncode == 0, done.stderr[-3000:]
    paths = [path for _, sent in hub.commits for path in sent]
    assert not any("_saving" in path for path in paths)
    assert hub.files["model.safetensors"] == (output / "model.safetensors").read_bytes()
    assert b"weighted-sft" in hub.files["README.md"]
    messages = [message for message, _ in hub.commits]
    if strategy == "end":
        assert not any("step" in message for message in messages)
        return
    assert {f"Training in progress, step {step}" for step in (1, 2, 3)} <= set(messages)
    is_whole = "last-checkpoint/online_sft.json" in hub.files
    assert is_whole == (strategy == "checkpoint")
    if is_whole:
        name = "last-checkpoint/optimizer.pt"
        assert hub.files[name] == (output / "checkpoint-3" / "optimizer.pt").read_bytes()
