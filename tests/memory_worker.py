"""What a process holds of parameters, gradients and optimizer state: each trainer, full, one optimizer step.

accelerate launch --config_file recipes/accelerate/MODE.yaml ... memory_worker.py FOLDER MODE

FOLDER has the models; each process writes FOLDER/MODE/bytes.<rank>.json.
"""

import json
import sys
from pathlib import Path

import modes_worker
from torch.distributed.tensor import DTensor
from transformers import TrainerCallback


def num_bytes(tensors):
    """Of the parts that are here."""
    here = [value.to_local() if isinstance(value, DTensor) else value for value in tensors]
    return sum(value.numel() * value.element_size() for value in here)


class HeldBytes(TrainerCallback):
    """At the optimizer step: gradients just before it, parameters and optimizer state after."""

    def __init__(self):
        self.found = {}

    def on_pre_optimizer_step(self, args, state, control, model, **kwargs):
        self.found["gradients"] = num_bytes(p.grad for p in model.parameters() if p.grad is not None)

    def on_optimizer_step(self, args, state, control, model, optimizer, **kwargs):
        self.found["parameters"] = num_bytes(model.parameters())
        states = [value for each in optimizer.state.values() for value in each.values()]
        self.found["optimizer"] = num_bytes(states)


def held(trainer, num_processes, folder, output_dir):
    trainer = modes_worker.build(f"{trainer} full", num_processes, folder, output_dir)
    trainer.args.max_steps = 1
    measured = HeldBytes()
    trainer.add_callback(measured)
    trainer.train()
    return trainer, measured.found


def main(folder, mode):
    found = {}
    for kind in modes_worker.BUILDERS:
        trainer, found[kind] = held(kind, 2, folder, Path(folder, mode, "memory", kind))
        modes_worker.assert_mode(trainer, mode)
    Path(folder, mode, f"bytes.{trainer.accelerator.process_index}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
