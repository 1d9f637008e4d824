"""Online SFT on TRL's GRPO machinery: rollouts, rewards and logging are TRL's, the loss is Proposition 3."""

import logging
from functools import partial
from typing import Any

import torch
from datasets import Dataset
from peft import PeftModel
from torch import Tensor, nn
from trl import GRPOTrainer
from trl.trainer.utils import get_config_model_id

from online_sft.baselines import BASELINES, constant
from online_sft.estimators import ESTIMATORS, advantage
from online_sft.rewards.checked import check_dataset, checked
from trainers.arguments import config_or_default
from trainers.online_sft_config import OnlineSFTConfig
from trainers.reward_models import placed_reward_models, with_reward_models

__all__ = ["OnlineSFTTrainer"]

logger = logging.getLogger(__name__)

_ROWS_NAMED = 5  # in the report of rows that cannot be graded

# Inputs of vision-language models that TRL carries beside the tokens.
_MULTIMODAL_INPUTS = (
    "pixel_values",
    "image_grid_thw",
    "num_images",
    "pixel_attention_mask",
    "spatial_shapes",
    "num_tiles",
    "image_sizes",
    "token_type_ids",
    "mm_token_type_ids",
    "image_position_ids",
)


class OnlineSFTTrainer(GRPOTrainer):
    """Trains a policy on its own graded samples with the estimator of Proposition 3.

    Objective: E[r(x, y)] - beta KL(policy || reference), y sampled from the policy. Gradient: that of
    -(1/D) sum_i (A_i + sg(A_i) s_i), D the scored completions of the whole optimizer step over all ranks
    (`online_sft.estimators`); where a step is not one generation batch, its share of that batch's scored completions.
    A completion that cannot be scored (a reward function returned None; `unscorable_if`) is in neither sum nor D, and
    its other rewards are in no metric.

    Constructor, arguments and features are those of `trl.GRPOTrainer`; `args` is an `OnlineSFTConfig`.

    Logged, per completion: `log_prob` (s, nats), `kl` (s - s_ref, nats, the k1 estimate), `advantage` (A, reward
    units); per token: `entropy` (nats). The value of `loss` means nothing: look at `reward` and `kl`.

    Overrides of `GRPOTrainer`, and why:
        __init__: refuses data and reward functions that cannot work before the model is loaded.
        _calculate_rewards: keeps the raw rewards, which TRL does not hand on.
        _generate_and_score_completions: replaces TRL's group-normalised advantages by reward minus baseline.
        _compute_loss: the estimator.
        log: means over all completions of a log entry; TRL averages the means of micro-batches.

    Raises:
        ValueError: when the data set has no `prompt` column or lacks a column that a reward function requires; during
            training when a reward function returns the wrong number of rewards, or one that is not finite.
    """

    _tag_names = ["trl", "online-sft"]
    _name = "Online SFT"
    _paper: dict[str, str] = {}  # no paper of this name exists; docs/algorithm.md has the derivation

    def __init__(
        self,
        model: Any,
        reward_funcs: Any = None,
        args: OnlineSFTConfig | None = None,
        train_dataset: Any = None,
        *more: Any,
        **options: Any,
    ) -> None:
        args = config_or_default(args, OnlineSFTConfig, model)
        has_base_model = options.get("peft_config") or isinstance(model, PeftModel)
        if (
            args.beta != 0.0
            and not has_base_model
            and not isinstance(model, str)
            and not get_config_model_id(model.config)
        ):
            raise ValueError(
                f"beta={args.beta} needs a reference model, which is loaded from where the policy came from, and this "
                "model was built in memory; save it with save_pretrained and pass the folder, or set beta=0"
            )
        supplies_own_columns = options.get("environment_factory") or options.get("rollout_func")
        if train_dataset is not None and train_dataset.column_names is not None and not supplies_own_columns:
            _check_dataset(train_dataset, reward_funcs, with_rows=args.process_index == 0)
        reward_funcs = with_reward_models(reward_funcs, args, more, options)
        super().__init__(model, reward_funcs, args, train_dataset, *more, **options)
        self.reward_funcs = placed_reward_models(self.reward_funcs, self)
        self.reward_funcs = [
            function if isinstance(function, nn.Module) else checked(function, name)
            for function, name in zip(self.reward_funcs, self.reward_func_names, strict=True)
        ]
        self._totals: dict[str, dict[str, Tensor]] = {"train": {}, "eval": {}}  # (sum, count) of each metric
        self._estimator = ESTIMATORS[args.estimator]
        self._baseline = (
            partial(constant, value=args.baseline_value) if args.baseline == "constant" else BASELINES[args.baseline]
        )

    def _calculate_rewards(
        self, inputs: list[dict[str, Any]], prompts: list, completions: list, completion_ids_list: list[list[int]]
    ) -> Tensor:
        rewards_per_func = super()._calculate_rewards(inputs, prompts, completions, completion_ids_list)
        # A reward model's NaN would otherwise pass for TRL's mark of "cannot score".
        for column, (function, name) in enumerate(zip(self.reward_funcs, self.reward_func_names, strict=True)):
            values = rewards_per_func[:, column]
            if isinstance(function, nn.Module) and not values.isfinite().all():
                raise ValueError(f"reward model {name!r} returned a reward that is not finite: {values.tolist()}")
        missing = rewards_per_func.isnan()
        unscorable = missing.any(dim=1) if self.args.unscorable_if == "any" else missing.all(dim=1)
        if unscorable.all() and not missing.all():
            logger.warning(
                "no completion of this batch can be scored: for each, at least one reward function returned None. If "
                "the functions take turns, each for its own kind of rows, set unscorable_if=all"
            )
        rewards_per_func = rewards_per_func.masked_fill(unscorable.unsqueeze(1), torch.nan)  # for TRL's metrics, too
        weighted = rewards_per_func * self.reward_weights.to(rewards_per_func.device)
        self._rewards = weighted.nansum(dim=1).masked_fill(unscorable, torch.nan)  # [B of all ranks]
        return rewards_per_func

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        output = super()._generate_and_score_completions(inputs)
        num_generations = self.num_generations if self.model.training else self.num_generations_eval
        rewards_by_group = self._rewards.view(-1, num_generations)
        advantages = (rewards_by_group - self._baseline(rewards_by_group)).flatten()  # NaN where unscorable
        start = self.accelerator.process_index * len(inputs)
        output["advantages"] = advantages[start : start + len(inputs)]
        output["num_scored"] = (~advantages.isnan()).sum()
        logged = self._logs["advantages"]  # TRL has just appended its own
        for _ in range(min(len(logged), len(advantages))):  # it keeps one generation batch at most
            logged.pop()
        logged.extend(advantages.tolist())
        return output

    def _compute_loss(self, model: nn.Module, inputs: dict[str, Any]) -> Tensor:
        mode = "train" if self.model.training else "eval"
        completion_ids, mask = inputs["completion_ids"], inputs["completion_mask"]
        log_probs, entropies, aux_loss = self._get_per_token_logps_and_entropies(
            model,
            torch.cat([inputs["prompt_ids"], completion_ids], dim=1),
            torch.cat([inputs["prompt_mask"], mask], dim=1),
            completion_ids.size(1),
            compute_entropy=True,
            compute_aux_loss=self.aux_loss_enabled,
            **{name: inputs.get(name) for name in _MULTIMODAL_INPUTS},
        )
        if "tool_mask" in inputs:
            mask = mask * inputs["tool_mask"]
        log_prob = (log_probs * mask).sum(-1)
        ref_log_prob = (inputs["ref_per_token_logps"] * mask).sum(-1) if self.beta != 0.0 else None
        scored = ~inputs["advantages"].isnan()
        above_baseline = inputs["advantages"].nan_to_num()

        means = {"entropy": (entropies, mask), "unscorable": (~scored, torch.ones_like(scored))}
        written = scored & mask.any(-1)  # not those that mask_truncated_completions has emptied
        adv = advantage(log_prob, ref_log_prob, above_baseline, beta=self.beta)
        means |= {"log_prob": (log_prob, written), "advantage": (adv, written)}
        if ref_log_prob is not None:
            means["kl"] = (log_prob - ref_log_prob, written)

        per_completion = self._estimator(log_prob, ref_log_prob, above_baseline, beta=self.beta)
        # DDP averages gradients over ranks, so a global sum over a global count is multiplied by their number.
        denominator = inputs["num_scored"].clamp(min=1) / self.accelerator.num_processes
        if mode == "train":  # `num_scored` spans the generation batch: take one optimizer step's share of it
            denominator = denominator * self.current_gradient_accumulation_steps / self.args.steps_per_generation
        loss = per_completion.masked_fill(~scored, 0.0).sum() / denominator
        if self.aux_loss_enabled:
            accumulation = self.current_gradient_accumulation_steps if mode == "train" else 1
            loss = loss + self.router_aux_loss_coef * aux_loss / accumulation
            means["aux_loss"] = (aux_loss.view(1), torch.ones(1, device=loss.device))

        self._add_to_means(mode, means)
        return loss

    def _add_to_means(self, mode: str, means: dict[str, tuple[Tensor, Tensor]]) -> None:
        """Adds (values, mask) of each metric to its mean over all ranks and micro-batches until the next log entry."""
        sums = [torch.stack([(x.detach().float() * mask).sum(), mask.sum().float()]) for x, mask in means.values()]
        for name, total in zip(means, self.accelerator.reduce(torch.stack(sums), reduction="sum"), strict=True):
            self._totals[mode][name] = self._totals[mode].get(name, 0.0) + total

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        mode = "train" if self.model.training else "eval"
        for name, sums in self._totals[mode].items():
            total, count = sums.tolist()
            if count:
                self._metrics[mode][name] = [total / count]
        self._totals[mode].clear()
        super().log(logs, start_time)


def _check_dataset(dataset: Any, reward_funcs: Any, with_rows: bool) -> None:
    """Refuses a data set without the columns that are needed, and reports the rows that cannot be graded."""
    if "prompt" not in dataset.column_names:
        raise ValueError(f"the train dataset needs a `prompt` column; it has {', '.join(dataset.column_names)}")
    has_rows = with_rows and isinstance(dataset, Dataset)  # a stream is checked as it comes
    columns = {name: dataset[name] if has_rows else [] for name in dataset.column_names}
    for function in reward_funcs if isinstance(reward_funcs, list) else [reward_funcs]:
        if callable(function) and not isinstance(function, nn.Module):
            report = check_dataset(function, columns)
            if report:
                logger.warning(
                    "%d of %d rows of the train dataset cannot be graded, and their samples are left out: %s%s",
                    len(report),
                    len(dataset),
                    "; ".join(report[:_ROWS_NAMED]),
                    "; ..." if len(report) > _ROWS_NAMED else "",
                )
