"""The quickstart: imitate flawed demonstrations, then learn from their grades, or from one's own graded samples.

python -m recipes.quickstart [--seed 0] [--steps N] [--output_dir runs/quickstart]
"""

import argparse
import time
from pathlib import Path
from typing import Any

import datasets
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel, Trainer
from transformers.trainer_callback import PrinterCallback
from transformers.utils import logging as transformers_logging

from online_sft import MathVerificationReward, OnlineSFTConfig, OnlineSFTTrainer, WeightedSFTConfig, WeightedSFTTrainer
from recipes.quickstart.evaluate import MAX_NEW_TOKENS, Evaluation, evaluate
from recipes.quickstart.problems import PHRASES, AgreeingReward, flawed_demonstrations, make_problems
from recipes.quickstart.report import Stage, print_table, save_completions, save_curves
from recipes.quickstart.tiny_model import build_model, build_tokenizer
from trainers.progress import RunningRewardCallback

SHARE_WRONG = 0.6
DEMONSTRATIONS_PER_PROBLEM = 3
EVERYWHERE = {
    "use_cpu": True,
    "bf16": False,
    "activation_checkpointing": False,
    "report_to": "none",
    "save_strategy": "no",
    "disable_tqdm": True,  # RunningRewardCallback draws the bar
    "logging_steps": 10,
    "adam_beta2": 0.98,
}
DEMONSTRATIONS_PER_STEP, SAMPLES_PER_STEP = 128, 256
IMITATION = {"max_steps": 1500, "learning_rate": 2e-3, "lr_scheduler_type": "cosine", "warmup_steps": 100}
GRADED = {"max_steps": 300, "learning_rate": 1e-3, "lr_scheduler_type": "linear"}
# Two samples of each of 128 problems a step, and no baseline: more problems beat larger groups here.
ONLINE = {
    "max_steps": 400,
    "learning_rate": 5e-4,
    "lr_scheduler_type": "linear",
    "num_generations": 2,
    "baseline": "none",
}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m recipes.quickstart", description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=0, help="problems, demonstrations, model and training (default: 0)")
    parser.add_argument("--steps", type=int, help="at most this many steps a stage, for a try-out")
    parser.add_argument("--output_dir", type=Path, default=Path("runs/quickstart"), help="(default: %(default)s)")
    arguments = parser.parse_args()
    datasets.disable_progress_bars()
    transformers_logging.disable_progress_bar()

    start = time.perf_counter()
    stages, held_out = run(arguments.output_dir, arguments.seed, arguments.steps)
    save_curves(stages, arguments.output_dir / "curves.png")
    save_completions(stages, held_out, arguments.output_dir / "completions.csv")
    print_table(stages, time.perf_counter() - start)
    print(f"models, data, curves.png and completions.csv are in {arguments.output_dir}")


def run(output_dir: Path, seed: int, steps: int | None) -> tuple[list[Stage], datasets.Dataset]:
    """The three stages, and the held-out problems they were measured on."""
    output_dir.mkdir(parents=True, exist_ok=True)
    problems = make_problems(seed)
    demonstrations = flawed_demonstrations(
        problems.train, copies=DEMONSTRATIONS_PER_PROBLEM, share_wrong=SHARE_WRONG, seed=seed
    )
    tokenizer = build_tokenizer(PHRASES)
    reward = AgreeingReward(MathVerificationReward(correct_reward=1.0, incorrect_reward=0.0), problems.generator)
    grades = reward(demonstrations["completion"], demonstrations["solution"], demonstrations["index"])
    problems.train.to_json(output_dir / "problems.jsonl")
    demonstrations.add_column("advantages", grades).to_json(output_dir / "demonstrations.jsonl")
    model = build_model(tokenizer, seed=seed)
    print(
        f"{len(problems.train):,} training and {len(problems.held_out)} held-out problems, for example "
        f"{problems.train[0]['prompt']!r}\n{1 - sum(grades) / len(grades):.0%} of the demonstrations are wrong; "
        f"{sum(p.numel() for p in model.parameters()):,} parameters; {torch.get_num_threads()} CPU threads"
    )

    def train(name: str, model: PreTrainedModel, trainer: Trainer, before: Evaluation) -> Stage:
        trainer.remove_callback(PrinterCallback)
        trainer.add_callback(RunningRewardCallback(name))
        start = time.perf_counter()
        trainer.train()
        seconds = time.perf_counter() - start
        trainer.save_model()
        online = isinstance(trainer, OnlineSFTTrainer)
        key = "reward" if online else "loss"
        return Stage(
            name=name,
            before=before,
            after=evaluate(model, tokenizer, problems.held_out, reward),
            samples=trainer.args.max_steps * trainer.args.per_device_train_batch_size,
            seconds=seconds,
            curve_label="mean reward of own samples" if online else "weighted loss, nats per token",
            curve=[(entry["step"], entry[key]) for entry in trainer.state.log_history if key in entry],
        )

    def settings(name: str, stage: dict[str, Any]) -> dict[str, Any]:
        limit = {"max_steps": min(steps, stage["max_steps"])} if steps else {}
        return {"output_dir": str(output_dir / name), "seed": seed, **EVERYWHERE, **stage, **limit}

    def weighted(name: str, model: PreTrainedModel, before: Evaluation, advantages: list[float], stage: dict) -> Stage:
        args = WeightedSFTConfig(per_device_train_batch_size=DEMONSTRATIONS_PER_STEP, **settings(name, stage))
        data = demonstrations.select_columns(["prompt", "completion"]).add_column("advantages", advantages)
        return train(
            name, model, WeightedSFTTrainer(model, args, train_dataset=data, processing_class=tokenizer), before
        )

    def online(name: str, model: PreTrainedModel, before: Evaluation, stage: dict) -> Stage:
        args = OnlineSFTConfig(
            per_device_train_batch_size=SAMPLES_PER_STEP, max_completion_length=MAX_NEW_TOKENS, **settings(name, stage)
        )
        trainer = OnlineSFTTrainer(model, reward, args, problems.train, processing_class=tokenizer)
        return train(name, model, trainer, before)

    untrained = evaluate(model, tokenizer, problems.held_out, reward)
    imitation = weighted("a_imitation", model, untrained, [1.0] * len(grades), IMITATION)

    def imitator() -> PreTrainedModel:
        return AutoModelForCausalLM.from_pretrained(output_dir / imitation.name)

    stages = [
        imitation,
        weighted("b_weighted_sft", imitator(), imitation.after, grades, GRADED),
        online("c_online_sft", imitator(), imitation.after, ONLINE),
    ]
    return stages, problems.held_out


if __name__ == "__main__":
    main()
