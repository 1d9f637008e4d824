"""Imitation first, reinforcement from there: a model of episodes and world, improved by online SFT on graded actions.

python -m recipes.text_world.pretrain_then_online [--seed 0] [--steps N] [--output_dir runs/text_world_online]
"""

import argparse
import time
from pathlib import Path

from recipes.on_cpu import quiet
from recipes.text_world.report import Stage, print_table
from recipes.text_world.stages import GOOD_EPISODES, Stages

PRETRAINING_STEPS = 120


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m recipes.text_world.pretrain_then_online", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--seed", type=int, default=0, help="episodes, split, model and training (default: 0)")
    parser.add_argument("--steps", type=int, help="at most this many steps a stage, for a try-out")
    parser.add_argument(
        "--output_dir", type=Path, default=Path("runs/text_world_online"), help="(default: %(default)s)"
    )
    arguments = parser.parse_args()
    quiet()

    start = time.perf_counter()
    run = Stages(arguments.output_dir, arguments.seed, arguments.steps)
    print(run.introduction())
    print_table(train(run), time.perf_counter() - start)
    print(f"models and episodes are in {arguments.output_dir}")


def train(run: Stages) -> list[Stage]:
    """One model, in two stages."""
    pretrained = run.imitate("a_pretraining", "combined", **GOOD_EPISODES, max_steps=PRETRAINING_STEPS)
    return [run.data(), pretrained, run.improve("b_online_sft", run.model(pretrained))]


if __name__ == "__main__":
    main()
