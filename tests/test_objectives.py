"""Objectives: the floor that keeps unlearning finite, DFT, and importance weights."""

import math

import pytest
import torch
from torch.testing import assert_close

from online_sft.losses import weighted_log_probs
from online_sft.objectives import dft, floored, importance_weights


def test_the_floor_changes_negative_weights_below_it_only():
    log_probs = torch.tensor([-1.0, -5.0, -1.0, -5.0], requires_grad=True)
    weights = torch.tensor([2.0, 2.0, -3.0, -3.0])
    values = floored(log_probs, weights, floor=-4.0)
    values.sum().backward()
    assert_close(values.detach(), torch.tensor([-2.0, -10.0, 3.0, 12.0]))
    assert_close(log_probs.grad, torch.tensor([2.0, 2.0, -3.0, 0.0]))


@pytest.mark.parametrize(("floor", "ends_below"), [(None, -1000.0), (-6.0, None)])
def test_a_negative_weight_diverges_without_the_floor_and_stops_at_it(floor, ends_below):
    """Gradient descent on one token of weight -1 among 20: -w log p has no minimum."""
    logits = torch.zeros(20, requires_grad=True)
    optimizer = torch.optim.SGD([logits], lr=10.0)
    for _ in range(400):
        log_prob = logits.log_softmax(0)[:1]
        weights = torch.tensor([-1.0])
        objective = weighted_log_probs(log_prob, weights) if floor is None else floored(log_prob, weights, floor=floor)
        optimizer.zero_grad()
        (-objective.sum()).backward()
        optimizer.step()
    final = logits.log_softmax(0)[0].item()
    if floor is None:
        assert final < ends_below
    else:
        assert floor - 11.0 < final <= floor  # one step of at most lr * |gradient| = 10 past it
        assert -(floored(logits.log_softmax(0)[:1], torch.tensor([-1.0]), floor=floor)).item() == floor


def test_dft_has_the_gradient_of_p_not_of_p_squared():
    log_probs = torch.tensor([-0.5, -2.0], requires_grad=True)
    dft(log_probs, torch.tensor([1.0, -3.0])).sum().backward()
    assert_close(log_probs.grad, torch.tensor([math.exp(-0.5), -3 * math.exp(-2.0)]))


def test_dft_is_trls_with_weights_one():
    log_probs = torch.tensor([[-0.5, -2.0, -4.0]])
    assert_close(-dft(log_probs, torch.ones(1, 3)), -log_probs * log_probs.exp())


def test_importance_weights_are_the_cut_ratio_of_whole_sequences():
    log_probs = torch.tensor([[-1.0, -2.0, -0.5, -9.0], [-1.0, -1.0, -1.0, -1.0]], requires_grad=True)
    ref = torch.tensor([[-1.5, -1.5, -1.5, -1.0], [-2.0, -2.0, -2.0, -2.0]])
    mask = torch.tensor([[1, 1, 1, 0], [1, 1, 1, 1]], dtype=torch.bool)
    sequences = torch.tensor([[4, 4, 5, 5], [6, 6, 6, 6]])
    weights = importance_weights(log_probs, ref, mask, sequences, max_weight=5.0)
    assert not weights.requires_grad
    expected = [math.exp(0.5 - 0.5), math.exp(1.0), min(math.exp(4.0), 5.0)]
    assert_close(weights[:, [0, 2]], torch.tensor([[expected[0], expected[1]], [expected[2], expected[2]]]))
    assert torch.equal(weights[0, :2], weights[0, :1].expand(2))
