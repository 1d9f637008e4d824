"""Who talks to the inference server: OpenAI's client, Atropos, wrong requests, and the command that starts it."""

import asyncio
import os
import signal
import socket
import subprocess
import sys

import pytest
import requests
from inference_server_tools import (
    TIMEOUT_S,
    assert_answer_is_of,
    assert_log_probs_are_those_of,
    generate,
    refusal,
    running,
    send_weights,
    state_of,
)
from transformers import AutoTokenizer

from online_sft.launching import UsageError
from recipes.quickstart.tiny_model import build_model
from trainers.inference_server import serving
from trainers.inference_server.policy import Policy

PROMPT, TEXT, OTHER = [3, 13, 4, 14], "1 + 2 =", [5, 6]
CHAT = [{"role": "user", "content": "1 + 2"}]


@pytest.fixture(autouse=True)
def chat_tokenizer(tokenizer, monkeypatch):
    template = "{% for m in messages %}{{ m.content }}{% endfor %}{% if add_generation_prompt %} ={% endif %}"
    monkeypatch.setattr(tokenizer, "chat_template", template)


@pytest.fixture
def url(tokenizer):
    with running(Policy.of(build_model(tokenizer, seed=0), tokenizer)) as url:
        yield url


@pytest.fixture
def client(url):
    openai = pytest.importorskip("openai")
    with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
        yield client


def test_the_native_answer_has_the_fields_of_vllm(url, tokenizer):
    answer = generate(url, PROMPT, n=2, max_tokens=3, ignore_eos=True)
    fields = {"text", "prompt", "finish_reasons", "prompt_token_ids", "token_ids", "logprobs", "policy_version"}
    assert answer.keys() == fields
    assert answer["prompt"] == tokenizer.decode(PROMPT)
    assert answer["prompt_token_ids"] == PROMPT
    assert answer["text"] == [tokenizer.decode(tokens, skip_special_tokens=True) for tokens in answer["token_ids"]]
    for prompt in (TEXT, {"prompt": TEXT}):
        body = {"prompt": prompt, "temperature": 0}
        answer = requests.post(f"{url}/generate", json=body, timeout=TIMEOUT_S).json()
        assert answer.keys() == fields - {"logprobs"}
        assert answer["prompt_token_ids"] == PROMPT
        assert answer["token_ids"] == generate(url, PROMPT, temperature=0, max_tokens=16)["token_ids"]


def test_completions_of_openai(client, url, model, tokenizer):
    completion = client.completions.create(
        model="any", prompt=[TEXT, OTHER], n=3, max_tokens=5, logprobs=1, user="someone", extra_body={"top_k": 4}
    )
    assert completion.object == "text_completion"
    assert completion.model == "tiny"
    assert completion.system_fingerprint == "policy-0"
    assert [choice.index for choice in completion.choices] == list(range(6))
    assert completion.usage.prompt_tokens == len(PROMPT) + len(OTHER)
    num_tokens = sum(len(choice.logprobs.tokens) for choice in completion.choices)
    assert completion.usage.completion_tokens == num_tokens
    assert completion.usage.total_tokens == num_tokens + len(PROMPT) + len(OTHER)
    for prompt, choice in zip([PROMPT] * 3 + [OTHER] * 3, completion.choices, strict=True):
        tokens = [tokenizer.convert_tokens_to_ids(token) for token in choice.logprobs.tokens]
        assert_log_probs_are_those_of(model, prompt, tokens, choice.logprobs.token_logprobs, top_k=4)
        assert choice.finish_reason == ("stop" if tokens[-1] == 1 else "length")
        assert choice.text == tokenizer.decode(tokens, skip_special_tokens=True)
        for offset, token in zip(choice.logprobs.text_offset, choice.logprobs.tokens, strict=True):
            assert "".join(choice.logprobs.tokens)[offset:].startswith(token)
    greedy = [client.completions.create(model="any", prompt=prompt, temperature=0) for prompt in (TEXT, PROMPT)]
    assert greedy[0].choices[0].text == greedy[1].choices[0].text
    assert greedy[0].choices[0].logprobs is None
    assert len({answer.id for answer in [completion, *greedy]}) == 3


def test_chats_of_openai(client, model, tokenizer):
    chat = client.chat.completions.create(
        model="any", messages=CHAT, n=4, max_completion_tokens=6, logprobs=True, top_logprobs=2, metadata={"a": "b"}
    )
    assert chat.object == "chat.completion"
    assert chat.system_fingerprint == "policy-0"
    assert chat.usage.prompt_tokens == len(PROMPT)
    for choice in chat.choices:
        tokens = [tokenizer.convert_tokens_to_ids(at.token) for at in choice.logprobs.content]
        assert_log_probs_are_those_of(model, PROMPT, tokens, [at.logprob for at in choice.logprobs.content])
        assert choice.message.role == "assistant"
        assert choice.message.content == tokenizer.decode(tokens, skip_special_tokens=True)
        for at in choice.logprobs.content:
            assert len(at.top_logprobs) == 2
            assert at.top_logprobs[0].logprob >= max(at.logprob, at.top_logprobs[1].logprob)
            assert bytes(at.bytes).decode() == at.token
    parts = [{"role": "user", "content": [{"type": "text", "text": "1 + 2"}]}]
    texts = [
        client.chat.completions.create(model="any", messages=messages, temperature=0).choices[0].message.content
        for messages in (CHAT, parts)
    ]
    assert texts[0] == texts[1]


