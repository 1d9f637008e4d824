"""The inference server over real HTTP: what it samples, what it says of it, and whose weights it uses."""

import hashlib
import socket
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import replace

import pytest
import requests
import safetensors.torch
import torch
from inference_server_tools import (
    TIMEOUT_S,
    TOKEN,
    Gate,
    assert_answer_is_of,
    assert_log_probs_are_those_of,
    generate,
    reference_log_probs,
    refusal,
    running,
    send_weights,
    state_of,
)
from transformers import GenerationConfig, GPT2Config, GPT2LMHeadModel

from recipes.quickstart.tiny_model import build_model
from trainers.inference_server import generation
from trainers.inference_server.batching import Batcher, GenerationRequest
from trainers.inference_server.generation import AbortedError
from trainers.inference_server.policy import Policy
from trainers.inference_server.sampling import Sampling

PROMPT, OTHER = (3, 13, 4, 14, 15), (5, 6, 7, 8, 9, 10, 11, 12)
SHAPES = [{}, {"temperature": 0.7}, {"top_k": 5}, {"top_p": 0.8}, {"temperature": 1.3, "top_k": 7, "top_p": 0.6}]


@pytest.fixture
def policy(tokenizer):
    return Policy.of(build_model(tokenizer, seed=0), tokenizer)


@pytest.fixture
def url(policy):
    with running(policy) as url:
        yield url


@pytest.fixture
def new_model(tokenizer):
    return build_model(tokenizer, seed=1)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_log_probs_are_those_of_the_distribution_that_was_sampled_from(url, model, shape):
    assert_answer_is_of(model, generate(url, PROMPT, n=16, max_tokens=10, **shape), PROMPT, **shape)


@pytest.mark.parametrize("shape", [{}, {"temperature": 0.7, "top_k": 7, "top_p": 0.9}], ids=str)
@pytest.mark.parametrize("architecture", ["rotary positions", "learned positions"])
def test_prompts_of_different_lengths_in_a_batch_do_not_change_each_others_log_probs(tokenizer, architecture, shape):
    model = build_model(tokenizer, seed=0)
    if architecture == "learned positions":  # which a shift changes
        config = GPT2Config(n_embd=32, n_layer=2, n_head=2, initializer_range=0.3, vocab_size=model.config.vocab_size)
        model = GPT2LMHeadModel(config)
    prompts = [PROMPT, OTHER, PROMPT[:1], OTHER[:3]] * 4
    found = completions(Policy.of(model, tokenizer), prompts, Sampling(max_tokens=10, **shape))
    for prompt, completion in zip(prompts, found, strict=True):
        assert_log_probs_are_those_of(model, prompt, completion.tokens, completion.log_probs, **shape)


def test_greedy_is_generate_of_transformers_and_its_log_probs_are_not_sharpened(url, model):
    config = GenerationConfig(do_sample=False, max_new_tokens=20, eos_token_id=1, pad_token_id=0)
    expected = model.generate(torch.tensor([PROMPT]), generation_config=config)[0, len(PROMPT) :].tolist()
    answer = generate(url, PROMPT, n=3, max_tokens=20, temperature=0, top_k=2, top_p=0.1)
    assert answer["token_ids"] == [expected] * 3
    assert_answer_is_of(model, answer, PROMPT)


def test_the_models_own_generation_config_gives_it_eos_tokens_and_no_sampling_options(model, tokenizer):
    stubborn = build_model(tokenizer, seed=0)
    options = {"top_k": 1, "temperature": 0.1, "repetition_penalty": 9.0, "max_new_tokens": 1, "min_new_tokens": 9}
    stubborn.generation_config = GenerationConfig(eos_token_id=[4, 5], **options)
    with running(Policy.of(stubborn, tokenizer)) as url:
        answer = generate(url, PROMPT, n=64, max_tokens=12)
    assert_answer_is_of(model, answer, PROMPT)
    assert {tokens[-1] for tokens in answer["token_ids"] if len(tokens) < 12} == {1, 4, 5}
    assert not any({1, 4, 5} & set(tokens[:-1]) for tokens in answer["token_ids"])


