"""Dynamic sampling: what is replaced, by what, how often, and what is left. On two processes: test_distributed.py."""

import copy
import logging
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from datasets import Dataset
from torch.testing import assert_close

from online_sft import OnlineSFTConfig, OnlineSFTTrainer
from trainers.group_filter import replace_rows, replaced_degenerate_groups

PAD = 99


def batch(groups, width=3, start=0):
    """Groups of two: rewards as given; token ids tell the rows apart."""
    rewards = torch.tensor(groups, dtype=torch.float32).flatten()
    ids = start + torch.arange(len(rewards)).unsqueeze(1) * 10 + torch.arange(width)
    mask = torch.ones_like(ids)
    return {
        "rewards": rewards,
        "prompt_ids": ids,
        "prompt_mask": mask,
        "completion_ids": ids,
        "completion_mask": mask,
        "num_items_in_batch": torch.tensor(7),
    }


def filtered(first, *rounds, max_retries=3, min_std=0.0):
    """Returns the filtered batch and how many groups each round was asked for."""
    asked, fresh = [], iter(rounds)

    def sample(num_groups):
        asked.append(num_groups)
        return next(fresh)

    result = replaced_degenerate_groups(
        first,
        sample,
        accelerator=Accelerator(cpu=True),
        num_generations=2,
        min_std=min_std,
        max_retries=max_retries,
        pad_token_id=PAD,
    )
    return result, asked


def test_a_batch_without_degenerate_groups_is_left_alone():
    first = batch([[1, 0], [0, 1]])
    result, asked = filtered(first)
    assert asked == []
    assert result.batch is first
    assert (result.num_kept, result.num_refilled, result.num_sampled) == (2, 0, 2)


def test_degenerate_groups_are_replaced_where_they_are():
    result, asked = filtered(batch([[1, 1], [1, 0], [0, 0]]), batch([[0, 1], [1, 0]], start=500))
    assert asked == [2]
    assert result.batch["rewards"].tolist() == [0, 1, 1, 0, 1, 0]
    assert result.batch["completion_ids"][:, 0].tolist() == [500, 510, 20, 30, 520, 530]
    assert not result.is_degenerate.any()
    assert (result.num_groups, result.num_kept, result.num_refilled) == (3, 3, 2)
    assert (result.num_all_correct, result.num_all_wrong, result.num_sampled) == (1, 1, 5)


def test_fresh_groups_that_are_degenerate_are_not_used_and_another_round_follows():
    rounds = batch([[1, 1], [1, 0]], start=500), batch([[0, 1]], start=900)
    result, asked = filtered(batch([[1, 1], [0, 0]]), *rounds)
    assert asked == [2, 1]
    assert result.batch["completion_ids"][:, 0].tolist() == [520, 530, 900, 910]
    assert result.num_sampled == 5


def test_after_the_last_round_the_rest_is_left_and_marked():
    result, asked = filtered(batch([[1, 1], [0, 0], [1, 0]]), batch([[1, 1], [1, 0]], start=500), max_retries=1)
    assert asked == [2]
    assert result.is_degenerate.tolist() == [False, True, False]
    assert (result.num_kept, result.num_refilled) == (2, 1)


def test_no_round_at_all_when_retries_are_0():
    result, asked = filtered(batch([[1, 1], [1, 0]]), max_retries=0)
    assert asked == []
    assert result.is_degenerate.tolist() == [True, False]


@pytest.mark.parametrize(("old", "new"), [(3, 5), (5, 3)])
def test_rows_are_padded_to_a_common_width_prompts_on_the_left(old, new):
    merged = replace_rows(
        batch([[1, 1]], width=old), torch.tensor([1]), batch([[0, 1]], width=new, start=500), torch.tensor([0]), PAD
    )
    mine, theirs = list(range(old)), list(range(500, 500 + new))
    for row, ids in enumerate([mine, theirs]):
        padding = [PAD] * (5 - len(ids))
        assert merged["prompt_ids"][row].tolist() == padding + ids
        assert merged["completion_ids"][row].tolist() == ids + padding
        assert merged["prompt_mask"][row].tolist() == [0] * len(padding) + [1] * len(ids)
        assert merged["completion_mask"][row].tolist() == [1] * len(ids) + [0] * len(padding)
    assert merged["num_items_in_batch"] == 7


