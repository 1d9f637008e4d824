"""A world model, a policy cloned from mixed episodes, and one model that is both, in a world of text.

python -m recipes.text_world [--seed 0] [--steps N] [--output_dir runs/text_world]
"""

import argparse
import time
from pathlib import Path

from recipes.on_cpu import quiet
from recipes.text_world.report import Stage, print_table, save_curves
from recipes.text_world.stages import GOOD_EPISODES, Stages


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m recipes.text_world", description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=0, help="episodes, split, model and training (default: 0)")
    parser.add_argument("--steps", type=int, help="at most this many steps a stage, for a try-out")
    parser.add_argument("--output_dir", type=Path, default=Path("runs/text_world"), help="(default: %(default)s)")
    arguments = parser.parse_args()
    quiet()

    start = time.perf_counter()
    run = Stages(arguments.output_dir, arguments.seed, arguments.steps)
    print(run.introduction())
    stages = train(run)
    save_curves(stages, arguments.output_dir / "curves.png")
    print_table(stages, time.perf_counter() - start)
    print(f"models, episodes and curves.png are in {arguments.output_dir}")


def train(run: Stages) -> list[Stage]:
    """Four models, each from the same random one: three that learn one thing, and one that learns two in one pass."""
    return [
        run.data(),
        run.imitate("a_world_model", "world_model", max_steps=150),
        run.imitate("b_cloning", "behavioral_cloning", **GOOD_EPISODES),
        run.imitate("c_combined", "combined", **GOOD_EPISODES),
    ]


if __name__ == "__main__":
    main()
