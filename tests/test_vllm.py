"""The real vLLM, on a CPU: after training, the engine computes what the policy computes; a broken sync stops the run.

`make test-vllm` runs these, in an environment of their own (tests/vllm_cpu/install.sh).
"""

import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
import vllm_worker
from exact_on_cpu import EXACT_ON_CPU
from transformers import Qwen2ForCausalLM, Qwen3Config, Qwen3ForCausalLM

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(600)]

ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "TRL_EXPERIMENTAL_SILENCE": "1",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_CPU_CI_ENV": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_HOST_IP": "127.0.0.1",
    "TORCH_COMPILE_DISABLE": "1",
    "OMP_NUM_THREADS": "1",
    "MASTER_ADDR": "127.0.0.1",
}
ARGS = EXACT_ON_CPU | {
    "use_vllm": True,
    "max_steps": 3,
    "learning_rate": 1e-2,
    "per_device_train_batch_size": 8,
    "max_completion_length": 8,
    "model_init_kwargs": {"dtype": "float32"},
}


def spec(broken=None, lora=False, **args):
    return {"args": {**ARGS, **args}, "lora": lora, "broken": broken}


@pytest.fixture(params=["untied", "tied"])
def folder(request, model, tokenizer, tmp_path):
    if request.param == "untied":
        config = Qwen3Config(
            vocab_size=len(tokenizer),
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=3,
            num_attention_heads=2,
            num_key_value_heads=1,
            head_dim=32,
            max_position_embeddings=128,
            tie_word_embeddings=False,
            initializer_range=0.1,
            bos_token_id=None,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
        torch.manual_seed(0)
        model = Qwen3ForCausalLM(config)
    assert isinstance(model, Qwen2ForCausalLM) == (request.param == "tied")
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    return str(tmp_path / "model")


@contextmanager
def server(folder, log, **options):
    """The base URL and the process of `trl vllm-serve`."""
    port = options.pop("port", None) or vllm_worker.free_port()
    command = [str(Path(sys.executable).parent / "trl"), "vllm-serve"]
    options = {
        "model": folder,
        "host": "127.0.0.1",
        "port": port,
        "max_model_len": 128,
        "dtype": "float32",
        "enforce_eager": "true",
        "gpu_memory_utilization": 0.3,
        "weight-transfer-config": '{"backend": "gloo"}',
        **options,
    }
    command += [str(part) for name, value in options.items() for part in (f"--{name}", value)]
    with started(command, f"http://127.0.0.1:{port}", log) as process:
        yield f"http://127.0.0.1:{port}", process


@contextmanager
def started(command, url, log):
    """The process, once its server answers."""
    environment = {**os.environ, **ENVIRONMENT, "MASTER_PORT": str(vllm_worker.free_port())}
    with log.open("a") as output:
        process = subprocess.Popen(
            command, env=environment, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )
    try:
        for _ in range(480):
            assert process.poll() is None, log.read_text()[-3000:]
            try:
                urllib.request.urlopen(f"{url}/health", timeout=2)
                break
            except OSError:
                time.sleep(0.5)
        else:
            pytest.fail(log.read_text()[-3000:])
        yield process
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGTERM)
            process.wait(30)


def train(folder, runs, tmp_path, url=None, launcher=()):
    """The worker's results, one for each run."""
    output, spec_file = tmp_path / "results.json", tmp_path / "spec.json"
    spec_file.write_text(json.dumps({"model": folder, "url": url, "runs": runs}))
    done = subprocess.run(
        [sys.executable, *launcher, vllm_worker.__file__, str(output), str(spec_file)],
        env={**os.environ, **ENVIRONMENT},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert output.exists(), done.stdout[-3000:] + done.stderr[-5000:]
    return json.loads(output.read_text())


@contextmanager
def engine(mode, folder, tmp_path):
    """The URL of the server, None where the engine is colocated."""
    if mode == "colocate":
        yield None
    else:
        with server(folder, tmp_path / "server.log") as (url, _):
            yield url


@pytest.mark.parametrize("mode", ["colocate", "server"])
def test_after_training_the_engine_computes_what_the_policy_computes(mode, folder, tmp_path):
    with engine(mode, folder, tmp_path) as url:
        results = train(folder, [spec(), spec(lora=True)], tmp_path, url)
    for result in results:
        assert "error" not in result, result["error"]
        assert result["synced"]["same_tokens"]
        assert result["synced"]["max_dlogp"] < 1e-4
        assert result["moved_by_sync"] == 0.0
        assert result["at_first"]["max_dlogp"] > 1e-2, "the policy has not moved, so this test says nothing"
        log = result["log"]
        assert [entry["weight_sync/policy_version"] for entry in log] == [0, 1, 2]
        assert max(entry["weight_sync/probe_max_dlogp"] for entry in log) < 1e-4
        assert max(entry["sampling/sampling_logp_difference/max"] for entry in log) < 1e-4
        assert all(entry["weight_sync/seconds"] > 0 and entry["weight_sync/gigabytes"] > 0 for entry in log)
        assert result["policy_version"] == 3
        assert [row[0] for row in result["rollouts"]] == [result["rollouts"][0][0]] * 2 + [result["rollouts"][2][0]] * 2
        for _, ids, log_probs, _ in result["rollouts"]:
            assert len(ids) == len(log_probs) > 0


@pytest.mark.parametrize("mode", ["colocate", "server"])
def test_a_broken_sync_stops_the_run_and_names_the_suspects(mode, folder, tmp_path):
    runs = [
        spec("nothing is sent"),
        spec("a layer is left out"),
        spec("a layer is left out", weight_sync_probe_every=100),  # the rollouts of step 1 ask for a proof
        spec("adapters are not merged", lora=True),
        spec(),
    ]
    with engine(mode, folder, tmp_path) as url:
        nothing, layer, rollouts, adapters, good = train(folder, runs, tmp_path, url)
    for result in (nothing, layer, rollouts, adapters):
        assert result["error"].startswith("WeightSyncError: after the weight sync of step 1 ")
        assert len(result["log"]) == 1
    assert "no weight has arrived" in nothing["error"]
    for result in (layer, rollouts):
        assert "Suspect parameters: model.layers.1.*. " in result["error"]
    assert "The engine computes the model without its adapters" in adapters["error"]
    assert "error" not in good
