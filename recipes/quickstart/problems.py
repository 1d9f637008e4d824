"""Sums from reasoning-gym's `chain_sum`: training problems, held-out problems, and flawed demonstrations."""

import random
from dataclasses import dataclass

import reasoning_gym
from datasets import Dataset
from reasoning_gym.dataset import ProceduralDataset

from online_sft import MathVerificationReward
from online_sft.rewards.answers import final_answer
from online_sft.rewards.exact_number import exact_number
from online_sft.rewards.spelling import normal_form

NUM_TRAIN, NUM_HELD_OUT = 16_000, 400
PHRASES = ["State the final answer to the following arithmetic problem: ", " + ", " - ", " =", " Answer: "]


@dataclass(frozen=True)
class Problems:
    generator: ProceduralDataset  # scores answers, too
    train: Dataset  # prompt, solution, index (into the generator)
    held_out: Dataset  # the same columns; no question of it is in `train`


def make_problems(seed: int) -> Problems:
    """Two-term sums and differences of one- and two-digit numbers, split by question, so that none is in both parts."""
    generator = reasoning_gym.create_dataset(
        "chain_sum", min_terms=2, max_terms=2, min_digits=1, max_digits=2, seed=seed, size=NUM_TRAIN + 10 * NUM_HELD_OUT
    )
    rows = [
        {"prompt": entry["question"], "solution": entry["answer"], "index": index}
        for index, entry in enumerate(generator)
    ]
    one_of_each = list({row["prompt"]: row for row in rows}.values())
    held_out = random.Random(seed).sample(one_of_each, NUM_HELD_OUT)
    questions = {row["prompt"] for row in held_out}
    train = [row for row in rows if row["prompt"] not in questions][:NUM_TRAIN]
    return Problems(generator, Dataset.from_list(train), Dataset.from_list(held_out))


def flawed_demonstrations(problems: Dataset, *, copies: int, share_wrong: float, seed: int) -> Dataset:
    """`copies` demonstrations of each problem; a share of the answers is off by one or ten, as if a carry was lost."""
    rng = random.Random(seed)
    repeated = problems.select([index for _ in range(copies) for index in range(len(problems))])
    answers = [
        int(solution) + (rng.choice([-10, -1, 1, 10]) if rng.random() < share_wrong else 0)
        for solution in repeated["solution"]
    ]
    return repeated.add_column("completion", [f" Answer: {answer}" for answer in answers])


@dataclass(frozen=True)
class AgreeingReward:
    """The math reward, checked on every sample against the problem generator's own scorer."""

    reward: MathVerificationReward
    generator: ProceduralDataset
    __name__: str = "math_verification"

    def __call__(self, completions: list[str], solution: list[str], index: list[int], **columns: object) -> list:
        rewards = self.reward(completions, solution=solution)
        for completion, problem, reward in zip(completions, index, rewards, strict=True):
            # `- 8` and `8.` are numbers to our reward and none to int(), which is the generator's
            number = exact_number(normal_form(final_answer(completion) or ""))
            score = self.generator.score_answer(None if number is None else str(number), self.generator[problem])
            if (score == 1.0) != (reward == self.reward.correct_reward):
                raise AssertionError(f"reasoning-gym scores {completion!r} {score}, our reward says {reward}")
        return rewards
