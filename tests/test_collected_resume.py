"""Collections are reproducible to the bit, whatever comes between, and nothing else in the training notices them."""

import random
import re
import shutil
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from collection_tools import (
    CHECKPOINTED,
    Dice,
    Ignorant,
    collecting,
    forced_model,
    log_of,
    parameters,
    rounds,
    with_dropout,
)
from trajectory_tools import chat_tokenizer, ragged_trajectories
from transformers import TrainerCallback

from online_sft.trajectories.damage import TrajectoryFileError
from recipes.quickstart.tiny_model import build_model

ROUND = "trajectories/round-{:05d}.jsonl"
TOKENIZER = chat_tokenizer()


def numbers(trainer, after=0):
    """All that was logged, but for times and memory, and for TRL's count of tokens, which a resume begins anew."""
    return [
        {name: value for name, value in entry.items() if not re.search("second|memory|num_tokens", name)}
        for entry in trainer.state.log_history
        if entry["step"] > after and "train_loss" not in entry
    ]


# everything that a resume has to restore: dropout, a buffer that forgets, weights that compare what is in it
RESUMABLE = {
    "max_steps": 7,
    "collect_every": 3,
    "collect_episodes": 5,
    "max_trajectories": 11,
    "max_trajectory_staleness": 4,
    "reward_weighting": "reward_to_go",
    "weighting": "boltzmann",
    "gradient_accumulation_steps": 2,
    "save_strategy": "steps",
    "save_steps": 1,
}


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("uninterrupted")
    demonstrations = ragged_trajectories(4)
    trainer = collecting(
        model=with_dropout(), train_dataset=demonstrations, output_dir=str(folder), max_length=200, **RESUMABLE
    )
    trainer.train()
    return trainer, folder


