"""A run that goes on from a checkpoint is the run that never stopped: parameters and all that is logged, to the bit."""

import shutil

import pandas
import pytest
import torch
from resume_tools import KINDS, STEPS, numbers, parameters, trainer_of
from transformers import EarlyStoppingCallback, TrainerCallback, set_seed


def assert_resumes_to_the_bit(kind, steps, folder):
    whole = trainer_of(kind, folder / "whole")
    whole.train()
    assert len(numbers(whole)) == STEPS
    assert len({entry["grad_norm"] for entry in numbers(whole)}) == STEPS, "steps that do not differ show nothing"
    for step in steps:
        shutil.copytree(folder / "whole", folder / "resumed")
        resumed = trainer_of(kind, folder / "resumed")
        torch.manual_seed(99)  # another process has other random numbers
        resumed.train(resume_from_checkpoint=str(folder / "resumed" / f"checkpoint-{step}"))
        assert resumed.state.global_step == STEPS
        assert numbers(resumed, after=step) == numbers(whole, after=step), step
        assert (parameters(resumed) - parameters(whole)).abs().max() == 0.0, step
        shutil.rmtree(folder / "resumed")


# What the others have in common with these is tested with them only.
OFTEN = [
    "online: a batch a step",
    "online: 4 steps a generation, twice",
    "online: filtered",
    "online: stream",
    "weighted: rows",
    "weighted: grouped by length",
    "weighted: stream",
    "trajectories: collected",
]


@pytest.mark.parametrize("kind", OFTEN)
def test_a_resume_is_the_uninterrupted_run_to_the_bit(kind, tmp_path):
    """Within a generation and the first epoch, in the second, and at the end, where there is nothing to do."""
    assert_resumes_to_the_bit(kind, (3, 6, STEPS), tmp_path)


@pytest.mark.parametrize(
    "kind", ["online: 4 steps a generation", "weighted: rows", "weighted: stream", "trajectories: demonstrations"]
)
def test_log_entries_over_several_steps_are_those_of_the_uninterrupted_run(kind, tmp_path):
    options = {"logging_steps": 3, "max_steps": 6}
    each, whole, resumed = (trainer_of(kind, tmp_path / "out", **options) for _ in range(3))
    each.args.logging_steps, each.args.output_dir = 1, str(tmp_path / "each")
    whole.train()
    result = resumed.train(resume_from_checkpoint=str(tmp_path / "out" / "checkpoint-4"))
    assert [entry["step"] for entry in numbers(whole)] == [3, 6]
    assert numbers(resumed) == numbers(whole)
    set_seed(42)
    each.train()
    losses = [entry["loss"] for entry in numbers(each)]
    assert numbers(whole)[0]["loss"] == pytest.approx(sum(losses[:3]) / 3)
    assert result.training_loss == pytest.approx(sum(losses[4:]) / 2)  # of the steps of this `train`


@pytest.mark.parametrize("kind", ["weighted: lora", "online: a batch a step"])
def test_evaluation_takes_no_random_number_from_the_training(kind, tmp_path):
    """So it does not matter that a run which resumes at an epoch's end does not evaluate there again."""
    options = {"eval_strategy": "epoch", "max_steps": 7}
    whole = trainer_of(kind, tmp_path / "out", **options)
    whole.train()
    at_the_end = 4 if kind.startswith("weighted") else 5
    resumed = trainer_of(kind, tmp_path / "out", **options)
    resumed.train(resume_from_checkpoint=str(tmp_path / "out" / f"checkpoint-{at_the_end}"))
    without = trainer_of(kind, tmp_path / "without", max_steps=7)
    without.train()
    for other in (resumed, without):
        assert (parameters(other) - parameters(whole)).abs().max() == 0.0


def test_a_callback_may_look_at_the_stream(tmp_path):
    class Looks(TrainerCallback):
        def on_train_begin(self, *args, **kwargs):
            next(iter(trainer.get_train_dataloader()))

    whole = trainer_of("weighted: stream", tmp_path / "out")
    whole.train()
    trainer = trainer_of("weighted: stream", tmp_path / "out")
    trainer.add_callback(Looks())
    trainer.train(resume_from_checkpoint=str(tmp_path / "out" / "checkpoint-6"))
    again = trainer_of("weighted: stream", tmp_path / "out")
    again.train(resume_from_checkpoint=str(tmp_path / "out" / "checkpoint-7"))
    for other in (trainer, again):
        assert (parameters(other) - parameters(whole)).abs().max() == 0.0


def test_callbacks_of_users_are_where_they_were(tmp_path):
    """Evaluations that get worse from the first: patience 4 ends the run after step 5, wherever it was stopped."""
    options = {"eval_strategy": "steps", "eval_steps": 1, "load_best_model_at_end": True}
    options |= {"metric_for_best_model": "eval_loss", "learning_rate": 1.0}

    def train(checkpoint=None):
        trainer = trainer_of("weighted: rows", tmp_path / "out", **options)
        trainer.add_callback(EarlyStoppingCallback(early_stopping_patience=4))
        trainer.train(checkpoint)
        return trainer.state.global_step

    first = train()
    assert 4 <= first < STEPS
    assert train(str(tmp_path / "out" / "checkpoint-3")) == first
    shutil.rmtree(tmp_path / "out")
    trainer_of("weighted: rows", tmp_path / "out", **options, max_steps=3).train()
    train("auto")  # a callback that the checkpoint does not know


def test_the_table_of_completions_of_a_generation_that_was_under_way_is_complete(tmp_path):
    kind, options = "online: 4 steps a generation", {"log_completions": True, "max_steps": 4}
    whole, resumed = (trainer_of(kind, tmp_path / "out", **options) for _ in range(2))
    whole.train()
    table = tmp_path / "out" / "completions" / "completions_00004.parquet"
    before = pandas.read_parquet(table)
    resumed.train(resume_from_checkpoint=str(tmp_path / "out" / "checkpoint-3"))
    assert len(before) == 32
    assert pandas.read_parquet(table).equals(before)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_a_resume_from_any_step_is_the_uninterrupted_run_to_the_bit(kind, tmp_path):
    """At the end of a generation, at an epoch's end."""
    assert_resumes_to_the_bit(kind, range(1, STEPS + 1), tmp_path)
