"""Behaviour cloning and world models as weighted SFT: one forward pass over whole episodes."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch.nn.functional as F
from accelerate.logging import get_logger
from datasets import Dataset, IterableDataset
from torch import Tensor

from online_sft.environments.factories import environment_factories
from online_sft.trajectories.collection import Environment
from online_sft.trajectories.dataset import TrajectoryDataset
from online_sft.weightings import Weighting
from trainers.arguments import config_or_default
from trainers.checkpoints.manifest import digest_of
from trainers.engine.policy import PolicyRollouts
from trainers.engine.rollouts import RolloutEngine
from trainers.trajectories.collected import CollectedBatches
from trainers.trajectories.kinds import KINDS, KindStatistics, KindWeights
from trainers.trajectories.policy import renderer_of
from trainers.trajectories.rows import COLUMNS, as_dataset, as_trajectories, is_of_trajectories, token_rows
from trainers.trajectory_sft_config import TrajectorySFTConfig
from trainers.weighted_data import cut, is_prepared
from trainers.weighted_sft_trainer import WeightedSFTTrainer

__all__ = ["TrajectorySFTTrainer"]

logger = get_logger(__name__)

# TRL looks at the first row of a data set for what kind it is
_LIKE_A_ROW = {"input_ids": [0, 0], "labels": [0, 0], "advantages": [0.0, 0.0], "kinds": [1, 1]}


class TrajectorySFTTrainer(WeightedSFTTrainer):
    """Learns from trajectories what the policy does (behaviour cloning), what its environment answers, or both.

    L = bc_weight / D_a sum_{t in actions} w_t (-log p_t) + world_model_weight / D_o sum_{t in observations} (-log p_t)

    over the tokens of one forward pass. D_a and D_o count the tokens of the whole optimizer step, over all ranks and
    micro-batches, so that L does not depend on how they are packed or divided. In the other modes one of the two is
    there, with the factor 1. An action's tokens are what the policy says after the generation prompt, with the end of
    turn; an observation's are the content of its messages, with the end of turn; the first one is never a target.

    Constructor, arguments and features are those of `WeightedSFTTrainer`, and:
        args: a `TrajectorySFTConfig`.
        train_dataset, eval_dataset: a `TrajectoryDataset`, a list of `Trajectory`, or a data set, as a table or a
            stream, with the columns observations, actions and rewards (`TrajectoryDataset.save` writes such files).
        environments: to collect trajectories in while training: functions that make a `gymnasium.Env`, or ids of
            Gymnasium's registry. Needs `max_steps`; a `train_dataset` is what the run begins with, and not needed.
            `trainers.trajectories.collected` says when and what is collected.

    Logged beside: `bc_loss` and `world_model_loss`, the two means, nats; their `_perplexity` and `_accuracy`, of all
    tokens with a weight, unweighted. All are over the tokens since the last log entry, so that with `logging_steps=1`
    loss = bc_weight * bc_loss + world_model_weight * world_model_loss.

    Overrides of `WeightedSFTTrainer`, and why:
        __init__: takes trajectories and environments, and gives each kind of token a denominator.
        get_train_dataloader: collected trajectories instead of a data set, where there are environments.
        _prepare_dataset: trajectories to tokens.
        _weighed: their denominators.
        _count: metrics of each kind.
        _weights_to_show: without the denominators of the kinds.
        log: adds them.

    Raises:
        ValueError: for what is no trajectory, or cannot be rendered by the chat template.
    """

    _tag_names = ["trl", "trajectory-sft"]
    _name = "Trajectory SFT"
    _statistics_to_resume = (*WeightedSFTTrainer._statistics_to_resume, ("_kind_statistics", KindStatistics))

    def __init__(
        self,
        model: Any,
        args: TrajectorySFTConfig | None = None,
        data_collator: Any = None,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        *more: Any,
        environments: Sequence[Callable[[], Environment] | str] | None = None,
        **options: Any,
    ) -> None:
        args = config_or_default(args, TrajectorySFTConfig, model)
        self._kind_statistics: dict[str, KindStatistics] = {}
        initial, factories = TrajectoryDataset(), None
        if environments is not None:
            factories = environment_factories(environments)
            initial.extend(as_trajectories(train_dataset))
            args.check_stream()
            train_dataset = Dataset.from_list([_LIKE_A_ROW])
        super().__init__(
            model, args, data_collator, as_dataset(train_dataset), as_dataset(eval_dataset), *more, **options
        )
        self.rollouts = PolicyRollouts(self, renderer_of(self).prompt_ids)
        self._collected: CollectedBatches | None = None
        if factories is not None:
            self._collected, self._has_own_batches = CollectedBatches(self, factories, initial), True
            self.add_callback(self._collected)
        self._kind_weights = KindWeights(args.coefficients, args.loss_denominator, self.accelerator, self._tp_size)

    def synced_rollouts(self) -> AbstractContextManager[RolloutEngine]:
        """As `OnlineSFTTrainer.synced_rollouts`: completions of the policy as it is now."""
        return self.rollouts.synced()

    def data_digest(self) -> str | None:
        if self._collected is None:
            return super().data_digest()
        initial = self._collected.initial
        return digest_of(len(initial), lambda index: initial[index].to_dict()) if len(initial) else None

    def reasons_against_exact_resume(self) -> list[str]:
        reasons = super().reasons_against_exact_resume()
        if self._collected is not None and self.args.use_vllm and self.args.vllm_mode == "server":
            reasons.append("vllm_mode='server': its random numbers are its own")
        return reasons

    @property
    def action_weighting(self) -> Weighting | None:
        """Weights of actions from their values; None without one."""
        return None if self._weighting is None else self._weights_of_rewards

    def get_train_dataloader(self) -> Any:
        return super().get_train_dataloader() if self._collected is None else self._collected

    def _prepare_dataset(
        self,
        dataset: Dataset | IterableDataset,
        processing_class: Any,
        args: TrajectorySFTConfig,
        packing: bool,
        formatting_func: Callable[[dict[str, Any]], str] | None,
        dataset_name: str,
    ) -> Dataset | IterableDataset:
        dataset = as_dataset(dataset)  # `evaluate` may be given another
        first = next(iter(dataset), None)
        if first is None:
            raise ValueError(f"the {dataset_name} dataset is empty")
        if is_prepared(dataset, first) or first == _LIKE_A_ROW:
            return dataset
        if not is_of_trajectories(first):
            raise ValueError(
                f"the {dataset_name} dataset needs the columns observations, actions and rewards of trajectories; it "
                f"has {', '.join(first)}. WeightedSFTTrainer trains on rows of other kinds"
            )
        if not processing_class.chat_template:
            logger.warning("the tokenizer has no chat template: messages are joined, each with an EOS token behind it")
        rows = token_rows(dataset, args, renderer_of(self), self.action_weighting, dataset_name)
        return cut(rows, COLUMNS, args, dataset_name, packing=packing)

    def _weighed(self, batches: list[dict[str, Any]], *, update: bool) -> tuple[list[dict[str, Any]], Tensor]:
        weighed, _ = super()._weighed(batches, update=update)
        if any("kinds" not in batch for batch in weighed):
            raise ValueError(
                "a batch has no `kinds`, which say what is an action and what an observation; rows without them are "
                "for WeightedSFTTrainer"
            )
        return self._kind_weights(weighed)

    def _count(self, weights: Tensor, outputs: Any, batch: dict[str, Any]) -> None:
        super()._count(weights, outputs, batch)
        mode = "train" if self.model.training else "eval"
        weighted_nll = -self._objective(outputs.log_probs.detach(), weights)
        step = KindStatistics.of(batch, outputs, weighted_nll, self._kind_weights.scales, self.args.loss_denominator)
        self._kind_statistics[mode] = self._kind_statistics[mode] + step if mode in self._kind_statistics else step

    def _weights_to_show(self, slopes: Tensor, batch: dict[str, Any]) -> Tensor:
        kinds = F.pad(batch["kinds"], (slopes.size(1) - batch["kinds"].size(1), 0))
        return self._kind_weights.unscaled(super()._weights_to_show(slopes, batch), kinds)

    @property
    def objective(self) -> str:
        terms = {
            "actions": self.args.coefficients[KINDS["bc"]],
            "observations": self.args.coefficients[KINDS["world_model"]],
        }
        sums = [f"{c:g} mean over {name} of w_t (-log p_t)" for name, c in terms.items() if c]
        return f"L = {' + '.join(sums)}, each mean over the optimizer step"

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        mode = "train" if self.model.training else "eval"
        if mode in self._kind_statistics:
            local = self._kind_statistics.pop(mode)
            sums = self.accelerator.reduce(local.sums, reduction="sum") / self._tp_size
            self._metrics[mode].update({name: [value] for name, value in KindStatistics(sums).metrics().items()})
        super().log(logs, start_time)
