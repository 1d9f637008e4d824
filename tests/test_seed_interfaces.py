"""`compute_advantage_weighted_sft_loss`: the formula published for verl, and ours."""

import pytest
import torch
import torch.nn.functional as F
from datasets import Dataset
from reference import weighted_nll_loop
from torch.testing import assert_close

from online_sft import WeightedSFTConfig, WeightedSFTTrainer


@pytest.fixture
def make(model, tokenizer, cpu_args):
    def make(**options):
        rows = Dataset.from_list([{"input_ids": [2, 3, 4], "advantages": 1.0}])
        args = WeightedSFTConfig(**cpu_args, **options)
        return WeightedSFTTrainer(model, args, train_dataset=rows, processing_class=tokenizer)

    return make


@pytest.fixture
def batch(tokenizer):
    generator = torch.Generator().manual_seed(0)
    mask = torch.ones(3, 8)
    mask[0, :4] = mask[2, 6:] = 0
    return {
        "input_ids": torch.randint(2, len(tokenizer), (3, 8), generator=generator),
        "advantages": torch.randn(3, 8, generator=generator),
        "loss_mask": mask,
    }


def published(model, input_ids, advantages, loss_mask):
    """The seed document's code, word for word in what it computes."""
    logits = model(input_ids=input_ids).logits
    ce = F.cross_entropy(logits[:, :-1].flatten(0, 1), input_ids[:, 1:].flatten(), reduction="none")
    weighted = ce * advantages[:, :-1].flatten() * loss_mask[:, :-1].flatten()
    return weighted.sum() / (loss_mask[:, :-1].sum() + 1e-8)


def gradients(loss, model):
    model.zero_grad()
    loss.backward()
    return [parameter.grad.clone() for parameter in model.parameters()]


def test_source_alignment_is_the_published_formula_with_its_gradient(make, batch, model):
    ours = make(align="source").compute_advantage_weighted_sft_loss(**batch)
    theirs = published(model, **batch)
    assert ours.requires_grad
    assert ours.shape == ()
    assert_close(ours, theirs)
    assert_close(gradients(ours, model), gradients(theirs, model), rtol=1e-4, atol=1e-6)


def test_target_alignment_weights_the_token_itself(make, batch, model):
    ours = make().compute_advantage_weighted_sft_loss(**batch)
    labels = batch["input_ids"].masked_fill(batch["loss_mask"] == 0, -100)
    logits = model(batch["input_ids"]).logits
    num_tokens = int((labels[:, 1:] != -100).sum())
    assert_close(ours.item(), weighted_nll_loop(logits, labels, batch["advantages"], num_tokens), rtol=1e-5, atol=1e-6)
    assert abs(ours.item() - published(model, **batch).item()) > 1e-3


def test_padding_does_not_change_it(make, batch, tokenizer):
    trainer = make()
    padded = {name: F.pad(value, (0, 3)) for name, value in batch.items()}
    attention_mask = F.pad(torch.ones(3, 8, dtype=torch.long), (0, 3))
    alone = trainer.compute_advantage_weighted_sft_loss(**batch)
    assert_close(trainer.compute_advantage_weighted_sft_loss(**padded, attention_mask=attention_mask), alone)


def test_position_ids_separate_packed_sequences(make, batch):
    trainer = make(advantage_normalization="sequence")
    apart = trainer.compute_advantage_weighted_sft_loss(**batch)
    packed = {name: value.reshape(1, -1).clone() for name, value in batch.items()}
    packed["loss_mask"][:, ::8] = 0  # the first token of each, which nothing predicts
    positions = torch.arange(8).repeat(3).unsqueeze(0)
    assert_close(trainer.compute_advantage_weighted_sft_loss(**packed, position_ids=positions), apart)


def test_one_advantage_per_sequence_and_the_configured_options(make, batch):
    trainer = make(advantage_normalization="batch", advantage_clipping=[-1.0, 1.0], temperature=0.9)
    per_sequence = {**batch, "advantages": batch["advantages"][:, 0]}
    per_token = {**batch, "advantages": batch["advantages"][:, :1].expand(3, 8)}
    losses = [trainer.compute_advantage_weighted_sft_loss(**b) for b in (per_sequence, per_token)]
    assert_close(losses[0], losses[1])
    assert abs(losses[0].item() - make().compute_advantage_weighted_sft_loss(**per_token).item()) > 1e-3


def test_inputs_are_not_changed_and_advantages_get_no_gradient(make, batch):
    before = {name: value.clone() for name, value in batch.items()}
    batch["advantages"].requires_grad_()
    make(align="source", advantage_normalization="batch").compute_advantage_weighted_sft_loss(**batch).backward()
    assert batch["advantages"].grad is None
    assert all(torch.equal(batch[name].detach(), value) for name, value in before.items())


def test_an_empty_mask_is_a_zero_that_backpropagates(make, batch, model):
    loss = make().compute_advantage_weighted_sft_loss(**{**batch, "loss_mask": torch.zeros(3, 8)})
    assert loss.item() == 0.0
    assert not any(grad.any() for grad in gradients(loss, model))


def test_mistakes_are_named(make, batch):
    trainer = make()
    with pytest.raises(ValueError, match=r"must be \[B, T\] = \[3, 8\] like input_ids; got \[3, 7\] and \[3, 8\]"):
        trainer.compute_advantage_weighted_sft_loss(**{**batch, "advantages": torch.zeros(3, 7)})
    with pytest.raises(ValueError, match="Atropos' `masks` hold -100 or the token"):
        trainer.compute_advantage_weighted_sft_loss(**{**batch, "loss_mask": torch.full((3, 8), -100)})