def test_max_tokens_is_that_of_vllm_where_nobody_says(client, url):
    endless = {"ignore_eos": True}
    assert len(generate(url, PROMPT, **endless)["token_ids"][0]) == 16
    assert len(generate(url, PROMPT, max_tokens=None, **endless)["token_ids"][0]) == 128 - len(PROMPT)
    assert client.completions.create(model="any", prompt=TEXT, extra_body=endless).usage.completion_tokens == 16
    chat = client.chat.completions.create(model="any", messages=CHAT, extra_body=endless)
    assert chat.usage.completion_tokens == 128 - len(PROMPT)


def test_the_models_are_one(client):
    (model,) = client.models.list().data
    assert (model.id, model.max_model_len) == ("tiny", 128)


NATIVE, COMPLETION, CHATS = "/generate", "/v1/completions", "/v1/chat/completions"
REFUSED = [
    (NATIVE, {"min_p": 0.1}, "min_p=0.1 is not supported"),
    (NATIVE, {"repetition_penalty": 1.2}, "repetition_penalty=1.2 is not supported"),
    (NATIVE, {"prompt_logprobs": 1}, "prompt_logprobs=1 is not supported"),
    (NATIVE, {"temprature": 1}, "temprature=1 is not supported"),
    (NATIVE, {"stream": True}, "stream=true is not supported"),
    (COMPLETION, {"stream": True}, "stream=true is not supported"),
    (COMPLETION, {"echo": True}, "echo=True is not supported"),
    (COMPLETION, {"presence_penalty": 0.5}, "presence_penalty=0.5 is not supported"),
    (CHATS, {"stream": True}, "stream=true is not supported"),
    (CHATS, {"tools": [{"type": "function"}]}, "tools=[{'type': 'function'}] is not supported"),
    (CHATS, {"reasoning": {"enabled": True}}, "reasoning={'enabled': True} is not supported"),
    (CHATS, {"top_logprobs": 2}, "top_logprobs needs logprobs=true"),
    (CHATS, {"messages": "hello"}, "messages must be a list"),
    (CHATS, {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "a message's content must be text"),
    (CHATS, {"chat_template_kwargs": {"messages": []}}, "the chat template cannot be applied"),
    (NATIVE, {"temperature": -1}, "temperature must be 0 or more; got -1"),
    (NATIVE, {"temperature": "hot"}, "temperature must be a number; got 'hot'"),
    (NATIVE, {"top_p": 0}, "top_p must be above 0 and at most 1; got 0"),
    (NATIVE, {"top_k": -2}, "top_k must be"),
    (NATIVE, {"n": 0}, "n must make between 1 and 16384 completions"),
    (NATIVE, {"n": True}, "n must be an integer; got True"),
    (NATIVE, {"logprobs": 21}, "at most 20 log-probs"),
    (NATIVE, {"seed": -1}, "seed must be between 0"),
    (NATIVE, {"stop": [3]}, "stop must be a text or a list of texts"),
    (NATIVE, {"stop": [""]}, "stop must not hold an empty string"),
    (NATIVE, {"stop_token_ids": ["a"]}, "stop_token_ids must be a list of token ids"),
    (NATIVE, {"ignore_eos": 1}, "ignore_eos must be true or false"),
    (NATIVE, {"max_tokens": 0}, "max_tokens must be at least 1"),
    (NATIVE, {"max_tokens": 125}, "the maximum context length is 128 tokens; the prompt has 4, and max_tokens is 125"),
    (CHATS, {"max_completion_tokens": 125}, "the prompt has 4, and max_completion_tokens is 125"),
    (COMPLETION, {"prompt": [2] * 128}, "a prompt of 128 leaves none"),
    (NATIVE, {"prompt": {"prompt_token_ids": [3, 16]}}, "token id 16 is out of the vocabulary of 16"),
    (NATIVE, {"prompt": {"prompt_token_ids": []}}, "the prompt is empty"),
    (NATIVE, {"prompt": {"prompt_embeds": "x"}}, "prompt must hold"),
    (NATIVE, {"prompt": None}, "prompt must be a text"),
    (COMPLETION, {"prompt": []}, "the prompt is empty"),
    (COMPLETION, {"prompt": [[3], "1", 2.5]}, "prompt must be a text or a list of token ids; got 2.5"),
]


def test_nothing_that_is_asked_for_is_ignored(url):
    good = {NATIVE: {"prompt": {"prompt_token_ids": PROMPT}}, COMPLETION: {"prompt": TEXT}, CHATS: {"messages": CHAT}}
    for path, body, message in REFUSED:
        status, found = refusal(url, path, good[path] | body)
        assert (status, message in found) == (400, True), (body, found)
    neutral = {"stream": False, "min_p": 0.0, "presence_penalty": 0, "logit_bias": {}, "top_k": None, "user": "me"}
    for path, body in good.items():
        assert requests.post(url + path, json=body | neutral, timeout=TIMEOUT_S).status_code == 200


@pytest.mark.parametrize("body", [b"", b"{", b"[1]", b"\xff"], ids=str)
def test_a_body_that_is_no_json_object_is_refused(url, body):
    answer = requests.post(f"{url}/generate", data=body, timeout=TIMEOUT_S)
    assert answer.status_code == 400
    assert answer.json()["error"]["message"]


def test_a_tokenizer_without_a_chat_template_is_told(url, tokenizer, monkeypatch):
    monkeypatch.setattr(tokenizer, "chat_template", None)
    status, message = refusal(url, CHATS, {"messages": CHAT})
    assert status == 400
    assert "chat_template is not set" in message


def test_atropos_gets_tokens_and_log_probs_of_the_policy(url, folder, model):
    pytest.importorskip("atroposlib")
    from atroposlib.envs.server_handling.server_manager import APIServerConfig, ServerManager

    config = APIServerConfig(
        base_url=f"{url}/v1",
        model_name="any",
        tokenizer_name=folder,
        api_key="x",
        server_type="vllm",
        timeout=TIMEOUT_S,
    )

    async def play():
        manager = ServerManager([config])
        async with manager.managed_server(tokenizer=AutoTokenizer.from_pretrained(folder)) as managed:
            answer = await managed.completion(prompt=TEXT, n=12, max_tokens=8, temperature=0.7, top_p=0.9, stop=["-"])
            nodes = managed.get_state()["nodes"]
        chat = await manager.chat_completion(messages=CHAT, n=2, max_tokens=4)
        completion = await manager.completion(prompt=TEXT, n=2, max_tokens=4, split="eval")
        await manager.servers[0].openai.close()
        return answer, nodes, [*chat.choices, *completion.choices], manager.servers[0].server_healthy

    answer, nodes, choices, is_healthy = asyncio.run(play())
    assert len(nodes) == 12
    assert len(choices) == 4
    assert is_healthy
    for node, choice in zip(nodes, answer.choices, strict=True):
        completion = node.tokens[len(PROMPT) :]
        assert node.tokens[: len(PROMPT)] == PROMPT
        assert node.masked_tokens == [-100] * len(PROMPT) + completion
        assert node.logprobs[: len(PROMPT)] == [1.0] * len(PROMPT)
        log_probs = node.logprobs[len(PROMPT) :]
        assert_log_probs_are_those_of(model, PROMPT, completion, log_probs, temperature=0.7, top_p=0.9)
        assert choice.finish_reason == ("stop" if completion[-1] in (1, 12) else "length")


def test_the_command_prints_its_line_takes_weights_and_ends_with_code_0_on_sigterm(folder, model, tokenizer):
    command = [sys.executable, "-m", "trainers.inference_server", folder, "--port", "0", "--served_model_name", "it"]
    root = os.path.dirname(os.path.dirname(serving.__file__)) + "/.."
    environment = {**os.environ, "PYTHONPATH": root, "ONLINE_SFT_SERVE_TOKEN": "secret"}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
    with process:
        line = process.stdout.readline()
        start = f"serving {folder} (policy version 0) on http://127.0.0.1:"
        assert line.startswith(start), process.stderr.read()
        url = f"http://127.0.0.1:{int(line.removeprefix(start))}"
        assert_answer_is_of(model, generate(url, PROMPT, n=4), PROMPT)
        assert requests.get(f"{url}/v1/models", timeout=TIMEOUT_S).json()["data"][0]["id"] == "it"
        new_model = build_model(tokenizer, seed=1)
        assert send_weights(url, state_of(new_model), 3, Authorization="Bearer secret").ok
        assert_answer_is_of(new_model, generate(url, PROMPT, n=4), PROMPT)
        process.send_signal(signal.SIGTERM)
        rest, errors = process.communicate(timeout=TIMEOUT_S)
        assert (process.returncode, rest) == (0, ""), errors
        assert "Error" not in errors


def test_a_port_that_is_taken_and_a_model_that_is_not_there_are_the_users_mistakes(folder, capsys):
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(UsageError, match="Address already in use"):
        serving.main([folder, "--port", str(taken.getsockname()[1])])
    with pytest.raises(UsageError, match="nowhere"):
        serving.main(["./nowhere", "--port", "0"])
    with pytest.raises(UsageError, match="max_batch_rows must be at least 1; got 0"):
        serving.main([folder, "--port", "0", "--max_batch_rows", "0"])
    assert "ONLINE_SFT_SERVE_TOKEN=" in capsys.readouterr().err
