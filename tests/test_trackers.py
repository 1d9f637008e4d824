"""Trackers get what the log has, under the same names: `train/` or `eval/`, and the name of the metric reference."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).resolve().parent

RUN = """
import json, sys
sys.path[:0] = [{tests!r}, {root!r}]
import wandb
from resume_tools import trainer_of

trainer = trainer_of({kind!r}, "out", report_to="wandb", max_steps=2, {more})
trainer.train()
logged = {{name: value for entry in trainer.state.log_history for name, value in entry.items()}}
print(json.dumps([logged, {{name: value for name, value in dict(wandb.run.summary).items() if name != "_wandb"}}]))
wandb.finish()
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "more"), [("online: filtered", ""), ("weighted: rows", 'eval_strategy="steps", eval_steps=2')]
)
def test_wandb_has_every_metric_of_the_log(kind, more, tmp_path):
    environment = {**os.environ, "WANDB_MODE": "offline", "WANDB_SILENT": "true", "OMP_NUM_THREADS": "1"}
    code = RUN.format(tests=str(TESTS), root=str(TESTS.parent), kind=kind, more=more)
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    logged, tracked = json.loads(done.stdout.splitlines()[-1])
    of_the_run = ("train_", "total_flos")
    for name, value in logged.items():
        if name == "step" or value is None:
            continue
        group, rest = ("eval/", name.removeprefix("eval_")) if name.startswith("eval_") else ("train/", name)
        found = name if name.startswith(of_the_run) else group + rest
        assert tracked[found] == pytest.approx(value), name
