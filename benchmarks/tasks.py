"""Tasks on which learning methods are compared: problems, a policy that imitation has made right in part, a reward."""

import random
import statistics
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import PreTrainedTokenizerBase, TrainerCallback
from transformers.trainer_callback import PrinterCallback

from online_sft import WeightedSFTConfig, WeightedSFTTrainer
from recipes.quickstart.__main__ import EVERYWHERE, IMITATION, Quickstart
from recipes.quickstart.evaluate import MAX_NEW_TOKENS, accuracy, complete
from recipes.quickstart.tiny_model import build_model, build_tokenizer

ENOUGH = 0.4  # imitation of strings stops at this share of right answers, sampled


class Task(ABC):
    """What a method needs to train, and the share of it that is right."""

    tokenizer: PreTrainedTokenizerBase
    train: Dataset  # prompt, and the columns that `grades` takes
    max_new_tokens: int
    options: dict[str, Any]  # of the trainers, on this task

    @abstractmethod
    def checkpoint(self, output_dir: Path) -> Path:
        """The folder of the policy to start from; made where it is missing."""

    @abstractmethod
    def grades(self, completions: list[str], rng: random.Random, **columns: list) -> tuple[list[float], list[float]]:
        """How right each completion is (0 to 1), which the tables show, and its reward."""


Reward = Callable[[float, str, str, random.Random], float]  # (1 or 0, completion, solution, rng)


def plain(right: float, *_: Any) -> float:
    return right


def shifted(right: float, *_: Any) -> float:
    return right + 5.0


def share_right(right: float, completion: str, solution: str, *_: Any) -> float:
    """Share of right characters."""
    answer = completion.split("Answer:")[-1].strip()
    return sum(a == b for a, b in zip(answer, solution, strict=False)) / max(len(answer), len(solution))


def noisy(right: float, completion: str, solution: str, rng: random.Random) -> float:
    return float(right != (rng.random() < 0.1))


def sparse(right: float, completion: str, solution: str, rng: random.Random) -> float:
    return float(right and rng.random() < 0.2)


class Sums(Task):
    """The quickstart's sums, and its imitation model of seed 0, which is right in 45 %."""

    max_new_tokens = MAX_NEW_TOKENS

    def __init__(self, output_dir: Path, reward: Reward = plain, **options: Any) -> None:
        self.quickstart = Quickstart(output_dir, seed=0, steps=None)
        self.tokenizer, self.train = self.quickstart.tokenizer, self.quickstart.problems.train
        self.reward, self.options = reward, options

    def checkpoint(self, output_dir: Path) -> Path:
        folder = output_dir / "a_imitation"
        if not (folder / "config.json").exists():
            model, quickstart = build_model(self.tokenizer, seed=0), self.quickstart
            quickstart.weighted(
                folder.name, model, quickstart.evaluate(model), [1.0] * len(quickstart.grades), IMITATION
            )
        return folder

    def grades(self, completions: list[str], rng: random.Random, **columns: list) -> tuple[list[float], list[float]]:
        solution = columns["solution"]
        right = self.quickstart.reward(completions, solution=solution, index=columns["index"])
        return right, [self.reward(*row, rng) for row in zip(right, completions, solution, strict=True)]

    def held_out_accuracy(self, model: Any) -> float:
        """Of 2 samples of each of the 400 held-out problems, with the same random numbers each time."""
        problems = self.quickstart.problems.held_out
        with torch.random.fork_rng():
            torch.manual_seed(0)
            prompts = [prompt for prompt in problems["prompt"] for _ in range(2)]
            return accuracy(complete(model, self.tokenizer, prompts, sample=True), problems, self.quickstart.reward)


