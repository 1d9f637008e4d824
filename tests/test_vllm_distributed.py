"""Two training processes and a real vLLM."""

import json
import os
import signal

import pytest
from vllm_tools import Running, engine, server, spec, train

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(600)]

TWO = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2")
HALF = {"per_device_train_batch_size": 4}


@pytest.mark.parametrize("mode", ["colocate", "server"])
def test_every_process_has_the_engine_of_its_policy(mode, folder, tmp_path):
    with engine(mode, folder, tmp_path) as url:
        runs = [spec("nothing is sent", **HALF), spec(**HALF), spec(lora=True, **HALF)]
        train(folder, runs, tmp_path, url, launcher=TWO)
    ranks = [json.loads((tmp_path / f"results.json{suffix}").read_text()) for suffix in ("", ".1")]
    for results in ranks:
        broken, *good = results
        for result in good:
            assert "error" not in result, result["error"]
            assert (result["num_processes"], result["wrapper"]) == (2, "DistributedDataParallel")
            assert result["moved_by_sync"] == 0.0
            assert len(result["rollouts"]) == 4
        assert broken["error"].startswith("WeightSyncError: after the weight sync of step 1 ")
    for result in ranks[0][1:]:
        assert result["synced"]["same_tokens"]
        assert result["synced"]["max_dlogp"] < 1e-4
        assert result["at_first"]["max_dlogp"] > 1e-2
        assert max(entry["weight_sync/probe_max_dlogp"] for entry in result["log"]) < 1e-4
        assert max(entry["sampling/sampling_logp_difference/max"] for entry in result["log"]) < 1e-4


def test_every_process_learns_that_the_server_is_gone_and_takes_part_in_the_checkpoint(folder, tmp_path):
    with server(folder, tmp_path / "server.log") as (url, process):
        running = Running(folder, spec(max_steps=100_000, **HALF), tmp_path, url, launcher=TWO)
        running.wait_for("'loss'", times=5)
        os.killpg(process.pid, signal.SIGKILL)
        results = [running.result(), json.loads((tmp_path / "results.json.1").read_text())[0]]
    for result in results:
        assert result["error"].startswith(f"ServerLostError: the vLLM server at {url} does not answer any more")
    step = len(results[0]["log"])
    checkpoint = tmp_path / f"out/checkpoint-{step}"
    assert json.loads((checkpoint / "trainer_state.json").read_text())["global_step"] == step
    assert {path.name for path in checkpoint.glob("rng_state_*.pth")} == {"rng_state_0.pth", "rng_state_1.pth"}
