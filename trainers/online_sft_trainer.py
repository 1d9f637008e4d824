"""Online SFT on TRL's GRPO machinery: rollouts, rewards and logging are TRL's, the loss is Proposition 3."""

import logging
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn
from trl import GRPOTrainer
from trl.trainer.utils import get_config_model_id

from online_sft.baselines import Baseline, OptimalBaseline
from online_sft.group_rewards import scaled_rewards
from online_sft.ledger import bias_ledger
from online_sft.precision import float64
from online_sft.proposition3 import CompletionLoss
from online_sft.record.sample import Sample
from online_sft.rewards.checked import checked
from trainers.arguments import config_or_default
from trainers.checkpoints.cycle import GenerationCycle
from trainers.checkpoints.resumable import ResumableTrainer
from trainers.completion_inputs import MULTIMODAL_INPUTS, policy_mask, sampler_log_probs
from trainers.engine.checks import check_engine
from trainers.engine.colocated import in_dtype_of_the_policy
from trainers.engine.faults import ServerGuard
from trainers.engine.rollouts import RolloutEngine, synced_rollouts
from trainers.engine.weight_sync import WeightSync
from trainers.group_filter import replaced_degenerate_groups
from trainers.model_files import check_policy, check_weights
from trainers.online_metrics import OnlineMetrics
from trainers.online_sft_config import OnlineSFTConfig
from trainers.prompts import check_prompts, check_template, draw_rows
from trainers.recording.recorded import RecordedTrainer
from trainers.recording.samples import completion_samples
from trainers.reward_functions import named_rewards, told_when, with_overlong_penalty
from trainers.reward_models import placed_reward_models, with_reward_models
from trainers.running_baselines import RunningBaselines

__all__ = ["OnlineSFTTrainer"]

logger = logging.getLogger(__name__)


