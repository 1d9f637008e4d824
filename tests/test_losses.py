"""The ladder of STYLE for the weighted negative log-likelihood."""

import math

import pytest
import torch
import torch.nn.functional as F
from reference import weighted_nll_loop
from torch.testing import assert_close

from online_sft import token_log_probs, weighted_log_probs, weighted_nll, weighted_nll_from_logits

LENGTHS = [7, 4, 2, 1]


@pytest.fixture
def ragged():
    """Logits, labels and signed weights of ragged rows with a masked token in the middle. float64."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(4, 7, 11, generator=generator, dtype=torch.float64)
    labels = torch.randint(0, 11, (4, 7), generator=generator)
    weights = torch.randn(4, 7, generator=generator, dtype=torch.float64)
    for row, length in enumerate(LENGTHS):
        labels[row, length:] = -100
    labels[0, 3] = -100
    return logits, labels, weights


def test_uniform_logits_cost_log_vocabulary_per_token():
    logits, labels = torch.zeros(2, 5, 8), torch.randint(0, 8, (2, 5))
    loss = weighted_nll_from_logits(logits, labels, torch.ones(2, 5), denominator=8)
    assert_close(loss, torch.tensor(math.log(8)))


@pytest.mark.parametrize("temperature", [1.0, 0.7, 2.5])
def test_equals_the_loop_on_ragged_masked_signed_input(ragged, temperature):
    logits, labels, weights = ragged
    loss = weighted_nll_from_logits(logits, labels, weights, denominator=3.5, temperature=temperature)
    assert_close(loss.item(), weighted_nll_loop(logits, labels, weights, 3.5, temperature))


def test_gradient_is_weight_times_softmax_minus_onehot(ragged):
    logits, labels, weights = ragged
    logits.requires_grad_()
    weighted_nll_from_logits(logits, labels, weights, denominator=5).backward()
    scored = labels[:, 1:] != -100
    onehot = F.one_hot(labels[:, 1:].clamp(min=0), 11)
    by_hand = (weights[:, 1:] * scored)[..., None] * (logits[:, :-1].softmax(-1) - onehot) / 5
    assert_close(logits.grad[:, :-1], by_hand.detach())
    assert_close(logits.grad[:, -1], torch.zeros(4, 11, dtype=torch.float64))


def test_gradcheck(ragged):
    logits, labels, weights = ragged
    small = logits[:2, :4].clone().requires_grad_()
    assert torch.autograd.gradcheck(
        lambda x: weighted_nll_from_logits(x, labels[:2, :4], weights[:2, :4], denominator=3, temperature=0.8), (small,)
    )


def test_no_gradient_reaches_the_weights(ragged):
    logits, labels, weights = ragged
    weights.requires_grad_()
    logits.requires_grad_()
    weighted_nll_from_logits(logits, labels, weights, denominator=1).backward()
    assert weights.grad is None


def test_unit_weights_are_torchs_cross_entropy(ragged):
    logits, labels, _ = ragged
    num_tokens = (labels[:, 1:] != -100).sum()
    loss = weighted_nll_from_logits(logits, labels, torch.ones(4, 7), denominator=num_tokens)
    assert_close(loss, F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten()))


def test_a_weight_belongs_to_the_token_it_stands_at_not_to_the_one_before(ragged):
    logits, labels, _ = ragged
    only_token_2 = torch.zeros(4, 7, dtype=torch.float64)
    only_token_2[0, 2] = 1.0
    loss = weighted_nll_from_logits(logits, labels, only_token_2, denominator=1)
    assert_close(loss, -logits[0, 1].log_softmax(-1)[labels[0, 2]])


def test_a_sequence_weight_is_the_same_weight_on_every_token(ragged):
    logits, labels, weights = ragged
    per_sequence = weights[:, 0]
    per_token = per_sequence[:, None].expand(4, 7)
    assert_close(
        weighted_nll_from_logits(logits, labels, per_sequence, denominator=2),
        weighted_nll_from_logits(logits, labels, per_token, denominator=2),
    )


def test_padding_batch_order_and_micro_batches_do_not_change_the_sum(ragged):
    logits, labels, weights = ragged

    def loss(rows, width=7):
        padded_labels = F.pad(labels[rows], (0, width - 7), value=-100)
        padded = [F.pad(x[rows], pad) for x, pad in ((logits, (0, 0, 0, width - 7)), (weights, (0, width - 7)))]
        return weighted_nll_from_logits(padded[0], padded_labels, padded[1], denominator=6)

    whole = loss([0, 1, 2, 3])
    assert_close(loss([0, 1, 2, 3], width=12), whole)
    assert_close(loss([2, 0, 3, 1]), whole)
    assert_close(loss([0, 1]) + loss([2, 3]), whole)
    assert_close(loss([0]) + loss([1, 2, 3]), whole)


def test_weight_zero_is_a_token_deleted_even_where_the_log_prob_is_infinite():
    log_probs = torch.tensor([[-1.0, -math.inf, -2.0]], requires_grad=True)
    loss = weighted_nll(log_probs, torch.tensor([[1.0, 0.0, -3.0]]), denominator=1)
    loss.backward()
    assert_close(loss.detach(), torch.tensor(1.0 - 6.0))
    assert_close(log_probs.grad, torch.tensor([[-1.0, 0.0, 3.0]]))


def test_a_batch_without_a_loss_token_is_a_zero_that_backpropagates_zeros():
    logits = torch.randn(2, 3, 5, requires_grad=True)
    loss = weighted_nll_from_logits(logits, torch.full((2, 3), -100), torch.ones(2, 3), denominator=torch.tensor(0))
    loss.backward()
    assert loss.item() == 0.0
    assert_close(logits.grad, torch.zeros(2, 3, 5))


def test_one_token_rows_have_nothing_to_predict():
    assert token_log_probs(torch.randn(2, 1, 5), torch.zeros(2, 1, dtype=torch.long)).shape == (2, 0)


def test_huge_logits_stay_exact():
    logits = torch.tensor([[[1e4, -1e4], [0.0, 0.0]]])
    assert_close(token_log_probs(logits, torch.tensor([[0, 0]])), torch.tensor([[0.0]]))
    assert_close(token_log_probs(logits, torch.tensor([[0, 1]])), torch.tensor([[-2e4]]))


def test_bf16_error_is_no_worse_than_torchs_own():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(8, 64, 500, generator=generator, dtype=torch.float64) * 4
    labels = torch.randint(0, 500, (8, 64), generator=generator)
    half = logits.bfloat16()
    truth = F.cross_entropy(half[:, :-1].double().flatten(0, 1), labels[:, 1:].flatten())
    torchs = F.cross_entropy(half[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
    ours = weighted_nll_from_logits(half, labels, torch.ones(8, 64), denominator=8 * 63)
    assert abs(ours.double() - truth) <= abs(torchs.double() - truth)
    assert abs(ours.double() - truth) < 1e-5


def test_inputs_are_not_changed(ragged):
    before = [x.clone() for x in ragged]
    logits, labels, weights = ragged
    weighted_nll_from_logits(logits, labels, weights, denominator=1, temperature=2.0)
    for now, then in zip(ragged, before, strict=True):
        assert torch.equal(now, then)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: token_log_probs(torch.zeros(2, 3, 5), torch.zeros(2, 4, dtype=torch.long)), r"\[2, 3\].*got \[2, 4\]"),
        (
            lambda: token_log_probs(torch.zeros(2, 3, 5), torch.zeros(2, 3, dtype=torch.long), temperature=0.0),
            "got 0.0",
        ),
        (lambda: weighted_log_probs(torch.zeros(2, 3), torch.zeros(2, 4)), r"\[2, 3\] or \[B\] = \[2\].*got \[2, 4\]"),
        (lambda: weighted_log_probs(torch.zeros(2, 3), torch.zeros(3)), r"got \[3\]"),
    ],
)
def test_wrong_shapes_and_temperatures_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
