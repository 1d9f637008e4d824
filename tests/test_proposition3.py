"""The loss of a completion from the log-probs of its tokens. That its expectation is right: test_verification.py."""

import math
from dataclasses import replace

import pytest
import torch
from torch.testing import assert_close

from online_sft.estimators import prop3, prop3_stable
from online_sft.proposition3 import Proposition3

MASK = torch.tensor([[1, 1, 0], [1, 1, 1]])
S, S_REF = torch.tensor([-3.0, -6.0]), torch.tensor([-4.0, -5.0])
ADVANTAGES = torch.tensor([2.0, -1.0])


def token_log_probs():
    return torch.tensor([[-1.0, -2.0, -9.0], [-1.0, -2.0, -3.0]], requires_grad=True)


REF = torch.tensor([[-2.0, -2.0, -7.0], [-1.0, -1.0, -3.0]])


def slopes(loss, **inputs):
    log_probs = token_log_probs()
    loss(log_probs, MASK, ADVANTAGES, REF, **inputs).loss.sum().backward()
    return log_probs.grad


def test_s_is_the_sum_over_the_tokens_of_the_mask():
    terms = Proposition3(beta=0.1)(token_log_probs(), MASK, ADVANTAGES, REF)
    assert_close(terms.log_prob, S)
    assert_close(terms.loss.detach(), prop3_stable(S, S_REF, ADVANTAGES, beta=0.1))
    assert_close(terms.advantage, torch.tensor([2.0 - 0.1, -1.0 + 0.1]))
    assert_close(terms.weight, terms.advantage / S)


@pytest.mark.parametrize("estimator", ["prop3", "prop3_stable"])
def test_the_slope_of_every_token_of_the_mask_is_beta_minus_a_and_of_others_nothing(estimator):
    expected = torch.tensor([0.1 - 1.9, 0.1 + 0.9]).unsqueeze(1) * MASK
    assert_close(slopes(Proposition3(estimator=estimator, beta=0.1)), expected)


def test_kl_is_k1_and_k3_of_the_same_tokens():
    terms = Proposition3(beta=0.1)(token_log_probs(), MASK, ADVANTAGES, REF)
    assert_close(terms.kl, torch.tensor([1.0, -1.0]))
    assert_close(terms.kl_k3, torch.tensor([math.exp(-1) - 1 + 1, math.exp(1) - 1 - 1]))


def test_without_a_reference_there_is_no_kl():
    terms = Proposition3()(token_log_probs(), MASK, ADVANTAGES)
    assert terms.kl.isnan().all()
    assert terms.kl_k3.isnan().all()


def test_length_normalisation_divides_s_and_reference_by_the_number_of_tokens():
    log_probs = token_log_probs()
    terms = Proposition3(beta=0.1, normalize_logprob_by_length=True)(log_probs, MASK, ADVANTAGES, REF)
    assert_close(terms.log_prob, torch.tensor([-1.5, -2.0]))
    assert_close(terms.advantage, torch.tensor([2.0 - 0.1 * 0.5, -1.0 + 0.1 / 3]))
    terms.loss.sum().backward()
    assert_close(log_probs.grad, ((0.1 - terms.advantage) / torch.tensor([2.0, 3.0])).unsqueeze(1) * MASK)


def test_a_clipped_log_prob_has_no_gradient():
    loss = Proposition3(beta=0.1, clip_logprob_min=-5.0)
    terms = loss(token_log_probs(), MASK, ADVANTAGES, REF)
    assert_close(terms.log_prob, torch.tensor([-3.0, -5.0]))
    assert_close(terms.advantage, torch.tensor([1.9, -1.0]))  # the reference of the second is at -5 as well
    assert_close(slopes(loss)[1], torch.zeros(3))
    assert_close(slopes(loss)[0], slopes(replace(loss, clip_logprob_min=None))[0])


