"""Samples to a target accuracy: OnlineSFTTrainer beside TRL's GRPOTrainer and RLOOTrainer.

PYTHONPATH=. python benchmarks/sample_efficiency.py [--seeds 1 2 3 4 5] [--steps 150] [--methods ...]

Everybody starts from the quickstart's imitation model (made here on first use), and gets the same problems, 256
samples a step, temperature 1, no top_p, AdamW with a constant learning rate, and one update a batch. Learning rate and
group size are tuned for each method on seed 0 by the area under its first `TUNING_STEPS` steps; then the other seeds
run at the best point of the grid. A seed is that of sampling and of the order of the problems.

The target is held-out accuracy, sampled: every `EVERY` steps, the share of right answers among 2 samples of each of
the 400 held-out problems, at temperature 1, with the same random numbers each time (outside the step's time). "Samples
to the target" are those the policy was trained on until the first such evaluation that reaches it; a run that never
does counts with all its samples, which flatters it. A run that has reached the last target stops after `AREA_STEPS`
steps. The area is the mean over the first `AREA_STEPS` steps of the share of right answers among the step's 256
samples, which are drawn from the policy before its update. The held-out problems are harder than the training ones,
which repeat the sums of one digit: do not compare one accuracy with the other.

Results are appended to OUTPUT_DIR/runs.jsonl, one line a run; a run that is there is not run again.
"""

import argparse
import json
import random
import re
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import datasets
import torch
from tasks import TASKS, Sums, Task
from transformers import Trainer, TrainerCallback
from transformers.trainer_callback import PrinterCallback
from transformers.utils import logging as transformers_logging
from trl import GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer

from online_sft import OnlineSFTConfig, OnlineSFTTrainer
from recipes.quickstart.__main__ import EVERYWHERE, SAMPLES_PER_STEP

TARGETS, EVERY = (0.7, 0.8, 0.9), 5
AREA_STEPS, TUNING_STEPS = 50, 30
RATES = (2.5e-4, 5e-4, 1e-3, 2e-3)
GROUPS = (2, 4, 8)


@dataclass(frozen=True)
class Method:
    trainer: type[Trainer]
    config: type
    options: dict[str, Any] = field(default_factory=dict)
    groups: tuple[int, ...] = GROUPS


METHODS = {
    "online SFT": Method(OnlineSFTTrainer, OnlineSFTConfig, groups=(2,)),  # as it is by default
    "online SFT, 1 sample a prompt": Method(OnlineSFTTrainer, OnlineSFTConfig, groups=(1,)),
    "online SFT, none": Method(OnlineSFTTrainer, OnlineSFTConfig, {"baseline": "none"}),
    "TRL GRPO": Method(GRPOTrainer, GRPOConfig),
    "TRL RLOO": Method(RLOOTrainer, RLOOConfig, {"beta": 0.0}),
}
TIMED = {
    "TRL GRPO": METHODS["TRL GRPO"],
    "TRL RLOO": METHODS["TRL RLOO"],
    "online SFT": METHODS["online SFT"],
    "TRL GRPO, beta 0.05": Method(GRPOTrainer, GRPOConfig, {"beta": 0.05}),
    "TRL RLOO, beta 0.05": Method(RLOOTrainer, RLOOConfig, {"beta": 0.05}),
    "online SFT, beta 0.05": Method(OnlineSFTTrainer, OnlineSFTConfig, {"beta": 0.05}),
}


@dataclass(frozen=True)
class Run:
    """The key of a result."""

    task: str
    method: str
    rate: float
    group: int
    seed: int


