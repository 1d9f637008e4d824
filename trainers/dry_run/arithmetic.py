"""How many steps, micro-batches, rows and completions a run has: whole numbers, nothing else.

The names are those of the arguments: B = per_device_train_batch_size, A = gradient_accumulation_steps, P = processes,
G = num_generations, S = steps_per_generation, I = num_iterations.
"""

import math
from dataclasses import dataclass

__all__ = ["OnlineBatches", "RowBatches"]


@dataclass(frozen=True)
class _Batches:
    """What both kinds of runs share.

    Args:
        per_device: B.
        accumulation: A.
        num_processes: P.
        num_rows: prompts, or rows after packing; None: of a stream, whose trainer insists on max_steps.
        max_steps: 0 or less: `num_epochs` says how many.
        num_epochs: num_train_epochs.
    """

    per_device: int
    accumulation: int
    num_processes: int
    num_rows: int | None
    max_steps: int
    num_epochs: float

    @property
    def per_step(self) -> int:
        """Rows or completions of one optimizer step: B A P."""
        return self.per_device * self.accumulation * self.num_processes

    @property
    def micro_batches_per_epoch(self) -> int | None:
        """Of each process."""
        raise NotImplementedError

    @property
    def steps_per_epoch(self) -> int | None:
        """ceil(micro-batches / A): the last step of an epoch may be smaller."""
        micro_batches = self.micro_batches_per_epoch
        return None if micro_batches is None else max(math.ceil(micro_batches / self.accumulation), 1)

    @property
    def num_steps(self) -> int:
        """Optimizer steps of the run."""
        if self.max_steps > 0:
            return self.max_steps
        assert self.steps_per_epoch is not None
        return math.ceil(self.num_epochs * self.steps_per_epoch)

    @property
    def epochs(self) -> float | None:
        """Passes over the data in all steps."""
        return None if self.steps_per_epoch is None else self.num_steps / self.steps_per_epoch

    @property
    def num_micro_batches(self) -> int:
        """Of each process, in all."""
        if self.steps_per_epoch is None or self.micro_batches_per_epoch is None:
            return self.num_steps * self.accumulation
        whole, rest = divmod(self.num_steps, self.steps_per_epoch)
        return whole * self.micro_batches_per_epoch + rest * self.accumulation


@dataclass(frozen=True)
class RowBatches(_Batches):
    """Of rows that are there: weighted SFT and trajectories.

    Args:
        drop_last: dataloader_drop_last.
    """

    drop_last: bool = False

    @property
    def micro_batches_per_epoch(self) -> int | None:
        """ceil(ceil(rows / B) / P): processes that come up short take rows from the beginning; or floor, twice."""
        if self.num_rows is None:
            return None
        if self.drop_last:
            return self.num_rows // self.per_device // self.num_processes
        return math.ceil(math.ceil(self.num_rows / self.per_device) / self.num_processes)


@dataclass(frozen=True)
class OnlineBatches(_Batches):
    """Of prompts whose completions are sampled: online SFT.

    Args:
        num_generations: G.
        steps_per_generation: S, micro-batches that one generation batch is cut into.
        num_iterations: I, how often each generation batch is trained on.
    """

    num_generations: int = 1
    steps_per_generation: int = 1
    num_iterations: int = 1

    @property
    def prompts_per_step(self) -> float:
        """B A P / G."""
        return self.per_step / self.num_generations

    @property
    def completions_per_generation(self) -> int:
        """Sampled at a time: B P S."""
        return self.per_device * self.num_processes * self.steps_per_generation

    @property
    def prompts_per_generation(self) -> int:
        """B P S / G, which GRPOConfig makes a whole number."""
        return self.completions_per_generation // self.num_generations

    @property
    def steps_of_a_generation(self) -> float:
        """Optimizer steps that one generation batch serves: S I / A."""
        return self.steps_per_generation * self.num_iterations / self.accumulation

    @property
    def generations_per_epoch(self) -> int | None:
        """Prompts that fill no whole generation batch wait for the next epoch, in another order."""
        return None if self.num_rows is None else self.num_rows // self.prompts_per_generation

    @property
    def micro_batches_per_epoch(self) -> int | None:
        """Generation batches S I."""
        generations = self.generations_per_epoch
        return None if generations is None else generations * self.steps_per_generation * self.num_iterations

    @property
    def completions_sampled(self) -> int:
        """In all: what `total_episodes` counts."""
        of_one = self.steps_per_generation * self.num_iterations
        return math.ceil(self.num_micro_batches / of_one) * self.completions_per_generation

    @property
    def completions_trained_on(self) -> int:
        """In all; each counts as often as it is trained on."""
        return self.num_micro_batches * self.per_device * self.num_processes