def test_a_clipped_weight_is_a_constant_weight_where_it_binds():
    """w = 1.9/-3 and -0.9/-6, cut at 0.2: L = -(w s + w s^2 / 2), dL/ds = -(w + w s) for the first."""
    loss = Proposition3(estimator="prop3", beta=0.1, clip_weight_value=0.2)
    assert_close(slopes(loss)[0], torch.tensor([0.2 + 0.2 * -3.0] * 2 + [0.0]))
    assert_close(slopes(loss)[1], slopes(Proposition3(beta=0.1))[1])


@pytest.mark.parametrize("s", [0.0, -1e-9, -1e-3])
def test_a_clipped_weight_near_s_0_is_finite(s):
    log_prob = torch.tensor([s], requires_grad=True)
    prop3(log_prob, None, torch.tensor([1.0]), beta=0.0, clip_weight_value=1.0).sum().backward()
    assert_close(log_prob.grad, torch.tensor([1.0 + s]))


def test_the_guard_of_prop3_is_where_denom_eps_says():
    at = torch.tensor([-3.0])
    written = [prop3(at, None, torch.tensor([1.0]), beta=0.0, denom_eps=eps) for eps in (2.9, 3.1)]
    stable = prop3_stable(at, None, torch.tensor([1.0]), beta=0.0)
    assert_close(written[1], stable)
    assert abs((written[0] - stable).item()) > 1  # the same gradient, another value


# --- completions of another policy


@pytest.mark.parametrize("estimator", ["prop3", "prop3_stable"])
def test_the_slopes_are_multiplied_by_the_ratio_of_the_completion(estimator):
    sampler = torch.tensor([[-1.5, -2.0, -1.0], [-1.0, -2.5, -3.5]])  # ratios e^0.5 and e^1
    loss = Proposition3(estimator=estimator, beta=0.1)
    ratio = torch.tensor([math.exp(0.5), math.exp(1.0)])
    assert_close(slopes(loss, sampler_log_probs=sampler), slopes(loss) * ratio.unsqueeze(1))
    terms = loss(token_log_probs(), MASK, ADVANTAGES, REF, sampler)
    assert_close(terms.importance_ratio, ratio)
    assert_close(terms.importance_weight, ratio)
    assert_close(terms.importance_clipped, torch.zeros(2))
    assert_close(terms.advantage, loss(token_log_probs(), MASK, ADVANTAGES, REF).advantage)


def test_a_cut_ratio_is_reported_as_such():
    sampler = torch.tensor([[-1.5, -2.0, -1.0], [-1.0, -2.5, -3.5]])
    loss = Proposition3(beta=0.1, importance_sampling_clip_max=2.0)
    terms = loss(token_log_probs(), MASK, ADVANTAGES, REF, sampler)
    assert_close(terms.importance_ratio, torch.tensor([math.exp(0.5), math.exp(1.0)]))
    assert_close(terms.importance_weight, torch.tensor([math.exp(0.5), 2.0]))
    assert_close(terms.importance_clipped, torch.tensor([0.0, 1.0]))


def test_token_weights_multiply_each_tokens_slope():
    sampler = torch.tensor([[-1.5, -2.0, -1.0], [-1.0, -2.5, -3.5]])
    loss = Proposition3(beta=0.1, importance_sampling_mode="token_truncate", importance_sampling_clip_max=1.2)
    ratios = torch.tensor([[1.2, 1.0, 1.0], [1.0, 1.2, 1.2]])
    assert_close(slopes(loss, sampler_log_probs=sampler), slopes(Proposition3(beta=0.1)) * ratios)
    terms = loss(token_log_probs(), MASK, ADVANTAGES, REF, sampler)
    assert_close(terms.importance_clipped, torch.tensor([1 / 2, 2 / 3]))


def test_a_completion_without_tokens_of_the_policy_has_no_gradient():
    log_probs = token_log_probs()
    Proposition3(beta=0.1, normalize_logprob_by_length=True)(
        log_probs, torch.zeros_like(MASK), ADVANTAGES, REF
    ).loss.sum().backward()
    assert_close(log_probs.grad, torch.zeros(2, 3))