def test_what_has_no_rows_that_can_be_told_is_refused():
    images = batch([[1, 1]]) | {"num_images": [1, 1]}
    with pytest.raises(ValueError, match="cannot replace rows of 'num_images'"):
        replace_rows(images, torch.tensor([1]), images, torch.tensor([0]), PAD)


def test_batches_of_which_only_one_has_a_mask_are_not_merged():
    old = batch([[1, 1]])
    fresh = batch([[0, 1]]) | {"tool_mask": torch.ones(2, 3, dtype=torch.long)}
    for pair in ((old, fresh), (fresh, old)):
        with pytest.raises(ValueError, match="only one has tool_mask"):
            replace_rows(pair[0], torch.tensor([1]), pair[1], torch.tensor([0]), PAD)


# --- in the trainer

PROMPTS = [f"{a} + {b} =" for a in range(4) for b in range(4)]
DATA = Dataset.from_list([{"prompt": prompt, "kind": kind % 4} for kind, prompt in enumerate(PROMPTS)])


class ByKind:
    """Kind 0 is always right, kind 1 always wrong; the others depend on the tokens."""

    __name__ = "by_kind"

    def __init__(self, useful=(2, 3)):
        self.useful, self.calls = useful, []

    def __call__(self, prompts, completion_ids, kind, **columns):
        self.calls.append(list(prompts))
        return [
            (sum(ids) % 7) / 3 if k in self.useful else float(k == 0)
            for k, ids in zip(kind, completion_ids, strict=True)
        ]


def trainer_of(model, tokenizer, cpu_args, reward, **options):
    args = {
        **cpu_args,
        "max_steps": 2,
        "per_device_train_batch_size": 16,
        "num_generations": 4,
        "max_completion_length": 6,
        "filter_groups_enable": True,
        "max_filter_retries": 8,
        **options,
    }
    return OnlineSFTTrainer(model, reward, OnlineSFTConfig(**args), DATA, processing_class=tokenizer)


def test_the_loss_sees_kept_and_refilled_groups_alone(model, tokenizer, cpu_args):
    reward = ByKind()
    trainer = trainer_of(model, tokenizer, cpu_args, reward)
    seen = []
    compute_loss = trainer._compute_loss
    trainer._compute_loss = lambda m, inputs: seen.append(inputs) or compute_loss(m, inputs)
    trainer.train()
    for inputs in seen:
        prompts = tokenizer.batch_decode(inputs["prompt_ids"], skip_special_tokens=True)
        kinds = {PROMPTS.index(prompt) % 4 for prompt in prompts}
        assert kinds <= {2, 3}
        assert not inputs["advantages"].isnan().any()
        assert inputs["num_scored"] == 16
    assert len(reward.calls) > 2, "a round of fresh prompts must have been needed for this test to mean anything"
    entry = trainer.state.log_history[0]
    assert entry["groups/kept"] == 1.0
    assert entry["groups/all_correct"] + entry["groups/all_wrong"] >= entry["groups/refilled"] > 0
    assert entry["groups/sampled_per_kept"] > 1
    assert entry["unscorable"] == 0


def test_what_is_left_is_masked_out_of_sum_and_count(model, tokenizer, cpu_args):
    """Without retries: the first gradient is that of the groups that differ, over their completions."""
    trainer = trainer_of(model, tokenizer, cpu_args, ByKind(), max_filter_retries=0, max_steps=1)
    seen = []
    compute_loss = trainer._compute_loss
    trainer._compute_loss = lambda m, inputs: seen.append(inputs) or compute_loss(m, inputs)
    trainer.train()
    (inputs,) = seen
    prompts = tokenizer.batch_decode(inputs["prompt_ids"], skip_special_tokens=True)
    useful = torch.tensor([PROMPTS.index(prompt) % 4 in (2, 3) for prompt in prompts])
    assert 0 < useful.sum() < 16
    assert (inputs["advantages"].isnan() == ~useful).all()
    assert inputs["num_scored"] == useful.sum()
    assert_close(trainer.state.log_history[0]["groups/kept"], useful.float().mean().item())