def test_batched_together_is_the_same_as_alone(policy):
    prompts, greedy = [PROMPT, OTHER, PROMPT[:2]], Sampling(max_tokens=12, temperature=0)
    together = completions(policy, prompts, greedy)
    for prompt, completion in zip(prompts, together, strict=True):
        (alone,) = completions(policy, [prompt], greedy)
        assert completion.tokens == alone.tokens
        torch.testing.assert_close(torch.tensor(completion.log_probs), torch.tensor(alone.log_probs))


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_the_frequencies_of_samples_are_the_probabilities(policy, model, temperature):
    num, vocab = 4000, range(model.config.vocab_size)
    with running(policy, max_batch_rows=num) as url:
        answer = generate(url, PROMPT, n=num, max_tokens=1, seed=0, temperature=temperature)
    drawn = Counter(token for (token,) in answer["token_ids"])
    expected = [num * reference_log_probs(model, PROMPT, [token], temperature).exp().item() for token in vocab]
    chi_square = sum((drawn[token] - expected[token]) ** 2 / expected[token] for token in vocab)
    assert chi_square < 39  # of 15 degrees of freedom: one seed in 1500 is above


def test_samples_differ_unless_the_seed_is_the_same_and_leave_the_global_random_numbers_alone(url):
    before = torch.random.get_rng_state()
    free, other = (generate(url, PROMPT, n=8, max_tokens=8)["token_ids"] for _ in range(2))
    assert len(set(map(tuple, free + other))) > 12
    seeds = [5, 6, 5, 5]
    with ThreadPoolExecutor(8) as pool:  # others' requests in between
        noise = [pool.submit(generate, url, OTHER, n=4, max_tokens=8) for _ in range(8)]
        answers = [pool.submit(generate, url, PROMPT, n=4, max_tokens=8, seed=seed) for seed in seeds]
        first, other, *same = (answer.result()["token_ids"] for answer in answers)
        assert len(noise) == 8
    assert same == [first] * 2
    assert first != other
    assert torch.equal(torch.random.get_rng_state(), before)


def test_a_completion_ends_with_the_eos_which_is_part_of_it_or_at_max_tokens(url, model):
    answer = generate(url, PROMPT, n=64, max_tokens=12)
    for tokens, reason in zip(answer["token_ids"], answer["finish_reasons"], strict=True):
        assert (tokens.index(1) == len(tokens) - 1) if reason == "stop" else (len(tokens) == 12 and 1 not in tokens)
    assert set(answer["finish_reasons"]) == {"stop", "length"}
    assert_answer_is_of(model, answer, PROMPT)
    endless = generate(url, PROMPT, n=64, max_tokens=12, ignore_eos=True)
    assert set(endless["finish_reasons"]) == {"length"}
    assert any(1 in tokens for tokens in endless["token_ids"])


def test_texts_and_tokens_that_end_a_completion_are_among_its_tokens_and_not_in_its_text(url, tokenizer):
    ends = {"stop": ["12", "="], "stop_token_ids": [9]}
    for shown in (False, True):
        style = {"include_stop_str_in_output": shown, "skip_special_tokens": False}
        answer = generate(url, PROMPT, n=64, max_tokens=24, temperature=2.0, seed=1, **ends, **style)
        whole = [tokenizer.decode(tokens) for tokens in answer["token_ids"]]
        seen = set()
        by_row = zip(answer["text"], answer["token_ids"], answer["finish_reasons"], whole, strict=True)
        for text, tokens, reason, all_of_it in by_row:
            end = next((end for end in ["12", "=", "7", "<|end|>"] if all_of_it.endswith(end)), None)
            assert (reason == "stop") == (end is not None)
            assert text == (all_of_it if shown or end is None else all_of_it.removesuffix(end))
            assert not any(token in (1, 9) for token in tokens[:-1])
            seen.add(end)
        assert seen >= {"12", "=", "7", "<|end|>"}


