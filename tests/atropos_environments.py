"""The recipe's environment, and two whose advantages say something else: what is learnt must come from them.

python atropos_environments.py right|negated|shuffled serve --env.rollout_server_url ...
"""

import random
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # for `recipes`, which is not installed

from recipes.atropos.environment import ArithmeticEnv


class Negated(ArithmeticEnv):
    def token_advantages(self, rewards):
        return [[-advantage for advantage in row] for row in super().token_advantages(rewards)]


class Shuffled(ArithmeticEnv):
    """Each row has the advantages of another one, as far as they go."""

    def token_advantages(self, rewards):
        rows = super().token_advantages(rewards)
        others = random.Random(len(self.completion_lengths)).sample(rows, len(rows))
        return [(other + [0.0] * len(row))[: len(row)] for row, other in zip(rows, others, strict=True)]


if __name__ == "__main__":
    environment = {"right": ArithmeticEnv, "negated": Negated, "shuffled": Shuffled}[sys.argv.pop(1)]
    environment.cli()
