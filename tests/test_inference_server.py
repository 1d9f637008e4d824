"""The inference server over real HTTP: what it samples, what it says of it, and whose weights it uses."""

import asyncio
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import openai
import pytest
import requests
import torch
from inference_server_tools import (
    assert_log_probs_are_those_of,
    generate,
    log_probs_of,
    reference_log_probs,
    refusal,
    running,
    send_weights,
    state_of,
)

from recipes.quickstart.tiny_model import build_model
from trainers.inference_server.policy import Policy

PROMPT = [3, 13, 4, 14, 15]
OTHER = [5, 6, 7]
SHAPES = [
    {},
    {"temperature": 0.7},
    {"top_k": 5},
    {"top_p": 0.8},
    {"temperature": 1.3, "top_k": 7, "top_p": 0.6},
]


@pytest.fixture
def policy(tokenizer):
    return Policy.of(build_model(tokenizer, seed=0), tokenizer)


@pytest.fixture
def url(policy):
    with running(policy) as url:
        yield url


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_log_probs_are_those_of_the_distribution_that_was_sampled_from(url, model, shape):
    answer = generate(url, PROMPT, n=16, max_tokens=10, **shape)
    assert_log_probs_are_those_of(model, answer, PROMPT, **shape)
