"""WeightedSFTInterface: the published keys, defaults and outputs, on numbers that can be checked."""

import pytest
import torch
import torch.nn.functional as F
from reference import weighted_nll_loop
from torch.testing import assert_close

from online_sft import WeightedSFTInterface

SHAPE, VOCABULARY = (3, 6), 11


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(0)
    mask = torch.ones(SHAPE, dtype=torch.long)
    mask[0, :3] = mask[1, 4:] = 0
    return {
        "logits": torch.randn(*SHAPE, VOCABULARY, generator=generator, dtype=torch.float64),
        "tokens": torch.randint(0, VOCABULARY, SHAPE, generator=generator),
        "loss_masks": mask,
        "advantages": torch.randn(SHAPE, generator=generator, dtype=torch.float64),
    }


def loss(batch, **config):
    return WeightedSFTInterface(config).compute_weighted_loss(**batch)


def loop(batch, weights, denominator, temperature=1.0):
    labels = batch["tokens"].masked_fill(batch["loss_masks"] == 0, -100)
    return weighted_nll_loop(batch["logits"], labels, weights, denominator, temperature)


def test_the_defaults_are_the_published_ones():
    assert WeightedSFTInterface().config == {
        "loss_reduction": "mean",
        "ignore_index": -100,
        "advantage_normalization": "batch",
        "temperature": 1.0,
    }


def test_raw_advantages_equal_the_loop_for_every_reduction(batch):
    num_tokens = int(batch["loss_masks"][:, 1:].sum())
    results = {
        name: loss(batch, advantage_normalization="none", loss_reduction=name, temperature=0.8)
        for name in ("mean", "sum", "none")
    }
    expected = loop(batch, batch["advantages"], 1, temperature=0.8)
    assert_close(results["sum"]["loss"].item(), expected)
    assert_close(results["mean"]["loss"].item(), expected / num_tokens)
    assert results["none"]["loss"].shape == (3, 5)
    assert_close(results["none"]["loss"].sum().item(), expected)


@pytest.mark.parametrize("name", ["batch", "sequence"])
def test_normalised_advantages_are_z_scores_of_the_loss_tokens(batch, name):
    mask = batch["loss_masks"].bool().clone()
    mask[:, 0] = False
    rows = (
        [torch.ones_like(mask)] if name == "batch" else [torch.eye(3, dtype=torch.bool)[:, i : i + 1] for i in range(3)]
    )
    weights = torch.zeros(SHAPE, dtype=torch.float64)
    for row in rows:
        kept = mask & row
        values = batch["advantages"][kept]
        weights[kept] = (values - values.mean()) / (values.std(unbiased=False) + 1e-8)
    result = loss(batch, advantage_normalization=name)
    assert_close(result["loss"].item(), loop(batch, weights, int(mask.sum())))
    assert_close(result["advantages"], weights[:, 1:])


def test_outputs_fit_together(batch):
    result = loss(batch)
    assert list(result) == ["loss", "token_losses", "weighted_losses", "effective_mask", "advantages"]
    assert torch.equal(result["effective_mask"], batch["loss_masks"][:, 1:].bool())
    assert_close(result["weighted_losses"], result["token_losses"] * result["advantages"])
    assert_close(result["loss"], result["weighted_losses"].sum() / result["effective_mask"].sum())
    dense = F.cross_entropy(batch["logits"][:, :-1].flatten(0, 1), batch["tokens"][:, 1:].flatten(), reduction="none")
    assert_close(result["token_losses"], dense.view(3, 5) * result["effective_mask"])


def test_one_advantage_per_sequence(batch):
    per_sequence = {**batch, "advantages": batch["advantages"][:, 0]}
    per_token = {**batch, "advantages": batch["advantages"][:, :1].expand(SHAPE)}
    assert_close(loss(per_sequence)["loss"], loss(per_token)["loss"])


def test_labels_take_the_place_of_tokens_and_mask_with_the_ignore_index(batch):
    labels = batch["tokens"].clone()
    labels[2, 3] = -7
    masked = batch["loss_masks"].clone()
    masked[2, 3] = 0
    assert_close(
        loss({**batch, "labels": labels}, ignore_index=-7)["loss"], loss({**batch, "loss_masks": masked})["loss"]
    )


def test_no_input_is_changed_and_none_gets_a_gradient_but_the_logits(batch):
    before = {name: value.clone() for name, value in batch.items()}
    batch["logits"].requires_grad_()
    batch["advantages"].requires_grad_()
    loss(batch, temperature=0.5)["loss"].backward()
    assert batch["advantages"].grad is None
    assert batch["logits"].grad.abs().sum() > 0
    for name, value in before.items():
        assert torch.equal(batch[name].detach(), value)


def test_an_empty_mask_is_a_zero_that_backpropagates(batch):
    batch["logits"].requires_grad_()
    result = loss({**batch, "loss_masks": torch.zeros(SHAPE)})
    result["loss"].backward()
    assert result["loss"].item() == 0.0
    assert torch.equal(batch["logits"].grad, torch.zeros_like(batch["logits"]))


def test_what_stands_under_the_mask_does_not_matter(batch):
    odd = batch["advantages"].masked_fill(batch["loss_masks"] == 0, float("nan"))
    for name in ("none", "batch", "sequence"):
        losses = [
            loss({**batch, "advantages": a}, advantage_normalization=name)["loss"] for a in (odd, batch["advantages"])
        ]
        assert torch.equal(*losses)


def test_atropos_masks_are_named_instead_of_misread(batch):
    atropos = batch["tokens"].masked_fill(batch["loss_masks"] == 0, -100)
    with pytest.raises(ValueError, match=r"got -100\. Atropos' `masks` hold -100 or the token: pass `masks != -100`"):
        loss({**batch, "loss_masks": atropos})
    assert_close(loss({**batch, "loss_masks": atropos != -100})["loss"], loss(batch)["loss"])


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"reduction": "mean"}, "unknown key 'reduction'; the keys are loss_reduction"),
        ({"loss_reduction": "avg"}, "loss_reduction must be one of mean, sum, none; got 'avg'"),
        ({"advantage_normalization": "global"}, "must be one of batch, sequence, none; got 'global'"),
    ],
)
def test_unknown_configuration_is_refused(config, message):
    with pytest.raises(ValueError, match=message):
        WeightedSFTInterface(config)


def test_shapes_that_disagree_are_named(batch):
    with pytest.raises(ValueError, match=r"advantages must be \[B, T\] = \[3, 6\] or \[B\] = \[3\]; got \[3, 5\]"):
        loss({**batch, "advantages": torch.zeros(3, 5)})
    with pytest.raises(ValueError, match=r"must be \[B, T\] = \[3, 6\] like the logits; got .* \[3, 5\]"):
        loss({**batch, "loss_masks": torch.ones(3, 5)})
