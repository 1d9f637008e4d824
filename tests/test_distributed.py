"""Two processes (gloo) and two micro-batches give the losses and gradient norms of one process and one batch."""

import json
import os
import subprocess
import sys
from pathlib import Path

import distributed_worker
import filter_worker
import pytest
import sharded_head_worker
from torch.testing import assert_close


def on_two_processes(*command):
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", *command],
        capture_output=True,
        text=True,
        timeout=240,
        env={**os.environ, "OMP_NUM_THREADS": "1", "TRL_EXPERIMENTAL_SILENCE": "1"},
    )
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.distributed
@pytest.mark.parametrize("kind", [*distributed_worker.WEIGHTED, "online"])
def test_two_processes_are_one(kind, saved_model, tmp_path):
    folder, output = str(tmp_path / "model"), tmp_path / "log.json"
    on_two_processes(distributed_worker.__file__, kind, str(output), folder)
    two = json.loads(Path(output).read_text())
    one = distributed_worker.train(kind, 1, folder)
    weights = ["ess", "max_weight_share", "nll", "negative_nll", "negative_gradient_share"]
    keys = ["loss", "grad_norm", *(["reward", "kl", "advantage", "log_prob"] if kind == "online" else weights)]
    once = {"online": [], "grouped": ["eval_loss"]}.get(kind, ["eval_loss", "method_loss"])
    for key in [*keys, *once]:
        values = [[entry[key] for entry in log if key in entry] for log in (one, two)]
        assert len(values[0]) == (1 if key in once else 3), key
        assert_close(values[1], values[0], rtol=1e-4, atol=1e-5)  # measured: 3e-6 relative


@pytest.mark.distributed
def test_a_sharded_head_gets_the_average_gradient_of_all_ranks(tmp_path):
    """FSDP2 hands the LM head over as a DTensor. Each rank has other tokens; the gradient is that of their mean."""
    output = tmp_path / "errors.json"
    on_two_processes(sharded_head_worker.__file__, str(output))
    found = json.loads(output.read_text())
    assert (found.pop("world_size"), found.pop("rows_of_this_rank")) == (2, 6)
    assert found.keys() == {"weight", "bias", "hidden"}
    assert max(found.values()) < 1e-12


@pytest.mark.distributed
def test_filtering_makes_the_same_calls_on_every_rank_though_only_one_has_something_to_replace(saved_model, tmp_path):
    output = tmp_path / "filtered.json"
    on_two_processes(filter_worker.__file__, str(output), str(tmp_path / "model"))
    ranks = [json.loads(Path(f"{output}.{rank}").read_text()) for rank in (0, 1)]
    useful = {row["prompt"] for row in filter_worker.DATA if row["useful"]}
    first = [set(filter_worker.DATA["prompt"][:2]), set(filter_worker.DATA["prompt"][2:4])]
    assert not first[0] & useful  # rank 0 has to replace both of its groups
    for rank, result in enumerate(ranks):
        assert (result["world_size"], result["wrapper"], result["rank"]) == (2, "DistributedDataParallel", rank)
        for prompts in result["used"]:
            assert len(prompts) == 8
            assert set(prompts) <= useful
        assert [entry["groups/kept"] for entry in result["log"]] == [1.0, 1.0]
    assert ranks[0]["sampled"] == ranks[1]["sampled"]
    assert len(ranks[0]["sampled"]) > 2
    assert ranks[0]["parameters"] == ranks[1]["parameters"]
    assert not first[0] & set(ranks[0]["used"][0])
    assert set(ranks[1]["used"][0]) == first[1]
