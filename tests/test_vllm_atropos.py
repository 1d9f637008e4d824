"""Atropos' batches, and a real vLLM that the environments would sample from: it has the policy's weights."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from atropos_tools import ScriptedAtropos, batch
from vllm_tools import ENVIRONMENT, server

WORKER = Path(__file__).with_name("vllm_atropos_worker.py")
pytestmark = [pytest.mark.vllm, pytest.mark.timeout(600)]


@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
def test_after_each_step_vllm_computes_what_the_policy_computes(lora, folder, tmp_path):
    group = {
        "tokens": [[3, 4, 5, 6], [3, 4, 7, 8]],
        "masks": [[-100, -100, 5, 6], [-100, -100, 7, 8]],
        "scores": [1, 0],
    }
    with server(folder, tmp_path / "server.log") as (url, _), ScriptedAtropos(*[batch(group)] * 3) as atropos:
        output = tmp_path / "result.json"
        done = subprocess.run(
            [sys.executable, str(WORKER), folder, str(output), atropos.url, url, str(int(lora))],
            env={**os.environ, **ENVIRONMENT},
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert output.exists(), done.stderr[-3000:]
        result = json.loads(output.read_text())
    log = [entry for entry in result["log"] if "loss" in entry]
    assert [entry["weight_sync/policy_version"] for entry in log] == [1, 2, 3]
    assert max(entry["weight_sync/probe_max_dlogp"] for entry in log) < 1e-4
    assert max(abs(a - b) for a, b in zip(result["policy"], result["engine"], strict=True)) < 1e-4
    assert max(abs(a - b) for a, b in zip(result["policy"], result["start"], strict=True)) > 1e-2
