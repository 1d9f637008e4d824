"""A run that goes on from a checkpoint is the run that never stopped: parameters and all that is logged, to the bit."""

import shutil

import pytest
import torch
from resume_tools import KINDS, STEPS, numbers, parameters, trainer_of


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


@pytest.mark.parametrize("kind", KINDS)
def test_a_resume_is_the_uninterrupted_run_to_the_bit(kind, tmp_path):
    """Within a generation and the first epoch, in the second, and at the end, where there is nothing to do."""
    assert_resumes_to_the_bit(kind, (3, 6, STEPS), tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_a_resume_from_any_other_step_is_the_uninterrupted_run_to_the_bit(kind, tmp_path):
    """At the end of a generation, at an epoch's end."""
    assert_resumes_to_the_bit(kind, (1, 2, 4, 5, 7), tmp_path)