class OnlineSFTTrainer(RecordedTrainer, ResumableTrainer, GRPOTrainer):
    """Trains a policy on its own graded samples with the estimator of Proposition 3.

    Objective: E[r(x, y)] - beta KL(policy || reference), y sampled from the policy; what a configuration does to it is
    in its bias ledger. Gradient: that of -(1/D) sum_i (A_i + sg(A_i) s_i), D the scored completions of the whole
    optimizer step over all ranks (`online_sft.proposition3`); where a step is not one generation batch, its share of
    that batch's scored completions. A completion that cannot be scored (a reward function returned None;
    `unscorable_if`) is in neither sum nor D, and its other rewards are in no metric. Completions that are older than
    the policy, or of another engine, have importance weights.

    Constructor, arguments and features are those of `trl.GRPOTrainer`; `args` is an `OnlineSFTConfig`. `reward_funcs`
    may name "math" and "reasoning_gym".

    Logged, per completion: `reward` (r), `advantage` (A, reward units), `log_prob` (s, nats), `kl` (s - s_ref, nats,
    the k1 estimate) and `kl_k3`, `weight/q05`, `q50`, `q95` (w = A/s), `unscorable` (a share); off-policy
    `importance/min`, `max`, `clipped` (share of tokens), `ess` (effective sample size, a share); per token: `entropy`
    (nats). With `filter_groups_enable`: `groups/kept`, `refilled`, `all_correct`, `all_wrong` (shares),
    `sampled_per_kept`, `empty_batches` (a count). With `use_vllm`: `weight_sync/probe_max_dlogp` (nats), `seconds` and
    `gigabytes` a sync, `share_of_time`, `policy_version` (the step whose weights the engine has). The value of `loss`
    means nothing: look at `reward` and `kl`.

    Overrides of `GRPOTrainer` (those of `RecordedTrainer` and `ResumableTrainer` are listed there), and why:
        __init__: refuses data and reward functions that cannot work before the model is loaded.
        _generate: timed.
        _calculate_rewards: keeps the raw rewards, which TRL does not hand on.
        _generate_and_score_completions: replaces TRL's group-normalised advantages by reward minus baseline, and groups
            that say nothing by fresh ones.
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
        eval_dataset: Any = None,
        processing_class: Any = None,
        reward_processing_classes: Any = None,
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
        reward_funcs = named_rewards(reward_funcs, args)
        supplies_own_columns = options.get("environment_factory") or options.get("rollout_func")
        check_prompts(train_dataset, reward_funcs, args, has_all_columns=not supplies_own_columns)
        if isinstance(model, str):
            check_policy(model, args, needs_tokenizer=processing_class is None)
            check_weights(model)
        reward_funcs = with_overlong_penalty(with_reward_models(reward_funcs, args, reward_processing_classes), args)
        check_engine(args, model)
        with in_dtype_of_the_policy(self, args):
            # no `reward_processing_classes`: reward models are functions now
            super().__init__(
                model, reward_funcs or None, args, train_dataset, eval_dataset, processing_class, None, *more, **options
            )
        check_template(train_dataset, self._tokenizer.chat_template)
        self.reward_funcs = [
            checked(function, name)
            for function, name in zip(placed_reward_models(self), self.reward_func_names, strict=True)
        ]
        self._method = replace(args.method, rollout_func=self.rollout_func is not None)
        if self.rollout_func is not None and self.accelerator.is_main_process:
            for bias in set(bias_ledger(self._method)) - set(args.bias_ledger()):
                logger.warning("bias: %s", bias)
        self._running = RunningBaselines(self.accelerator)
        self.add_callback(self._running)
        self._cycle = GenerationCycle(self)
        self.add_callback(self._cycle)
        self._online_metrics = {mode: OnlineMetrics(self.accelerator) for mode in ("train", "eval")}
        self._draws = (0, 0)  # (optimizer step, how often fresh prompts were drawn in it)
        self._empty_batches = 0  # in a row
        self._weight_sync: WeightSync | None = None
        if self.use_vllm:
            guard = ServerGuard(self) if self.vllm_mode == "server" else None
            self._weight_sync = WeightSync(self)
            if guard is not None:
                guard.watch(self._weight_sync, self._weight_sync.expect_proof)

    @property
    def objective(self) -> str:
        """What is maximised, for people."""
        price = f" - {self.beta:g} KL(policy || reference)" if self.beta else ""
        return f"E[r]{price}, estimated with `{self._method.estimator}` and baseline `{self._method.baseline}`"

    def synced_rollouts(self) -> AbstractContextManager[RolloutEngine]:
        """Completions of the policy as it is now, by whatever generates: transformers, continuous batching or vLLM.

            with trainer.synced_rollouts() as engine:
                rollouts = engine.generate(["2 + 2 ="], num_generations=4)

        In the body the engine has the policy's weights, proven by the probe (`weight_sync_probe_every`); after it,
        vLLM's memory is given back where `vllm_enable_sleep_mode` is on. A collective call, with all processes; under
        FSDP not before `train`, which shards the model.

        Raises:
            WeightSyncError: the engine does not compute what the policy computes.
            ServerLostError: the server does not answer.
        """
        return synced_rollouts(self)

    def resume_state(self) -> dict[str, Any]:
        return super().resume_state() | {"cycle": self._cycle.state_dict(), "recorder": self.recorder.state_dict()}

    def load_resume_state(self, state: dict[str, Any]) -> None:
        super().load_resume_state(state)
        self._cycle.load_state_dict(state["cycle"])
        self.recorder.load_state_dict(state["recorder"])

    def reasons_against_exact_resume(self) -> list[str]:
        reasons = {
            "sync_ref_model=True: the reference model that follows the policy is not saved": self.args.sync_ref_model,
            "vllm_mode='server': its random numbers are its own": self.use_vllm and self.vllm_mode == "server",
        }
        return [*super().reasons_against_exact_resume(), *(reason for reason, holds in reasons.items() if holds)]

    def _generate(self, prompts: list) -> Any:
        with self.stopwatch("rollout"):
            return super()._generate(prompts)

    def _calculate_rewards(
        self, inputs: list[dict[str, Any]], prompts: list, completions: list, completion_ids_list: list[list[int]]
    ) -> Tensor:
        with self.stopwatch("reward"), told_when(self):
            rewards_per_func = super()._calculate_rewards(inputs, prompts, completions, completion_ids_list)
        missing = rewards_per_func.isnan()
        # the overlong penalty, the last of them, never says None
        graders = missing[:, :-1] if self.args.apply_overlong_penalty else missing
        unscorable = missing.any(dim=1) if self.args.unscorable_if == "any" else graders.all(dim=1)
        if unscorable.all() and not missing.all():
            logger.warning(
                "no completion of this batch can be scored: for each, at least one reward function returned None. If "
                "the functions take turns, each for its own kind of rows, set unscorable_if=all"
            )
        rewards_per_func = rewards_per_func.masked_fill(unscorable.unsqueeze(1), torch.nan)  # for TRL's metrics, too
        total = (rewards_per_func * self.reward_weights.to(rewards_per_func.device)).nansum(dim=1)
        rewards = self.args.reward_scale * total + self.args.reward_shift
        self._rewards = rewards.masked_fill(unscorable, torch.nan)  # [B of all ranks]
        self._metrics_of_mode.add_means(
            {
                "unscorable": (unscorable, torch.ones_like(unscorable)),
                "reward": (rewards, ~unscorable),
                **{
                    f"rewards/{name}/mean": (rewards_per_func[:, column], ~rewards_per_func[:, column].isnan())
                    for column, name in enumerate(self.reward_func_names)
                },
            }
        )
        return rewards_per_func

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        output = self._sampled(inputs)
        is_degenerate = None
        if self.model.training and self.args.filter_groups_enable:
            output, is_degenerate = self._filtered(output)
        rewards = self.accelerator.gather(output["rewards"])
        output |= {name: self._own_part(values) for name, values in self._compared(rewards).items()}
        output["advantages"] += self._method.kl_baseline(self._running.kl_price.value)
        if self.model.training:
            self._running.add_batch(rewards)
            self.recorder.add_rewards(rewards)
        if is_degenerate is not None:
            left_out = is_degenerate.repeat_interleave(self.num_generations)
            output["advantages"] = output["advantages"].masked_fill(left_out, torch.nan)
        if self.model.training and self._method.baseline == "optimal" and self._running.is_first_step:
            output["advantages"] = self._first_advantages(output)
        output["num_scored"] = self.accelerator.reduce((~output["advantages"].isnan()).sum(), reduction="sum")
        return output

    @torch.no_grad()
    def _first_advantages(self, output: dict[str, Any]) -> Tensor:
        """r - b, b the optimal constant of all other samples of the batch: nothing has been learnt before them."""
        log_probs, *_ = self._log_probs(self.model, output, batch_size=self.args.per_device_train_batch_size)
        terms, prices, written = self._terms(log_probs, output)
        values = float64(torch.stack([terms.gradient_size, output["rewards"] - prices - self.beta]))
        sizes, slopes = self.accelerator.gather(values.masked_fill(~written, 0.0).T.contiguous()).T
        baseline = self._own_part(OptimalBaseline.of_other_samples(sizes, slopes)).to(output["advantages"].dtype)
        return torch.where(written, output["rewards"] - baseline, output["advantages"])

    def _sampled(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        """Completions and `rewards` of this rank's inputs, NaN where they cannot be scored."""
        output = super()._generate_and_score_completions(inputs)
        if self._weight_sync is not None:
            mode = "train" if self.model.training else "eval"
            self._weight_sync.look_at_rollouts(self._metrics[mode]["sampling/sampling_logp_difference/mean"])
        output["rewards"] = output["raw_rewards"] = self._own_part(self._rewards)
        logged = self._logs["advantages"]  # TRL has just appended its own
        advantages = self._compared(self._rewards)["advantages"]
        for _ in range(min(len(logged), len(advantages))):  # it keeps one generation batch at most
            logged.pop()
        logged.extend(advantages.tolist())
        return output

    def _compared(self, rewards: Tensor) -> dict[str, Tensor]:
        """Of all ranks' completions: rewards (over their spread if asked for), the mean of the prompt's others, r - b.

        [B] -> three times [B]; NaN where unscorable. All from what was learnt before these completions.
        """
        num_generations = self.num_generations if self.model.training else self.num_generations_eval
        by_group = scaled_rewards(rewards.view(-1, num_generations), self.args.scale_rewards)
        learnt: dict[str, Baseline] = {"running_mean": self._running.reward, "optimal": self._running.optimal}
        baseline = learnt.get(self.args.baseline, self._method.baseline_function)
        compared = {
            "rewards": by_group,
            "rewards_of_others": self._running.optimal.of_others(by_group),
            "advantages": by_group - baseline(by_group),
        }
        return {name: values.flatten() for name, values in compared.items()}

    def _own_part(self, values: Tensor) -> Tensor:
        """This rank's part of a tensor over the completions of all ranks."""
        size = len(values) // self.accelerator.num_processes
        return values[self.accelerator.process_index * size :][:size]

    def _filtered(self, output: dict[str, Any]) -> tuple[dict[str, Any], Tensor]:
        """The batch with its degenerate groups replaced as far as they could be, and which are left."""
        filtered = replaced_degenerate_groups(
            output,
            self._sample_fresh_groups,
            accelerator=self.accelerator,
            num_generations=self.num_generations,
            min_std=self.args.filter_groups_min_std,
            max_retries=self.args.max_filter_retries,
            pad_token_id=self._tokenizer.pad_token_id,
        )
        metrics = self._metrics_of_mode
        for name in ("kept", "refilled", "all_correct", "all_wrong"):
            metrics.add_ratio(f"groups/{name}", getattr(filtered, f"num_{name}"), filtered.num_groups)
        metrics.add_ratio("groups/sampled_per_kept", filtered.num_sampled, filtered.num_kept)
        self._empty_batches = 0 if filtered.num_kept else self._empty_batches + 1
        metrics.add_ratio("groups/empty_batches", self._empty_batches, 1)
        if self._empty_batches >= self.args.filter_groups_patience:
            logger.error(
                "training stops after step %d: in %d batches in a row (filter_groups_patience) no group of %d samples "
                "had rewards that differ, after %d rounds of fresh prompts each. Use easier or harder prompts, a "
                "higher num_generations, or filter_groups_enable=False",
                self.state.global_step + 1,
                self._empty_batches,
                self.num_generations,
                self.args.max_filter_retries,
            )
            self.control.should_training_stop = self.control.should_save = True
        return filtered.batch, filtered.is_degenerate

    def _sample_fresh_groups(self, num_groups: int) -> dict[str, Any]:
        """A batch of prompts drawn by seed, step and round alone, so that a resumed run draws the same."""
        step, draws = self._draws
        draws = draws + 1 if step == self.state.global_step else 0
        self._draws = (self.state.global_step, draws)
        rows = draw_rows(
            len(self.train_dataset),
            num_groups,
            seeds=(self.args.seed, self.state.global_step, draws),
            rank=self.accelerator.process_index,
            num_ranks=self.accelerator.num_processes,
        )
        prompts = [self.train_dataset[row] for row in rows]
        return self._sampled([dict(prompt) for prompt in prompts for _ in range(self.num_generations)])

    def _compute_loss(self, model: nn.Module, inputs: dict[str, Any]) -> Tensor:
        log_probs, entropies, aux_loss = self._log_probs(
            model, inputs, compute_entropy=True, compute_aux_loss=self.aux_loss_enabled
        )
        terms, prices, written = self._terms(log_probs, inputs)
        if self.model.training:
            found = prices, inputs["rewards"], inputs["rewards_of_others"], terms.gradient_size
            self._running.add(self.beta, *(values[written] for values in found))
            self.recorder.add_samples(lambda step: self._samples(step, log_probs.detach(), inputs, terms, written))
        # DDP averages gradients over ranks, so a global sum over a global count is multiplied by their number.
        denominator = inputs["num_scored"].clamp(min=1) / self.accelerator.num_processes
        accumulation = self.current_gradient_accumulation_steps if self.model.training else 1
        if self.model.training:  # `num_scored` spans the generation batch: take one optimizer step's share of it
            denominator = denominator * accumulation / self.args.steps_per_generation
        loss = terms.loss.masked_fill(inputs["advantages"].isnan(), 0.0).sum() / denominator
        means = {"entropy": (entropies, policy_mask(inputs))}
        if self.aux_loss_enabled:
            loss = loss + self.router_aux_loss_coef * aux_loss / accumulation
            means["aux_loss"] = (aux_loss.view(1), torch.ones(1, device=loss.device))
        self._metrics_of_mode.add_means(means)
        self._metrics_of_mode.add_completions(terms, written, off_policy=sampler_log_probs(inputs) is not None)
        return loss

    def _log_probs(self, model: nn.Module, inputs: dict[str, Any], **options: Any) -> tuple[Tensor, Any, Any]:
        """Log-probs of the completions' tokens [B, T], and what `options` ask for."""
        return self._get_per_token_logps_and_entropies(
            model,
            torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], dim=1),
            torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], dim=1),
            inputs["completion_ids"].size(1),
            **options,
            **{name: inputs.get(name) for name in MULTIMODAL_INPUTS},
        )

    def _terms(self, log_probs: Tensor, inputs: dict[str, Any]) -> tuple[CompletionLoss, Tensor, Tensor]:
        """The loss of each completion, its price of the KL beta (s - s_ref), and whether it counts. All [B]."""
        mask = policy_mask(inputs)
        written = ~inputs["advantages"].isnan() & mask.any(-1)  # not those that mask_truncated_completions has emptied
        advantages = inputs["advantages"].nan_to_num()
        terms = self._method(
            log_probs,
            mask,
            advantages,
            ref_log_probs=inputs.get("ref_per_token_logps"),
            sampler_log_probs=sampler_log_probs(inputs),
        )
        return terms, advantages - terms.advantage, written

    def _samples(
        self, step: int, log_probs: Tensor, inputs: dict[str, Any], terms: CompletionLoss, written: Tensor
    ) -> Iterator[Sample]:
        with torch.enable_grad():
            log_probs = log_probs.requires_grad_()
            losses = self._terms(log_probs, inputs)[0].loss.masked_fill(inputs["advantages"].isnan(), 0.0)
            (slopes,) = torch.autograd.grad(losses.sum(), log_probs)
        of_counted = {"advantage": terms.advantage, "log_prob": terms.log_prob}
        of_counted |= {} if terms.kl.isnan().all() else {"kl": terms.kl}
        values = {name: x.masked_fill(~written, torch.nan) for name, x in of_counted.items()}
        return completion_samples(step, inputs, -slopes, {"reward": inputs["raw_rewards"], **values}, self._tokenizer)

    @property
    def _metrics_of_mode(self) -> OnlineMetrics:
        return self._online_metrics["train" if self.model.training else "eval"]

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        mode = "train" if self.model.training else "eval"
        ours = self._online_metrics[mode].pop()
        if self._weight_sync is not None and mode == "train":
            ours |= self._weight_sync.pop_metrics()
        self._metrics[mode] |= {name: [value] for name, value in ours.items()}
        super().log(logs, start_time)
