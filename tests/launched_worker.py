"""What a user's script does on two processes that torchrun has started: it trains, fails on one of them, or is killed.

python launched_worker.py whole|killed|rewards|data OUTPUT_DIR
"""

import os
import signal
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # for `recipes`, which is not installed

import torch
from resume_tools import parameters, trainer_of
from transformers import TrainerCallback


class KilledOnce(TrainerCallback):
    """SIGKILL at the end of step 5, after four checkpoints, unless the launcher has already started it again."""

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == 5 and os.environ["TORCHELASTIC_RESTART_COUNT"] == "0":
            os.kill(os.getpid(), signal.SIGKILL)


def fail(*args, **kwargs):
    raise LookupError("the grader has lost its table")


if __name__ == "__main__":
    what, output = sys.argv[1:]
    kind = "weighted: rows" if what == "data" else "online: 4 steps a generation, twice"
    trainer = trainer_of(kind, output, per_device_train_batch_size=4)
    assert trainer.accelerator.num_processes == 2
    if trainer.accelerator.process_index == 1:
        if what == "rewards":
            trainer.reward_funcs[0] = fail
        if what == "data":
            trainer.data_collator = fail
        if what == "killed":
            trainer.add_callback(KilledOnce())
    trainer.train(resume_from_checkpoint="auto")
    assert type(trainer.model_wrapped).__name__ == "DistributedDataParallel"
    torch.save(parameters(trainer), f"{output}-{trainer.accelerator.process_index}.pt")
