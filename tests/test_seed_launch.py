"""The command line with which the seed starts FSDP, its flags as they are printed there."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from free_port import free_port
from launching_tools import TESTS
from resume_tools import trainer_of
from transformers import AutoModelForCausalLM

pytestmark = [pytest.mark.distributed, pytest.mark.timeout(300)]
SEED = (
    "--use_fsdp --fsdp_auto_wrap_policy TRANSFORMER_BASED_WRAP --fsdp_sharding_strategy FULL_SHARD "
    "--mixed_precision {precision}"
)
# of which there are no GPUs; accelerate would load the model on one and send it to the others
ON_CPU = "--num_processes 2 --fsdp_cpu_ram_efficient_loading false --fsdp_sync_module_states false"


def accelerate(options, script, arguments):
    done = subprocess.run(
        [sys.executable, "-m", "accelerate.commands.launch", *options.split(), "--main_process_port", str(free_port())]
        + [str(TESTS / "fsdp2_on_cpu.py"), str(script), *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=250,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout + done.stderr


def test_the_seeds_command_line_trains_and_leaves_a_model(folder, tmp_path):
    problems = tmp_path / "math.jsonl"
    rows = [{"prompt": f"{a} + {b} =", "solution": str(a + b)} for a in range(8) for b in range(4)]
    problems.write_text("\n".join(map(json.dumps, rows)))
    seed = f"--model_name_or_path {folder} --math_dataset_name {problems} --total_episodes 32 "
    seed += "--per_device_train_batch_size 1 --gradient_accumulation_steps 8"
    ours = f"--use_cpu true --max_completion_length 8 --report_to none --output_dir {tmp_path / 'out'}"
    script = Path(TESTS.parent, "online_sft", "train_distributed.py")
    options = f"{SEED.format(precision='bf16')} {ON_CPU} --fsdp_version 2"
    said = accelerate(options, script, [*seed.split(), *ours.split()])
    assert "2/2" in said
    assert "FSDP1" not in said
    before, after = (AutoModelForCausalLM.from_pretrained(each) for each in (folder, tmp_path / "out"))
    moved = [(a - b).abs().max() for a, b in zip(after.parameters(), before.parameters(), strict=True)]
    assert torch.stack(moved).max() > 1e-6


def test_fsdp1_has_the_losses_of_one_process_and_says_what_it_will_lose(tmp_path):
    output = tmp_path / "out"
    said = accelerate(f"{SEED.format(precision='no')} {ON_CPU}", TESTS / "fsdp1_worker.py", [output])
    assert len(re.findall("FSDP1 is deprecated by transformers, and loses the state of the optimizer when", said)) == 1
    options = {"max_steps": 3, "save_strategy": "no", "gradient_accumulation_steps": 1, "max_grad_norm": 0.0}
    one = trainer_of("weighted: rows", tmp_path / "one", per_device_train_batch_size=4, **options)
    one.train()
    losses = [entry["loss"] for entry in one.state.log_history if "loss" in entry]
    assert json.loads((output / "losses.json").read_text()) == pytest.approx(losses, rel=1e-5)
