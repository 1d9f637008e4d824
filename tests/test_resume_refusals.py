"""A run does not go on from what it cannot go on from to the bit, unless it is told to; nothing is written over."""

import json
import logging
import shutil
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from resume_tools import numbers, parameters, trainer_of
from trajectory_tools import ragged_trajectories
from transformers import TrainerCallback
from trl import SFTConfig, SFTTrainer

from recipes.quickstart.tiny_model import build_model, build_tokenizer
from trainers.checkpoints.choice import last_whole_checkpoint
from trainers.checkpoints.manifest import FORMAT_VERSION, MANIFEST, ResumeError

ONLINE, WEIGHTED = "online: 4 steps a generation", "weighted: rows"
SHORT = {"max_steps": 3}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Three steps and three checkpoints of each."""
    folder = tmp_path_factory.mktemp("finished")
    for name, kind in (("online", ONLINE), ("weighted", WEIGHTED)):
        trainer_of(kind, folder / name, **SHORT).train()
    return folder


@pytest.fixture
def copy(finished, tmp_path):
    shutil.copytree(finished, tmp_path / "copy")
    return tmp_path / "copy"


@pytest.mark.parametrize(
    ("kind", "option", "reason"),
    [
        (WEIGHTED, {"seed": 7}, "seed was 42 and is 7"),
        (WEIGHTED, {"per_device_train_batch_size": 4}, "per_device_train_batch_size was 2 and is 4"),
        (WEIGHTED, {"gradient_accumulation_steps": 1}, "gradient_accumulation_steps was 2 and is 1"),
        (
            WEIGHTED,
            {"train_sampling_strategy": "sequential"},
            "train_sampling_strategy was 'random' and is 'sequential'",
        ),
        (WEIGHTED, {"ignore_data_skip": True}, "ignore_data_skip=True: the data begin anew"),
        (ONLINE, {"steps_per_generation": 2}, "steps_per_generation was 4 and is 2"),
        (ONLINE, {"num_generations": 8}, "num_generations was 4 and is 8"),
        (ONLINE, {"num_iterations": 2}, "num_iterations was 1 and is 2"),
        (ONLINE, {"beta": 0.1, "sync_ref_model": True}, "the reference model that follows the policy is not saved"),
    ],
)
def test_other_settings_are_named(kind, option, reason, copy):
    output = copy / kind.split(":")[0]
    trainer = trainer_of(kind, output, **SHORT, **option)
    before = parameters(trainer).clone()
    with pytest.raises(ResumeError, match=r"cannot go on from .*checkpoint-2 as if it had never stopped") as error:
        trainer.train(resume_from_checkpoint=str(output / "checkpoint-2"))
    assert reason in str(error.value)
    assert "set allow_inexact_resume=True" in str(error.value)
    assert torch.equal(parameters(trainer), before)


def test_with_the_flag_the_run_goes_on_and_the_reason_is_a_warning(copy, caplog):
    output = copy / "weighted"
    trainer = trainer_of(WEIGHTED, output, **SHORT, seed=7, allow_inexact_resume=True)
    with caplog.at_level(logging.WARNING):
        trainer.train(resume_from_checkpoint=str(output / "checkpoint-2"))
    assert "checkpoint-2 the run goes on as another: seed was 42 and is 7" in caplog.text
    assert [entry["step"] for entry in numbers(trainer)] == [1, 2, 3]


def test_other_data_are_named(copy):
    output = copy / "weighted"
    trainer = trainer_of(WEIGHTED, output, **SHORT)
    rows = trainer.train_dataset.to_list()
    rows[-1]["advantages"] = [2.0] * len(rows[-1]["input_ids"])
    trainer.train_dataset = Dataset.from_list(rows)
    with pytest.raises(ResumeError, match=r"data was '14 rows, sha256 .*' and is '14 rows, sha256 "):
        trainer.train(resume_from_checkpoint=str(output / "checkpoint-2"))


def test_other_trajectories_to_begin_with_are_named(tmp_path):
    kind, output = "trajectories: collected", tmp_path / "out"
    trainer_of(kind, output, max_steps=1).train()
    trainer = trainer_of(kind, output, max_steps=2)
    trainer._collected.initial = ragged_trajectories(5)
    with pytest.raises(ResumeError, match=r"data was '7 rows, sha256 .*' and is '5 rows, sha256 "):
        trainer.train("auto")


def test_another_version_of_a_library_is_a_warning(copy, caplog):
    path = copy / "weighted" / "checkpoint-2" / MANIFEST
    found = json.loads(path.read_text())
    path.write_text(json.dumps({**found, "versions": {**found["versions"], "torch": "1.0"}}))
    with caplog.at_level(logging.WARNING):
        trainer_of(WEIGHTED, copy / "weighted", **SHORT).train(str(path.parent))
    assert "digits may differ: [\"torch was '1.0' and is '2" in caplog.text


def test_another_number_of_processes_is_named(copy):
    path = copy / "weighted" / "checkpoint-2" / MANIFEST
    path.write_text(path.read_text().replace('"num_processes": 1', '"num_processes": 2'))
    with pytest.raises(ResumeError, match="num_processes was 2 and is 1"):
        trainer_of(WEIGHTED, copy / "weighted", **SHORT).train(str(path.parent))


@pytest.mark.parametrize("version", [FORMAT_VERSION + 1, 0])
def test_a_checkpoint_of_another_format_is_refused_whatever_the_flag(version, copy):
    path = copy / "weighted" / "checkpoint-2" / MANIFEST
    path.write_text(json.dumps({**json.loads(path.read_text()), "format_version": version}))
    trainer = trainer_of(WEIGHTED, copy / "weighted", **SHORT, allow_inexact_resume=True)
    with pytest.raises(ResumeError, match=rf"format_version={version}, .*reads 1 only; resume with the version"):
        trainer.train(str(path.parent))


@pytest.mark.parametrize(
    "name", ["model.safetensors", "optimizer.pt", "rng_state.pth", "online_sft_0.pt", "scheduler.pt"]
)
@pytest.mark.parametrize("damage", ["missing", "cut"])
def test_a_damaged_checkpoint_is_refused_and_the_file_named(name, damage, copy):
    path = copy / "online" / "checkpoint-2" / name
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ResumeError, match=f"is damaged: {name} (is missing|has .* bytes instead of)"):
        trainer_of(ONLINE, copy / "online", **SHORT).train(str(path.parent))


def test_a_checkpoint_of_the_model_only_is_no_place_to_go_on_from(tmp_path):
    options = {**SHORT, "save_only_model": True}
    trainer_of(WEIGHTED, tmp_path / "out", **options).train()
    with pytest.raises(ResumeError, match=r"it holds the model only \(save_only_model\)"):
        trainer_of(WEIGHTED, tmp_path / "out", **SHORT).train(True)


def test_a_checkpoint_of_trl_is_taken_with_the_flag_only(tmp_path, cpu_args):
    """Whoever comes from SFTTrainer keeps the optimizer, and is told that the rest begins here."""
    tokenizer = build_tokenizer([" + ", " =", " Answer: "])
    options = {"max_steps": 2, "save_steps": 1, "save_strategy": "steps", "output_dir": str(tmp_path / "out")}
    rows = [{"input_ids": [2, 3, 4, 5], "labels": [2, 3, 4, 5]}] * 8
    args = SFTConfig(**{**cpu_args, **options}, per_device_train_batch_size=2)
    SFTTrainer(
        build_model(tokenizer, seed=0), args, train_dataset=Dataset.from_list(rows), processing_class=tokenizer
    ).train()
    with pytest.raises(ResumeError, match=r"not written by this trainer \(no online_sft.json\)"):
        trainer_of(WEIGHTED, tmp_path / "out").train(True)
    trainer = trainer_of(WEIGHTED, tmp_path / "out", allow_inexact_resume=True)
    trainer.train(True)
    assert trainer.state.global_step == 8


def test_where_there_is_nothing_to_go_on_from(copy):
    empty = copy / "empty"
    with pytest.raises(ResumeError, match=r"there is no whole checkpoint in .*empty; 'auto' starts a new run then"):
        trainer_of(WEIGHTED, empty, **SHORT).train(True)
    with pytest.raises(ResumeError, match="there is no whole checkpoint"):
        trainer_of(WEIGHTED, empty, **SHORT).train("true")
    trainer = trainer_of(WEIGHTED, empty, max_steps=1)
    trainer.train("auto")
    assert trainer.state.global_step == 1
    (copy / "weighted" / "checkpoint-3" / "trainer_state.json").unlink()
    with pytest.raises(ResumeError, match=r"checkpoint-3 is no whole checkpoint.*The last whole one is .*checkpoint-2"):
        trainer_of(WEIGHTED, copy / "weighted", **SHORT).train(str(copy / "weighted" / "checkpoint-3"))
    trainer = trainer_of(WEIGHTED, copy / "weighted", **SHORT)
    trainer.train(True)
    assert last_whole_checkpoint(copy / "weighted") == str(copy / "weighted" / "checkpoint-3")


def test_a_checkpoint_of_the_middle_of_a_step_is_named(tmp_path):
    """As transformers' `enable_jit_checkpoint` writes it: its random numbers are of after the forward pass."""

    class InMid(TrainerCallback):
        def on_pre_optimizer_step(self, args, state, control, **kwargs):
            if state.global_step == 1:
                trainer._save_checkpoint(trainer.model_wrapped, trial=None)

    trainer = trainer_of(WEIGHTED, tmp_path / "out", max_steps=2, save_strategy="no")
    trainer.add_callback(InMid())
    trainer.train()
    with pytest.raises(ResumeError, match="within_a_step was True and is False"):
        trainer_of(WEIGHTED, tmp_path / "out", max_steps=2).train(True)


