"""A real vLLM server that is not there, is not ours, or is killed in mid-run."""

import json
import os
import re
import signal
import socket
import sys
import time
from pathlib import Path

import pytest
from free_port import free_port
from transformers import Qwen2ForCausalLM
from vllm_tools import Running, engine, server, spec, started, train

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(600)]


def test_a_server_that_cannot_serve_the_run_is_refused_before_the_model_is_loaded(folder, tokenizer, tmp_path):
    config = Qwen2ForCausalLM.from_pretrained(folder).config
    config.intermediate_size = 256
    Qwen2ForCausalLM(config).save_pretrained(tmp_path / "wider")
    tokenizer.save_pretrained(tmp_path / "wider")
    nobody = f"http://127.0.0.1:{free_port()}"
    with socket.socket() as taken, engine("server", folder, tmp_path) as url:
        taken.bind(("", 0))
        taken.listen()
        port = taken.getsockname()[1]
        runs = [
            spec(vllm_server_base_url=nobody, vllm_server_timeout=1.0),
            {**spec(), "model": str(tmp_path / "wider")},
            spec(bf16=True),
            spec(vllm_group_port=port),
            spec(max_completion_length=200),
            spec(bf16=True, weight_sync_tolerance=0.5),
        ]
        absent, another, dtype, port_error, context, allowed = train(folder, runs, tmp_path, url)
    assert absent["error"] == (
        f"ConnectionError: no vLLM server answers at {nobody} within vllm_server_timeout=1 s. Start it with "
        f"`trl vllm-serve --model {folder}`, or set vllm_server_base_url"
    )
    assert f"intermediate_size is 384 in {folder}, and 256 in the policy" in another["error"]
    assert "the policy computes in bfloat16 and the vLLM server in float32" in dtype["error"]
    assert f"port {port}, on which the weights are handed to vLLM, is taken" in port_error["error"]
    assert "has a context of 128 tokens" in context["error"]
    assert "error" not in allowed, allowed["error"]


def test_in_bfloat16_an_engine_that_never_changes_is_found_long_before_the_tolerance(folder, tmp_path):
    slow = spec("nothing is sent", bf16=True, learning_rate=2e-5, lr_scheduler_type="constant", max_steps=300)
    good = spec(bf16=True, learning_rate=2e-5, lr_scheduler_type="constant", max_steps=30)
    stale, healthy = train(folder, [slow, good], tmp_path)
    assert "The engine's scores are those of step 0, to the bit. The engine computes the model as in" in stale["error"]
    found = float(re.search(r"of the probe is ([\d.]+) nats \(weight_sync_tolerance 0.5;", stale["error"])[1])
    assert 0.01 < found < 0.2
    assert "error" not in healthy, healthy["error"]


def test_a_run_whose_server_is_killed_stops_within_a_minute_and_resumes_from_where_it_was(folder, tmp_path):
    with server(folder, tmp_path / "server.log") as (url, process):
        running = Running(folder, spec(max_steps=100_000), tmp_path, url)
        running.wait_for("'loss'", times=5)
        os.killpg(process.pid, signal.SIGKILL)
        killed = time.monotonic()
        result = running.result()
        assert time.monotonic() - killed < 60
    assert result["error"].startswith(f"ServerLostError: the vLLM server at {url} does not answer any more")
    step = len(result["log"])
    assert step >= 5
    checkpoint = f"out/checkpoint-{step}"
    assert f"Resume with resume_from_checkpoint='{checkpoint}' and allow_inexact_resume=True." in result["error"]
    assert json.loads((tmp_path / checkpoint / "trainer_state.json").read_text())["global_step"] == step

    with server(folder, tmp_path / "server.log") as (url, _):
        silent = {**spec(max_steps=step + 2), "resume": checkpoint}
        again = {**spec(max_steps=step + 2, allow_inexact_resume=True), "resume": checkpoint}
        refused, resumed = train(folder, [silent, again], tmp_path, url)
    assert "vllm_mode='server': its random numbers are its own" in refused["error"]
    assert "error" not in resumed, resumed["error"]
    assert resumed["log"][:step] == result["log"]
    assert len(resumed["log"]) == step + 2
    assert resumed["synced"]["max_dlogp"] < 1e-4


def test_a_run_waits_for_its_server_and_brings_it_the_weights_again(folder, tmp_path):
    with server(folder, tmp_path / "server.log") as (url, process):
        port = int(url.rsplit(":", 1)[1])
        run = spec(max_steps=300, vllm_server_reconnect_timeout=300)
        running = Running(folder, run, tmp_path, url)
        running.wait_for("'loss'", times=5)
        os.killpg(process.pid, signal.SIGKILL)
        running.wait_for("waiting up to 300 s for it")
    with server(folder, tmp_path / "server.log", port=port):
        result = running.result()
    assert "error" not in result, result["error"]
    assert [entry["step"] for entry in result["log"]] == list(range(1, 301))
    assert result["synced"]["max_dlogp"] < 1e-4
    assert max(entry["weight_sync/probe_max_dlogp"] for entry in result["log"]) < 1e-4


def test_a_plain_vllm_server_is_refused(folder, tmp_path):
    port = free_port()
    command = [str(Path(sys.executable).parent / "vllm"), "serve", folder, "--port", str(port), "--dtype", "float32"]
    command += ["--max-model-len", "128", "--enforce-eager"]
    with started(command, f"http://127.0.0.1:{port}", tmp_path / "server.log"):
        (result,) = train(folder, [spec()], tmp_path, f"http://127.0.0.1:{port}")
    assert (
        f"(/server_info: 404), so that it cannot take weights either. Start it with `trl vllm-serve --model {folder}`"
        in (result["error"])
    )
