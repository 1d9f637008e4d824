"""Trains under FSDP1, which is not saved here: on a CPU, torch 2.13 ends in a segmentation fault when it gathers.

accelerate launch --use_fsdp ... tests/fsdp2_on_cpu.py fsdp1_worker.py OUTPUT_DIR
"""

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # for `recipes`, which is not installed

from resume_tools import trainer_of
from torch.distributed.fsdp import FullyShardedDataParallel


def main(output):
    trainer = trainer_of(
        "weighted: rows", output, max_steps=3, save_strategy="no", gradient_accumulation_steps=1, max_grad_norm=0.0
    )
    trainer.train()
    assert trainer.accelerator.num_processes == 2
    assert type(trainer.model_wrapped) is FullyShardedDataParallel
    if trainer.accelerator.is_main_process:
        losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
        Path(output).mkdir(exist_ok=True)
        Path(output, "losses.json").write_text(json.dumps(losses))


if __name__ == "__main__":
    main(*sys.argv[1:])
