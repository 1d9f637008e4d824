"""Runs that are killed with SIGKILL and started again end where a run ends that was left alone: max |d| = 0.0."""

import json
import os
import subprocess
import sys

import kill_worker
import pytest


def outcome(what, kind, num_processes, folder, seed=0):
    command = [sys.executable, kill_worker.__file__, what, kind, str(num_processes), str(seed), str(folder)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=280, env=environment)
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads((folder / "found.json").read_text())


ONE, TWO = pytest.mark.slow, pytest.mark.distributed


@pytest.mark.parametrize(
    ("kind", "num_processes"),
    [
        pytest.param("online: 4 steps a generation, twice", 1, marks=ONE),
        pytest.param("online: filtered", 1, marks=ONE),
        pytest.param("weighted: packed, normalised", 1, marks=ONE),
        pytest.param("trajectories: collected", 1, marks=ONE),
        pytest.param("online: filtered", 2, marks=TWO),
        pytest.param("weighted: stream", 2, marks=TWO),
        pytest.param("trajectories: collected", 2, marks=TWO),
    ],
)
def test_a_run_that_is_killed_at_five_random_moments_ends_to_the_bit_where_it_would_have(kind, num_processes, tmp_path):
    found = outcome("moments", kind, num_processes, tmp_path)
    assert len(found["kills"]) == kill_worker.NUM_KILLS
    assert len({kill["checkpoints"] for kill in found["kills"]}) > 1, "the kills should not all be in one step"
    assert found["distance"] == 0.0


@pytest.mark.distributed
@pytest.mark.parametrize("kind", ["online: a batch a step", "weighted: grouped by length"])
def test_two_processes_resume_to_the_bit_in_the_first_epoch_and_in_the_second(kind, tmp_path):
    """Accelerate does not tell a sampler its epoch when several processes resume within one."""
    assert outcome("steps", kind, 2, tmp_path) == {"3": 0.0, "6": 0.0}


@pytest.mark.slow
def test_whenever_a_run_is_killed_while_it_saves_the_checkpoint_before_is_whole_or_the_new_one_is(tmp_path):
    """With save_total_limit=1, which removes the one before."""
    found = outcome("saving", "weighted: rows", 1, tmp_path)
    assert len(found) > 10
    left = {tuple(kill["left"]) for kill in found}
    # the last when it has saved, and writes the next step into its record
    assert left == {("checkpoint-1",), ("checkpoint-1", "checkpoint-2"), ("checkpoint-2",)}
    assert {kill["distance"] for kill in found} == {0.0}
