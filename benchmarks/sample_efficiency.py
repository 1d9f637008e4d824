"""Samples to a target accuracy: OnlineSFTTrainer beside TRL's GRPOTrainer and RLOOTrainer.

PYTHONPATH=. python benchmarks/sample_efficiency.py [--seeds 1 2 3 4 5] [--steps 150] [--methods ...] [--task sums]

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
import re
import statistics
import subprocess
import time
import warnings
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import datasets
import torch
from transformers import AutoModelForCausalLM, Trainer, TrainerCallback
from transformers.trainer_callback import PrinterCallback
from transformers.utils import logging as transformers_logging
from trl import GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer

from online_sft import OnlineSFTConfig, OnlineSFTTrainer
from recipes.quickstart.__main__ import EVERYWHERE, IMITATION, SAMPLES_PER_STEP, Quickstart
from recipes.quickstart.evaluate import MAX_NEW_TOKENS, accuracy, complete

TARGETS, EVERY = (0.7, 0.8, 0.9), 5
AREA_STEPS, TUNING_STEPS = 50, 30
RATES = (2.5e-4, 5e-4, 1e-3, 2e-3)
GROUPS = (2, 4, 8)


@dataclass(frozen=True)
class Method:
    trainer: type[Trainer]
    config: type
    options: dict[str, Any] = field(default_factory=dict)
    prepare: Callable[[Any], None] | None = None  # what an experiment changes in the trainer
    groups: tuple[int, ...] = GROUPS


METHODS = {
    "online SFT, none": Method(OnlineSFTTrainer, OnlineSFTConfig, {"baseline": "none"}),
    "TRL GRPO": Method(GRPOTrainer, GRPOConfig),
    "TRL RLOO": Method(RLOOTrainer, RLOOConfig, {"beta": 0.0}),
}
TIMED = {
    "TRL GRPO": METHODS["TRL GRPO"],
    "TRL RLOO": METHODS["TRL RLOO"],
    "online SFT": METHODS["online SFT, none"],
    "TRL GRPO, beta 0.05": Method(GRPOTrainer, GRPOConfig, {"beta": 0.05}),
    "TRL RLOO, beta 0.05": Method(RLOOTrainer, RLOOConfig, {"beta": 0.05}),
    "online SFT, beta 0.05": Method(OnlineSFTTrainer, OnlineSFTConfig, {"baseline": "none", "beta": 0.05}),
}


@dataclass(frozen=True)
class Run:
    """The key of a result."""

    task: str
    method: str
    rate: float
    group: int
    seed: int


# A task turns whether an answer is right, and how near it is, into a reward: (right, completion, solution, rng).
def plain(right: bool, completion: str, solution: str, rng: torch.Generator) -> float:
    return float(right)


@dataclass(frozen=True)
class Task:
    reward: Callable[[bool, str, str, torch.Generator], float] = plain
    weaken: tuple[float, int] | None = None  # imitate demonstrations, this share of them wrong, for so many steps more
    options: dict[str, Any] = field(default_factory=dict)
    problems: int | None = None  # only the first so many


TASKS = {"sums": Task()}


class Bench:
    def __init__(self, output_dir: Path) -> None:
        self.output_dir = output_dir
        self.quickstart = Quickstart(output_dir, seed=0, steps=None)
        self.tokenizer = self.quickstart.tokenizer
        self.file = output_dir / "runs.jsonl"
        self.results: dict[Run, dict[str, Any]] = {}
        if self.file.exists():
            for line in self.file.read_text().splitlines():
                result = json.loads(line)
                self.results[Run(**result.pop("run"))] = result

    def checkpoint(self, task: Task) -> Path:
        """The quickstart's imitation model, seed 0; made where it is missing."""
        folder = self.output_dir / "a_imitation"
        if not (folder / "config.json").exists():
            from recipes.quickstart.tiny_model import build_model

            quickstart = self.quickstart
            model = build_model(quickstart.tokenizer, seed=0)
            quickstart.weighted(
                folder.name, model, quickstart.evaluate(model), [1.0] * len(quickstart.grades), IMITATION
            )
        if task.weaken is None:
            return folder
        weaker = self.output_dir / "imitation_{}_{}".format(*task.weaken)
        if not (weaker / "config.json").exists():
            self.weaken(folder, weaker, *task.weaken)
        return weaker

    def weaken(self, start: Path, folder: Path, share_wrong: float, steps: int) -> None:
        from recipes.quickstart.problems import flawed_demonstrations

        quickstart = self.quickstart
        demonstrations = quickstart.demonstrations, quickstart.grades
        quickstart.demonstrations = flawed_demonstrations(
            quickstart.problems.train, copies=3, share_wrong=share_wrong, seed=1
        )
        model = AutoModelForCausalLM.from_pretrained(start)
        stage = {"max_steps": steps, "learning_rate": 1e-3, "lr_scheduler_type": "linear"}
        weights = [1.0] * len(quickstart.demonstrations)
        quickstart.weighted(folder.name, model, quickstart.evaluate(model), weights, stage)
        quickstart.demonstrations, quickstart.grades = demonstrations

    def run(
        self, run: Run, method: Method, steps: int, area_steps: int = AREA_STEPS, held_out: bool = True
    ) -> dict[str, Any]:
        """Trains, or finds the result of an earlier run that was at least as long or reached the target."""
        known = self.results.get(run)
        if known and (len(known["accuracy"]) >= steps or (reached(known) and len(known["accuracy"]) >= area_steps)):
            return known
        result = self.train(run, method, steps, area_steps, held_out)
        self.results[run] = result
        with self.file.open("a") as file:
            file.write(json.dumps({"run": asdict(run), **result}) + "\n")
        area = statistics.mean(result["accuracy"][:area_steps])
        print(f"{asdict(run)} steps {len(result['accuracy'])} area {area:.3f} samples {reached(result)}", flush=True)
        return result

    def trainer(self, run: Run, method: Method, steps: int) -> tuple[Trainer, dict[str, list[float]]]:
        task = TASKS[run.task]
        quickstart = self.quickstart
        folder = self.checkpoint(task)
        curves: dict[str, list[float]] = {"accuracy": [], "reward": []}
        rng = torch.Generator().manual_seed(run.seed)

        def reward(completions: list[str], solution: list[str], index: list[int], **columns: Any) -> list[float]:
            right = [grade == 1.0 for grade in quickstart.reward(completions, solution=solution, index=index)]
            rewards = [task.reward(*row, rng) for row in zip(right, completions, solution, strict=True)]
            curves["accuracy"].append(statistics.mean(right))
            curves["reward"].append(statistics.mean(rewards))
            return rewards

        settings = {key: value for key, value in EVERYWHERE.items() if key != "activation_checkpointing"}
        settings |= {"gradient_checkpointing": False, "logging_steps": 1, "max_steps": steps}
        args = method.config(
            output_dir=str(self.output_dir / "trainer"),
            per_device_train_batch_size=SAMPLES_PER_STEP,
            max_completion_length=MAX_NEW_TOKENS,
            num_generations=run.group,
            learning_rate=run.rate,
            lr_scheduler_type="constant",
            seed=run.seed,
            **{**settings, **task.options, **method.options},
        )
        problems = quickstart.problems.train
        if task.problems:
            problems = problems.select(range(task.problems))
        # the folder, not the model: with beta > 0 the reference is loaded from there
        trainer = method.trainer(str(folder), reward, args, problems)
        trainer.remove_callback(PrinterCallback)
        if method.prepare:
            method.prepare(trainer)
        return trainer, curves

    def train(self, run: Run, method: Method, steps: int, area_steps: int, held_out: bool) -> dict[str, Any]:
        trainer, curves = self.trainer(run, method, steps)
        clock = Clock(trainer)
        trainer.add_callback(clock)
        if held_out:
            trainer.add_callback(HeldOut(self, curves, area_steps))
        trainer.train()
        result = {name: [round(value, 4) for value in values] for name, values in curves.items()}
        result["entropy"] = [round(e["entropy"], 4) for e in trainer.state.log_history if "entropy" in e]
        result["grad_norm"] = [round(e["grad_norm"], 4) for e in trainer.state.log_history if "grad_norm" in e]
        result["seconds"], result["generation"] = clock.seconds, clock.generation
        return result

    def held_out_accuracy(self, model: Any) -> float:
        problems = self.quickstart.problems.held_out
        with torch.random.fork_rng():
            torch.manual_seed(0)
            prompts = [prompt for prompt in problems["prompt"] for _ in range(2)]
            return accuracy(complete(model, self.tokenizer, prompts, sample=True), problems, self.quickstart.reward)

    def tune(self, task: str, name: str, method: Method, rates: Iterable[float]) -> Run:
        """The best learning rate and group size on seed 0 by the area under the first steps of the curve."""
        points = [Run(task, name, rate, group, 0) for rate in rates for group in method.groups]
        areas = {
            point: area(self.run(point, method, TUNING_STEPS, TUNING_STEPS, False), TUNING_STEPS) for point in points
        }
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

    def __init__(self, bench: "Bench", curves: dict[str, list[float]], area_steps: int) -> None:
        self.bench, self.curves, self.area_steps = bench, curves, area_steps
        curves["held_out"] = []

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any, **_: object) -> None:
        if state.global_step % EVERY:
            return
        self.curves["held_out"].append(self.bench.held_out_accuracy(model))
        model.train()
        if state.global_step >= self.area_steps and reached(self.curves):
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


def compare(bench: Bench, task: str, names: list[str], seeds: list[int], steps: int, rates: list[float]) -> None:
    best = {name: bench.tune(task, name, METHODS[name], rates) for name in names}
    runs = {
        name: [bench.run(Run(task, name, point.rate, point.group, seed), METHODS[name], steps) for seed in seeds]
        for name, point in best.items()
    }
    print(
        f"\n| {task} | rate, group | area, {AREA_STEPS} steps | {' | '.join(f'samples to {t:.0%}' for t in TARGETS)} |"
    )
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
            result = bench.train(Run("sums", name, 1e-4, 2, turn), method, steps, steps, held_out=False)
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
    parser.add_argument("--task", default="sums", choices=list(TASKS))
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
    compare(bench, options.task, options.methods, options.seeds, options.steps, options.rates)
    if options.timing_rounds:
        time_steps(bench, options.timing_rounds, steps=10)


if __name__ == "__main__":
    main()
