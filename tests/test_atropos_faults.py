"""One run of 100 batches whose trainer is killed 20 times and whose API server 5 times, at random."""

import itertools
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import requests
import torch
from atropos_tools import RunApi
from safetensors.torch import load_file

from online_sft.atropos.journal import num_entries, read_entry

MODEL = str(Path(__file__).parent / "data" / "atropos" / "model")
NUM_BATCHES, TRAINER_KILLS, API_KILLS = 100, 20, 5
TRAIN = """
import sys
from online_sft import cli
cli.main(sys.argv[1:])
"""


class Witness(ThreadingHTTPServer):
    """Stands in front of Atropos and writes down which batches it has handed out."""

    daemon_threads = True

    def __init__(self, url):
        self.url, self.scores = url, []
        super().__init__(("127.0.0.1", 0), _Handler)
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def close(self):
        self.shutdown()
        self.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        self.forward("GET")

    def do_POST(self):
        self.forward("POST")

    def forward(self, method):
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        try:
            headers = {"Content-Type": "application/json"}
            answer = requests.request(method, self.server.url + self.path, data=body, headers=headers)
            status, content = answer.status_code, answer.content
        except requests.RequestException:
            status, content = 502, b"the server is gone"
        if self.path == "/batch" and status == 200 and (batch := json.loads(content)["batch"]):
            self.server.scores.append(mean_score(batch))
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *args):
        pass


def mean_score(batch):
    scores = [score for group in batch for score in group["scores"]]
    return sum(scores) / len(scores)


def post_batches(url, done):
    """One after the other, each known by its scores."""
    rng = random.Random(0)
    number = itertools.count(1)
    while not done.wait(0.1):
        try:
            ready = requests.get(f"{url}/info").json()["batch_size"] > 0
            if ready and requests.get(f"{url}/status").json()["queue_size"] == 0:
                tokens = [[rng.randrange(4, 300) for _ in range(8)] for _ in range(4)]
                masks = [[-100, -100, *row[2:]] for row in tokens]
                scores = [float(next(number)), 0.0, 1.0, 2.0]
                requests.post(f"{url}/scored_data", json={"tokens": tokens, "masks": masks, "scores": scores})
        except (requests.RequestException, ValueError):
            pass


def command(output, *source):
    options = {
        "model_name_or_path": MODEL,
        "output_dir": output,
        "max_steps": NUM_BATCHES,
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 2,
        "learning_rate": 1e-3,
        "logging_steps": 1,
        "save_steps": 4,
        "save_total_limit": 3,
        "use_cpu": "true",
        "bf16": "false",
        "activation_checkpointing": "false",
        "atropos_score_normalization": "mean_std",
        "resume_from_checkpoint": "auto",
    }
    words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    return [sys.executable, "-c", TRAIN, "weighted", *words, *source]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_every_batch_that_was_delivered_is_trained_on_once_whatever_is_killed(tmp_path):
    rng, journal, done = random.Random(1), tmp_path / "run" / "journal", threading.Event()
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with RunApi() as api:
        witness = Witness(api.url)
        poster = threading.Thread(target=post_batches, args=(api.url, done))
        poster.start()
        address = f"http://127.0.0.1:{witness.server_port}"
        source = ["--data.atropos.api_url", address, "--data.atropos.refresh_interval", "0.05"]
        source += ["--data.atropos.reset_on_conflict", "true"]
        log = (tmp_path / "log").open("wb")
        kills_of_api = set(rng.sample(range(TRAINER_KILLS), API_KILLS))
        try:
            for number in range(TRAINER_KILLS + 1):
                words = command(str(tmp_path / "run"), *source)
                trainer = subprocess.Popen(words, stderr=log, stdout=log, env=environment)
                if number == TRAINER_KILLS:
                    assert trainer.wait(timeout=300) == 0, (tmp_path / "log").read_text()[-3000:]
                    break
                goal = (num_entries(journal) if journal.exists() else 0) + rng.randrange(1, 5)
                end = time.monotonic() + 60
                while (not journal.exists() or num_entries(journal) < goal) and time.monotonic() < end:
                    assert trainer.poll() is None, (tmp_path / "log").read_text()[-3000:]
                    time.sleep(0.01)
                if number in kills_of_api:
                    api.kill()
                    time.sleep(rng.random())
                    api.start()
                time.sleep(0.1 * rng.random())
                trainer.send_signal(signal.SIGKILL)
                trainer.wait()
        finally:
            done.set()
            poster.join()
            trainer.kill()
            trainer.wait()
            witness.close()
            log.close()
    state = json.loads((tmp_path / "run" / "checkpoint-100" / "trainer_state.json").read_text())
    trained_on = [entry["score"] for entry in state["log_history"] if "score" in entry]
    bodies = [read_entry(journal, index).body for index in range(num_entries(journal))]
    assert len(bodies) == NUM_BATCHES
    assert [mean_score(json.loads(body)["batch"]) for body in bodies] == trained_on == witness.scores
    assert len(set(trained_on)) == NUM_BATCHES

    undisturbed = command(str(tmp_path / "undisturbed"), "--atropos_replay", str(journal))
    subprocess.run(undisturbed, check=True, env=environment, capture_output=True)
    final, again = (load_file(tmp_path / name / "model.safetensors") for name in ("run", "undisturbed"))
    start = load_file(f"{MODEL}/model.safetensors")
    for name, weights in final.items():
        assert torch.equal(weights, again[name]), name
    assert max((weights - start[name]).abs().max() for name, weights in final.items()) > 1e-2
