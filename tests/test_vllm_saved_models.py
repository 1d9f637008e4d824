"""What a trainer saves is what vLLM serves: a whole model, and adapters that have been merged."""

import json
import os
import subprocess
import sys
import urllib.request

import pytest
import vllm_saving_worker
from vllm_tools import ENVIRONMENT, server

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(400)]


@pytest.mark.parametrize("kind", ["weighted: rows", "weighted: lora"])
def test_vllm_loads_what_was_saved_and_says_what_the_policy_says(kind, tmp_path):
    command = [sys.executable, vllm_saving_worker.__file__, kind, str(tmp_path), "1 + 1 ="]
    subprocess.run(command, check=True, timeout=200, env={**os.environ, **ENVIRONMENT})
    said, folder = json.loads((tmp_path / "said.json").read_text()), str(tmp_path / "saved")
    ask = {"model": folder, "prompt": said["prompt_ids"], "max_tokens": 1, "temperature": 0, "logprobs": 1}
    with server(folder, tmp_path / "server.log") as (url, _):
        headers = {"Content-Type": "application/json"}
        request = urllib.request.Request(f"{url}/v1/completions", json.dumps(ask).encode(), headers)
        answer = json.loads(urllib.request.urlopen(request, timeout=60).read())["choices"][0]
    assert answer["logprobs"]["token_logprobs"] == [pytest.approx(said["log_prob"], abs=1e-4)]
    assert answer["text"] == said["text"]
