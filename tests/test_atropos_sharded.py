"""Batches of Atropos where the model is sharded: two processes have the losses of one."""

import json
from pathlib import Path

import atropos_worker
import pytest
from atropos_tools import Answer, ScriptedAtropos
from launching_tools import launch
from torch.testing import assert_close

DATA = Path(__file__).parent / "data" / "atropos"
pytestmark = [pytest.mark.distributed, pytest.mark.timeout(400)]


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    """The log of one process, and its journal."""
    folder = tmp_path_factory.mktemp("one")
    bodies = [(DATA / name).read_bytes() for name in ("03_token_advantages.json", "07_overrides.json")]
    with ScriptedAtropos(*map(Answer, bodies)) as server:
        source = {"atropos_api_url": server.url, "max_steps": 2, "output_dir": str(folder)}
        trainer = atropos_worker.train(str(DATA / "model"), 1, **source)
    return [entry for entry in trainer.state.log_history if "loss" in entry], folder / "journal"


@pytest.mark.parametrize("mode", ["fsdp2", "zero2", "zero3"])
def test_sharded_processes_train_on_batches_of_atropos_like_one(mode, one, tmp_path):
    log, journal = one
    output = tmp_path / "log.json"
    source = [f"atropos_replay={journal}", f"output_dir={tmp_path / 'two'}"]
    launch(mode, atropos_worker.__file__, DATA / "model", output, 2, *source, f"mode={mode}")
    two = [entry for entry in json.loads(output.read_text()) if "loss" in entry]
    assert len(two) == len(log) == 2
    for key in ("loss", "grad_norm", "nll", "ess", "score", "atropos/sequences"):
        assert_close([entry[key] for entry in two], [entry[key] for entry in log], rtol=1e-4, atol=1e-5)