class Bench:
    def __init__(self, output_dir: Path) -> None:
        self.output_dir = output_dir
        self.file = output_dir / "runs.jsonl"
        self.tasks: dict[str, Task] = {}
        self.results: dict[Run, dict[str, Any]] = {}
        if self.file.exists():
            for line in self.file.read_text().splitlines():
                result = json.loads(line)
                self.results[Run(**result.pop("run"))] = result

    def task(self, name: str) -> Task:
        if name not in self.tasks:
            self.tasks[name] = TASKS[name](self.output_dir)
        return self.tasks[name]

    def run(self, run: Run, method: Method, steps: int, held_out: bool = False) -> dict[str, Any]:
        """Trains, or finds the result of an earlier run that was at least as long or reached the target.

        held_out: evaluate on the held-out problems (of the sums alone), and stop at the target.
        """
        known = self.results.get(run)
        if known and (len(known["accuracy"]) >= steps or (held_out and reached(known))):
            return known
        result = self.train(run, method, steps, held_out)
        self.results[run] = result
        with self.file.open("a") as file:
            file.write(json.dumps({"run": asdict(run), **result}) + "\n")
        shown = min(steps, AREA_STEPS)
        print(
            f"{asdict(run)} steps {len(result['accuracy'])} area {area(result, shown):.3f} samples {reached(result)}",
            file=sys.stderr,
            flush=True,
        )
        return result

    def trainer(self, run: Run, method: Method, steps: int) -> tuple[Trainer, dict[str, list[float]]]:
        task = self.task(run.task)
        curves: dict[str, list[float]] = {"accuracy": [], "reward": []}
        rng = random.Random(run.seed)

        def reward(completions: list[str], prompts: list[str], **columns: Any) -> list[float]:
            columns = {name: columns[name] for name in task.train.column_names if name != "prompt"}
            right, rewards = task.grades(completions, rng, **columns)
            curves["accuracy"].append(statistics.mean(right))
            curves["reward"].append(statistics.mean(rewards))
            return rewards

        settings = {key: value for key, value in EVERYWHERE.items() if key != "activation_checkpointing"}
        settings |= {"gradient_checkpointing": False, "logging_steps": 1, "max_steps": steps}
        args = method.config(
            output_dir=str(self.output_dir / "trainer"),
            per_device_train_batch_size=SAMPLES_PER_STEP,
            max_completion_length=task.max_new_tokens,
            num_generations=run.group,
            learning_rate=run.rate,
            lr_scheduler_type="constant",
            seed=run.seed,
            **{**settings, **method.options, **task.options},
        )
        # the folder, not the model: with beta > 0 the reference is loaded from there
        trainer = method.trainer(str(task.checkpoint(self.output_dir)), reward, args, task.train)
        trainer.remove_callback(PrinterCallback)
        return trainer, curves

    def train(self, run: Run, method: Method, steps: int, held_out: bool = False) -> dict[str, Any]:
        trainer, curves = self.trainer(run, method, steps)
        clock = Clock(trainer)
        trainer.add_callback(clock)
        if held_out:
            trainer.add_callback(HeldOut(self.task(run.task), curves))
        trainer.train()
        result = {name: [round(value, 4) for value in values] for name, values in curves.items()}
        for name in ("entropy", "grad_norm", "kl"):
            result[name] = [round(entry[name], 4) for entry in trainer.state.log_history if name in entry]
        result["seconds"], result["generation"] = clock.seconds, clock.generation
        return result

    def tune(self, name: str, method: Method, rates: Iterable[float]) -> Run:
        """The best learning rate and group size on seed 0 by the area under the first steps of the curve."""
        points = [Run("sums", name, rate, group, 0) for rate in rates for group in method.groups]
        areas = {point: area(self.run(point, method, TUNING_STEPS), TUNING_STEPS) for point in points}
        return max(areas, key=areas.__getitem__)


class Clock(TrainerCallback):
    """Seconds of each step, and those of them that generation took."""

    def __init__(self, trainer: Any) -> None:
        self.seconds: list[float] = []
        self.generation: list[float] = []
        generate = trainer._generate

        def timed(*args: Any, **kwargs: Any) -> Any:
            start = time.perf_counter()
            output = generate(*args, **kwargs)
            self.generation.append(round(time.perf_counter() - start, 4))
            return output

        trainer._generate = timed

    def on_step_begin(self, *_: object, **__: object) -> None:
        self.start = time.perf_counter()

    def on_step_end(self, *_: object, **__: object) -> None:
        self.seconds.append(round(time.perf_counter() - self.start, 4))


class HeldOut(TrainerCallback):
    """Sampled held-out accuracy every EVERY steps; stops the run that has reached the target."""

    def __init__(self, task: Sums, curves: dict[str, list[float]]) -> None:
        self.task, self.curves = task, curves
        curves["held_out"] = []

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any, **_: object) -> None:
        if state.global_step % EVERY:
            return
        self.curves["held_out"].append(self.task.held_out_accuracy(model))
        model.train()
        if state.global_step >= AREA_STEPS and reached(self.curves):
            control.should_training_stop = True


