"""Every trainer, full and LoRA, in every mode of recipes/accelerate: two processes (gloo) have the numbers of one.

The recipes are launched as they are, but for two processes and no bf16; `modes_worker.assert_mode` sees to it that the
mode is what it says. What only GPUs can show is in recipes/accelerate/README.md.
"""

import json

import generation_worker
import memory_worker
import modes_worker
import psutil
import pytest
import torch
import uneven_worker
from launching_tools import MODES, launch
from trajectory_tools import chat_tokenizer

from recipes.quickstart.tiny_model import build_model

# a launch takes 15 to 30 s; the first with DeepSpeed compiles for another 40 s
pytestmark = [pytest.mark.distributed, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def models(tokenizer, tmp_path_factory):
    """A folder with what the workers train."""
    folder = tmp_path_factory.mktemp("modes")
    for name, own in (("model", tokenizer), ("chat_model", chat_tokenizer())):
        build_model(own, seed=0).save_pretrained(folder / name)
        own.save_pretrained(folder / name)
    for mode in MODES:
        (folder / mode).mkdir()
    return folder


@pytest.fixture(scope="module")
def one(models):
    """What one process finds, with the whole batch at once."""
    found = {}
    for kind in modes_worker.KINDS:
        trainer = modes_worker.build(kind, 1, models, models / "one" / kind)
        trainer.train()
        found[kind] = modes_worker.found(trainer)
    return found


@pytest.fixture(scope="module", params=MODES)
def both(request, models):
    """What two processes find in an uninterrupted run, and in one that goes on from its checkpoint."""
    runs = []
    for phase in ("straight", "resumed"):
        launch(request.param, modes_worker.__file__, models, request.param, phase)
        runs.append(torch.load(models / request.param / f"{phase}.pt", weights_only=True))
    return runs


def assert_same_numbers(two, one):
    """Loss and gradient norm of each step within 1e-5, relative where they are above 1."""
    assert len(two) == len(one)
    for key in ("loss", "grad_norm"):
        for here, there in zip(two, one, strict=True):
            assert abs(here[key] - there[key]) <= 1e-5 * max(1, abs(there[key])), (key, here[key], there[key])


@pytest.mark.parametrize("kind", modes_worker.KINDS)
def test_two_processes_have_the_numbers_of_one(kind, both, one):
    """Measured: 1.6e-6."""
    straight, _ = both
    assert_same_numbers(straight[kind]["log"], one[kind]["log"])
    losses = [entry["loss"] for entry in one[kind]["log"]]
    assert len(losses) == 4
    assert max(losses) - min(losses) > 0.1  # the steps matter


@pytest.mark.parametrize("kind", modes_worker.KINDS)
def test_a_resumed_run_is_the_uninterrupted_one(kind, both):
    straight, resumed = (run[kind] for run in both)
    steps = [
        [(entry["step"], entry["loss"], entry["grad_norm"]) for entry in run["log"]] for run in (straight, resumed)
    ]
    assert [step for step, *_ in steps[1]] == [1, 2, 3, 4]  # the first two are those of the checkpoint
    assert steps[1] == steps[0]
    assert (straight["parameters"] - resumed["parameters"]).abs().max() == 0.0


@pytest.fixture(scope="module")
def sampled(models):
    """What both processes sample in a mode, and learn from it."""

    def in_mode(mode):
        files = [models / mode / f"generated.{rank}.json" for rank in (0, 1)]
        if not files[1].exists():
            launch(mode, generation_worker.__file__, models, mode)
        return [json.loads(file.read_text()) for file in files]

    return in_mode


@pytest.mark.parametrize("mode", MODES)
def test_processes_that_generate_longer_and_shorter_answers_go_on_together(mode, sampled):
    """And sample the same as under DDP, where each has the whole model. Measured: 1e-6."""
    ranks, reference = sampled(mode), sampled("ddp")
    for kind in generation_worker.KINDS:
        longer, shorter = (rank[kind]["lengths"] for rank in ranks)
        assert max(longer) > 6  # tokens or letters
        assert max(shorter) <= 3
        assert [rank[kind]["lengths"] for rank in reference] == [longer, shorter]
        assert len(ranks[0][kind]["log"]) == 2
        assert_same_numbers(ranks[0][kind]["log"], reference[0][kind]["log"])


@pytest.mark.parametrize("mode", MODES)
def test_a_process_with_nothing_to_learn_from_goes_on_with_the_other(mode, models):
    """One batch without loss, then both; few tokens here, many there; one process without rewards. Measured: 1.3e-6."""
    launch(mode, uneven_worker.__file__, models, mode)
    two = json.loads((models / mode / "uneven.json").read_text())
    for kind in uneven_worker.KINDS:
        one = uneven_worker.train(kind, 1, models).state.log_history
        assert_same_numbers(two[kind], [entry for entry in one if "loss" in entry])
        no_loss = two[kind][1]
        assert (no_loss["loss"], no_loss["grad_norm"]) == (0.0, 0.0) or kind == "trajectories"
        assert min(entry["grad_norm"] for entry in two[kind] if entry is not no_loss) > 0.1


def test_fsdp2_holds_half_of_what_one_process_holds(models, tmp_path):
    """Measured: 0.500 of each; the steps of the optimizer, one number a tensor, are everywhere."""
    launch("fsdp2", memory_worker.__file__, models, "fsdp2")
    for rank in (0, 1):
        two = json.loads((models / "fsdp2" / f"bytes.{rank}.json").read_text())
        for kind, here in two.items():
            _, one = memory_worker.held(kind, 1, models, tmp_path / kind)
            assert one["optimizer"] > 2 * one["parameters"] == 2 * one["gradients"]
            for name in ("parameters", "gradients", "optimizer"):
                assert 0.4 < here[name] / one[name] < 0.6


def test_a_launch_that_takes_too_long_leaves_no_process(tmp_path):
    script = "import os, pathlib, time; pathlib.Path(str(os.getpid())).touch(); time.sleep(100)"
    (tmp_path / "script.py").write_text(script)
    with pytest.raises(AssertionError, match="ddp: still running after 15 s"):
        launch("ddp", str(tmp_path / "script.py"), seconds=15)
    started = [path for path in tmp_path.iterdir() if path.name.isdigit()]
    assert len(started) == 2
    assert not any(_is_alive(int(path.name)) for path in started)


def _is_alive(process_id):
    try:
        return psutil.Process(process_id).status() != psutil.STATUS_ZOMBIE  # killed, its parent too
    except psutil.NoSuchProcess:
        return False
