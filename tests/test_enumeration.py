import pytest
import torch
from torch.testing import assert_close
from transformers.generation.logits_process import (
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from online_sft.enumeration import EnumerablePolicy, sampler_logits

POLICY = EnumerablePolicy.build(seed=0)
PREFIXES = [(), (1,), (2,), (3,)]  # of the first rows


def test_it_lists_every_completion_once():
    assert POLICY.mask.sum(1).bincount().tolist() == [0, 1, 3, 36]
    assert len({tuple(tokens[m.bool()].tolist()) for tokens, m in zip(POLICY.tokens, POLICY.mask, strict=True)}) == 40
    assert POLICY.is_truncated.sum() == 27
    ends = POLICY.tokens[torch.arange(40), POLICY.mask.sum(1) - 1]
    assert ((ends == 0) == ~POLICY.is_truncated).all()


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_the_probabilities_of_a_prompts_completions_add_up_to_one(temperature):
    assert_close(POLICY.log_probs(POLICY.logits, temperature).sum(-1).exp().sum(-1), torch.ones(2).double())


def test_one_prompt_is_easy_and_one_is_hard():
    expected = (POLICY.log_probs(POLICY.logits).sum(-1).exp() * POLICY.rewards).sum(-1)
    assert expected[0] > 2 * expected[1]
    assert POLICY.rewards.unique().tolist() == [0.0, 0.5, 1.0]


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_token_gradients_are_those_of_autograd(temperature):
    logits = POLICY.logits.clone().requires_grad_()
    log_probs = POLICY.log_probs(logits, temperature)
    gradients = POLICY.token_gradients(temperature)
    for prompt, completion, token in [(0, 0, 0), (1, 5, 1), (0, 39, 2), (1, 20, 0)]:
        (expected,) = torch.autograd.grad(log_probs[prompt, completion, token], logits, retain_graph=True)
        assert_close(gradients[prompt, completion, token], expected[prompt].flatten())


def test_the_exact_gradient_is_a_difference_quotient():
    def objective(logits):
        s, s_ref = POLICY.log_probs(logits).sum(-1), POLICY.log_probs(POLICY.ref_logits).sum(-1)
        return (s.exp() * (POLICY.rewards - 0.3 * (s - s_ref))).sum(-1).mean()

    exact = POLICY.exact_gradient(0.3)
    for index in [(0, 0, 0), (1, 4, 2), (0, 12, 3)]:
        step = torch.zeros_like(POLICY.logits)
        step[index] = 1e-6
        quotient = (objective(POLICY.logits + step) - objective(POLICY.logits - step)) / 2e-6
        assert_close(-exact[index], quotient, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize(
    ("options", "processors"),
    [
        ({"temperature": 0.7}, [TemperatureLogitsWarper(0.7)]),
        ({"top_k": 2}, [TopKLogitsWarper(2)]),
        ({"top_p": 0.8}, [TopPLogitsWarper(0.8)]),
        ({"top_p": 0.1}, [TopPLogitsWarper(0.1)]),
        ({"min_p": 0.3}, [MinPLogitsWarper(0.3)]),
        ({"repetition_penalty": 1.5}, [RepetitionPenaltyLogitsProcessor(1.5)]),
        (
            {"repetition_penalty": 0.8, "temperature": 1.5, "top_k": 3, "top_p": 0.7},
            [
                RepetitionPenaltyLogitsProcessor(0.8),
                TemperatureLogitsWarper(1.5),
                TopKLogitsWarper(3),
                TopPLogitsWarper(0.7),
            ],
        ),
    ],
)
def test_the_sampler_is_that_of_transformers(options, processors):
    ours = sampler_logits(POLICY, POLICY.logits, **options)
    for row, prefix in enumerate(PREFIXES):
        scores = POLICY.logits[:, row].clone()
        for processor in processors:
            if prefix or not isinstance(processor, RepetitionPenaltyLogitsProcessor):
                scores = processor(torch.tensor([prefix, prefix]), scores)
        assert_close(ours[:, row].softmax(-1), scores.softmax(-1))
