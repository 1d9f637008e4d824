"""Trains on batches of Atropos and writes the log; `torchrun` or accelerate starts it on two processes.

python atropos_worker.py MODEL OUTPUT.json NUM_PROCESSES FIELD=VALUE... [mode=fsdp2]
"""

import json
import sys
from pathlib import Path

from exact_on_cpu import EXACT_ON_CPU
from modes_worker import assert_mode

from online_sft import WeightedSFTConfig, WeightedSFTTrainer


def train(model, num_processes, mode="ddp", **source):
    """A step of 8 sequences, over processes and, where there are two of them, two micro-batches."""
    sizes = {"per_device_train_batch_size": 8 if num_processes == 1 else 2}
    sizes["gradient_accumulation_steps"] = 1 if num_processes == 1 else 2
    options = {**EXACT_ON_CPU, **sizes, "learning_rate": 1e-2, "max_length": None, **source}
    trainer = WeightedSFTTrainer(model, WeightedSFTConfig(**options))
    assert trainer.accelerator.num_processes == num_processes
    trainer.train()
    if num_processes > 1:
        assert_mode(trainer, mode)
    return trainer


if __name__ == "__main__":
    model, output, num_processes, *fields = sys.argv[1:]
    source = dict(field.split("=", 1) for field in fields)
    if "max_steps" in source:
        source["max_steps"] = int(source["max_steps"])
    trainer = train(model, int(num_processes), **source)
    if trainer.is_world_process_zero():
        Path(output).write_text(json.dumps(trainer.state.log_history))
