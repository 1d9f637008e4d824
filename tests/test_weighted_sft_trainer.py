"""WeightedSFTTrainer: numbers against TRL's trainer and against a loss written out here."""

import copy
from functools import partial

import pytest
import torch
from datasets import Dataset, IterableDataset
from peft import LoraConfig
from reference import weighted_nll_loop
from torch.testing import assert_close
from trl import SFTConfig, SFTTrainer

from online_sft import WeightedSFTConfig, WeightedSFTTrainer

TEXT_ROWS = [{"prompt": f"{a} + {b} =", "completion": f" Answer: {a + b}"} for a in range(5) for b in range(4)]


@pytest.fixture
def ragged_rows(tokenizer):
    """Eight tokenised rows of different lengths, with masked tokens and signed per-token advantages."""
    generator = torch.Generator().manual_seed(0)
    rows = []
    for length in (9, 3, 6, 2, 8, 5, 4, 7):
        tokens = torch.randint(2, len(tokenizer), (length,), generator=generator).tolist()
        labels = [-100 if t == 0 or t % 4 == 3 else token for t, token in enumerate(tokens)]
        advantages = torch.randn(length, generator=generator).tolist()
        rows.append({"input_ids": tokens, "labels": labels, "advantages": advantages})
    return rows


def logged(trainer, key):
    return [entry[key] for entry in trainer.state.log_history if key in entry]


def train(trainer_class, config_class, model, rows, tokenizer, cpu_args, **options):
    options = {"max_steps": 5, "per_device_train_batch_size": 4, "learning_rate": 1e-2, **cpu_args, **options}
    trainer = trainer_class(
        copy.deepcopy(model), config_class(**options), train_dataset=Dataset.from_list(rows), processing_class=tokenizer
    )
    trainer.train()
    return trainer


train_weighted = partial(train, WeightedSFTTrainer, WeightedSFTConfig)


def loss_of(model, rows):
    """The weighted loss of `rows` over their loss tokens, by the loop of tests/reference.py."""
    num_loss_tokens = sum(label != -100 for row in rows for label in row["labels"])
    total = 0.0
    for row in rows:
        labels, advantages = torch.tensor([row["labels"]]), torch.tensor([row["advantages"]])
        logits = model(torch.tensor([row["input_ids"]])).logits.detach().double()
        total += weighted_nll_loop(logits, labels, advantages, denominator=1)
    return total / num_loss_tokens


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"packing": True, "max_length": 16},
        {"packing": True, "max_length": 7, "packing_strategy": "bfd_split", "shuffle_dataset": True},
        {"packing": True, "max_length": 12, "packing_strategy": "wrapped", "shuffle_dataset": True},
        {"max_length": 9},
    ],
    ids=["padded", "bfd", "bfd_split", "wrapped", "truncated"],
)
@pytest.mark.parametrize("lm_head", ["trl", "weighted"])
def test_all_advantages_one_is_trls_sft_trainer_for_five_steps(model, tokenizer, cpu_args, lm_head, options):
    """Exactly, with TRL's head. Ours rounds in another order, which Adam would amplify: SGD, 1e-6 of each number."""
    if lm_head == "weighted":
        options = {**options, "optim": "sgd", "learning_rate": 0.1}
    theirs = train(SFTTrainer, SFTConfig, model, TEXT_ROWS, tokenizer, cpu_args, **options)
    weighted_rows = [{**row, "advantages": 1.0} for row in TEXT_ROWS]
    ours = train_weighted(model, weighted_rows, tokenizer, cpu_args, lm_head=lm_head, **options)
    assert len(logged(ours, "loss")) == 5
    for key in ("loss", "grad_norm", "entropy", "mean_token_accuracy", "num_tokens"):
        tolerance = {"rtol": 0, "atol": 0} if lm_head == "trl" else {"rtol": 2e-6, "atol": 1e-6}
        assert_close(logged(ours, key), logged(theirs, key), **tolerance)


