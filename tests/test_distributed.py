"""Two processes (gloo) and two micro-batches give the losses and gradient norms of one process and one batch."""

import json
import os
import subprocess
import sys
from pathlib import Path

import atropos_worker
import distributed_worker
import filter_worker
import pytest
import sharded_head_worker
from atropos_tools import Answer, ScriptedAtropos
from launching_tools import launch
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
@pytest.mark.parametrize("kind", [*distributed_worker.WEIGHTED, *distributed_worker.ONLINE, "trajectories"])
def test_two_processes_are_one(kind, saved_model, tmp_path):
    folder, output = str(tmp_path / "model"), tmp_path / "log.json"
    on_two_processes(distributed_worker.__file__, kind, str(output), folder)
    two = json.loads(Path(output).read_text())
    one = distributed_worker.train(kind, 1, folder)
    weights = ["ess", "max_weight_share", "nll", "negative_nll", "negative_gradient_share"]
    of_kinds = [f"{k}_{name}" for k in ("bc", "world_model") for name in ("loss", "perplexity", "accuracy")]
    is_online = kind in distributed_worker.ONLINE
    of_online = ["reward", "advantage", "log_prob", *(["kl"] if kind != "running" else [])]
    of_online += ["importance/max", "importance/min", "importance/ess"] if kind != "online" else []
    own = of_online if is_online else of_kinds if kind == "trajectories" else weights
    keys = ["loss", "grad_norm", *own]
    evaluated = ["eval_loss", *(f"eval_{name}" for name in of_kinds)]
    with_method = ["eval_loss", "method_loss"] if kind in ("weighted", "normalised") else ["eval_loss"]
    once = [] if is_online else evaluated if kind == "trajectories" else with_method
    for key in [*keys, *once]:
        values = [[entry[key] for entry in log if key in entry] for log in (one, two)]
        # rollouts are logged with the step that they are made for
        assert len(values[0]) == (1 if key in once else 2 if kind in ("stale", "running") and key == "reward" else 3), (
            key
        )
        if kind == "trajectories":
            assert_close(values[1], values[0], rtol=1e-6, atol=0.0)  # measured: 1e-7
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
@pytest.mark.parametrize(("mode", "wrapper"), [("ddp", "DistributedDataParallel"), ("fsdp2", "FSDPQwen2ForCausalLM")])
def test_filtering_makes_the_same_calls_on_every_rank_though_only_one_has_something_to_replace(
    mode, wrapper, saved_model, tmp_path
):
    output = tmp_path / "filtered.json"
    launch(mode, filter_worker.__file__, output, tmp_path / "model")
    ranks = [json.loads(Path(f"{output}.{rank}").read_text()) for rank in (0, 1)]
    useful = {row["prompt"] for row in filter_worker.DATA if row["useful"]}
    first = [set(filter_worker.DATA["prompt"][:2]), set(filter_worker.DATA["prompt"][2:4])]
    assert not first[0] & useful  # rank 0 has to replace both of its groups
    for rank, result in enumerate(ranks):
        assert (result["world_size"], result["wrapper"], result["rank"]) == (2, wrapper, rank)
        for prompts in result["used"]:
            assert len(prompts) == 8
            assert set(prompts) <= useful
        assert [entry["groups/kept"] for entry in result["log"]] == [1.0, 1.0]
    assert ranks[0]["sampled"] == ranks[1]["sampled"]
    assert len(ranks[0]["sampled"]) > 2
    assert ranks[0]["parameters"] == ranks[1]["parameters"]
    assert not first[0] & set(ranks[0]["used"][0])
    assert set(ranks[1]["used"][0]) == first[1]


@pytest.mark.distributed
def test_only_one_process_fetches_batches_of_atropos_and_two_train_like_one(tmp_path):
    """The third batch holds three sequences, less than there are micro-batches; the second a malformed group."""
    folder = Path(__file__).parent / "data" / "atropos"
    model, output = str(folder / "model"), tmp_path / "log.json"
    bodies = [(folder / name).read_bytes() for name in ("03_token_advantages.json", "07_overrides.json")]
    mixed = json.loads(bodies[1])
    mixed["batch"].append(json.loads((folder / "bad_24_masks_zero_one.json").read_text())["batch"][0])
    small = json.loads(bodies[0])
    columns = ("tokens", "masks", "scores", "advantages", "inference_logprobs")
    small["batch"][0].update({name: small["batch"][0][name][:3] for name in columns})
    bodies = [bodies[0], json.dumps(mixed).encode(), json.dumps({"batch": small["batch"][:1]}).encode()]
    with ScriptedAtropos(*map(Answer, bodies)) as server:
        source = [f"atropos_api_url={server.url}", "max_steps=3", f"output_dir={tmp_path / 'two'}"]
        on_two_processes(atropos_worker.__file__, model, str(output), "2", *source)
        assert server.num_requests("/register") == 1
        assert server.num_requests("/batch") == 3
    two = [entry for entry in json.loads(output.read_text()) if "loss" in entry]
    trainer = atropos_worker.train(model, 1, atropos_replay=str(tmp_path / "two" / "journal"))
    one = [entry for entry in trainer.state.log_history if "loss" in entry]
    for key in ("loss", "grad_norm", "nll", "ess", "score", "atropos/quarantined_groups", "atropos/sequences"):
        assert_close([entry[key] for entry in two], [entry[key] for entry in one], rtol=1e-4, atol=1e-5)
    assert [entry["atropos/sequences"] for entry in two] == [8, 8, 3]
