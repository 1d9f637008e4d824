"""Which baseline learns fastest, and with how many samples a prompt: OnlineSFTTrainer's options, TRL's GRPO and RLOO.

PYTHONPATH=. python benchmarks/baselines.py [--tasks reverse sort ...] [--methods optimal ...] [--seeds 1 2]

Problems, rewards and the policies to start from are in `tasks.py`; settings and the cache of runs are those of
`sample_efficiency.py`: 256 samples a step whatever the group. Every method with every number of samples a prompt is
tuned by itself: the learning rate of the largest area under the first `TUNING_STEPS` steps on seed 0. The other seeds
run at that rate. The area is the mean over the steps of how right the step's samples are, before the update.
"""

import argparse
from pathlib import Path

from sample_efficiency import TUNING_STEPS, Bench, Method, Run, area, quiet, spread
from tasks import TASKS
from trl import GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer

from online_sft import OnlineSFTConfig, OnlineSFTTrainer


def ours(baseline: str, *groups: int) -> Method:
    return Method(OnlineSFTTrainer, OnlineSFTConfig, {"baseline": baseline}, groups)


METHODS = {
    "optimal": ours("optimal", 1, 2, 4, 8),
    "leave_one_out": ours("leave_one_out", 2, 4, 8),
    "none": ours("none", 2),
    "TRL GRPO": Method(GRPOTrainer, GRPOConfig, groups=(4, 8)),
    "group_mean": ours("group_mean", 2, 4, 8),
    "running_mean": ours("running_mean", 1, 2),
    "TRL RLOO": Method(RLOOTrainer, RLOOConfig, {"beta": 0.0}, (4, 8)),
}


def compare(bench: Bench, task: str, names: list[str], rates: list[float], seeds: list[int], steps: int) -> None:
    print(f"\n| {task} | samples a prompt | rate | area, {steps} steps | last 5 steps | entropy, last |")
    print("|---|---|---|---|---|---|")
    for name in names:
        for group in METHODS[name].groups:
            # not the prototypes' names, which older caches have
            key = name if name.startswith("TRL") else f"baseline={name}"
            areas = {
                rate: area(bench.run(Run(task, key, rate, group, 0), METHODS[name], TUNING_STEPS), TUNING_STEPS)
                for rate in rates
            }
            rate = max(areas, key=areas.__getitem__)
            runs = [bench.run(Run(task, key, rate, group, seed), METHODS[name], steps) for seed in seeds]
            cells = [
                spread([area(run, steps) for run in runs], ".3f"),
                spread([sum(run["accuracy"][steps - 5 : steps]) / 5 for run in runs], ".3f"),
                spread([run["entropy"][steps - 1] for run in runs], ".2f"),
            ]
            print(f"| {name} | {group} | {rate:g} | {' | '.join(cells)} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="+", default=["sums", "reverse", "sort"], choices=list(TASKS))
    parser.add_argument("--methods", nargs="+", default=list(METHODS)[:4], choices=list(METHODS))
    parser.add_argument("--rates", type=float, nargs="+", default=[1.25e-4, 2.5e-4, 5e-4, 1e-3])
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--output_dir", type=Path, default=Path("runs/efficiency"))
    options = parser.parse_args()
    quiet()
    options.output_dir.mkdir(parents=True, exist_ok=True)
    bench = Bench(options.output_dir)
    for task in options.tasks:
        compare(bench, task, options.methods, options.rates, options.seeds, options.steps)


if __name__ == "__main__":
    main()
