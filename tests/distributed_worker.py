"""Trains for three steps and writes the log; `torchrun` starts it on two processes, the test itself calls it on one.

python distributed_worker.py KIND OUTPUT.json MODEL_FOLDER
"""

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # for `recipes`, which is not installed

import torch
from datasets import Dataset
from exact_on_cpu import EXACT_ON_CPU
from trajectory_tools import chat_tokenizer, ragged_trajectories
from transformers import AutoModelForCausalLM, AutoTokenizer

from online_sft import (
    OnlineSFTConfig,
    OnlineSFTTrainer,
    TrajectorySFTConfig,
    TrajectorySFTTrainer,
    WeightedSFTConfig,
    WeightedSFTTrainer,
)
from recipes.quickstart.tiny_model import build_model

GLOBAL_BATCH = 8


def arguments(num_processes: int) -> dict:
    """The same global batch, split over processes and two micro-batches when there are two processes."""
    return {
        **EXACT_ON_CPU,
        "max_steps": 3,
        "learning_rate": 1e-2,
        "per_device_train_batch_size": GLOBAL_BATCH if num_processes == 1 else 2,
        "gradient_accumulation_steps": 1 if num_processes == 1 else 2,
    }


WEIGHTED = {
    "weighted": {},
    "normalised": {"advantage_normalization": "global", "loss_denominator": "abs_advantages"},
    "grouped": {
        "advantage_normalization": "group",
        "advantage_clipping": [-1.0, 2.0],
        "loss_denominator": "sequences",
        "packing": True,
        "max_length": 12,
    },
    "importance": {"policy_weighting": "importance", "importance_max": 1.3, "advantage_normalization": "batch"},
}
ONLINE = {
    "online": {"beta": 0.1},
    # two steps on each batch of completions: importance weights, and what is learnt from earlier steps and batches
    "stale": {"num_iterations": 2, "baseline": "optimal", "scale_rewards": "batch", "beta": 0.1},
    "running": {"num_iterations": 2, "baseline": "running_mean", "importance_sampling_mode": "sequence_mask"},
}


def weighted(kind: str, num_processes: int, model, tokenizer, *, peft_config=None, **options):
    """Rows of very different lengths and signed advantages: a mean of means would show."""
    rows = []
    for index in range(3 * GLOBAL_BATCH):
        length = 2 + (5 * index) % 11
        tokens = [2 + (index * 7 + 3 * t) % (len(tokenizer) - 2) for t in range(length)]
        labels = [-100 if t == 0 or (index + t) % 3 == 0 else token for t, token in enumerate(tokens)]
        labels[-1] = tokens[-1]
        advantages = [((index + t) % 5) - 1.5 for t in range(length)]
        old = [-0.1 * ((index + 2 * t) % 40) for t in range(length)]
        rows.append({"input_ids": tokens, "labels": labels, "advantages": advantages, "group": index % 5})
        rows[-1] |= {"ref_log_probs": old} if kind == "importance" else {}
    if kind == "grouped":
        rows *= 3  # packed rows are fewer
    evaluated = rows[: 3 * GLOBAL_BATCH]
    # one batch of evaluation, over all processes
    sizes = {"per_device_eval_batch_size": len(evaluated) // num_processes, "eval_packing": False}
    args = WeightedSFTConfig(**{**arguments(num_processes), **WEIGHTED[kind], **sizes, **options})
    data = {"train_dataset": Dataset.from_list(rows), "eval_dataset": Dataset.from_list(evaluated)}
    return WeightedSFTTrainer(model, args, **data, processing_class=tokenizer, peft_config=peft_config)


def method_loss(trainer) -> float:
    """`compute_advantage_weighted_sft_loss` of a batch of eight, each process given its share: the mean over them."""
    generator = torch.Generator().manual_seed(0)
    share = 8 // trainer.accelerator.num_processes
    mine = slice(share * trainer.accelerator.process_index, share * (trainer.accelerator.process_index + 1))
    tokens = torch.randint(2, 10, (8, 6), generator=generator)[mine]
    advantages = torch.randn(8, 6, generator=generator)[mine]
    mask = (torch.rand(8, 6, generator=generator) < 0.6)[mine]
    loss = trainer.compute_advantage_weighted_sft_loss(tokens, advantages, mask).detach()
    return trainer.accelerator.reduce(loss, reduction="mean").item()


def online(kind: str, num_processes: int, model, tokenizer, *, peft_config=None, **options):
    """Completions that depend on the prompt only, because two processes would draw other random numbers than one."""

    def rollout(prompts, trainer):
        prompt_ids = [tokenizer(prompt)["input_ids"] for prompt in prompts]
        completion_ids = [
            [2 + (sum(ids) + 3 * (i % 2) + 5 * t) % (len(tokenizer) - 2) for t in range(1 + (sum(ids) + i % 2) % 4)]
            for i, ids in enumerate(prompt_ids)
        ]
        return {"prompt_ids": prompt_ids, "completion_ids": completion_ids, "logprobs": None}

    def reward(completion_ids, **columns):
        return [None if sum(ids) % 5 == 0 else (sum(ids) % 7) / 3 for ids in completion_ids]

    sizes = {"num_generations": 2, "max_completion_length": 8}
    args = OnlineSFTConfig(**{**arguments(num_processes), **sizes, **ONLINE[kind], **options})
    data = Dataset.from_list([{"prompt": f"{a} + {b} ="} for a in range(6) for b in range(2)])
    own = {"processing_class": tokenizer, "peft_config": peft_config, "rollout_func": rollout}
    return OnlineSFTTrainer(model, reward, args, data, **own)


def trajectories(kind: str, num_processes: int, model, tokenizer, *, peft_config=None, **options):
    """Episodes of very different lengths, so that no process has its share of either kind of token."""
    data = ragged_trajectories(3 * GLOBAL_BATCH, max_turns=5)
    sizes = {"per_device_eval_batch_size": len(data) // num_processes, "max_length": 600}
    weights = {"bc_weight": 0.7, "world_model_weight": 0.4, "reward_weighting": "reward_to_go"}
    args = TrajectorySFTConfig(**{**arguments(num_processes), **sizes, **weights, **options})
    own = {"processing_class": tokenizer, "peft_config": peft_config}
    return TrajectorySFTTrainer(model, args, train_dataset=data, eval_dataset=data, **own)


def train(kind: str, num_processes: int, folder: str) -> list[dict]:
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    if kind == "trajectories":
        tokenizer = chat_tokenizer()
        model = build_model(tokenizer, seed=0)
    build = trajectories if kind == "trajectories" else online if kind in ONLINE else weighted
    trainer = build(kind, num_processes, model, tokenizer)
    assert trainer.accelerator.num_processes == num_processes
    trainer.train()
    wrapper = type(trainer.model_wrapped).__name__
    assert wrapper == ("DistributedDataParallel" if num_processes > 1 else "Qwen2ForCausalLM"), wrapper
    if kind not in ONLINE:
        trainer.evaluate()
    if kind in ("weighted", "normalised"):  # the method knows no groups
        trainer.state.log_history.append({"method_loss": method_loss(trainer)})
    return trainer.state.log_history


if __name__ == "__main__":
    kind, output, folder = sys.argv[1:]
    log = train(kind, 2, folder)
    from accelerate import PartialState

    if PartialState().is_main_process:
        Path(output).write_text(json.dumps(log))