def test_loss_of_a_ragged_batch_equals_the_loop(model, tokenizer, ragged_rows, cpu_args):
    expected = loss_of(model, ragged_rows)
    cpu_args |= {"max_steps": 1, "per_device_train_batch_size": 8}
    trainer = train_weighted(model, ragged_rows, tokenizer, cpu_args)
    assert_close(logged(trainer, "loss")[0], expected, rtol=0, atol=1e-5)


def test_gradient_is_that_of_the_written_out_loss(model, tokenizer, ragged_rows, cpu_args):
    """One step of plain SGD at learning rate 1 moves the parameters by minus the gradient."""
    by_hand = copy.deepcopy(model)
    num_loss_tokens = sum(label != -100 for row in ragged_rows for label in row["labels"])
    loss = 0.0
    for row in ragged_rows:
        log_probs = by_hand(torch.tensor([row["input_ids"]])).logits[0].log_softmax(-1)
        for t in range(1, len(row["labels"])):
            if row["labels"][t] != -100:
                loss = loss - row["advantages"][t] * log_probs[t - 1, row["labels"][t]] / num_loss_tokens
    loss.backward()
    cpu_args |= {"max_steps": 1, "per_device_train_batch_size": 8, "optim": "sgd", "learning_rate": 1.0}
    trainer = train_weighted(
        model,
        ragged_rows,
        tokenizer,
        cpu_args,
        max_grad_norm=0.0,
        weight_decay=0.0,
    )
    for before, after in zip(by_hand.parameters(), trainer.model.parameters(), strict=True):
        assert_close(before - after, before.grad, rtol=1e-4, atol=1e-6)  # float32 rounding of the parameters


@pytest.mark.parametrize(("batch", "accumulation"), [(1, 8), (2, 4)])
def test_accumulation_does_not_change_loss_or_gradient(model, tokenizer, ragged_rows, cpu_args, batch, accumulation):
    cpu_args |= {"max_steps": 3}
    whole, split = (
        train_weighted(
            model,
            ragged_rows,
            tokenizer,
            cpu_args,
            per_device_train_batch_size=size,
            gradient_accumulation_steps=steps,
        )
        for size, steps in ((8, 1), (batch, accumulation))
    )
    for key in ("loss", "grad_norm"):
        assert_close(logged(split, key), logged(whole, key), rtol=1e-5, atol=1e-6)


def test_a_row_of_weight_zero_has_no_gradient(model, tokenizer, ragged_rows, cpu_args):
    silent = [{**row, "advantages": [0.0] * len(row["advantages"])} for row in ragged_rows]
    cpu_args |= {"max_steps": 1, "per_device_train_batch_size": 8}
    trainer = train_weighted(model, silent, tokenizer, cpu_args)
    assert logged(trainer, "loss") == [0.0]
    assert logged(trainer, "grad_norm") == [0.0]


def test_one_advantage_per_row_is_the_same_advantage_on_every_token(model, tokenizer, ragged_rows, cpu_args):
    per_row = [{**row, "advantages": float(i) - 3} for i, row in enumerate(ragged_rows)]
    per_token = [{**row, "advantages": [row["advantages"]] * len(row["input_ids"])} for row in per_row]
    runs = [train_weighted(model, r, tokenizer, cpu_args) for r in (per_row, per_token)]
    assert logged(runs[0], "loss") == logged(runs[1], "loss")


@pytest.mark.parametrize("column", ["completion_mask", "loss_mask", "assistant_masks"])
def test_the_mask_of_tokenised_rows_is_used(model, tokenizer, ragged_rows, cpu_args, column):
    masked = [
        {
            "input_ids": row["input_ids"],
            column: [int(label != -100) for label in row["labels"]],
            "advantages": row["advantages"],
        }
        for row in ragged_rows
    ]
    runs = [train_weighted(model, r, tokenizer, cpu_args) for r in (ragged_rows, masked)]
    assert logged(runs[1], "loss") == logged(runs[0], "loss")