def test_settings_that_the_optimizer_keeps_are_a_warning(copy, caplog):
    trainer = trainer_of(WEIGHTED, copy / "weighted", **SHORT, learning_rate=1e-4)
    with caplog.at_level(logging.WARNING):
        trainer.train(str(copy / "weighted" / "checkpoint-2"))
    assert "checkpoint-2: learning_rate was '0.01' and is '0.0001'" in caplog.text
    assert numbers(trainer, after=2)[0]["learning_rate"] == pytest.approx(1e-2 / 3)


@pytest.mark.parametrize("content", ["", "{}", "[1]"])
def test_a_manifest_that_cannot_be_read_is_named(content, copy):
    (copy / "weighted" / "checkpoint-2" / MANIFEST).write_text(content)
    with pytest.raises(ResumeError, match=r"is damaged: online_sft\.json cannot be read"):
        trainer_of(WEIGHTED, copy / "weighted", **SHORT).train(str(copy / "weighted" / "checkpoint-2"))


def test_what_does_not_change_the_run_is_not_refused(copy):
    """Whatever a callback writes into the state, a transform draws, or a run with a stream has set before."""
    state = copy / "weighted" / "checkpoint-2" / "trainer_state.json"
    state.write_text(json.dumps(json.loads(state.read_text()), indent=7))
    streamed = trainer_of("weighted: stream", copy / "stream", max_steps=1)
    streamed.train()
    assert not streamed.args.ignore_data_skip
    trainer = trainer_of(WEIGHTED, copy / "weighted", **SHORT)
    trainer.train_dataset = trainer.train_dataset.with_transform(lambda rows: {**rows, "drawn": [torch.rand(1).item()]})
    assert trainer.data_digest() == trainer_of(WEIGHTED, copy / "weighted", **SHORT).data_digest()
    trainer = trainer_of(WEIGHTED, copy / "weighted", max_steps=4)
    trainer.train(str(copy / "weighted" / "checkpoint-2"))
    assert trainer.state.global_step == 4


