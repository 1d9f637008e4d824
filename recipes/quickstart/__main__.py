"""The quickstart: imitate flawed demonstrations, then learn from their grades, or from one's own graded samples.

python -m recipes.quickstart [--seed 0] [--steps N] [--output_dir runs/quickstart]
"""

import argparse
import time
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel, Trainer

from online_sft import MathVerificationReward, OnlineSFTConfig, OnlineSFTTrainer, WeightedSFTConfig, WeightedSFTTrainer
from recipes.on_cpu import EVERYWHERE, quiet
from recipes.quickstart.evaluate import MAX_NEW_TOKENS, Evaluation, evaluate
from recipes.quickstart.problems import PHRASES, AgreeingReward, flawed_demonstrations, make_problems
from recipes.quickstart.report import Stage, print_table, save_completions, save_curves
from recipes.quickstart.tiny_model import build_model, build_tokenizer

SHARE_WRONG = 0.6
DEMONSTRATIONS_PER_PROBLEM = 3
DEMONSTRATIONS_PER_STEP, SAMPLES_PER_STEP = 128, 256
IMITATION = {"max_steps": 1500, "learning_rate": 2e-3, "lr_scheduler_type": "cosine", "warmup_steps": 100}
GRADED = {"max_steps": 300, "learning_rate": 1e-3, "lr_scheduler_type": "linear"}
# Two samples of each of 128 problems a step, by default.
ONLINE = {"max_steps": 400, "learning_rate": 5e-4, "lr_scheduler_type": "linear"}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m recipes.quickstart", description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=0, help="problems, demonstrations, model and training (default: 0)")
    parser.add_argument("--steps", type=int, help="at most this many steps a stage, for a try-out")
    parser.add_argument("--output_dir", type=Path, default=Path("runs/quickstart"), help="(default: %(default)s)")
    arguments = parser.parse_args()
    quiet()

    start = time.perf_counter()
    stages = Quickstart(arguments.output_dir, arguments.seed, arguments.steps).run()
    print_table(stages, time.perf_counter() - start)
    print(f"models, data, curves.png and completions.csv are in {arguments.output_dir}")


class Quickstart:
    """The data, the reward, and the three stages.

    Args:
        output_dir: for models, data and pictures.
        seed: of problems, demonstrations, model and training.
        steps: at most this many steps a stage; None for all.
    """

    def __init__(self, output_dir: Path, seed: int, steps: int | None) -> None:
        self.output_dir, self.seed, self.steps = output_dir, seed, steps
        self.problems = make_problems(seed)
        self.demonstrations = flawed_demonstrations(
            self.problems.train, copies=DEMONSTRATIONS_PER_PROBLEM, share_wrong=SHARE_WRONG, seed=seed
        )
        self.reward = AgreeingReward(
            MathVerificationReward(1.0, 0.0, accept_expressions=False), self.problems.generator
        )
        columns = (self.demonstrations[name] for name in ("completion", "solution", "index"))
        self.grades = self.reward(*columns)
        self.tokenizer = build_tokenizer(PHRASES)

    def run(self) -> list[Stage]:
        """Imitation first; from its model, weighted SFT and online SFT, each on its own."""
        model = build_model(self.tokenizer, seed=self.seed)
        print(
            f"{len(self.problems.train):,} training and {len(self.problems.held_out)} held-out problems, for example "
            f"{self.problems.train[0]['prompt']!r}\n"
            f"{1 - sum(self.grades) / len(self.grades):.0%} of the demonstrations are wrong; "
            f"{sum(p.numel() for p in model.parameters()):,} parameters; {torch.get_num_threads()} CPU threads"
        )
        imitation = self.weighted("a_imitation", model, self.evaluate(model), [1.0] * len(self.grades), IMITATION)

        def imitator() -> PreTrainedModel:
            return AutoModelForCausalLM.from_pretrained(self.output_dir / imitation.name)

        graded = self.weighted("b_weighted_sft", imitator(), imitation.after, self.grades, GRADED)
        stages = [imitation, graded, self.online("c_online_sft", imitator(), imitation.after, ONLINE)]
        self.save(stages)
        return stages

    def weighted(
        self, name: str, model: PreTrainedModel, before: Evaluation, advantages: list[float], stage: dict[str, Any]
    ) -> Stage:
        args = WeightedSFTConfig(per_device_train_batch_size=DEMONSTRATIONS_PER_STEP, **self.settings(name, stage))
        data = self.demonstrations.select_columns(["prompt", "completion"]).add_column("advantages", advantages)
        trainer = WeightedSFTTrainer(model, args, train_dataset=data, processing_class=self.tokenizer)
        return self.train(trainer, before, "loss", "weighted loss, nats per token")

    def online(self, name: str, model: PreTrainedModel, before: Evaluation, stage: dict[str, Any]) -> Stage:
        args = OnlineSFTConfig(
            per_device_train_batch_size=SAMPLES_PER_STEP,
            max_completion_length=MAX_NEW_TOKENS,
            **self.settings(name, stage),
        )
        trainer = OnlineSFTTrainer(model, self.reward, args, self.problems.train, processing_class=self.tokenizer)
        return self.train(trainer, before, "reward", "mean reward of own samples")

    def settings(self, name: str, stage: dict[str, Any]) -> dict[str, Any]:
        limit = {"max_steps": min(self.steps, stage["max_steps"])} if self.steps else {}
        return {"output_dir": str(self.output_dir / name), "seed": self.seed, **EVERYWHERE, **stage, **limit}

    def train(self, trainer: Trainer, before: Evaluation, logged: str, label: str) -> Stage:
        name = Path(trainer.args.output_dir).name
        start = time.perf_counter()
        trainer.train()
        seconds = time.perf_counter() - start
        trainer.save_model()
        return Stage(
            name=name,
            before=before,
            after=self.evaluate(trainer.model),
            samples=trainer.args.max_steps * trainer.args.per_device_train_batch_size,
            seconds=seconds,
            curve_label=label,
            curve=[(entry["step"], entry[logged]) for entry in trainer.state.log_history if logged in entry],
        )

    def evaluate(self, model: PreTrainedModel) -> Evaluation:
        return evaluate(model, self.tokenizer, self.problems.held_out, self.reward)

    def save(self, stages: list[Stage]) -> None:
        """What the YAML recipes start from, and what people look at."""
        self.problems.train.to_json(self.output_dir / "problems.jsonl")
        self.demonstrations.add_column("advantages", self.grades).to_json(self.output_dir / "demonstrations.jsonl")
        save_curves(stages, self.output_dir / "curves.png")
        save_completions(stages, self.problems.held_out, self.output_dir / "completions.csv")


if __name__ == "__main__":
    main()
