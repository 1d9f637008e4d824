"""Completions of a rollout function: whose log-probs count, which tokens, and what share of a batch a step takes."""

import copy

import pytest
import torch
from datasets import Dataset
from test_online_sft_trainer import assert_moved_by_gradient, run, sequence_log_prob
from torch.testing import assert_close

from online_sft import OnlineSFTConfig, OnlineSFTTrainer

PROMPTS = ["1 + 1 =", "2 + 3 =", "7 + 0 =", "5 + 2 ="]
DATA = Dataset.from_list([{"prompt": prompt} for prompt in PROMPTS])
COMPLETIONS = [[3, 7, 1], [5, 1], [9, 2, 4, 1], [6, 6], [4, 1], [8, 3, 3, 1], [2, 1], [7, 7, 7, 5]]  # 1 is the end
REWARDS = [1.0, 0.0, 0.5, -1.0, 2.0, 0.25, 0.0, 1.5]


class Rollouts:
    """The same completions for every batch of eight, with what else TRL takes from a rollout function."""

    def __init__(self, tokenizer, **fields):
        self.tokenizer, self.fields, self.prompts = tokenizer, fields, []

    def __call__(self, prompts, trainer):
        self.prompts += prompts
        ids = [self.tokenizer(prompt)["input_ids"] for prompt in prompts]
        return {"prompt_ids": ids, "completion_ids": COMPLETIONS, "logprobs": None, **self.fields}


def reward(completions, **columns):
    return REWARDS


@pytest.fixture
def args(cpu_args):
    plain = {"optim": "sgd", "learning_rate": 1.0, "max_grad_norm": 0.0, "weight_decay": 0.0, "max_steps": 1}
    sizes = {"per_device_train_batch_size": 8, "num_generations": 4, "max_completion_length": 6}
    return {**cpu_args, **plain, **sizes, "baseline": "none", "importance_sampling_clip_max": None}


def expected_gradient(model, tokenizer, rollouts, *, weights=None, masks=None, rows=range(8), denominator=8):
    policy = copy.deepcopy(model)
    loss = 0.0
    for i in rows:
        prompt_ids = tokenizer(rollouts.prompts[i])["input_ids"]
        log_probs = policy(torch.tensor([prompt_ids + COMPLETIONS[i]])).logits[0].log_softmax(-1)
        mask = masks[i] if masks else [1] * len(COMPLETIONS[i])
        s = sum(
            m * log_probs[len(prompt_ids) + t - 1, y] for t, (y, m) in enumerate(zip(COMPLETIONS[i], mask, strict=True))
        )
        loss = loss - (weights[i] if weights else 1.0) * REWARDS[i] * s / denominator
    loss.backward()
    return policy


def test_the_ratio_is_to_the_log_probs_that_the_sampler_reports_even_on_stale_samples(model, tokenizer, args):
    before = copy.deepcopy(model).double()
    reported = [[-1.5 - 0.1 * i for _ in ids] for i, ids in enumerate(COMPLETIONS)]
    rollouts = Rollouts(tokenizer, logprobs=reported)
    options = {**args, "num_iterations": 2}  # TRL keeps the policy's own log-probs, too
    trainer = run(model.double(), tokenizer, reward, options, DATA, rollout_func=rollouts)
    ratios = [
        (sequence_log_prob(before, tokenizer, prompt, ids) - sum(logs)).exp().item()
        for prompt, ids, logs in zip(rollouts.prompts, COMPLETIONS, reported, strict=True)
    ]
    entry = trainer.state.log_history[0]
    assert_close([entry["importance/min"], entry["importance/max"]], [min(ratios), max(ratios)], rtol=1e-4, atol=1e-5)
    assert_moved_by_gradient(trainer, expected_gradient(before, tokenizer, rollouts, weights=ratios))


def test_tokens_that_the_environment_wrote_have_no_gradient(model, tokenizer, args):
    before = copy.deepcopy(model).double()
    masks = [[int(t % 2 == 0) for t in range(len(ids))] for ids in COMPLETIONS]
    rollouts = Rollouts(tokenizer, env_mask=masks)
    trainer = run(model.double(), tokenizer, reward, args, DATA, rollout_func=rollouts)
    assert_moved_by_gradient(trainer, expected_gradient(before, tokenizer, rollouts, masks=masks))


def test_truncated_completions_have_no_gradient_and_are_in_no_mean(model, tokenizer, args):
    before = copy.deepcopy(model).double()
    rollouts = Rollouts(tokenizer)
    options = {**args, "mask_truncated_completions": True}
    trainer = run(model.double(), tokenizer, reward, options, DATA, rollout_func=rollouts)
    ended = [i for i, ids in enumerate(COMPLETIONS) if ids[-1] == tokenizer.eos_token_id]
    assert len(ended) == 6
    assert_moved_by_gradient(trainer, expected_gradient(before, tokenizer, rollouts, rows=ended))
    assert_close(trainer.state.log_history[0]["advantage"], sum(REWARDS[i] for i in ended) / 6)


def test_a_step_takes_its_share_of_a_generation_batch(model, tokenizer, args):
    """Two steps of one micro-batch of four on a batch of eight: each divides by four."""
    before = copy.deepcopy(model).double()
    rollouts = Rollouts(tokenizer)
    options = OnlineSFTConfig(**{**args, "per_device_train_batch_size": 4, "steps_per_generation": 2})
    trainer = OnlineSFTTrainer(model.double(), reward, options, DATA, processing_class=tokenizer, rollout_func=rollouts)
    seen = []
    compute_loss = trainer._compute_loss
    trainer._compute_loss = lambda m, inputs: seen.append(inputs["completion_ids"]) or compute_loss(m, inputs)
    trainer.train()
    (used,) = seen
    rows = [COMPLETIONS.index([t for t in row.tolist() if t != tokenizer.pad_token_id]) for row in used]
    assert len(rows) == 4
    assert_moved_by_gradient(trainer, expected_gradient(before, tokenizer, rollouts, rows=rows, denominator=4))


def test_rollouts_of_ones_own_are_named_in_a_warning_and_in_the_model_card(model, tokenizer, args, caplog):
    trainer = run(model, tokenizer, reward, args, DATA, rollout_func=Rollouts(tokenizer))
    assert "bias: rollout_func=True: completions are whatever it samples" in caplog.text
    trainer.create_model_card(model_name="mine")
    with open("out/README.md") as card:
        assert "- `rollout_func=True`" in card.read()


@pytest.mark.parametrize("penalty", [False, True])
def test_a_penalty_that_always_has_a_number_does_not_make_the_unscorable_scorable(model, tokenizer, args, penalty):
    def sometimes(completions, **columns):
        return [None if i % 2 else 1.0 for i in range(len(completions))]

    options = {**args, "unscorable_if": "all", "apply_overlong_penalty": penalty, "overlong_buffer_length": 1}
    trainer = run(model, tokenizer, sometimes, options, DATA, rollout_func=Rollouts(tokenizer))
    entry = trainer.state.log_history[0]
    assert (entry["unscorable"], entry["reward"]) == (0.5, 1.0)
