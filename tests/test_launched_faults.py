"""Faults of one of two processes under torchrun: the run ends, says why, or goes on."""

import os
import subprocess
import sys
import time

import launched_worker
import pytest
import torch

pytestmark = pytest.mark.distributed


def launched(what, folder, *options):
    """Exit code, output, seconds. With gloo, the restarted processes need a store that is not theirs."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", *options]
    started = time.monotonic()
    done = subprocess.run(
        [*command, launched_worker.__file__, what, str(folder / what)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=200,
        env={**os.environ, "OMP_NUM_THREADS": "1", "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"},
    )
    return done.returncode, done.stdout, time.monotonic() - started


@pytest.mark.parametrize("what", ["rewards", "data"])
def test_a_process_that_raises_ends_the_others_within_a_minute_and_its_message_comes_last(what, tmp_path):
    code, said, seconds = launched(what, tmp_path)
    assert code == 1
    assert seconds < 60  # with the start
    last = [line.strip() for line in said.splitlines() if line.strip(" =")][-1]
    assert last == "LookupError: the grader has lost its table"


def test_torchrun_starts_a_killed_run_again_from_its_last_checkpoint_to_the_bit(tmp_path):
    code, said, _ = launched("whole", tmp_path)
    assert code == 0, said[-3000:]
    code, said, _ = launched("killed", tmp_path, "--max-restarts", "1")
    assert code == 0, said[-3000:]
    assert "exitcode: -9" in said
    assert not (tmp_path / "killed" / "_saving").exists()
    ranks = [torch.load(tmp_path / f"{what}-{rank}.pt") for what in ("whole", "killed") for rank in (0, 1)]
    for other in ranks[1:]:
        assert (ranks[0] - other).abs().max() == 0.0
