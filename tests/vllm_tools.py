"""A real vLLM on a CPU for tests and benchmarks: its environment, its server, and runs of `vllm_worker.py`."""

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
import vllm_worker
from exact_on_cpu import EXACT_ON_CPU
from free_port import free_port

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


@contextmanager
def server(folder, log, **options):
    """The base URL and the process of `trl vllm-serve`."""
    port = options.pop("port", None) or free_port()
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
    environment = {**os.environ, **ENVIRONMENT, "MASTER_PORT": str(free_port())}
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


class Running:
    """The worker, in the background."""

    def __init__(self, folder, run, tmp_path, url, launcher=()):
        self.output, self.log = tmp_path / "results.json", tmp_path / "worker.log"
        spec_file = tmp_path / "spec.json"
        spec_file.write_text(json.dumps({"model": folder, "url": url, "runs": [run]}))
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [sys.executable, *launcher, vllm_worker.__file__, str(self.output), str(spec_file)],
                env={**os.environ, **ENVIRONMENT, "PYTHONUNBUFFERED": "1"},
                cwd=tmp_path,
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    def wait_for(self, text, times=1, timeout=120):
        for _ in range(timeout * 10):
            if self.log.read_text().count(text) >= times:
                return
            assert self.process.poll() is None, self.log.read_text()[-3000:]
            time.sleep(0.1)
        pytest.fail(f"{text!r} has not come: {self.log.read_text()[-3000:]}")

    def result(self):
        self.process.wait(120)
        return json.loads(self.output.read_text())[0]
