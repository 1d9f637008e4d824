"""The fused linear cross-entropy against the dense one: values, gradients, metrics, precision, memory."""

import math
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode

from online_sft import LogitTransform, weighted_linear_cross_entropy
from online_sft import fused_cross_entropy as module
from online_sft.losses import weighted_log_probs
from online_sft.objectives import dft, floored

TRANSFORMS = {
    "plain": LogitTransform(),
    "temperature": LogitTransform(temperature=0.7),
    "scale": LogitTransform(scale=0.0625),
    "softcap": LogitTransform(softcap=3.0),
    "all": LogitTransform(scale=0.5, softcap=2.0, temperature=1.3),
}


def case(dtype=torch.float64, tokens=(3, 7), vocabulary=29, width=8, seed=0):
    """Hidden states, head, bias, labels with masked tokens, weights of both signs and zero."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

    labels = torch.randint(0, vocabulary, tokens, generator=generator)
    labels[0, 2] = labels[2, 5] = -100
    weights = draw(*tokens)
    weights[1, 1:5] = 0.0
    hidden, weight, bias = draw(*tokens, width), draw(vocabulary, width), draw(vocabulary)
    return *(x.requires_grad_() for x in (hidden, weight, bias)), labels, weights


def dense_log_softmax(hidden, weight, bias, transform):
    logits = F.linear(hidden, weight, bias) * transform.scale
    if transform.softcap is not None:
        logits = transform.softcap * (logits / transform.softcap).tanh()
    return (logits / transform.temperature).log_softmax(-1)


def dense_nll(hidden, weight, bias, labels, weights, transform=TRANSFORMS["plain"], objective=weighted_log_probs):
    log_probs = dense_log_softmax(hidden, weight, bias, transform)
    of_labels = log_probs.gather(-1, labels.clamp(min=0).unsqueeze(-1)).squeeze(-1)
    kept = labels != -100
    return -objective(of_labels[kept], weights[kept]).sum()


def gradients(nll, *inputs):
    return torch.autograd.grad(nll / 5, inputs)


@pytest.mark.parametrize("chunk_size", [1, 4, 1000])
@pytest.mark.parametrize("transform", TRANSFORMS.values(), ids=TRANSFORMS)
def test_value_and_gradients_are_those_of_the_dense_loss(transform, chunk_size):
    hidden, weight, bias, labels, weights = case()
    ours = weighted_linear_cross_entropy(
        hidden, weight, labels, weights, head_bias=bias, transform=transform, chunk_size=chunk_size
    )
    dense = dense_nll(hidden, weight, bias, labels, weights, transform)
    assert_close(ours.nll, dense)
    assert_close(gradients(ours.nll, hidden, weight, bias), gradients(dense, hidden, weight, bias))


@pytest.mark.parametrize("transform", TRANSFORMS.values(), ids=TRANSFORMS)
def test_each_token_may_have_a_temperature_of_its_own(transform):
    hidden, weight, bias, labels, weights = case()
    temperatures = torch.rand(labels.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64) + 0.5
    ours = weighted_linear_cross_entropy(
        hidden, weight, labels, weights, head_bias=bias, transform=transform, temperatures=temperatures, chunk_size=4
    )
    dense = sum(
        dense_nll(
            hidden[index].unsqueeze(0),
            weight,
            bias,
            labels[index].unsqueeze(0),
            weights[index].unsqueeze(0),
            replace(transform, temperature=transform.temperature * temperatures[index].item()),
        )
        for index in np.ndindex(*labels.shape)
        if labels[index] != -100
    )
    assert_close(ours.nll, dense)
    assert_close(gradients(ours.nll, hidden, weight, bias), gradients(dense, hidden, weight, bias))
    with pytest.raises(ValueError, match=r"temperatures must be \[\d+, \d+\] like the labels; got \[2\]"):
        weighted_linear_cross_entropy(hidden, weight, labels, weights, temperatures=temperatures[0, :2])


@pytest.mark.parametrize("objective", [dft, partial(floored, floor=-2.5)], ids=["dft", "floor"])
def test_another_objective_has_its_own_gradient(objective):
    hidden, weight, bias, labels, weights = case()
    ours = weighted_linear_cross_entropy(hidden, weight, labels, weights, head_bias=bias, objective=objective)
    dense = dense_nll(hidden, weight, bias, labels, weights, objective=objective)
    plain = dense_nll(hidden, weight, bias, labels, weights)
    assert_close(ours.nll, dense)
    assert_close(gradients(ours.nll, hidden, weight, bias), gradients(dense, hidden, weight, bias))
    assert not torch.allclose(dense, plain)


def test_float32_gradients_are_within_a_millionth_of_dense():
    hidden, weight, bias, labels, weights = case(torch.float32, tokens=(4, 64), vocabulary=3000, width=32)
    ours = weighted_linear_cross_entropy(hidden, weight, labels, weights, head_bias=bias, chunk_size=32)
    dense = dense_nll(hidden, weight, bias, labels, weights)
    pairs = zip(gradients(ours.nll, hidden, weight, bias), gradients(dense, hidden, weight, bias), strict=True)
    for a, b in pairs:
        assert (a - b).norm() <= 1e-6 * b.norm()


def test_bf16_error_is_no_worse_than_torchs_own():
    """Against the float64 gradient of the rounded inputs; torch's is the dense loss in bf16 with a float32 softmax.

    Many small chunks: rounding each one's product would show.
    """
    hidden, weight, _, labels, weights = case(torch.bfloat16, tokens=(4, 512), vocabulary=300, width=32)
    exact = [x.detach().double().requires_grad_() for x in (hidden, weight)]
    truth = gradients(dense_nll(*exact, None, labels, weights.double()), *exact)
    logits = F.linear(hidden, weight).float().log_softmax(-1)
    of_labels = logits.gather(-1, labels.clamp(min=0).unsqueeze(-1)).squeeze(-1)
    torchs = gradients(-(weights * of_labels * (labels != -100)).sum(), hidden, weight)
    ours = gradients(weighted_linear_cross_entropy(hidden, weight, labels, weights, chunk_size=8).nll, hidden, weight)
    for true, theirs, mine in zip(truth, torchs, ours, strict=True):
        assert mine.dtype == torch.bfloat16
        assert (mine.double() - true).norm() <= 1.05 * (theirs.double() - true).norm()


def test_autocast_computes_in_its_dtype_and_returns_gradients_in_the_parameters_own():
    hidden, weight, _, labels, weights = case(torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        ours = weighted_linear_cross_entropy(hidden, weight, labels, weights)
    half = weighted_linear_cross_entropy(hidden.bfloat16(), weight.bfloat16(), labels, weights)
    assert_close(ours.nll, half.nll)
    assert [g.dtype for g in gradients(ours.nll, hidden, weight)] == [torch.float32] * 2


def test_metrics_are_those_of_the_dense_distribution_and_zero_elsewhere():
    hidden, weight, bias, labels, weights = case()
    ours = weighted_linear_cross_entropy(
        hidden, weight, labels, weights, head_bias=bias, chunk_size=4, with_metrics=True
    )
    log_probs = dense_log_softmax(hidden, weight, bias, TRANSFORMS["plain"]).detach()
    scored = (labels != -100) & (weights != 0)
    assert torch.equal(ours.scored, scored)
    assert_close(ours.entropy, -(log_probs.exp() * log_probs).sum(-1) * scored)
    assert torch.equal(ours.is_top1, (log_probs.argmax(-1) == labels) & scored)
    assert_close(ours.log_probs, log_probs.gather(-1, labels.clamp(min=0)[..., None])[..., 0] * scored)
    assert not (ours.log_probs.requires_grad or ours.entropy.requires_grad)


def test_of_equal_logits_the_first_is_top1_and_the_entropy_is_log_vocabulary():
    labels = torch.tensor([0, 1])
    ours = weighted_linear_cross_entropy(torch.zeros(2, 3), torch.ones(8, 3), labels, torch.ones(2), with_metrics=True)
    assert ours.is_top1.tolist() == [True, False]
    assert_close(ours.entropy, torch.full((2,), math.log(8)))
    assert_close(ours.nll, torch.tensor(2 * math.log(8)))


def test_tokens_of_weight_zero_are_never_projected(monkeypatch):
    hidden, weight, _, labels, weights = case()
    projected = []
    original = torch.log_softmax

    def counting(logits, *args, **kwargs):
        projected.append(len(logits))
        return original(logits, *args, **kwargs)

    monkeypatch.setattr(module.torch, "log_softmax", counting)
    weighted_linear_cross_entropy(hidden, weight, labels, weights, chunk_size=4)
    assert sum(projected) == ((labels != -100) & (weights != 0)).sum()
    assert max(projected) <= 4


def test_an_infinite_logit_of_a_masked_token_leaves_no_nan():
    hidden, weight, bias, labels, weights = case()
    bias.data[3] = -math.inf  # a token that can never be drawn
    labels[labels == 3] = 4
    ours = weighted_linear_cross_entropy(hidden, weight, labels, weights, head_bias=bias, with_metrics=True)
    assert_close(ours.nll, dense_nll(hidden, weight, bias, labels, weights))
    others = [x.detach()[torch.arange(29) != 3] for x in (weight, bias)]  # the same without that token
    log_probs = dense_log_softmax(hidden.detach(), *others, TRANSFORMS["plain"])
    assert_close(ours.entropy, -(log_probs.exp() * log_probs).sum(-1) * ours.scored)
    dense = dense_nll(hidden, weight, bias, labels, weights)
    assert_close(gradients(ours.nll, hidden, weight, bias), gradients(dense, hidden, weight, bias))


def test_a_frozen_head_gets_no_gradient_and_costs_none():
    hidden, weight, _, labels, weights = case()
    frozen = weight.detach()
    ours = weighted_linear_cross_entropy(hidden, frozen, labels, weights)
    assert ours.nll.grad_fn.grads[1:] == [None, None]
    assert_close(gradients(ours.nll, hidden), gradients(dense_nll(hidden, frozen, None, labels, weights), hidden))


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_without_autograd_only_values_are_computed(mode):
    hidden, weight, _, labels, weights = case()
    with mode():
        ours = weighted_linear_cross_entropy(hidden, weight, labels, weights)
    assert not ours.nll.requires_grad
    assert_close(ours.nll, dense_nll(hidden, weight, None, labels, weights).detach())


def test_tied_embeddings_get_the_sum_of_both_gradients():
    tokens = torch.tensor([[1, 4, 2, 6, 3]])
    table = torch.randn(7, 4, dtype=torch.float64, requires_grad=True)
    weights = torch.tensor([[1.0, -0.5, 2.0, 0.0]], dtype=torch.float64)
    hidden = F.embedding(tokens[:, :-1], table).tanh()
    ours = weighted_linear_cross_entropy(hidden, table, tokens[:, 1:], weights)
    dense = dense_nll(F.embedding(tokens[:, :-1], table).tanh(), table, None, tokens[:, 1:], weights)
    assert_close(gradients(ours.nll, table), gradients(dense, table))


def test_no_loss_token_is_a_zero_that_backpropagates_zeros():
    hidden, weight, bias, labels, weights = case()
    for nothing in ({"labels": torch.full_like(labels, -100)}, {"weights": torch.zeros_like(weights)}):
        given = {"labels": labels, "weights": weights, **nothing}
        ours = weighted_linear_cross_entropy(hidden, weight, head_bias=bias, with_metrics=True, **given)
        assert ours.nll.item() == 0.0
        for grad, of in zip(gradients(ours.nll, hidden, weight, bias), (hidden, weight, bias), strict=True):
            assert torch.equal(grad, torch.zeros_like(of))


def test_no_gradient_reaches_the_weights():
    hidden, weight, _, labels, weights = case()
    weights.requires_grad_()
    weighted_linear_cross_entropy(hidden, weight, labels, weights).nll.backward()
    assert weights.grad is None


def test_a_second_backward_is_refused_instead_of_wrong():
    hidden, weight, _, labels, weights = case()
    nll = weighted_linear_cross_entropy(hidden, weight, labels, weights).nll
    nll.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="backward ran a second time"):
        nll.backward()


def test_inputs_are_not_changed():
    given = case()
    before = [x.detach().clone() for x in given]
    hidden, weight, bias, labels, weights = given
    weighted_linear_cross_entropy(
        hidden, weight, labels, weights, head_bias=bias, transform=TRANSFORMS["all"], with_metrics=True
    ).nll.backward()
    assert all(torch.equal(now.detach(), then) for now, then in zip(given, before, strict=True))


class LargestTensor(TorchDispatchMode):
    """Remembers the largest storage that any operation returns, in numbers."""

    largest = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        if isinstance(out, torch.Tensor):
            self.largest = max(self.largest, out.untyped_storage().nbytes() // out.element_size())
        return out


def test_memory_grows_with_the_chunk_and_not_with_the_batch():
    vocabulary = 5000

    def largest(num_tokens, chunk_size):
        hidden, weight = torch.randn(num_tokens, 4), torch.randn(vocabulary, 4)
        labels, weights = torch.randint(0, vocabulary, (num_tokens,)), torch.ones(num_tokens)
        with LargestTensor() as mode:
            weighted_linear_cross_entropy(
                hidden.requires_grad_(), weight.requires_grad_(), labels, weights, chunk_size=chunk_size
            ).nll.backward()
        return mode.largest

    assert largest(64, 16) == largest(512, 16) == 2 * 16 * vocabulary  # logits and log-probs of one chunk
    assert largest(512, 64) == 2 * 64 * vocabulary


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": torch.zeros(3, 6, dtype=torch.long)}, r"must be \[3, 7\] like the hidden states; got \[3, 6\]"),
        ({"weights": torch.zeros(3)}, r"got \[3, 7\] and \[3\]"),
    ],
)
def test_wrong_shapes_are_named(change, message):
    hidden, weight, _, labels, weights = case()
    with pytest.raises(ValueError, match=message):
        weighted_linear_cross_entropy(hidden, weight, **{"labels": labels, "weights": weights, **change})


def test_a_temperature_of_zero_is_refused():
    with pytest.raises(ValueError, match="temperature must be positive; got 0"):
        LogitTransform(temperature=0.0)
