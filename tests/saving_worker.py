"""Trains two steps, full and LoRA, where each process has a shard of the model, and saves what others are to load.

accelerate launch --config_file recipes/accelerate/MODE.yaml ... saving_worker.py FOLDER MODE

FOLDER/MODE/saved: `full` and `adapter` are of `save_model`, `merged` of `save_merged_model`; `whole.pt` has the trained
parameters as they were gathered before.
"""

import sys
from pathlib import Path

import modes_worker
import torch
from modes_worker import assert_mode, whole_parameters


def main(folder, mode):
    output, whole = Path(folder) / mode / "saved", {}
    for kind, name in (("weighted full", "full"), ("weighted lora", "adapter")):
        trainer = modes_worker.build(kind, 2, folder, output / "run")
        trainer.args.max_steps, trainer.args.save_steps = 2, 100
        trainer.train()
        assert_mode(trainer, mode)
        whole[name] = whole_parameters(trainer)
        trainer.save_model(str(output / name))
        if name == "adapter":
            trainer.save_merged_model(str(output / "merged"))
        assert torch.equal(whole_parameters(trainer), whole[name]), "saving should leave the policy as it is"
    if trainer.accelerator.is_main_process:
        torch.save(whole, output / "whole.pt")


if __name__ == "__main__":
    main(*sys.argv[1:])
