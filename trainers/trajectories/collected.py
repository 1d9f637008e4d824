"""Trajectories that the policy collects while it trains: rounds of them, and the batches of each step."""

import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from accelerate.utils import send_to_device
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from online_sft.trajectories.collection import Environment
from online_sft.trajectories.damage import TrajectoryFileError
from online_sft.trajectories.dataset import TrajectoryDataset
from online_sft.trajectories.examples import Example
from trainers.main_process import on_main_process
from trainers.trajectories.buffer import TrajectoryBuffer
from trainers.trajectories.policy import play, renderer_of, seed_of

__all__ = ["CollectedBatches"]


class CollectedBatches(TrainerCallback):
    """The trainer's data loader where there are environments: `gradient_accumulation_steps` micro-batches a step.

    Round r is collected before optimizer step r * `collect_every`, by the policy as it is then, and kept in
    `output_dir/trajectories/round-r.jsonl`. Until the next round, the steps train on what the buffer has then: the
    newest `max_trajectories` of the initial ones and all rounds, less those that would be more than
    `max_trajectory_staleness` steps old before its end; shuffled, and again when all have been seen.

    All of it depends on the seed, the step and these files only. A resume reads the rounds that began before its step,
    and collects again from there: with transformers' engine, to the bit what an uninterrupted run does.

    Args:
        trainer: a `TrajectorySFTTrainer`.
        environments: make them. Episode i of a round takes place in the i-th, and again from the first.
        initial: trajectories to begin with.
    """

    def __init__(
        self, trainer: Any, environments: Sequence[Callable[[], Environment]], initial: TrajectoryDataset
    ) -> None:
        self._trainer, self._environments, self.initial = trainer, environments, initial
        self._folder = Path(trainer.args.output_dir) / "trajectories"
        self._buffer = self._new_buffer()

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Refuses to write over the trajectories of another run, and reads those of the run that goes on.

        Raises:
            TrajectoryFileError: there are some, and this run begins; those of the run that goes on are damaged, not
                there, or not of this run.
        """
        on_main_process(self._trainer.accelerator, lambda: self._refuse_another_run(state.global_step))
        every, self._buffer = self._trainer.args.collect_every, self._new_buffer()
        for number in range(-(-state.global_step // every)):  # those that began before this step
            self._buffer.add(self._round(number), number * every)
            self._buffer.drop_stale((number + 1) * every - 1)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        trainer, args = self._trainer, self._trainer.args
        size, num_micro_batches = args.per_device_train_batch_size, args.gradient_accumulation_steps
        rows_of_process = size * num_micro_batches
        rows_of_step = rows_of_process * trainer.accelerator.num_processes
        rows: Iterator[Example] | None = None
        for step in range(trainer.state.global_step, trainer.state.max_steps):
            number, place = divmod(step, args.collect_every)
            if not place:
                self._collect(number)
            if rows is None or not place:
                rows = self._buffer.in_order((args.seed, number))
                for _ in range(place * rows_of_step):  # which earlier steps have seen
                    next(rows)
            of_step = [vars(next(rows)) for _ in range(rows_of_step)]
            own = of_step[trainer.accelerator.process_index * rows_of_process :][:rows_of_process]
            for start in range(0, rows_of_process, size):
                yield send_to_device(trainer.data_collator(own[start : start + size]), trainer.accelerator.device)
        trainer.control.should_training_stop = True

    def _collect(self, number: int) -> None:
        args, step, started = self._trainer.args, self._trainer.state.global_step, time.monotonic()
        with self._trainer.stopwatch("rollout"):
            found = play(
                self._trainer,
                [self._environments[index % len(self._environments)] for index in range(args.collect_episodes)],
                [seed_of(args.seed, number, index) for index in range(args.collect_episodes)],
                sampling_seed=seed_of(args.seed, number),
                num_environments=args.num_environments,
                max_steps=args.max_episode_steps,
                metadata={"policy_version": step},
            )
        collected, failures = TrajectoryDataset(found.trajectories), found.failures
        if not len(collected):
            raise RuntimeError(f"all {len(failures)} episodes before step {step} failed, the first: {failures[0]}")
        on_main_process(self._trainer.accelerator, lambda: collected.save(self._file(number)))
        self._buffer.add(collected, step)
        num_stale = self._buffer.drop_stale(step + args.collect_every - 1)
        self._log(collected, {"failed": len(failures) / args.collect_episodes, "stale": num_stale}, started)

    def _log(self, collected: TrajectoryDataset, counts: dict[str, float], started: float) -> None:
        found, metrics = collected.statistics(), self._trainer._metrics["train"]
        num_cut = sum(len(each.metadata.get("cut_actions", ())) for each in collected)
        values = {
            "return": found.mean_return,
            "length": found.mean_length,
            "truncated": found.truncated_share,
            "cut_actions": num_cut / sum(map(len, collected)),
            "trajectories": len(self._buffer),
            "seconds": time.monotonic() - started,
            **({} if found.success_rate is None else {"success": found.success_rate}),
            **counts,
        }
        for name, value in values.items():
            metrics[f"collect/{name}"].append(float(value))
        if self._trainer.rollouts.weight_sync is not None:
            for name, value in self._trainer.rollouts.weight_sync.pop_metrics().items():
                metrics[name].append(value)

    def _new_buffer(self) -> TrajectoryBuffer:
        buffer = TrajectoryBuffer(self._trainer.args, renderer_of(self._trainer), self._trainer.action_weighting)
        buffer.add(self.initial, None)
        return buffer

    def _round(self, number: int) -> TrajectoryDataset:
        collected, step = TrajectoryDataset.load(self._file(number)), number * self._trainer.args.collect_every
        found = collected[0].metadata.get("policy_version")
        if found != step:
            raise TrajectoryFileError(
                f"{self._file(number)} was collected before step {found}, and this run collects its round {number} "
                f"before step {step}: go on with the collect_every of the run"
            )
        return collected

    def _file(self, number: int) -> Path:
        return self._folder / f"round-{number:05d}.jsonl"

    def _refuse_another_run(self, step: int) -> None:
        if not step and self._file(0).exists() and not self._trainer.resumes_automatically:
            raise TrajectoryFileError(
                f"{self._folder} holds the trajectories of an earlier run; go on with it (resume_from_checkpoint), "
                "choose another output_dir, or remove them"
            )
