"""The order of a data set, by seed and epoch alone: a resumed run cannot know what earlier epochs have drawn."""

from collections.abc import Iterator

import torch
from torch.utils.data import RandomSampler, Sampler
from transformers import TrainingArguments
from transformers.trainer_pt_utils import LengthGroupedSampler
from trl.trainer.utils import RepeatSampler

__all__ = ["SeededByEpoch", "seeded_by_epoch"]


class SeededByEpoch(Sampler[int]):
    """A sampler whose generator begins each epoch at seed + epoch: in epoch 0 TRL's order of prompts, in all epochs
    Accelerate's order of rows. Accelerate tells samplers of a new epoch, but not those of a run that resumes in one.
    """

    def __init__(self, sampler: RepeatSampler | LengthGroupedSampler | RandomSampler, seed: int) -> None:
        self._sampler, self._seed = sampler, seed
        self._sampler.generator = torch.Generator()
        self.set_epoch(0)

    def __iter__(self) -> Iterator[int]:
        return iter(self._sampler)

    def __len__(self) -> int:
        return len(self._sampler)

    def set_epoch(self, epoch: int) -> None:
        """Before each epoch."""
        self._sampler.generator.manual_seed(self._seed + epoch)


def seeded_by_epoch(sampler: Sampler | None, args: TrainingArguments) -> Sampler | None:
    """The sampler, or one that does not depend on what has been drawn before: TRL's of prompts, that of
    `group_by_length`, and RandomSampler, which Accelerate seeds with what the process has been seeded with last."""
    if isinstance(sampler, RepeatSampler):  # which TRL seeds
        return SeededByEpoch(sampler, args.seed) if sampler.shuffle else sampler
    if isinstance(sampler, LengthGroupedSampler | RandomSampler):
        return SeededByEpoch(sampler, args.seed if args.data_seed is None else args.data_seed)
    return sampler