def test_a_checkpoint_that_was_being_replaced_is_put_back(copy):
    """SIGKILL between the two moves of a step that is saved again."""
    folder = copy / "weighted"
    for step in (1, 2):
        shutil.rmtree(folder / f"checkpoint-{step}")
    (folder / "_saving").mkdir()
    (folder / "checkpoint-3").rename(folder / "_saving" / "replaced-checkpoint-3")
    trainer = trainer_of(WEIGHTED, folder, max_steps=4)
    trainer.train("auto")
    assert [entry["step"] for entry in numbers(trainer)] == [1, 2, 3, 4]
    assert sorted(path.name for path in folder.glob("checkpoint-*")) == ["checkpoint-3", "checkpoint-4"]


def test_what_a_killed_run_has_left_aside_is_removed_by_the_next_checkpoint(copy):
    aside = copy / "weighted" / "_saving" / "checkpoint-3"
    aside.mkdir(parents=True)
    (aside / "model.safetensors").write_bytes(b"half")
    (aside / "pytorch_model.bin").write_bytes(b"of another format")
    trainer_of(WEIGHTED, copy / "weighted", **SHORT).train(str(copy / "weighted" / "checkpoint-2"))
    assert not aside.parent.exists()
    assert not (copy / "weighted" / "checkpoint-3" / "pytorch_model.bin").exists()
    assert (copy / "weighted" / "checkpoint-3" / "model.safetensors").stat().st_size > 4


def test_the_manifest_says_what_the_checkpoint_is_of(copy):
    found = json.loads((copy / "online" / "checkpoint-2" / MANIFEST).read_text())
    assert found["format_version"] == FORMAT_VERSION
    assert set(found["versions"]) == {"torch", "transformers", "trl", "accelerate", "peft"}
    assert found["setup"]["trainer"] == "OnlineSFTTrainer"
    files = {
        str(p.relative_to(copy / "online" / "checkpoint-2")) for p in Path(copy, "online", "checkpoint-2").iterdir()
    }
    assert set(found["files"]) == files - {MANIFEST, "trainer_state.json"}
