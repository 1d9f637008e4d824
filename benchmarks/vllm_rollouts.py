"""Online SFT of the quickstart's sums with rollouts by vLLM and by transformers: same accuracy, what a step takes.

    PYTHONPATH=.:tests OMP_NUM_THREADS=1 .venv-vllm/bin/python benchmarks/vllm_rollouts.py

Colocated vLLM on the CPU (`make test-vllm` makes the environment), float32, the same imitation model, problems, rate
and number of samples; TRL's GRPOTrainer with the same engine beside it, for the seconds of a step.
"""

import argparse
import os
import statistics
import subprocess
from pathlib import Path

from sample_efficiency import METHODS, Bench, Method, Run, quiet, spread
from trl import GRPOConfig, GRPOTrainer
from vllm_tools import ENVIRONMENT
from vllm_worker import free_port, share_one_engine

from online_sft import OnlineSFTConfig, OnlineSFTTrainer

VLLM = {
    "use_vllm": True,
    "vllm_mode": "colocate",
    "vllm_max_model_length": 64,
    "model_init_kwargs": {"dtype": "float32"},
}
ROLLOUTS = {
    "online SFT, transformers": METHODS["online SFT"],
    "online SFT, vLLM": Method(OnlineSFTTrainer, OnlineSFTConfig, VLLM),
    "TRL GRPO, vLLM": Method(GRPOTrainer, GRPOConfig, VLLM),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--output_dir", type=Path, default=Path("runs/efficiency"))
    options = parser.parse_args()
    quiet()
    share_one_engine(dtype="float32", max_num_seqs=256)
    bench = Bench(options.output_dir)
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    print(f"commit {commit}, {options.steps} steps, seeds {options.seeds}")
    print(
        "\n| | held-out accuracy, last 4 evaluations | accuracy of the samples, all steps | seconds a step | "
        "of it sampling |\n|---|---|---|---|---|"
    )
    for name, method in ROLLOUTS.items():
        results = [bench.train(Run("sums", name, 1e-3, 2, seed), method, options.steps, True) for seed in options.seeds]
        rest = [statistics.median(result["seconds"][2:]) for result in results]
        sampling = [statistics.median(result["generation"][2:]) for result in results]
        cells = [
            spread([statistics.mean(result["held_out"][-4:]) for result in results], ".3f"),
            spread([statistics.mean(result["accuracy"]) for result in results], ".3f"),
            spread(rest, ".3f"),
            spread(sampling, ".3f"),
        ]
        print(f"| {name} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    os.environ |= {**ENVIRONMENT, "MASTER_PORT": str(free_port())}
    main()
