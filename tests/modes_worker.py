"""Trains each trainer for four steps, full and LoRA, in the mode that accelerate was told, one after the other.

accelerate launch --config_file recipes/accelerate/MODE.yaml ... modes_worker.py FOLDER MODE straight|resumed

FOLDER has the models; `straight` leaves checkpoints there, of which `resumed` goes on from those of step 2. Each
writes FOLDER/MODE/straight.pt or resumed.pt: of each trainer its log and parameters.
"""

import sys
from pathlib import Path

import distributed_worker
import torch
from peft import LoraConfig
from torch import nn
from torch.distributed.tensor import DTensor
from transformers import AutoTokenizer, set_seed

BUILDERS = {
    "weighted": distributed_worker.weighted,
    "online": distributed_worker.online,
    "trajectories": distributed_worker.trajectories,
}
KINDS = [f"{trainer} {size}" for trainer in BUILDERS for size in ("full", "lora")]
SAVED_AT = 2
ZERO_STAGES = {"zero2": 2, "zero3": 3}


def build(kind, num_processes, folder, output_dir):
    """The model is given by its folder: under ZeRO-3 it has to be loaded after the arguments are there."""
    trainer, size = kind.split()
    model = str(Path(folder) / ("chat_model" if trainer == "trajectories" else "model"))
    lora = LoraConfig(r=4, target_modules="all-linear") if size == "lora" else None
    own = {"max_steps": 4, "save_strategy": "steps", "save_steps": SAVED_AT, "output_dir": str(output_dir)}
    set_seed(0)  # for the weights of LoRA
    return BUILDERS[trainer](
        trainer, num_processes, model, AutoTokenizer.from_pretrained(model), peft_config=lora, **own
    )


def assert_mode(trainer, mode):
    """The exit code proves nothing: launched in another way, these are two runs of one process each."""
    assert trainer.accelerator.num_processes == 2
    wrapped, parameters = trainer.model_wrapped, list(trainer.model.parameters())
    if mode == "ddp":
        assert type(wrapped) is nn.parallel.DistributedDataParallel, type(wrapped)
    elif mode == "fsdp2":
        assert all(isinstance(value, DTensor) for value in parameters)
        assert trainer.accelerator.is_fsdp2
        assert sum(p.to_local().numel() for p in parameters) < 0.6 * sum(p.numel() for p in parameters)
    else:
        assert type(wrapped).__name__ == "DeepSpeedEngine", type(wrapped)
        assert wrapped.zero_optimization_stage() == ZERO_STAGES[mode]
    if mode == "zero3":
        assert sum(p.ds_tensor.numel() for p in parameters) < 0.6 * sum(p.ds_numel for p in parameters)
        assert not wrapped.optimizer.parameter_offload.persistent_parameters


def whole_parameters(trainer):
    """All that is trained, as one vector. A collective call."""
    trained = [value for value in trainer.model.parameters() if value.requires_grad]
    if hasattr(trained[0], "ds_id"):
        import deepspeed

        with deepspeed.zero.GatheredParameters(trained):
            return torch.cat([value.detach().flatten().clone() for value in trained])
    whole = [value.full_tensor() if isinstance(value, DTensor) else value for value in trained]
    return torch.cat([value.detach().flatten() for value in whole])


def found(trainer):
    log = [entry for entry in trainer.state.log_history if "loss" in entry]
    return {"log": log, "parameters": whole_parameters(trainer)}


def main(folder, mode, phase):
    results = {}
    for kind in KINDS:
        straight = Path(folder) / mode / kind.replace(" ", "_")
        trainer = build(kind, 2, folder, straight if phase == "straight" else f"{straight}_resumed")
        trainer.train(resume_from_checkpoint=str(straight / f"checkpoint-{SAVED_AT}") if phase == "resumed" else None)
        assert_mode(trainer, mode)
        results[kind] = found(trainer)
    if trainer.accelerator.is_main_process:
        torch.save(results, Path(folder) / mode / f"{phase}.pt")


if __name__ == "__main__":
    main(*sys.argv[1:])