@dataclass
class Strings(Task):
    """The digits of a string in another order. Imitation stops at `ENOUGH`; one demonstration in three has an error.

    Args:
        name: of the operation, and of the folder of the imitation model.
        operation: a string to its answer.
        lengths: shortest and longest string.
        dense: the reward is the share of right digits, not 1 or 0.
        offset: a number of the prompt, uniform in [-offset, offset], is added to its rewards.
    """

    name: str
    operation: Callable[[str], str]
    lengths: tuple[int, int]
    dense: bool = False
    offset: float = 0.0
    options: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        rng = random.Random(0)
        self.tokenizer = build_tokenizer([f"{self.name}: ", " ="])
        self.max_new_tokens = self.lengths[1] + 2
        texts = ["".join(rng.choices("0123456789", k=rng.randint(*self.lengths))) for _ in range(50_000)]
        solutions = [self.operation(text) for text in texts]
        columns = {"prompt": [f"{self.name}: {text} =" for text in texts], "solution": solutions}
        columns["offset"] = [rng.uniform(-self.offset, self.offset) for _ in texts]
        self.train = Dataset.from_dict(columns)
        flawed = [self._flawed(solution, rng) if rng.random() < 1 / 3 else solution for solution in solutions]
        self.demonstrations = Dataset.from_dict(
            {"prompt": columns["prompt"], "completion": flawed, "advantages": [1.0] * len(flawed)}
        )

    @staticmethod
    def _flawed(solution: str, rng: random.Random) -> str:
        place = rng.randrange(len(solution))
        return solution[:place] + rng.choice("0123456789") + solution[place + 1 :]

    def checkpoint(self, output_dir: Path) -> Path:
        folder = output_dir / f"imitation_{self.name.lower()}"
        if not (folder / "config.json").exists():
            args = WeightedSFTConfig(
                output_dir=str(folder),
                per_device_train_batch_size=128,
                max_steps=4000,
                learning_rate=2e-3,
                lr_scheduler_type="constant_with_warmup",
                warmup_steps=100,
                seed=0,
                **EVERYWHERE,
            )
            model = build_model(self.tokenizer, seed=0)
            data = self.demonstrations
            trainer = WeightedSFTTrainer(model, args, train_dataset=data, processing_class=self.tokenizer)
            trainer.remove_callback(PrinterCallback)
            trainer.add_callback(_Enough(self))
            trainer.train()
            trainer.save_model()
        return folder

    def grades(self, completions: list[str], rng: random.Random, **columns: list) -> tuple[list[float], list[float]]:
        solutions, offsets = columns["solution"], columns["offset"]
        pairs = list(zip([completion.strip() for completion in completions], solutions, strict=True))
        right = [share_right(0.0, *pair) if self.dense else float(pair[0] == pair[1]) for pair in pairs]
        return right, [share + offset for share, offset in zip(right, offsets, strict=True)]


class _Enough(TrainerCallback):
    def __init__(self, task: Strings) -> None:
        self.task = task

    @torch.no_grad()
    def on_step_end(self, args: Any, state: Any, control: Any, model: Any, **_: object) -> None:
        if state.global_step % 100:
            return
        rows = self.task.train[:256]
        batch = self.task.tokenizer(rows["prompt"], return_tensors="pt", padding=True)
        model.eval()
        tokens = model.generate(
            **batch, do_sample=True, temperature=1.0, top_k=0, top_p=1.0, max_new_tokens=self.task.max_new_tokens
        )
        model.train()
        answers = self.task.tokenizer.batch_decode(tokens[:, batch["input_ids"].size(1) :], skip_special_tokens=True)
        share = statistics.mean(a.strip() == b for a, b in zip(answers, rows["solution"], strict=True))
        print(f"{self.task.name}: imitation, step {state.global_step}: {share:.2f} right", flush=True)
        control.should_training_stop = share >= ENOUGH


def reverse(text: str) -> str:
    return text[::-1]


def in_order(text: str) -> str:
    return "".join(sorted(text))


TASKS: dict[str, Callable[[Path], Task]] = {
    "sums": Sums,  # 1 or 0
    "shifted": lambda folder: Sums(folder, shifted),  # 6 or 5
    "digits": lambda folder: Sums(folder, share_right),  # dense, 0 to 1
    "noisy": lambda folder: Sums(folder, noisy),  # 1 or 0, one in ten is wrong
    "sparse": lambda folder: Sums(folder, sparse),  # 1 for one right answer in five, otherwise 0
    "beta": lambda folder: Sums(folder, beta=0.05),
    "reverse": lambda _: Strings("Reverse", reverse, (3, 12)),  # 1 or 0, mixed difficulty
    # as a reward model has it: dense, and what prompts earn differs more than what their answers do
    "sort": lambda _: Strings("Sort", in_order, (3, 8), dense=True, offset=2.0, options={"beta": 0.05}),
}
