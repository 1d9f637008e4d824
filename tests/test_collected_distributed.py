"""Two processes (gloo) collect together: neither waits for episodes that the other has not, and both learn from all."""

import json
from pathlib import Path

import collection_worker
import pytest
from collection_worker import GLOBAL_BATCH, KINDS
from test_distributed import on_two_processes
from torch.testing import assert_close

from online_sft.trajectories.dataset import TrajectoryDataset

pytestmark = pytest.mark.distributed


def on_both(kind, tmp_path):
    output = tmp_path / "found.json"
    on_two_processes(collection_worker.__file__, kind, str(output))
    ranks = [json.loads(Path(f"{output}.{rank}").read_text()) for rank in (0, 1)]
    assert [rank["world_size"] for rank in ranks] == [2, 2]
    return ranks


@pytest.mark.parametrize("kind", KINDS)
def test_two_processes_train_like_one_on_what_both_collect(kind, tmp_path):
    ranks, one = on_both(kind, tmp_path), collection_worker.run(kind, 1, str(tmp_path))
    rounds = [sorted((tmp_path / name / "trajectories").iterdir()) for name in ("1", "2")]
    assert len(rounds[0]) == len(rounds[1]) == 4 // KINDS[kind].get("collect_every", 1)
    for files in zip(*rounds, strict=True):
        assert files[0].read_bytes() == files[1].read_bytes()
    assert ranks[0]["parameters"] == ranks[1]["parameters"]
    # of each step the first half of the rows is the first process's
    half = GLOBAL_BATCH // 2
    together = [row for step in range(4) for rank in ranks for row in rank["rows"][step * half : (step + 1) * half]]
    assert together == one["rows"]
    keys = ["loss", "grad_norm", "world_model_loss", "ess", "collect/return", "collect/trajectories", "collect/failed"]
    for key in keys:
        values = [[entry[key] for entry in log if key in entry] for log in (one["log"], ranks[0]["log"])]
        assert values[0]
        assert_close(values[1], values[0], rtol=1e-4, atol=1e-5)


def test_processes_sample_other_actions_and_evaluate_the_same_episodes(tmp_path):
    ranks = on_both("sampled", tmp_path)
    assert ranks[0]["metrics"] == ranks[1]["metrics"]
    files = [tmp_path / "2" / "trajectories" / f"round-0000{number}.jsonl" for number in (0, 1)]
    episodes = [each for file in files for each in TrajectoryDataset.load(file)]
    assert len({each.metadata["seed"] for each in episodes}) == 8
    first = [each.actions[0]["content"] for each in episodes]
    assert first[::2] != first[1::2]  # of the two processes


def test_what_nothing_is_drawn_for_evaluates_the_same_on_two_processes(tmp_path):
    ranks = on_both("silent evaluation", tmp_path)
    one = collection_worker.run("silent evaluation", 1, str(tmp_path))
    assert ranks[0]["metrics"] == ranks[1]["metrics"] == one["metrics"]
