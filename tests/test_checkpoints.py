import pytest

from trainers.checkpoints.choice import last_whole_checkpoint


@pytest.mark.parametrize("state", [None, "", '{"global_step": 1'])
def test_a_checkpoint_that_was_not_written_to_its_end_is_passed_over(state, tmp_path):
    for step in (9, 10):
        (tmp_path / f"checkpoint-{step}").mkdir()
        (tmp_path / f"checkpoint-{step}" / "trainer_state.json").write_text("{}")
    (tmp_path / "checkpoint-best").mkdir()
    (tmp_path / "checkpoint-11").mkdir()
    if state is not None:
        (tmp_path / "checkpoint-11" / "trainer_state.json").write_text(state)
    assert last_whole_checkpoint(tmp_path) == str(tmp_path / "checkpoint-10")


def test_without_checkpoints_there_is_none(tmp_path):
    assert last_whole_checkpoint(tmp_path / "nowhere") is None
