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


def generate(url, prompt, **options):
    """The answer of `/generate`, with log-probs."""
    body = {"prompt": {"prompt_token_ids": prompt}, "logprobs": 0, **options}
    answer = requests.post(f"{url}/generate", json=body, timeout=30)
    assert answer.status_code == 200, answer.text
    return answer.json()


def refusal(url, path, body):
    """Status and message of an answer that is none."""
    answer = requests.post(url + path, json=body, timeout=30)
    return answer.status_code, answer.json()["error"]["message"]


def state_of(model):
    """What a trainer would send: tied weights under one of their names."""
    return {name: value.clone() for name, value in model.state_dict().items() if name != "lm_head.weight"}


def send_weights(url, weights, version, *, token=TOKEN, sha256=None):
    """Posts tensors, or bytes that stand for them."""
    body = weights if isinstance(weights, bytes) else safetensors.torch.save(weights)
    headers = {
        "Authorization": f"Bearer {token}",
        "X-Policy-Version": str(version),
        "X-Sha256": sha256 or hashlib.sha256(body).hexdigest(),
    }
    return requests.post(f"{url}/update_weights", data=body, headers=headers, timeout=30)


@torch.no_grad()
def reference_log_probs(model, prompt, completion, temperature=1.0, top_k=0, top_p=1.0):
    """Of each token of the completion, by one plain forward pass, and by the definitions of the three options."""
    logits = model(torch.tensor([[*prompt, *completion]])).logits[0, len(prompt) - 1 : -1].double()
    found = []
    for row, token in zip(logits / temperature, completion, strict=True):
        probabilities = row.softmax(0)
        order = probabilities.argsort(descending=True).tolist()
        kept = order[: top_k or None]
        share = probabilities[kept] / probabilities[kept].sum()
        num_needed = next(number for number in range(1, len(kept) + 1) if share[:number].sum() >= top_p - 1e-9)
        kept = kept[:num_needed]
        assert token in kept
        found.append((probabilities[token] / probabilities[kept].sum()).log())
    return torch.stack(found)


def log_probs_of(answer):
    """Of each completion of `/generate`, in the way in which Atropos reads them."""
    return [torch.tensor([next(iter(at[0].values())) for at in one]).double() for one in answer["logprobs"]]


def assert_log_probs_are_those_of(model, answer, prompt, **options):
    for tokens, log_probs in zip(answer["token_ids"], log_probs_of(answer), strict=True):
        torch.testing.assert_close(
            log_probs, reference_log_probs(model, prompt, tokens, **options), atol=1e-5, rtol=0
        )
