"""From Atropos' answer to a trainer's tensors, beside a bare `requests.get(...).json()` of the same batch.

    PYTHONPATH=.:tests .venv/bin/python benchmarks/atropos_ingest.py

64 sequences of 4096 tokens with advantages and log-probs, from the real `run-api` and from a server that has the bytes
ready, so that only the client's work is left. Ours: fetched by the process that fetches, kept in the journal with its
checksum and fsync, read again, checked, weighted, and padded.
"""

import argparse
import random
import statistics
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import orjson
import requests
import torch
from atropos_tools import RunApi

from online_sft.atropos.batch import BatchReader
from online_sft.atropos.client import Registration
from online_sft.atropos.fetcher import Fetcher, FetcherOptions
from online_sft.atropos.quarantine import Quarantine
from online_sft.atropos.stream import BatchStream
from trainers.atropos.micro_batches import micro_batch

SEQUENCES, GROUPS, LENGTH, PROMPT, VOCABULARY = 64, 8, 4096, 512, 150_000
IDENTITY = {"Accept-Encoding": "identity"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    rounds = parser.parse_args().rounds
    groups = make_groups()
    body = orjson.dumps({"batch": groups})
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    print(f"commit {commit}, {len(body) / 1e6:.1f} MB, {rounds} rounds, alternating\n")
    print("| server | bare get().json(), s | ours, s | ratio |\n|---|---|---|---|")
    with RunApi() as api:
        posts = [orjson.dumps(group) for group in groups]

        def post() -> None:
            for each in posts:
                requests.post(f"{api.url}/scored_data", data=each, headers={"Content-Type": "application/json"})

        show("run-api", api.url, rounds, post)
    with Ready(body) as server:
        show("bytes ready", server.url, rounds, lambda: None)


def show(name: str, url: str, rounds: int, before_each: Callable[[], None]) -> None:
    bare, ours = [], []
    with tempfile.TemporaryDirectory() as folder:
        registration = Registration(SEQUENCES, LENGTH + 1, rounds, 0, folder, 0)
        fetcher = Fetcher(FetcherOptions(url, f"{folder}/journal", registration, refresh_interval_s=0.01))
        reader = BatchReader(vocab_size=VOCABULARY)
        stream = BatchStream(f"{folder}/journal", reader, Quarantine(f"{folder}/quarantine"), fetcher)
        while stream.take(0, 1.0) is None:  # registers
            before_each()
        for _ in range(rounds):
            before_each()
            bare.append(seconds_of(lambda: requests.get(f"{url}/batch", headers=IDENTITY).json()["batch"][0]))
            before_each()
            ours.append(seconds_of(lambda: micro_batch(stream.take(0, 60.0).rows, 0, torch.device("cpu"))))
        stream.close()
    ratio = statistics.median(ours) / statistics.median(bare)
    print(f"| {name} | {spread(bare)} | {spread(ours)} | {ratio:.2f} |", flush=True)


def seconds_of(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def spread(values: list[float]) -> str:
    return f"{statistics.median(values):.2f} ({min(values):.2f} to {max(values):.2f})"


def make_groups() -> list[dict]:
    rng = random.Random(0)
    size = SEQUENCES // GROUPS

    def row(value: Callable[[], float], prompt: float) -> list[float]:
        return [prompt] * PROMPT + [value() for _ in range(LENGTH - PROMPT)]

    groups = []
    for _ in range(GROUPS):
        tokens = [[rng.randrange(VOCABULARY) for _ in range(LENGTH)] for _ in range(size)]
        groups.append(
            {
                "tokens": tokens,
                "masks": [[-100] * PROMPT + each[PROMPT:] for each in tokens],
                "scores": [rng.random() for _ in range(size)],
                "advantages": [row(lambda: rng.gauss(0, 1), 0.0) for _ in range(size)],
                "inference_logprobs": [row(lambda: -rng.expovariate(1), 1.0) for _ in range(size)],
            }
        )
    return groups


class Ready(ThreadingHTTPServer):
    """Atropos with one answer, over and over."""

    def __init__(self, body: bytes) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        info = orjson.dumps({"batch_size": SEQUENCES, "max_token_len": LENGTH + 1})
        self.answers = {"/batch": body, "/info": info, "/register": b'{"uuid": 1}'}
        self.url = f"http://127.0.0.1:{self.server_port}"
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def __exit__(self, *exception: object) -> None:
        self.shutdown()
        self.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Ready

    def do_GET(self) -> None:
        body = self.server.answers[self.path]
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.do_GET()

    def log_message(self, *args: object) -> None:
        pass


if __name__ == "__main__":
    main()