def reached(curves: dict[str, Any], target: float = TARGETS[-1]) -> int | None:
    """Samples until a held-out evaluation reaches the target; None if none does."""
    for index, share in enumerate(curves.get("held_out", [])):
        if share >= target:
            return (index + 1) * EVERY * SAMPLES_PER_STEP
    return None


def samples_to(result: dict[str, Any], target: float) -> int:
    return reached(result, target) or len(result["accuracy"]) * SAMPLES_PER_STEP


def area(result: dict[str, Any], steps: int = AREA_STEPS) -> float:
    return statistics.mean(result["accuracy"][:steps])


def spread(values: list[float], form: str) -> str:
    return f"{statistics.mean(values):{form}} ({min(values):{form}} to {max(values):{form}})"


def compare(bench: Bench, names: list[str], seeds: list[int], steps: int, rates: list[float]) -> None:
    best = {name: bench.tune(name, METHODS[name], rates) for name in names}
    runs = {
        name: [
            bench.run(Run("sums", name, point.rate, point.group, seed), METHODS[name], steps, True) for seed in seeds
        ]
        for name, point in best.items()
    }
    print(f"\n| | rate, group | area, {AREA_STEPS} steps | {' | '.join(f'samples to {t:.0%}' for t in TARGETS)} |")
    print("|---|---|---|" + "---|" * len(TARGETS))
    for name, results in runs.items():
        cells = [f"{best[name].rate:g}, {best[name].group}", spread([area(r) for r in results], ".3f")]
        for target in TARGETS:
            counts = [samples_to(result, target) for result in results]
            missed = sum(reached(result, target) is None for result in results)
            cells.append(spread(counts, ",.0f") + (f", {missed} of {len(results)} never" if missed else ""))
            if "TRL GRPO" in runs and all(reached(result, target) for result in [*results, *runs["TRL GRPO"]]):
                grpos = statistics.mean(samples_to(result, target) for result in runs["TRL GRPO"])
                cells[-1] += f", ratio {statistics.mean(counts) / grpos:.2f}"
        print(f"| {name} | {' | '.join(cells)} |")


def time_steps(bench: Bench, rounds: int, steps: int) -> None:
    """Seconds a step, all in one process, in alternation; the first two steps of each are left out."""
    seconds: dict[str, list[float]] = {name: [] for name in TIMED}
    rest: dict[str, list[float]] = {name: [] for name in TIMED}
    for turn in range(rounds):
        for name, method in TIMED.items():
            result = bench.train(Run("sums", name, 1e-4, 2, turn), method, steps)
            seconds[name] += result["seconds"][2:]
            rest[name] += [a - b for a, b in zip(result["seconds"][2:], result["generation"][2:], strict=True)]
    print("\n| | s/step (min to max) | to GRPO | s/step without generation | to GRPO |\n|---|---|---|---|---|")
    for name in TIMED:
        base = "TRL GRPO, beta 0.05" if "beta" in name else "TRL GRPO"
        cells = []
        for table in (seconds, rest):
            middle = statistics.median(table[name])
            cells += [
                f"{middle:.3f} ({min(table[name]):.3f} to {max(table[name]):.3f})",
                f"{middle / statistics.median(table[base]):.2f}",
            ]
        print(f"| {name} | {' | '.join(cells)} |")


def quiet() -> None:
    datasets.disable_progress_bars()
    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
    warnings.filterwarnings("ignore")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3, 4, 5])
    parser.add_argument("--steps", type=int, default=150, help="at most so many a measured run (default: 150)")
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS))
    parser.add_argument("--rates", type=float, nargs="+", default=RATES)
    parser.add_argument("--timing_rounds", type=int, default=3, help="0 leaves the timing out")
    parser.add_argument("--output_dir", type=Path, default=Path("runs/efficiency"))
    options = parser.parse_args()
    quiet()
    options.output_dir.mkdir(parents=True, exist_ok=True)
    bench = Bench(options.output_dir)
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    cpu = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text()).group(1)
    print(f"commit {commit}, {cpu}, {torch.get_num_threads()} threads", flush=True)
    compare(bench, options.methods, options.seeds, options.steps, options.rates)
    if options.timing_rounds:
        time_steps(bench, options.timing_rounds, steps=10)


if __name__ == "__main__":
    main()
