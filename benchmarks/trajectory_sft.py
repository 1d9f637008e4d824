"""Seconds per step of `TrajectorySFTTrainer` in one pass, in two, and as MRLM does it: the same model and trajectories.

python benchmarks/trajectory_sft.py [--rounds 8]

All are in one process and take turns, so that they see the same noise. The two passes are the same trainer's, first
with mode="behavioral_cloning", whose rows end with the last action, then with mode="world_model", and one optimizer
step. MRLM's way is one trajectory and one kind of token at a time, with the model's own loss. Each computes
0.5 * behaviour cloning + 0.5 * world model; the gradients of the first two are compared before the first round.
"""

import argparse
import platform
import random
import re
import statistics
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import torch
from transformers import Qwen2Config, Qwen2ForCausalLM

from online_sft import Trajectory, TrajectorySFTConfig, TrajectorySFTTrainer
from recipes.tiny_models import CHAT_TEMPLATE, build_byte_tokenizer

TRAJECTORIES, TURNS, CHARACTERS = 8, 4, 40
VOCABULARIES = {"LM head 8 % of the products": 2_048, "50 %": 24_576}
SIZES = {"hidden_size": 384, "intermediate_size": 1536, "num_hidden_layers": 4, "num_attention_heads": 6}


def trajectories() -> list[Trajectory]:
    """Actions and observations of 40 bytes, which are as many tokens."""
    draw = random.Random(0)

    def said() -> str:
        return "".join(draw.choice("abcdefgh ") for _ in range(CHARACTERS))

    return [
        Trajectory([said() for _ in range(TURNS + 1)], [said() for _ in range(TURNS)], [1.0] * TURNS)
        for _ in range(TRAJECTORIES)
    ]


def ways(vocabulary: int) -> dict[str, Callable[[], list[torch.Tensor]]]:
    """What each way does for one step, up to the optimizer; it returns the gradients."""
    tokenizer = build_byte_tokenizer(CHAT_TEMPLATE)
    torch.manual_seed(0)
    model = Qwen2ForCausalLM(Qwen2Config(vocab_size=vocabulary, num_key_value_heads=6, **SIZES))
    data = trajectories()

    def trainer_for(mode: str) -> TrajectorySFTTrainer:
        args = TrajectorySFTConfig(
            output_dir="/tmp/benchmark",
            mode=mode,
            per_device_train_batch_size=TRAJECTORIES,
            use_cpu=True,
            bf16=False,
            activation_checkpointing=False,
            report_to="none",
        )
        return TrajectorySFTTrainer(model, args, train_dataset=data, processing_class=tokenizer)

    trainers = {mode: trainer_for(mode) for mode in ("combined", "behavioral_cloning", "world_model")}
    rows = {mode: list(trainer.get_train_dataloader()) for mode, trainer in trainers.items()}

    def backward(mode: str, weight: float) -> None:
        trainer = trainers[mode]
        trainer.model.train()
        (batch,), denominator = trainer.get_batch_samples(iter(rows[mode]), 1, torch.device("cpu"))
        (weight * trainer.compute_loss(model, dict(batch), num_items_in_batch=denominator)).backward()

    def one_at_a_time(mode: str) -> None:
        for batch in rows[mode]:
            for index in range(TRAJECTORIES):
                row = {name: batch[name][index : index + 1] for name in ("input_ids", "attention_mask", "labels")}
                (0.5 * model(**row).loss / TRAJECTORIES).backward()

    def gradients(*calls: Callable[[], None]) -> list[torch.Tensor]:
        model.zero_grad()
        for call in calls:
            call()
        return [p.grad for p in model.parameters()]

    return {
        "one pass": lambda: gradients(lambda: backward("combined", 1.0)),
        "two passes": lambda: gradients(
            lambda: backward("behavioral_cloning", 0.5), lambda: backward("world_model", 0.5)
        ),
        "MRLM's way": lambda: gradients(
            lambda: one_at_a_time("behavioral_cloning"), lambda: one_at_a_time("world_model")
        ),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=8)
    rounds = parser.parse_args().rounds
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    cpu = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text()).group(1)
    print(f"commit {commit}, {cpu}, {platform.platform()}, {torch.get_num_threads()} threads")
    print(f"{TRAJECTORIES} trajectories of {TURNS} turns a step, {CHARACTERS} tokens a message\n")
    print("| | | s/step (min to max) | to one pass |\n|---|---|---|---|")
    for size, vocabulary in VOCABULARIES.items():
        steps = ways(vocabulary)
        one, two = (torch.cat([g.flatten().clone() for g in steps[n]()]) for n in ("one pass", "two passes"))
        assert (one - two).norm() < 1e-5 * one.norm()
        seconds: dict[str, list[float]] = {name: [] for name in steps}
        for _ in range(rounds):
            for name, step in steps.items():
                start = time.perf_counter()
                step()
                seconds[name].append(time.perf_counter() - start)
        for name, values in seconds.items():
            ratios = [value / base for value, base in zip(values, seconds["one pass"], strict=True)]
            spread = f"{statistics.median(values):.2f} ({min(values):.2f} to {max(values):.2f})"
            ratio = f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
            print(f"| {size} | {name} | {spread} | {ratio} |", flush=True)


if __name__ == "__main__":
    main()
