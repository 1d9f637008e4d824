"""Seconds per step and peak memory of WeightedSFTTrainer beside trl.SFTTrainer: the same model, batches and arguments.

python benchmarks/weighted_sft.py [--rounds 3] [--steps 6]

Each measurement is a process of its own, so that peak memory is its own; rounds alternate between the trainers, so that
both see the same noise. Ratios are of medians over all steps but each process's first.
"""

import argparse
import json
import platform
import re
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

BATCH, LENGTH, VOCABULARY = 4, 256, 151_936
# name -> trainer, share of the tokens with weight 0, rows per batch, lm_head_chunk_size
CASES = {
    "TRL": ("trl", 0.0, BATCH, 256),
    "ours, all weights 1": ("ours", 0.0, BATCH, 256),
    "TRL, 75 % masked (labels -100)": ("trl", 0.75, BATCH, 256),
    "ours, 75 % weight 0": ("ours", 0.75, BATCH, 256),
}
MEMORY_CASES = {
    f"ours, {rows} rows, chunk {chunk}": ("ours", 0.0, rows, chunk) for rows in (4, 8) for chunk in (128, 256, 512)
}


def worker(trainer_name: str, zero_share: float, rows: int, chunk: int, steps: int) -> None:
    """Trains for `steps` steps; prints the seconds of each and the peak MB of the process."""
    import random

    from datasets import Dataset
    from transformers import Qwen2Config, Qwen2ForCausalLM, TrainerCallback
    from trl import SFTConfig, SFTTrainer

    from online_sft import WeightedSFTConfig, WeightedSFTTrainer
    from recipes.quickstart.tiny_model import build_tokenizer

    ours = trainer_name == "ours"
    sizes = {"hidden_size": 128, "intermediate_size": 512, "num_hidden_layers": 4, "num_attention_heads": 4}
    config = Qwen2Config(vocab_size=VOCABULARY, num_key_value_heads=4, tie_word_embeddings=True, **sizes)
    model = Qwen2ForCausalLM(config)
    draw = random.Random(0)
    data = []
    for _ in range(rows * steps):
        tokens = [draw.randrange(VOCABULARY) for _ in range(LENGTH)]
        weights = [float(draw.random() >= zero_share) for _ in tokens]
        row = {"input_ids": tokens, "labels": tokens}
        if ours:
            row["advantages"] = weights
        elif zero_share:
            row["labels"] = [token if weight else -100 for token, weight in zip(tokens, weights, strict=True)]
        data.append(row)
    seconds: list[float] = []

    class Clock(TrainerCallback):
        def on_step_begin(self, *_: object, **__: object) -> None:
            self.start = time.perf_counter()

        def on_step_end(self, *_: object, **__: object) -> None:
            seconds.append(time.perf_counter() - self.start)

    trainer_class, config_class = (
        (WeightedSFTTrainer, WeightedSFTConfig) if trainer_name == "ours" else (SFTTrainer, SFTConfig)
    )
    args = config_class(
        output_dir="/tmp/benchmark",
        per_device_train_batch_size=rows,
        max_steps=steps,
        max_length=LENGTH,
        use_cpu=True,
        bf16=False,
        activation_checkpointing=False,
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
        **({"lm_head_chunk_size": chunk} if ours else {}),
    )
    trainer = trainer_class(
        model,
        args,
        train_dataset=Dataset.from_list(data),
        processing_class=build_tokenizer([" + "]),
        callbacks=[Clock()],
    )
    trainer.train()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    parameters = sum(p.numel() for p in model.parameters())
    print("RESULT", json.dumps({"seconds": seconds, "peak": peak, "parameters": parameters}))


def measure(case: tuple[str, float, int, int], steps: int) -> dict:
    command = [sys.executable, __file__, "--worker", *map(str, case), "--steps", str(steps)]
    done = subprocess.run(command, capture_output=True, text=True)
    lines = [line for line in done.stdout.splitlines() if line.startswith("RESULT")]
    if not lines:
        sys.exit(done.stderr)
    return json.loads(lines[-1].removeprefix("RESULT"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--worker", nargs=4, metavar=("TRAINER", "ZERO_SHARE", "ROWS", "CHUNK"))
    options = parser.parse_args()
    if options.worker:
        trainer, zero_share, rows, chunk = options.worker
        return worker(trainer, float(zero_share), int(rows), int(chunk), options.steps)

    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    cpu = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text()).group(1)
    print(f"commit {commit}, {cpu}, {platform.platform()}\n")
    seconds: dict[str, list[float]] = {name: [] for name in CASES}
    peak: dict[str, float] = {}
    for _ in range(options.rounds):
        for name, case in CASES.items():
            result = measure(case, options.steps)
            seconds[name] += result["seconds"][1:]
            peak[name] = max(peak.get(name, 0.0), result["peak"])
    base = statistics.median(seconds["TRL"])
    print(
        f"{result['parameters'] / 1e6:.1f} M parameters, vocabulary {VOCABULARY}, {BATCH} x {LENGTH} tokens per step\n"
    )
    print("| | s/step (min to max) | to TRL | peak MB |\n|---|---|---|---|")
    for name, values in seconds.items():
        middle = statistics.median(values)
        spread = f"{middle:.2f} ({min(values):.2f} to {max(values):.2f})"
        print(f"| {name} | {spread} | {middle / base:.2f} | {peak[name]:.0f} |")
    print("\n| | peak MB |\n|---|---|")
    for name, case in MEMORY_CASES.items():
        print(f"| {name} | {measure(case, 2)['peak']:.0f} |", flush=True)


if __name__ == "__main__":
    main()
