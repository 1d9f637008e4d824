"""Trajectories collected with a real vLLM: each round acts with the weights of its step, and that is proven."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from vllm_tools import ENVIRONMENT, engine

WORKER = Path(__file__).with_name("vllm_trajectory_worker.py")
pytestmark = [pytest.mark.vllm, pytest.mark.timeout(600)]


@pytest.mark.parametrize("mode", ["colocate", "server"])
def test_each_round_acts_with_the_weights_of_its_step(mode, folder, tmp_path):
    output = tmp_path / "results.json"
    with engine(mode, folder, tmp_path) as url:
        done = subprocess.run(
            [sys.executable, str(WORKER), folder, str(output), url or ""],
            env={**os.environ, **ENVIRONMENT},
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=500,
        )
    assert output.exists(), done.stdout[-3000:] + done.stderr[-5000:]
    for name, found in json.loads(output.read_text()).items():
        log = found["log"]
        assert [entry.get("weight_sync/policy_version") for entry in log] == [0, None, 2, None], name
        assert max(entry["weight_sync/probe_max_dlogp"] for entry in log[::2]) < 1e-4
        assert found["said"] == found["by_policy"]
        assert found["said"] != found["by_first_policy"]
        assert set(found["cut_lengths"]) <= {6}  # max_completion_length
        assert max(found["whole_lengths"], default=0) < 6
        assert found["evaluated"][1] == 4  # the weights at the end