def test_several_masks_of_tokenised_rows_apply_together(model, tokenizer, cpu_args):
    tokens = [2, 3, 4, 5, 6]
    masks = {"loss_mask": [1, 1, 1, 1, 0], "completion_mask": [0, 1, 1, 1, 1], "assistant_masks": [0, 0, 1, 1, 1]}
    masked = [{"input_ids": tokens, "advantages": 1.0, **masks}]
    labelled = [{"input_ids": tokens, "advantages": 1.0, "labels": [-100, -100, 4, 5, -100]}]
    cpu_args |= {"max_steps": 1}
    runs = [train_weighted(model, r, tokenizer, cpu_args) for r in (labelled, masked)]
    assert logged(runs[1], "loss") == logged(runs[0], "loss")


@pytest.mark.parametrize("form", ["torch", "numpy"])
def test_the_format_of_the_dataset_does_not_matter(model, tokenizer, ragged_rows, cpu_args, form):
    args = WeightedSFTConfig(max_steps=1, per_device_train_batch_size=8, **cpu_args)
    data = Dataset.from_list(ragged_rows).with_format(form)
    expected = loss_of(model, ragged_rows)
    trainer = WeightedSFTTrainer(model, args, train_dataset=data, processing_class=tokenizer)
    trainer.train()
    assert_close(logged(trainer, "loss")[0], expected, rtol=0, atol=1e-5)


def test_truncation_cuts_advantages_with_their_tokens(model, tokenizer, ragged_rows, cpu_args):
    cut = [{name: values[:4] for name, values in row.items()} for row in ragged_rows]
    cpu_args |= {"max_steps": 1, "per_device_train_batch_size": 8}
    trainer = train_weighted(model, ragged_rows, tokenizer, cpu_args, max_length=4)
    assert_close(logged(trainer, "loss")[0], loss_of(model, cut), rtol=0, atol=1e-5)


def test_rows_dropped_by_truncation_are_counted(model, tokenizer, cpu_args, caplog):
    rows = [{"input_ids": [2, 3, 4, 5], "labels": [-100, -100, -100, 5], "advantages": 1.0}] + [
        {"input_ids": [2, 3], "labels": [-100, 3], "advantages": 1.0}
    ] * 3
    train_weighted(model, rows, tokenizer, cpu_args, max_steps=1, max_length=3)
    assert "1 of 4 rows of the train dataset have no loss token within max_length=3" in caplog.text


def test_a_batch_without_a_loss_token_is_a_finite_zero(model, tokenizer, cpu_args):
    rows = [{"input_ids": [2, 3, 4], "labels": [-100] * 3, "advantages": [1.0] * 3}] * 4
    cpu_args |= {"max_steps": 1, "max_length": None}
    trainer = train_weighted(model, rows, tokenizer, cpu_args)
    assert logged(trainer, "loss") == [0.0]
    assert logged(trainer, "grad_norm") == [0.0]


def test_evaluation_is_weighted_too(model, tokenizer, ragged_rows, cpu_args):
    data = Dataset.from_list(ragged_rows)
    args = WeightedSFTConfig(per_device_eval_batch_size=8, **cpu_args)
    trainer = WeightedSFTTrainer(model, args, train_dataset=data, eval_dataset=data, processing_class=tokenizer)
    assert_close(trainer.evaluate()["eval_loss"], loss_of(model, ragged_rows), rtol=0, atol=1e-5)


def test_a_stream_gives_the_losses_of_the_table(model, tokenizer, ragged_rows, cpu_args):
    args = WeightedSFTConfig(max_steps=2, per_device_train_batch_size=4, **cpu_args)
    stream = IterableDataset.from_generator(lambda: iter(ragged_rows))
    streamed = WeightedSFTTrainer(model, args, train_dataset=stream, processing_class=tokenizer)
    expected = loss_of(copy.deepcopy(model), ragged_rows[:4])
    streamed.train()
    assert_close(logged(streamed, "loss")[0], expected, rtol=0, atol=1e-5)