def test_the_likeliest_tokens_are_told_when_asked_for(url, model):
    answer = generate(url, PROMPT, max_tokens=4, logprobs=3, top_k=2)
    (tokens,), (at_each,) = answer["token_ids"], answer["logprobs"]
    for position, (at,) in enumerate(at_each):
        text = [*PROMPT, *tokens[:position]]
        likeliest = model(torch.tensor([text])).logits[0, -1].topk(2).indices.tolist()
        assert {int(token) for token in at} == set(likeliest)  # the third cannot be drawn
        assert int(next(iter(at))) == tokens[position]


def test_what_waits_with_the_same_sampling_shares_batches_of_limited_size(policy):
    gate, sampling = Gate(policy.model, at=0), Sampling(max_tokens=4)
    batcher = Batcher(policy, max_batch_rows=6)
    first = batcher.submit(asked(sampling, n=1))
    assert gate.reached.wait(TIMEOUT_S)
    many = [batcher.submit(asked(sampling, n=n)) for n in (2, 3, 3, 2)]
    others = [batcher.submit(asked(replace(sampling, temperature=0.5), n=2)), batcher.submit(asked(sampling, seed=1))]
    large = batcher.submit(asked(sampling, n=14))
    gate.open()
    assert [len(future.result().completions) for future in (first, *many, *others)] == [1, 2, 3, 3, 2, 2, 1]
    assert len(large.result().completions) == 14
    assert gate.prompt_batches == [1, 2 + 3, 3 + 2, 2, 1, 6, 6, 2]
    batcher.close()


def test_each_request_gets_the_completions_of_its_own_prompt(policy):
    greedy, batcher = Sampling(max_tokens=6, temperature=0), Batcher(policy, max_batch_rows=64)
    prompts = [PROMPT, OTHER, PROMPT[:2], OTHER[:2]]
    expected = [completions(policy, [prompt], greedy)[0].tokens for prompt in prompts]
    gate = Gate(policy.model, at=0)
    futures = [batcher.submit(GenerationRequest((prompt,), 3, greedy, None)) for prompt in prompts]
    gate.open()
    found = [[completion.tokens for completion in future.result().completions] for future in futures]
    assert found == [[tokens] * 3 for tokens in expected]
    batcher.close()


def test_a_batch_that_fails_answers_500_and_the_next_goes_well(policy, model):
    def refuse_token_2(module, args, kwargs):
        if (kwargs["input_ids"] == 2).any():
            raise RuntimeError("out of memory")

    policy.model.register_forward_pre_hook(refuse_token_2, with_kwargs=True)
    body = {"prompt": {"prompt_token_ids": [2]}}
    with running(policy) as url:
        assert refusal(url, "/generate", body) == (500, "RuntimeError: out of memory")
        assert_answer_is_of(model, generate(url, PROMPT, max_tokens=1), PROMPT)


