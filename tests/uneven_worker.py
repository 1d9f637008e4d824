"""Four steps in which one process has nothing to learn from, then both, then one has far more, then the other nothing.

accelerate launch --config_file recipes/accelerate/MODE.yaml ... uneven_worker.py FOLDER MODE

FOLDER has the models; process 0 writes FOLDER/MODE/uneven.json: of each kind its log.
"""

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # for `recipes`, which is not installed

import distributed_worker
from datasets import Dataset
from distributed_worker import GLOBAL_BATCH, arguments
from modes_worker import assert_mode
from transformers import AutoTokenizer

from online_sft import (
    OnlineSFTConfig,
    OnlineSFTTrainer,
    TrajectorySFTConfig,
    TrajectorySFTTrainer,
    WeightedSFTConfig,
    WeightedSFTTrainer,
)
from online_sft.trajectories.trajectory import Trajectory

WEIGHTED = {"weighted": {}, "normalised": distributed_worker.WEIGHTED["normalised"], "head of TRL": {"lm_head": "trl"}}
KINDS = (*WEIGHTED, "online", "trajectories")
NUM_STEPS = 4


def has_loss(step, rank):
    return (step, rank) not in {(0, 1), (1, 0), (1, 1), (3, 0)}


def is_short(step, rank):
    return (step, rank) == (2, 1)


def rows_in_order(row, *, num_micro_batches=2, size=2):
    """`row(index, step, rank)` where two processes meet them: micro-batches are dealt to the processes in turn."""
    places = [
        (step, rank)
        for step in range(NUM_STEPS)
        for _ in range(num_micro_batches)
        for rank in range(2)
        for _ in range(size)
    ]
    return [row(index, *place) for index, place in enumerate(places)]


def weighted(kind, model, tokenizer, own):
    def row(index, step, rank):
        length = 2 if is_short(step, rank) else 2 + (5 * index) % 11
        tokens = [2 + (index * 7 + 3 * t) % (len(tokenizer) - 2) for t in range(length)]
        labels = [-100] * length if not has_loss(step, rank) else [-100, *tokens[1:]]
        return {"input_ids": tokens, "labels": labels, "advantages": [((index + t) % 5) - 1.5 for t in range(length)]}

    # rows without a loss token would be dropped where rows are cut
    args = WeightedSFTConfig(**own, **WEIGHTED[kind], max_length=None, train_sampling_strategy="sequential")
    return WeightedSFTTrainer(
        model, args, train_dataset=Dataset.from_list(rows_in_order(row)), processing_class=tokenizer
    )


def online(kind, model, tokenizer, own):
    """A process has the prompts of both of its micro-batches behind one another."""
    prompts = [
        {"prompt": f"{a} + {step} =", "is_scored": has_loss(step, a // 2), "is_short": is_short(step, a // 2)}
        for step in range(NUM_STEPS)
        for a in range(GLOBAL_BATCH // 2)
    ]
    is_short_of = {row["prompt"]: row["is_short"] for row in prompts}

    def rollout(prompts, trainer):
        prompt_ids = [tokenizer(prompt)["input_ids"] for prompt in prompts]
        completion_ids = [
            [
                2 + (sum(ids) + 3 * (i % 2) + 5 * t) % (len(tokenizer) - 2)
                for t in range(1 if is_short_of[prompt] else 7)
            ]
            for i, (prompt, ids) in enumerate(zip(prompts, prompt_ids, strict=True))
        ]
        return {"prompt_ids": prompt_ids, "completion_ids": completion_ids, "logprobs": None}

    def reward(completion_ids, is_scored, **columns):
        return [sum(ids) % 5 / 3 if ok else None for ids, ok in zip(completion_ids, is_scored, strict=True)]

    args = OnlineSFTConfig(**own, num_generations=2, beta=0.1, max_completion_length=8, shuffle_dataset=False)
    data = Dataset.from_list(prompts)
    return OnlineSFTTrainer(model, reward, args, data, processing_class=tokenizer, rollout_func=rollout)


def trajectories(kind, model, tokenizer, own):
    """Of the two kinds of token one is missing: no observation answers the action."""

    def trajectory(index, step, rank):
        turns = 1 if not has_loss(step, rank) or is_short(step, rank) else 1 + index % 3
        observations = [f"{index} {t}" for t in range(turns + has_loss(step, rank))]
        return Trajectory(observations, ["go"] * turns, [0.5 * (index % 3)] * turns, {})

    weights = {"bc_weight": 0.7, "world_model_weight": 0.4, "reward_weighting": "reward_to_go"}
    args = TrajectorySFTConfig(**own, **weights, train_sampling_strategy="sequential")
    return TrajectorySFTTrainer(model, args, train_dataset=rows_in_order(trajectory), processing_class=tokenizer)


def train(kind, num_processes, folder):
    model = f"{folder}/{'chat_model' if kind == 'trajectories' else 'model'}"
    # At 1e-2 Adam makes 3e-5 of a rounding error within four steps.
    own = {**arguments(num_processes), "max_steps": NUM_STEPS, "learning_rate": 1e-3, "output_dir": f"{folder}/uneven"}
    build = {"online": online, "trajectories": trajectories}.get(kind, weighted)
    trainer = build(kind, model, AutoTokenizer.from_pretrained(model), own)
    trainer.train()
    return trainer


def main(folder, mode):
    logs = {}
    for kind in KINDS:
        trainer = train(kind, 2, folder)
        assert_mode(trainer, mode)
        logs[kind] = [entry for entry in trainer.state.log_history if "loss" in entry]
    if trainer.accelerator.is_main_process:
        Path(folder, mode, "uneven.json").write_text(json.dumps(logs))


if __name__ == "__main__":
    main(*sys.argv[1:])
