"""The README's commands with vLLM, on a CPU."""

import os
import shlex
import subprocess
import sys

import pytest
from datasets import Dataset
from documented_blocks import ROOT, blocks_of
from vllm_tools import ENVIRONMENT, server

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(600)]

# the README's model is on a GPU, where weights travel by NCCL
ON_CPU = (
    "import sys, trl_vllm_cpu; trl_vllm_cpu.patch_trl_client(); from online_sft.cli import main; main(sys.argv[1:])"
)
SHORT = ["--max_steps", "2", "--per_device_train_batch_size", "8", "--vllm_max_model_length", "64"]


def test_the_commands_of_the_readme_run(model, tokenizer, tmp_path):
    (tmp_path / "recipes").symlink_to(ROOT / "recipes")
    folder = tmp_path / "runs" / "quickstart" / "a_imitation"
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    Dataset.from_list([{"prompt": f"{a} + 1 =", "solution": str(a + 1)} for a in range(16)]).to_json(
        tmp_path / "runs" / "quickstart" / "problems.jsonl"
    )
    (block,) = [block.text for block in blocks_of(ROOT / "README.md") if block.language == "sh"]
    commands = [words for line in block.splitlines() if (words := shlex.split(line, comments=True))]
    assert [words[:2] for words in commands] == [
        ["online-sft", "online"],
        ["trl", "vllm-serve"],
        ["online-sft", "online"],
    ]
    assert commands[1][2:] == ["--model", "runs/quickstart/a_imitation"]

    def train(words, *more):
        done = subprocess.run(
            [sys.executable, "-c", ON_CPU, *words[1:], *SHORT, *more],
            env={**os.environ, **ENVIRONMENT},
            cwd=tmp_path,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr[-3000:]
        assert "reward" in done.stderr + done.stdout

    train(commands[0])
    with server("runs/quickstart/a_imitation", tmp_path / "server.log") as (url, _):
        train(commands[2], "--vllm_server_base_url", url)