def test_lora_trains_the_adapter_from_the_same_loss(model, tokenizer, ragged_rows, cpu_args):
    expected = loss_of(model, ragged_rows)
    args = WeightedSFTConfig(max_steps=2, per_device_train_batch_size=8, learning_rate=1e-2, **cpu_args)
    trainer = WeightedSFTTrainer(
        model,
        args,
        train_dataset=Dataset.from_list(ragged_rows),
        processing_class=tokenizer,
        peft_config=LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM"),
    )
    trainer.train()
    losses = logged(trainer, "loss")
    assert_close(losses[0], expected, rtol=0, atol=1e-5)
    assert losses[1] < losses[0]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"input_ids": [2, 3, 4], "labels": [2, 3, 4]}, "the train dataset needs an `advantages` column"),
        (
            {"input_ids": [2, 3, 4], "advantages": [1.0, 2.0]},
            "row 0 of the train dataset has 2 advantages for 3 tokens",
        ),
        (
            {"input_ids": [2, 3], "advantages": 1.0, "loss_mask": [1]},
            "row 0 of the train dataset has 1 entries in `loss_mask` for 2 tokens",
        ),
        ({"input_ids": [2, 3], "advantages": [1.0, float("nan")]}, "row 0 .* has advantages nan at token 1"),
        ({"input_ids": [2, 3], "advantages": float("inf")}, "row 0 .* has advantages inf at token 0"),
        (
            {"prompt": "1 + 1 =", "completion": " 2", "advantages": [1.0]},
            r"row 0 of the train dataset has 1 advantages for \d+ tokens, of which \d carry loss",
        ),
        ({"input_ids": [2, 3], "labels": [3], "advantages": 1.0}, "row 0 .* has 1 labels for 2 tokens"),
        ({"input_ids": [2, 3], "loss_mask": [-100, 3], "advantages": 1.0}, "row 0 .* has -100 in `loss_mask`"),
    ],
)
def test_bad_rows_are_named(model, tokenizer, cpu_args, row, message):
    with pytest.raises(ValueError, match=message):
        WeightedSFTTrainer(
            model, WeightedSFTConfig(**cpu_args), train_dataset=Dataset.from_list([row]), processing_class=tokenizer
        )


@pytest.mark.parametrize(
    ("option", "value"),
    [("loss_type", "dft"), ("label_smoothing_factor", 0.1)],
)
def test_options_that_would_lose_weights_are_refused(cpu_args, option, value):
    with pytest.raises(ValueError, match=f"{option}={value!r} would lose the weights"):
        WeightedSFTConfig(**cpu_args, **{option: value})


def test_skipping_the_preparation_is_refused(cpu_args):
    with pytest.raises(ValueError, match="skip_prepare_dataset would skip the checks"):
        WeightedSFTConfig(**cpu_args, dataset_kwargs={"skip_prepare_dataset": True})


def test_a_plain_sft_config_is_refused(model, tokenizer, cpu_args):
    with pytest.raises(ValueError, match="args must be a WeightedSFTConfig; got SFTConfig"):
        WeightedSFTTrainer(model, SFTConfig(**cpu_args), train_dataset=None, processing_class=tokenizer)


def test_a_collator_that_drops_the_advantages_is_named(model, tokenizer, ragged_rows, cpu_args):
    def forgetful(examples):
        return {name: torch.tensor([examples[0][name]]) for name in ("input_ids", "labels")}

    trainer = WeightedSFTTrainer(
        model,
        WeightedSFTConfig(**cpu_args, max_steps=1, per_device_train_batch_size=1),
        data_collator=forgetful,
        train_dataset=Dataset.from_list(ragged_rows),
        processing_class=tokenizer,
    )
    with pytest.raises(ValueError, match="data collator function returned no `advantages`"):
        trainer.train()