def test_a_client_that_goes_away_does_not_keep_others_from_their_answers(policy, model):
    gate, body = Gate(policy.model, at=0), b'{"prompt": "12", "n": 4}'
    with running(policy) as url:
        with socket.create_connection(("127.0.0.1", int(url.rsplit(":")[-1]))) as client:
            client.sendall(b"POST /generate HTTP/1.1\r\nHost: it\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))
            assert gate.reached.wait(TIMEOUT_S)
        gate.open()
        assert_answer_is_of(model, generate(url, PROMPT, n=4), PROMPT)


def test_logits_that_are_not_finite_are_an_error_and_no_samples(policy):
    with torch.no_grad():
        policy.model.model.norm.weight[0] = torch.nan
    with running(policy) as url:
        for temperature in (0, 1):
            status, message = refusal(url, "/generate", {"prompt": "12", "temperature": temperature})
            assert status == 500
            assert "not finite" in message


def test_new_weights_answer_under_their_version(url, model, new_model):
    assert generate(url, PROMPT)["policy_version"] == 0
    weights = state_of(new_model)
    answer = send_weights(url, weights, 7)
    sha256 = hashlib.sha256(safetensors.torch.save(weights)).hexdigest()
    assert answer.json() == {"policy_version": 7, "parameters": len(weights), "sha256": sha256}
    answer = generate(url, PROMPT, n=8, max_tokens=8)
    assert answer["policy_version"] == requests.get(f"{url}/health", timeout=TIMEOUT_S).json()["policy_version"] == 7
    assert_answer_is_of(new_model, answer, PROMPT)
    assert send_weights(url, dict(model.state_dict()) | {"lm_head.weight": model.lm_head.weight.clone()}, 8).ok
    assert_answer_is_of(model, generate(url, PROMPT, n=8, max_tokens=8), PROMPT)


def test_weights_of_another_precision_are_taken(url, new_model):
    weights = {name: weight.bfloat16() for name, weight in state_of(new_model).items()}
    assert send_weights(url, weights, 1).ok
    new_model.load_state_dict(weights, strict=False)
    assert_answer_is_of(new_model, generate(url, PROMPT, n=8, max_tokens=8), PROMPT)


NORM, EMBEDDING = "model.norm.weight", "model.embed_tokens.weight"
WRONG_WEIGHTS = [
    (lambda state: {name: state[name] for name in state if name != NORM}, f"1 parameters are missing: {NORM}"),
    (lambda state: {name: state[name] for name in state if name != EMBEDDING}, "2 parameters are missing: lm_head"),
    (lambda state: state | {"model.extra": torch.ones(1)}, "1 parameters are unknown: model.extra"),
    (lambda state: {f"module.{name}": value for name, value in state.items()}, "26 parameters are unknown: module."),
    (lambda state: state | {NORM: torch.ones(64)}, f"{NORM} [64] instead of [128]"),
    (lambda state: state | {NORM: torch.ones(128, dtype=torch.int32)}, f"{NORM} torch.int32 instead of torch.float32"),
    (lambda state: state | {NORM: state[NORM].index_fill(0, torch.tensor(3), torch.nan)}, f"not finite: {NORM}"),
    (lambda state: state | {NORM: torch.full((128,), 1e300, dtype=torch.float64)}, f"not finite: {NORM}"),
    (lambda state: state | {"lm_head.weight": state[EMBEDDING] + 1}, f"not the same: lm_head.weight and {EMBEDDING}"),
    (lambda state: safetensors.torch.save(state)[:-100], "not in the safetensors format"),
    (lambda state: b"", "not in the safetensors format"),
]


@pytest.mark.parametrize(("spoilt", "message"), WRONG_WEIGHTS, ids=[message for _, message in WRONG_WEIGHTS])
def test_weights_that_are_wrong_somewhere_are_refused_as_a_whole(url, model, new_model, spoilt, message):
    answer = send_weights(url, spoilt(state_of(new_model)), 7)
    assert answer.status_code == 400
    assert message in answer.json()["error"]["message"]
    assert_still_the_old(url, model)


WRONG_HEADERS = [
    ({"Authorization": "Bearer another"}, 401, "with the token of this server"),
    ({"Authorization": TOKEN}, 401, "with the token of this server"),
    ({"Authorization": None}, 401, "with the token of this server"),
    ({"X-Sha256": "0" * 64}, 400, "it was damaged on its way"),
    ({"X-Sha256": None}, 400, "the header X-Sha256 is missing"),
    ({"X-Policy-Version": None}, 400, "the header X-Policy-Version is missing"),
    ({"X-Policy-Version": "-1"}, 400, "must be an integer of 0 or more; got '-1'"),
]


@pytest.mark.parametrize(("headers", "status", "message"), WRONG_HEADERS, ids=str)
def test_weights_without_the_right_headers_are_refused(url, model, new_model, headers, status, message):
    answer = send_weights(url, state_of(new_model), 7, **headers)
    assert answer.status_code == status
    assert message in answer.json()["error"]["message"]
    assert_still_the_old(url, model)


def test_a_body_that_is_too_long_is_refused_in_words(policy, model, new_model):
    with running(policy, max_body_bytes=1000) as url:
        # more than the network's buffers hold
        for weights in (state_of(new_model), bytes(2**26)):
            answer = send_weights(url, weights, 7)
            assert answer.status_code == 413
            assert "at most 1000 bytes are taken" in answer.json()["error"]["message"]
        assert_still_the_old(url, model)


def test_weights_that_arrive_in_the_middle_of_a_batch_wait_for_its_end(policy, model, new_model):
    gate = Gate(policy.model, at=5)
    with running(policy) as url, ThreadPoolExecutor(2) as pool:
        batch = pool.submit(generate, url, PROMPT, n=4, max_tokens=20, ignore_eos=True)
        assert gate.reached.wait(TIMEOUT_S)
        update = pool.submit(send_weights, url, state_of(new_model), 7)
        wait([update], timeout=0.5)  # what swaps at once would do it in this time
        gate.open()
        assert batch.result()["policy_version"] == 0
        assert_answer_is_of(model, batch.result(), PROMPT)
        assert update.result().ok
        assert_answer_is_of(new_model, generate(url, PROMPT, n=4), PROMPT)


def test_what_waits_when_weights_arrive_is_sampled_from_them(policy, new_model):
    gate, batcher = Gate(policy.model, at=0), Batcher(policy, max_batch_rows=4)
    running_batch = batcher.submit(asked(Sampling(max_tokens=4)))
    assert gate.reached.wait(TIMEOUT_S)
    waiting = batcher.submit(asked(Sampling(max_tokens=4)))
    update = batcher.update(state_of(new_model), 7)
    gate.open()
    update.result()
    assert (running_batch.result().policy_version, waiting.result().policy_version) == (0, 7)
    (completion,) = waiting.result().completions
    assert_log_probs_are_those_of(new_model, PROMPT, completion.tokens, completion.log_probs)
    batcher.close()


def test_every_answer_is_of_the_version_that_it_names_while_weights_come_and_go(url, model, new_model):
    is_over = threading.Event()

    def keep_asking():
        answers = []
        while not is_over.is_set():
            answers.append(generate(url, PROMPT, n=2, max_tokens=8))
        return answers

    with ThreadPoolExecutor(3) as pool:
        askers = [pool.submit(keep_asking) for _ in range(3)]
        for version in range(1, 9):
            assert send_weights(url, state_of(new_model if version % 2 else model), version).ok
            assert generate(url, PROMPT)["policy_version"] == version
        is_over.set()
        answers = [answer for asker in askers for answer in asker.result()]
    for answer in answers:
        assert_answer_is_of(new_model if answer["policy_version"] % 2 else model, answer, PROMPT)


def test_closing_ends_a_batch_at_its_next_token_and_tells_those_who_wait(policy):
    gate, batcher = Gate(policy.model, at=3), Batcher(policy, max_batch_rows=1)
    futures = [batcher.submit(asked(Sampling(max_tokens=100, ignore_eos=True))) for _ in range(2)]
    assert gate.reached.wait(TIMEOUT_S)
    with ThreadPoolExecutor(1) as pool:
        closing = pool.submit(batcher.close)
        with pytest.raises(AbortedError):  # to come
            while True:
                futures.append(batcher.submit(asked(Sampling(max_tokens=1))))
        gate.open()
        closing.result()
    for future in futures:
        with pytest.raises(AbortedError):
            future.result()
    assert gate.num_passes == 4


def test_who_waits_for_an_answer_when_the_server_ends_hears_503(policy):
    gate, body = Gate(policy.model, at=0), {"prompt": "12", "n": 16384, "max_tokens": 100}
    with ThreadPoolExecutor(1) as pool:
        with running(policy) as url:
            answer = pool.submit(refusal, url, "/generate", body)
            assert gate.reached.wait(TIMEOUT_S)
            gate.open()
        assert answer.result()[0] == 503


def completions(policy, prompts, sampling):
    return generation.generate(
        policy,
        prompts,
        sampling,
        generator=torch.Generator().manual_seed(0),
        abort=threading.Event(),
    )


def asked(sampling, n=1, seed=None):
    return GenerationRequest((PROMPT,), n, sampling, seed)


def assert_still_the_old(url, model):
    answer = generate(url, PROMPT, n=2, max_tokens=8)
    assert answer["policy_version"] == 0
    assert_answer_is_of(model, answer, PROMPT)
