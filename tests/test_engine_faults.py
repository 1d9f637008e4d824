"""What does not need vLLM; a real server is killed in test_vllm_faults.py."""

import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, HTTPServer
from types import SimpleNamespace

import pytest
from accelerate import Accelerator
from free_port import free_port

from online_sft import OnlineSFTConfig, OnlineSFTTrainer
from trainers.engine.server import check_server, is_healthy, server_url, wait_until_healthy
from trainers.main_process import on_main_process

BLOCKED = """
import time
from trainers.engine import faults
faults._POLL_S = 0.2
with faults.exit_after({timeout}, "http://127.0.0.1:{port}"):
    time.sleep(60)
"""


class Healthy(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_):
        pass


@pytest.fixture
def healthy_port():
    server = HTTPServer(("127.0.0.1", 0), Healthy)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server.server_port
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("is_there", [False, True])
def test_a_broadcast_that_never_ends_ends_the_process(is_there, healthy_port):
    port, timeout = (healthy_port, 1) if is_there else (free_port(), 100)
    reason = "weight_sync_timeout=1" if is_there else "the server does not answer any more"
    started = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", BLOCKED.format(timeout=timeout, port=port)], capture_output=True, text=True
    )
    assert done.returncode == 1
    assert time.monotonic() - started < 50
    assert f"({reason}) and cannot be interrupted; the process exits. Resume from its last checkpoint" in done.stderr


def test_waiting_for_a_server_that_is_not_there_takes_the_time_it_is_given():
    url, started = f"http://127.0.0.1:{free_port()}", time.monotonic()
    assert not is_healthy(url)
    assert not wait_until_healthy(url, 0.5)
    assert 0.5 <= time.monotonic() - started < 5


def test_the_url_is_the_base_url_or_else_host_and_port():
    args = SimpleNamespace(vllm_server_base_url=None, vllm_server_host="10.0.0.7", vllm_server_port=8001)
    assert server_url(args) == "http://10.0.0.7:8001"
    args.vllm_server_base_url = "https://engine/v/"
    assert server_url(args) == "https://engine/v"


def test_the_main_process_raises_what_its_call_raised():
    assert on_main_process(Accelerator(cpu=True), lambda: 7) == 7
    with pytest.raises(KeyError, match="gone"):
        on_main_process(Accelerator(cpu=True), lambda: {}["gone"])


def test_a_server_that_does_not_come_up_is_named_with_the_command_that_starts_it(model, cpu_args):
    url = f"http://127.0.0.1:{free_port()}"
    args = OnlineSFTConfig(**cpu_args, vllm_server_base_url=url, vllm_server_timeout=0.1)
    with pytest.raises(ConnectionError, match=f"no vLLM server answers at {url} .* `trl vllm-serve --model mine`"):
        check_server(args, model.config, "mine")


def test_a_model_that_is_in_memory_only_is_refused(model, tokenizer, cpu_args):
    args = OnlineSFTConfig(**cpu_args, use_vllm=True)
    with pytest.raises(ValueError, match="built in memory; save it with save_pretrained"):
        OnlineSFTTrainer(model, lambda completions, **_: [0.0] * len(completions), args, processing_class=tokenizer)
