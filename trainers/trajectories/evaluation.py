"""How the model in training does in environments, at each evaluation."""

from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

import torch

from online_sft.environments.factories import environment_factories
from online_sft.evaluation import bootstrap_mean, pass_at_k
from online_sft.trajectories.collection import Environment
from online_sft.trajectories.trajectory import Trajectory
from trainers.added_metrics import AddedMetrics
from trainers.trajectories.policy import play, seed_of

__all__ = ["EnvironmentEvaluationCallback"]


class EnvironmentEvaluationCallback(AddedMetrics):
    """Plays episodes at each evaluation, and adds what they earn to its metrics.

    `eval_return`, mean over tasks of the mean return; `eval_success`, the share of episodes that succeed; and
    `eval_pass@k` for each of `ks`, the chance that one of k episodes of a task does, unbiased (Chen et al., 2021); each
    with the ends of a 95 % interval over tasks, `..._low` and `..._high`. `eval_length`, actions of an episode,
    `eval_truncated` and `eval_failed`, shares of episodes.

        trainer.add_callback(EnvironmentEvaluationCallback(trainer, ["online-sft/MathRetries-v0"]))

    It runs whenever the trainer evaluates, of a dict of evaluation sets with the first; so the trainer needs an
    `eval_dataset`, which may be one row. Tasks are the same at every evaluation: a task is an environment with a seed.
    No random numbers are taken from the training.

    Args:
        trainer: a `TrajectorySFTTrainer` or an `OnlineSFTTrainer`; its engine and its options for sampling are used.
        environments: functions that make environments, or ids; task i takes place in the i-th, and again from the
            first.
        num_tasks: how many.
        ks: which k.
        num_generations: episodes of each task, at least the largest k.
        success_above: where an environment does not say whether an episode succeeds, its return must be greater.
        num_environments: episodes that a process has under way at a time.
        max_steps: actions after which an episode is truncated.
        seed: of tasks and actions.

    Raises:
        ValueError: when the k's do not fit `num_generations`, there is no task, or an environment is not known.
    """

    def __init__(
        self,
        trainer: Any,
        environments: Sequence[Callable[[], Environment] | str],
        *,
        num_tasks: int = 32,
        ks: Sequence[int] = (1,),
        num_generations: int = 1,
        success_above: float = 0.0,
        num_environments: int = 8,
        max_steps: int = 16,
        seed: int = 0,
    ) -> None:
        super().__init__(trainer, ks, num_generations)
        if getattr(trainer.args, "history_length", None) is not None:  # OnlineSFTTrainer has none
            raise ValueError(
                f"history_length={trainer.args.history_length} is not what the policy sees in environments: all of the "
                "episode; evaluate a trainer without it"
            )
        if num_tasks < 1:
            raise ValueError(f"num_tasks must be at least 1; got {num_tasks}")
        self.success_above = success_above
        self.num_environments, self.max_steps, self.seed = num_environments, max_steps, seed
        factories = environment_factories(environments)
        tasks = [index for index in range(num_tasks) for _ in range(num_generations)]
        self._environments = [factories[task % len(factories)] for task in tasks]
        self._seeds = [seed_of(seed, task) for task in tasks]

    def evaluate(self) -> dict[str, float]:
        """The metrics of the trainer's model as it is. A collective call; each process gets all of them.

        Raises:
            RuntimeError: when every episode fails.
        """
        found = play(
            self.trainer,
            self._environments,
            self._seeds,
            sampling_seed=self.seed,
            num_environments=self.num_environments,
            max_steps=self.max_steps,
            metadata={},
        )
        if not found.trajectories:
            raise RuntimeError(f"all {len(found.failures)} episodes failed, the first: {found.failures[0]}")
        return self._metrics(found.trajectories, len(found.failures))

    def _metrics(self, trajectories: Sequence[Trajectory], num_failures: int) -> dict[str, float]:
        by_task: dict[int, list[Trajectory]] = defaultdict(list)
        for trajectory in trajectories:
            by_task[trajectory.metadata["seed"]].append(trajectory)
        tasks = list(by_task.values())
        of_tasks = {
            "return": [_mean([each.total_reward for each in task]) for task in tasks],
            "success": [_mean([self._succeeds(each) for each in task]) for task in tasks],
        }
        for k in self.ks:
            of_tasks[f"pass@{k}"] = [
                pass_at_k(len(task), sum(map(self._succeeds, task)), k).item() for task in tasks if len(task) >= k
            ]
        metrics = {
            "eval_length": _mean([len(each) for each in trajectories]),
            "eval_truncated": _mean([each.metadata["truncated"] for each in trajectories]),
            "eval_failed": num_failures / (num_failures + len(trajectories)),
        }
        for name, values in of_tasks.items():
            if values:
                estimate = bootstrap_mean(torch.tensor(values), generator=torch.Generator().manual_seed(0))
                metrics |= {f"eval_{name}": estimate.mean}
                metrics |= {f"eval_{name}_low": estimate.low, f"eval_{name}_high": estimate.high}
        return metrics

    def _succeeds(self, trajectory: Trajectory) -> bool:
        return bool(trajectory.metadata.get("success", trajectory.total_reward > self.success_above))


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
