"""Collects with a real vLLM and trains, and reports what was said and what the policy would say; one engine for all.

python vllm_trajectory_worker.py MODEL OUTPUT.json URL_OR_NOTHING
"""

import json
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # for `recipes`, which is not installed

import torch
from collection_tools import Dice, Snapshots, arguments, greedy_actions, rounds
from free_port import free_port
from peft import LoraConfig
from transformers import AutoTokenizer
from vllm_worker import share_one_engine

from trainers.trajectories.evaluation import EnvironmentEvaluationCallback
from trainers.trajectory_sft_trainer import TrajectorySFTTrainer


def run(model, where, name, lora):
    """Two rounds and an evaluation, with the likeliest tokens, for which vLLM needs no seed."""
    tokenizer, snapshots = AutoTokenizer.from_pretrained(model), Snapshots()
    args = arguments(
        **where,
        use_vllm=True,
        output_dir=name,
        max_steps=4,
        collect_every=2,
        sampling_temperature=1e-4,
        model_init_kwargs={"dtype": "float32"},
    )
    torch.manual_seed(0)
    config = LoraConfig(r=4, target_modules=["q_proj", "o_proj"], task_type="CAUSAL_LM", init_lora_weights=False)
    trainer = TrajectorySFTTrainer(
        model,
        args,
        processing_class=tokenizer,
        environments=[Dice],
        callbacks=[snapshots],
        peft_config=config if lora else None,
    )
    trainer.train()
    metrics = EnvironmentEvaluationCallback(trainer, [Dice], num_tasks=5).evaluate()
    evaluated = trainer.rollouts.weight_sync.policy_version
    before_rounds = snapshots.found[::2]
    said = [
        (action["content"], t in each.metadata.get("cut_actions", []))
        for collected in rounds(name)
        for each in collected
        for t, action in enumerate(each.actions)
    ]
    return {
        "log": [entry for entry in trainer.state.log_history if "loss" in entry],
        "said": [text for text, _ in said],
        "cut_lengths": [len(tokenizer(text)["input_ids"]) for text, is_cut in said if is_cut],
        "whole_lengths": [len(tokenizer(text)["input_ids"]) for text, is_cut in said if not is_cut],
        "by_policy": greedy_actions(trainer.model, tokenizer, before_rounds, rounds(name)),
        "by_first_policy": greedy_actions(trainer.model, tokenizer, before_rounds[:1] * 2, rounds(name)),
        "evaluated": [metrics["eval_length"], evaluated],
    }


if __name__ == "__main__":
    model, output, url = sys.argv[1:]
    os.environ["MASTER_PORT"] = str(free_port())
    if url:
        import trl_vllm_cpu

        trl_vllm_cpu.patch_trl_client()
    else:
        share_one_engine()
    results = {}
    for name in ("full", "lora"):
        where = {"vllm_mode": "server", "vllm_server_base_url": url, "vllm_group_port": free_port()}
        where = where if url else {"vllm_mode": "colocate", "vllm_max_model_length": 128}
        results[name] = run(model, where, name, name == "lora")
    Path(output).write_text(json.dumps(results))
