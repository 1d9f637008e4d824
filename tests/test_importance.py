import math

import pytest
import torch
from torch.testing import assert_close

from online_sft.importance import IMPORTANCE_SAMPLING_MODES, importance_weights, reweighted, sequence_ratio

# ratios of tokens: 2, 1/2, 3 (mask 0) and 4, 4, 1; of completions: 1 and 16
LOG_PROBS = torch.tensor([[2.0, 0.5, 3.0], [4.0, 4.0, 1.0]]).log() - 5.0
SAMPLER = torch.full((2, 3), -5.0)
MASK = torch.tensor([[1, 1, 0], [1, 1, 1]])


def weights(mode, **limits):
    return importance_weights(LOG_PROBS, SAMPLER, MASK, mode=mode, **limits)


@pytest.mark.parametrize(
    ("mode", "limits", "expected"),
    [
        ("sequence_truncate", {}, [[1, 1, 1], [16, 16, 16]]),
        ("sequence_truncate", {"clip_max": 3.0}, [[1, 1, 1], [3, 3, 3]]),
        ("sequence_truncate", {"clip_min": 2.0}, [[2, 2, 2], [16, 16, 16]]),
        ("sequence_mask", {"clip_max": 3.0}, [[1, 1, 1], [0, 0, 0]]),
        ("sequence_mask", {"clip_min": 2.0}, [[0, 0, 0], [16, 16, 16]]),
        ("token_truncate", {}, [[2, 0.5, 1], [4, 4, 1]]),
        ("token_truncate", {"clip_max": 3.0}, [[2, 0.5, 1], [3, 3, 1]]),
        ("token_mask", {"clip_min": 0.6, "clip_max": 3.0}, [[2, 0, 1], [0, 0, 1]]),
        ("none", {"clip_max": 0.5}, [[1, 1, 1], [1, 1, 1]]),
    ],
)
def test_weights_by_hand(mode, limits, expected):
    assert_close(weights(mode, **limits), torch.tensor(expected, dtype=torch.float32))


def test_the_ratio_of_a_completion_is_the_product_over_the_tokens_of_the_policy():
    assert_close(sequence_ratio(LOG_PROBS, SAMPLER, MASK), torch.tensor([1.0, 16.0]))


@pytest.mark.parametrize("mode", IMPORTANCE_SAMPLING_MODES)
def test_the_policy_itself_has_weight_one(mode):
    assert_close(
        importance_weights(LOG_PROBS, LOG_PROBS, MASK, mode=mode, clip_min=0.5, clip_max=2.0), torch.ones(2, 3)
    )


def test_a_log_prob_that_the_engine_could_not_give_counts_as_the_policys_own():
    sampler = SAMPLER.clone()
    sampler[1, 0] = math.nan
    assert_close(sequence_ratio(LOG_PROBS, sampler, MASK), torch.tensor([1.0, 4.0]))


def test_no_gradient_flows_into_the_weights():
    log_probs = LOG_PROBS.clone().requires_grad_()
    assert not importance_weights(log_probs, SAMPLER, MASK).requires_grad
    assert not sequence_ratio(log_probs, SAMPLER, MASK).requires_grad


def test_reweighting_leaves_the_values_and_multiplies_the_gradients():
    log_probs = LOG_PROBS.clone().requires_grad_()
    factors = torch.tensor([[1.0, 2.0, 3.0], [0.0, 0.5, 16.0]])
    changed = reweighted(log_probs, factors)
    assert_close(changed, LOG_PROBS, rtol=0, atol=0)
    changed.sum().backward()
    assert_close(log_probs.grad, factors)