def test_the_rewards_in_the_log_are_those_of_all_that_was_sampled(model, tokenizer, cpu_args):
    reward, rewards = ByKind(), []

    def recorded(**columns):
        rewards.extend(reward(**columns))
        return rewards[-len(columns["prompts"]) :]

    trainer = trainer_of(model, tokenizer, cpu_args, recorded, max_steps=1)
    trainer.train()
    assert len(rewards) > 16
    assert_close(trainer.state.log_history[0]["reward"], sum(rewards) / len(rewards))


def test_fresh_prompts_depend_on_seed_and_step_alone_so_a_resumed_run_draws_the_same(model, tokenizer, cpu_args):
    saving = {"save_strategy": "steps", "save_steps": 1, "max_steps": 3}
    straight = ByKind()
    trainer_of(copy.deepcopy(model), tokenizer, cpu_args, straight, **saving).train()
    resumed = ByKind()
    trainer = trainer_of(model, tokenizer, cpu_args, resumed, **saving)
    trainer.train(resume_from_checkpoint="out/checkpoint-1")
    assert resumed.calls == straight.calls[-len(resumed.calls) :]
    assert any(len(prompts) < 16 for prompts in resumed.calls), "no fresh prompts were drawn"


def test_batches_without_a_useful_group_are_zero_steps_and_stop_the_run_in_the_end(model, tokenizer, cpu_args, caplog):
    before = copy.deepcopy(model.state_dict())
    options = {"max_filter_retries": 1, "filter_groups_patience": 3, "max_steps": 10, "weight_decay": 0.0}
    trainer = trainer_of(
        model, tokenizer, cpu_args, ByKind(useful=()), **options, save_strategy="steps", save_steps=100
    )
    with caplog.at_level(logging.ERROR):
        trainer.train()
    assert trainer.state.global_step == 3
    assert Path("out/checkpoint-3").is_dir()
    assert "training stops after step 3: in 3 batches in a row (filter_groups_patience) no group of 4" in caplog.text
    steps = [entry for entry in trainer.state.log_history if "groups/empty_batches" in entry]
    assert [entry["groups/empty_batches"] for entry in steps] == [1, 2, 3]
    assert [(entry["loss"], entry["grad_norm"]) for entry in steps] == [(0, 0)] * 3
    assert [entry["groups/kept"] for entry in steps] == [0] * 3
    for name, value in trainer.model.state_dict().items():
        assert_close(value, before[name], rtol=0, atol=0)


def test_batches_without_a_useful_group_are_counted_across_a_resume(model, tokenizer, cpu_args):
    options = {"max_filter_retries": 1, "filter_groups_patience": 3, "max_steps": 10}
    options |= {"save_strategy": "steps", "save_steps": 1}
    trainer_of(model, tokenizer, cpu_args, ByKind(useful=()), **options).train()
    resumed = trainer_of(model, tokenizer, cpu_args, ByKind(useful=()), **options)
    resumed.train(resume_from_checkpoint="out/checkpoint-2")
    assert resumed.state.global_step == 3
    assert resumed.state.log_history[-2]["groups/empty_batches"] == 3


def test_evaluation_is_not_filtered(model, tokenizer, cpu_args):
    reward = ByKind(useful=())
    args = OnlineSFTConfig(**cpu_args, num_generations=4, filter_groups_enable=True, max_completion_length=6)
    trainer = OnlineSFTTrainer(model, reward, args, DATA, eval_dataset=DATA, processing_class=tokenizer)
    metrics = trainer.evaluate()
    assert sum(map(len, reward.calls)) == 64
    assert metrics["eval_reward"] == 0.25


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (DATA.to_iterable_dataset(), "draws fresh prompts by their row, which a stream does not have"),
        (DATA.add_column("image", [None] * 16), "replaces rows of text, not images"),
    ],
)
def test_data_that_cannot_be_filtered_is_refused(model, tokenizer, cpu_args, data, message):
    args = OnlineSFTConfig(**cpu_args, filter_groups_enable=True, max_steps=1)
    with pytest.raises(ValueError, match=message):
        OnlineSFTTrainer(model, ByKind(), args, data, processing_class=tokenizer)
