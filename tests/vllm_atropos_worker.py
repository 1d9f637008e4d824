"""Trains three steps on batches of Atropos with a vLLM server to keep in step, and reports what both compute.

python vllm_atropos_worker.py MODEL OUTPUT.json ATROPOS_URL VLLM_URL LORA
"""

import json
import os
import sys
from pathlib import Path

import torch
import trl_vllm_cpu
from exact_on_cpu import EXACT_ON_CPU
from free_port import free_port
from peft import LoraConfig

from online_sft import WeightedSFTConfig, WeightedSFTTrainer
from trainers.engine.probe import engine_log_probs, policy_log_probs

SEQUENCES = [[3, 4, 5, 6, 7], [3, 4, 7, 8]]

if __name__ == "__main__":
    os.environ["MASTER_PORT"] = str(free_port())
    trl_vllm_cpu.patch_trl_client()
    model, output, atropos, vllm, lora = sys.argv[1:]
    sources = {"atropos_api_url": atropos, "atropos_sync_url": vllm, "atropos_sync_engine": "vllm"}
    sources["vllm_group_port"] = free_port()
    options = {**EXACT_ON_CPU, "max_steps": 3, "learning_rate": 1e-2, "per_device_train_batch_size": 2, **sources}
    options["model_init_kwargs"] = {"dtype": "float32"}
    peft_config = LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False) if int(lora) else None
    trainer = WeightedSFTTrainer(model, WeightedSFTConfig(**options), peft_config=peft_config)
    cpu = torch.device("cpu")
    start = policy_log_probs(trainer.model, SEQUENCES, cpu)
    trainer.train()
    found = {
        "log": trainer.state.log_history,
        "start": start.tolist(),
        "policy": policy_log_probs(trainer.model, SEQUENCES, cpu).tolist(),
        "engine": engine_log_probs(trainer.vllm_generation, SEQUENCES, cpu).tolist(),
    }
    Path(output).write_text(json.dumps(found))
