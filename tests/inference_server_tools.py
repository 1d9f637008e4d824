"""A real HTTP server of a policy, in a thread, and the log-probs that its answers should have."""

import hashlib
import socket
import threading
import time
from contextlib import contextmanager

import requests
import safetensors.torch
import torch

from trainers.inference_server.app import build_app
from trainers.inference_server.serving import http_server

TOKEN = "the trainer's"
TIMEOUT_S = 120  # two busy cores can be a hundred times slower than two idle ones


@contextmanager
def running(policy, **options):
    """The URL of a server of `policy`, which is the server's from now on."""
    options = {"token": TOKEN, "model_name": "tiny", "max_batch_rows": 64, "max_body_bytes": 2**22, **options}
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = http_server(build_app(policy, **options))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        while not server.started:
            time.sleep(0.005)
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join()


class Gate:
    """Holds a model before one of its forward passes, the `at`-th, until it is opened."""

    def __init__(self, model, at):
        self.reached, self.prompt_batches, self._open = threading.Event(), [], threading.Event()
        self._at, self.num_passes = at, 0
        model.register_forward_pre_hook(self._pass, with_kwargs=True)

    def _pass(self, model, args, kwargs):
        if kwargs["input_ids"].shape[1] > 1:
            self.prompt_batches.append(len(kwargs["input_ids"]))
        if self.num_passes == self._at:
            self.reached.set()
            assert self._open.wait(TIMEOUT_S)
        self.num_passes += 1

    def open(self):
        self._open.set()


def generate(url, prompt, **options):
    """The answer of `/generate`, with log-probs."""
    body = {"prompt": {"prompt_token_ids": prompt}, "logprobs": 0, **options}
    answer = requests.post(f"{url}/generate", json=body, timeout=TIMEOUT_S)
    assert answer.status_code == 200, answer.text
    return answer.json()


def refusal(url, path, body):
    """Status and message of an answer that is an error."""
    answer = requests.post(url + path, json=body, timeout=TIMEOUT_S)
    return answer.status_code, answer.json()["error"]["message"]


def state_of(model):
    """What a trainer would send: tied weights under one of their names."""
    return {name: value.clone() for name, value in model.state_dict().items() if name != "lm_head.weight"}


def send_weights(url, weights, version, **headers):
    """Posts tensors, or bytes that stand for them."""
    body = weights if isinstance(weights, bytes) else safetensors.torch.save(weights)
    headers = {
        "Authorization": f"Bearer {TOKEN}",
        "X-Policy-Version": str(version),
        "X-Sha256": hashlib.sha256(body).hexdigest(),
        **headers,
    }
    return requests.post(f"{url}/update_weights", data=body, headers=headers, timeout=TIMEOUT_S)


@torch.no_grad()
def reference_log_probs(model, prompt, completion, temperature=1.0, top_k=0, top_p=1.0):
    """Of each token of the completion, by one plain forward pass, and by the definitions of the three options."""
    logits = model(torch.tensor([[*prompt, *completion]])).logits[0, len(prompt) - 1 : -1].double()
    found = []
    for row, token in zip(logits / temperature, completion, strict=True):
        probabilities = row.softmax(0)
        kept = probabilities.argsort(descending=True).tolist()[: top_k or None]
        share = probabilities[kept] / probabilities[kept].sum()
        num_needed = next(number for number in range(1, len(kept) + 1) if share[:number].sum() >= top_p - 1e-9)
        assert token in kept[:num_needed]
        found.append((probabilities[token] / probabilities[kept[:num_needed]].sum()).log())
    return torch.stack(found)


def assert_log_probs_are_those_of(model, prompt, tokens, log_probs, **shape):
    expected = reference_log_probs(model, prompt, tokens, **shape)
    torch.testing.assert_close(torch.tensor(log_probs, dtype=torch.float64), expected, atol=1e-5, rtol=0)


def assert_answer_is_of(model, answer, prompt, **shape):
    """The log-probs of `/generate`, read as Atropos does, are those of the model."""
    for tokens, at_each in zip(answer["token_ids"], answer["logprobs"], strict=True):
        assert [int(next(iter(at[0]))) for at in at_each] == tokens
        log_probs = [next(iter(at[0].values())) for at in at_each]
        assert_log_probs_are_those_of(model, prompt, tokens, log_probs, **shape)
