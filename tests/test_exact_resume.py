"""A run that goes on from a checkpoint is the run that never stopped: parameters and all that is logged, to the bit."""

import shutil

import pytest
import torch
from resume_tools import KINDS, STEPS, numbers, parameters, trainer_of


@pytest.mark.parametrize("kind", KINDS)
def test_a_resume_from_any_step_is_the_uninterrupted_run_to_the_bit(kind, tmp_path):
    """Within a generation, at its end, at an epoch's end, and in the second epoch."""
    whole = trainer_of(kind, tmp_path / "whole")
    whole.train()
    assert len(numbers(whole)) == STEPS
    assert len({entry["grad_norm"] for entry in numbers(whole)}) == STEPS, "steps that do not differ show nothing"
    for step in range(1, STEPS):
        shutil.copytree(tmp_path / "whole", tmp_path / "resumed")
        resumed = trainer_of(kind, tmp_path / "resumed")
        torch.manual_seed(99)  # another process has other random numbers
        resumed.train(resume_from_checkpoint=str(tmp_path / "resumed" / f"checkpoint-{step}"))
        assert numbers(resumed, after=step) == numbers(whole, after=step), step
        assert (parameters(resumed) - parameters(whole)).abs().max() == 0.0, step
        shutil.rmtree(tmp_path / "resumed")
