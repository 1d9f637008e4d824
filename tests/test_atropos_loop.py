"""The whole loop of recipes/atropos, all of it real and in processes of its own."""

import json
import os
import re
import signal
import subprocess
import sys
from contextlib import ExitStack, contextmanager
from pathlib import Path

import atropos_environments
import numpy as np
import pytest
import torch
from atropos_tools import RunApi
from free_port import free_port
from transformers import AutoModelForCausalLM, AutoTokenizer

from online_sft.losses import token_log_probs
from recipes.atropos.environment import Sum
from recipes.atropos.tiny_model import save_tiny_model

ROOT = Path(__file__).resolve().parent.parent
SECONDS = 120


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    folder = tmp_path_factory.mktemp("atropos") / "model"
    save_tiny_model(folder)
    return str(folder)


def expected_score(folder):
    """The probability of a right answer, over all sums: what sampling would show, without its noise."""
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    right = []
    for question in (Sum(a, b) for a in range(5) for b in range(5)):
        prompt = tokenizer(question.prompt)["input_ids"]
        answer = [tokenizer.convert_tokens_to_ids(question.answer), tokenizer.eos_token_id]
        tokens = torch.tensor([prompt + answer])
        with torch.no_grad():
            right.append(token_log_probs(model(tokens).logits, tokens)[0, -2:].sum().exp().item())
    return float(np.mean(right))


@contextmanager
def running(*command, log, **options):
    with log.open("wb") as file:
        process = subprocess.Popen([sys.executable, *command], stderr=file, stdout=subprocess.PIPE, **options)
        try:
            yield process
        finally:
            process.send_signal(signal.SIGTERM)
            process.communicate(timeout=30)


def rollout_scores(start, tmp_path, *, advantages="right", syncs=True):
    """The log of a run of the recipe: entries with the mean score of each step's batch."""
    environment = {**os.environ, "ONLINE_SFT_SERVE_TOKEN": "secret", "TOKENIZERS_PARALLELISM": "false"}
    with ExitStack() as stack:
        api = stack.enter_context(RunApi())
        command = ("-m", "online_sft", "serve", start, "--port", "0")
        server = stack.enter_context(running(*command, log=tmp_path / "serve.log", env=environment))
        url = server.stdout.readline().decode().split()[-1]
        options = ["--env.rollout_server_url", api.url, "--openai.base_url", f"{url}/v1"]
        options += ["--openai.model_name", start, "--openai.tokenizer_name", start, "--env.tokenizer_name", start]
        command = (atropos_environments.__file__, advantages, "serve", *options)
        stack.enter_context(running(*command, log=tmp_path / "environment.log", env=environment))
        command = ["-m", "online_sft", "weighted", "--config", str(ROOT / "recipes" / "atropos" / "trainer.yaml")]
        command += ["--model_name_or_path", start, "--output_dir", str(tmp_path / "run"), "--logging_steps", "1"]
        command += ["--data.atropos.api_url", api.url, "--data.atropos.sync_url", url if syncs else ""]
        command += [] if syncs else ["--data.atropos.max_staleness", "80"]
        done = subprocess.run(
            [sys.executable, *command], env=environment, capture_output=True, text=True, timeout=SECONDS
        )
        assert done.returncode == 0, done.stderr[-3000:]
    return scores_of(tmp_path / "run")


def scores_of(run):
    state = json.loads((run / "checkpoint-80" / "trainer_state.json").read_text())
    return [entry for entry in state["log_history"] if "score" in entry]


@pytest.mark.slow
def test_the_readmes_commands_make_the_score_rise(tmp_path):
    api, server = free_port(), free_port()
    (block,) = re.findall(r"```sh\n(.*?)```", (ROOT / "recipes" / "atropos" / "README.md").read_text(), re.DOTALL)
    overrides = f"--data.atropos.api_url http://127.0.0.1:{api} --data.atropos.sync_url http://127.0.0.1:{server}"
    script = f"{block.rstrip()} {overrides} --logging_steps 1\nkill %1; wait"
    (tmp_path / "recipes").symlink_to(ROOT / "recipes")
    environment = {**os.environ, "API_PORT": str(api), "SERVE_PORT": str(server), "TOKENIZERS_PARALLELISM": "false"}
    environment["PATH"] = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-c", script], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=SECONDS
    )
    folder = tmp_path / "runs" / "atropos"
    assert (folder / "run" / "checkpoint-80").exists(), done.stderr[-3000:]
    log = scores_of(folder / "run")
    before = expected_score(folder / "model")
    assert 0.15 < before < 0.35
    assert len(log) == 80
    assert np.mean([entry["score"] for entry in log[-16:]]) > before + 0.4  # measured: 0.53
    assert expected_score(folder / "run") > before + 0.4
    assert {entry["atropos/sequences"] for entry in log} == {16}
    assert max(entry["atropos/staleness"] for entry in log) <= 2
    fresh = [entry for entry in log if entry["atropos/staleness"] == 0]
    assert len(fresh) > 20
    # the server samples from just the weights that the trainer has
    assert max(entry["sampling/sampling_logp_difference/max"] for entry in fresh if entry["grad_norm"]) < 1e-4
    for phase in ("rollout", "advantages", "training", "sync"):
        assert all(entry[f"atropos/seconds_{phase}"] > 0 for entry in log)


@pytest.mark.slow
@pytest.mark.parametrize("control", [{"syncs": False}, {"advantages": "negated"}, {"advantages": "shuffled"}], ids=str)
def test_it_does_not_without_syncs_or_with_other_advantages(control, start, tmp_path):
    log = rollout_scores(start, tmp_path, **control)
    assert np.mean([entry["score"] for entry in log[-16:]]) < expected_score(start) + 0.2