@pytest.mark.parametrize("leftover", ["none", "later rounds", "a damaged later round"])
@pytest.mark.parametrize("step", [2, 3, 4, 6])
def test_a_resume_is_the_uninterrupted_run_to_the_bit(step, leftover, uninterrupted, tmp_path):
    """Rounds begin at steps 0, 3 and 6; a killed run may have left those after its last checkpoint."""
    whole, folder = uninterrupted
    shutil.copytree(folder, tmp_path / "resumed")
    needed = -(-step // 3)
    for number in range(needed, 3):
        later = tmp_path / "resumed" / ROUND.format(number)
        if leftover == "none":
            later.unlink()
        elif leftover == "a damaged later round":
            later.write_bytes(later.read_bytes()[:100])
    torch.manual_seed(99)  # another process has other random numbers
    output = str(tmp_path / "resumed")
    resumed = collecting(
        model=with_dropout(), train_dataset=ragged_trajectories(4), output_dir=output, max_length=200, **RESUMABLE
    )
    resumed.train(resume_from_checkpoint=f"{output}/checkpoint-{step}")
    assert len(numbers(resumed, after=step)) == 7 - step
    assert numbers(resumed, after=step) == numbers(whole, after=step)
    assert torch.equal(parameters(resumed), parameters(whole))
    for number in range(3):
        assert Path(output, ROUND.format(number)).read_bytes() == (folder / ROUND.format(number)).read_bytes()


def test_a_run_that_was_killed_before_its_first_checkpoint_begins_again_with_auto(uninterrupted, tmp_path):
    """What it has collected would be refused as another run's: `auto` says that it is this one."""
    whole, folder = uninterrupted
    (tmp_path / "killed").mkdir()
    shutil.copytree(folder / "trajectories", tmp_path / "killed" / "trajectories")
    again = collecting(
        model=with_dropout(),
        train_dataset=ragged_trajectories(4),
        output_dir=str(tmp_path / "killed"),
        max_length=200,
        **RESUMABLE,
    )
    again.train(resume_from_checkpoint="auto")
    assert torch.equal(parameters(again), parameters(whole))


def test_a_resume_at_the_end_ends(uninterrupted, tmp_path):
    whole, folder = uninterrupted
    shutil.copytree(folder, tmp_path / "resumed")
    before = sorted(path.stat().st_mtime_ns for path in (tmp_path / "resumed" / "trajectories").iterdir())
    resumed = collecting(
        train_dataset=ragged_trajectories(4), output_dir=str(tmp_path / "resumed"), max_length=200, **RESUMABLE
    )
    resumed.train(resume_from_checkpoint=str(tmp_path / "resumed" / "checkpoint-7"))
    assert torch.equal(parameters(resumed), parameters(whole))
    assert sorted(path.stat().st_mtime_ns for path in (tmp_path / "resumed" / "trajectories").iterdir()) == before


def test_rounds_that_cannot_be_restored_are_named(uninterrupted, tmp_path):
    _, folder = uninterrupted

    def resume(name, break_it, **options):
        output = tmp_path / name
        shutil.copytree(folder, output)
        break_it(output / ROUND.format(1))
        own = {"output_dir": str(output), "train_dataset": ragged_trajectories(4)}
        trainer = collecting(**{**RESUMABLE, **own, **options})
        trainer.train(resume_from_checkpoint=str(output / "checkpoint-4"))

    def flip(path):
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(content)

    with pytest.raises(TrajectoryFileError, match=r"round-00001.jsonl, line 3"):
        resume("flipped", flip)
    with pytest.raises(TrajectoryFileError, match=r"round-00001.jsonl cannot be read: No such file"):
        resume("missing", Path.unlink)
    with pytest.raises(
        ValueError, match="was collected before step 3, and this run collects its round 1 before step 2"
    ):
        resume("other", lambda path: None, collect_every=2)


def test_a_run_does_not_write_over_the_rounds_of_another():
    trainer = collecting(max_steps=1)
    trainer.train()
    first = Path("out", ROUND.format(0)).read_bytes()
    for again in (trainer, collecting(max_steps=1, seed=7)):
        with pytest.raises(ValueError, match=r"out/trajectories holds the trajectories of an earlier run.*remove them"):
            again.train()
    assert Path("out", ROUND.format(0)).read_bytes() == first
    shutil.rmtree("out/trajectories")
    collecting(max_steps=1, seed=7).train()
    assert Path("out", ROUND.format(0)).read_bytes() != first


class Drawing(Ignorant):
    """Takes random numbers from everywhere, as an environment should not."""

    def step(self, action):
        random.random(), np.random.rand(), torch.rand(1)
        return super().step(action)


class RandomStates(TrainerCallback):
    def on_train_begin(self, *args, **kwargs):
        self.found = [self._now()]

    def on_step_end(self, *args, **kwargs):
        self.found.append(self._now())

    def _now(self):
        return random.getstate(), [each.tolist() for each in np.random.get_state()[1:2]], torch.get_rng_state().tolist()


def test_a_collection_takes_no_random_numbers_from_the_training():
    states = RandomStates()
    collecting([Drawing], options={"callbacks": [states]}, max_steps=3).train()  # a step takes none itself
    assert len(states.found) == 4
    assert all(found == states.found[0] for found in states.found[1:])


class Same(Ignorant):
    """One task, whatever the seed."""

    def reset(self, *, seed=None):
        return super().reset(seed=5)


def test_collections_that_make_no_difference_make_none_to_a_model_with_dropout():
    """One collection at each step, or one for all of them, of the same episode: the policy always says nothing."""
    losses = {}
    for every in (1, 4):
        model = with_dropout(forced_model({"end": 50.0}, others=0.0, is_blind=False), 0.5)
        sizes = {"collect_episodes": 1, "max_trajectories": 1, "collect_every": every, "learning_rate": 0.0}
        trainer = collecting([Same], model, output_dir=f"every{every}", **sizes)
        trainer.train()
        losses[every] = log_of(trainer, "loss")
        assert [len(each) for each in rounds(f"every{every}")] == [1] * (4 // every)
    assert losses[1] == losses[4]
    assert len(set(losses[1])) == 4  # the dropout of each step is another


class Observing(Dice):
    """Notes the state of the model while it acts."""

    seen: list
    model = None

    def step(self, action):
        modules = list(self.model.modules())
        self.seen.append(
            (any(m.training for m in modules), any(vars(m).get("gradient_checkpointing") for m in modules))
        )
        return super().step(action)


class States(TrainerCallback):
    """The modules in training mode, and how they checkpoint, at the beginning and after each step."""

    def __init__(self):
        self.found = []

    def on_train_begin(self, args, state, control, model, **kwargs):
        self.found.append(self.of(model))

    def on_step_end(self, args, state, control, model, **kwargs):
        self.found.append(self.of(model))

    @staticmethod
    def of(model):
        return [
            (
                module.training,
                vars(module).get("gradient_checkpointing"),
                str(vars(module).get("_gradient_checkpointing_func")),
            )
            for module in model.modules()
        ]


def test_the_model_acts_in_evaluation_mode_without_checkpointing_and_is_put_back_as_it_was():
    model, states = build_model(TOKENIZER, seed=0).train(), States()
    observing = type("Observing", (Observing,), {"seen": [], "model": model})
    trainer = collecting([observing], model, options={"callbacks": [states]}, max_steps=2, **CHECKPOINTED)
    trainer.train()
    assert set(observing.seen) == {(False, False)}
    assert states.found[1] == states.found[2] == states.found[0]
    assert [flag for _, flag, _ in states.found[0] if flag is not None] == [True, True, False]  # the model, its layers


class Interrupted(Dice):
    """Ctrl-C at its fourth step."""

    num_steps, closed = 0, 0

    def step(self, action):
        type(self).num_steps += 1
        if self.num_steps == 4:
            raise KeyboardInterrupt
        return super().step(action)

    def close(self):
        type(self).closed += 1


def test_after_ctrl_c_in_a_collection_all_is_as_before_and_a_resume_goes_on_as_if_nothing_had_been():
    options = {**CHECKPOINTED, "save_strategy": "steps", "save_steps": 1, "collect_episodes": 2, "max_steps": 3}
    whole = collecting([Dice], with_dropout(), output_dir="whole", **options)
    whole.train()
    interrupted = type("Dice", (Interrupted,), {})
    interrupted.num_steps = 3 - sum(len(each) for each in rounds("whole")[0])  # the first step of the second round
    states, threads = States(), threading.active_count()
    trainer = collecting([interrupted], with_dropout(), options={"callbacks": [states]}, output_dir="out", **options)
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    assert trainer.state.global_step == 1
    assert states.of(trainer.model) == states.found[0]
    assert interrupted.closed == 4  # two a round
    assert threading.active_count() == threads
    trainer.train(resume_from_checkpoint="out/checkpoint-1")  # the same trainer
    assert numbers(trainer) == numbers(whole)
    assert torch.equal(parameters(trainer), parameters(whole))


def test_checkpointing_changes_nothing():
    found = []
    for options in ({}, CHECKPOINTED):
        trainer = collecting(model=with_dropout(), output_dir=str(len(found)), **options)
        trainer.train()
        found.append((log_of(trainer, "loss", "collect/return"), parameters(trainer).tolist()))
    assert found[0] == found[1]
