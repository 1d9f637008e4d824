"""What is logged: every metric's unit and meaning, under the name that the log, the trackers and the report give it."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

__all__ = ["METRICS", "Metric", "metric_of"]


@dataclass(frozen=True)
class Metric:
    """A line of the reference."""

    unit: str
    meaning: str
    trainers: str  # "all", or which of online, weighted (also of Atropos' batches), trajectories


def _metrics() -> Iterator[tuple[str, Metric]]:
    """Names in braces stand for any; a name with `eval_` before it is of the evaluation."""
    everywhere = {
        "loss": ("nats", "What is minimised. Online, its gradient means something and its value does not."),
        "grad_norm": ("-", "L2 norm of the gradient of the optimizer step, before `max_grad_norm` cuts it."),
        "learning_rate": ("-", "Of the next step."),
        "epoch": ("epochs", "Passes over the data."),
        "step": ("steps", "Optimizer steps so far."),
        "num_tokens": ("tokens", "Read so far, of all processes; online, prompts and completions."),
        "entropy": ("nats", "Of the policy's next token; mean over loss tokens."),
        "aux_loss": ("-", "Load balancing of a mixture of experts."),
        "seconds/rollout": ("s a step", "Generating: completions, or episodes in environments."),
        "seconds/reward": ("s a step", "In reward functions and models."),
        "seconds/sync": ("s a step", "Bringing an engine or a server the policy's weights, with the proof."),
        "seconds/data": ("s a step", "Waiting for the next batch: data loader, Atropos."),
        "seconds/train": ("s a step", "Forward, backward, optimizer, and what has no other name."),
        "seconds/evaluation": ("s a step", "Evaluating."),
        "seconds/saving": ("s a step", "Writing checkpoints."),
        "tokens_per_second": ("tokens/s", "`num_tokens` over all of that time, evaluation and saving too."),
        "memory_gib": ("GiB", "Of the main process: peak on its GPU since the last entry; without one, in RAM now."),
        "runtime": ("s", "Of this evaluation."),
        "samples_per_second": ("1/s", "Of this evaluation."),
        "steps_per_second": ("1/s", "Of this evaluation."),
        "train_runtime": ("s", "Of the whole run; at its end."),
        "train_samples_per_second": ("1/s", "Of the whole run."),
        "train_steps_per_second": ("1/s", "Of the whole run."),
        "train_loss": ("nats", "Mean of `loss` over the run."),
        "total_flos": ("FLOP", "Of the whole run, as transformers estimates them."),
    }
    online = {
        "reward": ("reward units", "r, the weighted sum of the reward functions, scaled and shifted; mean."),
        "reward_std": ("reward units", "Spread of r over the completions of a batch (TRL)."),
        "rewards/{function}/mean": ("reward units", "Of one reward function."),
        "rewards/{function}/std": ("reward units", "Of one reward function (TRL)."),
        "frac_reward_zero_std": ("share", "Groups whose samples all earn the same (TRL)."),
        "advantage": ("reward units", "A = r - b - beta (s - s_ref), mean; about 0 where the baseline is good."),
        "log_prob": ("nats", "s, of a whole completion under the policy; mean."),
        "kl": ("nats", "s - s_ref of a completion, the k1 estimate of the KL from the reference; may be negative."),
        "kl_k3": ("nats", "The k3 estimate, never negative."),
        "weight/q05": ("1/nat", "5 % quantile of w = A / s."),
        "weight/q50": ("1/nat", "Median of w."),
        "weight/q95": ("1/nat", "95 % quantile of w."),
        "unscorable": ("share", "Completions left out of baseline and loss: a reward function returned None."),
        "importance/min": ("-", "Smallest ratio of probabilities, policy over sampler, of a completion."),
        "importance/max": ("-", "Largest."),
        "importance/clipped": ("share", "Tokens whose ratio was beyond the limits."),
        "importance/ess": ("share", "Effective sample size of the importance weights."),
        "groups/kept": ("share", "Groups whose rewards differ, at once."),
        "groups/refilled": ("share", "Groups replaced by fresh prompts."),
        "groups/all_correct": ("share", "Groups left out: all samples earn the same, the most."),
        "groups/all_wrong": ("share", "Groups left out: all earn the same, less than the most."),
        "groups/sampled_per_kept": ("-", "Groups sampled for each one kept."),
        "groups/empty_batches": ("batches", "In a row, without one useful group."),
        "completions/mean_length": ("tokens", "Of completions, the policy's own tokens."),
        "completions/min_length": ("tokens", "Shortest."),
        "completions/max_length": ("tokens", "Longest."),
        "completions/clipped_ratio": ("share", "Completions cut at `max_completion_length`."),
        "completions/mean_terminated_length": ("tokens", "Of those that ended by themselves."),
        "completions/min_terminated_length": ("tokens", "Shortest of them."),
        "completions/max_terminated_length": ("tokens", "Longest of them."),
        "tools/call_frequency": ("calls", "A completion."),
        "tools/failure_frequency": ("share", "Of the calls."),
        "sampling/importance_sampling_ratio/{statistic}": ("-", "vLLM's probabilities against the policy's (TRL)."),
        "step_time": ("s", "TRL's own clock of a micro-batch."),
        "math_verification/{verdict}": ("share", "Of completions: correct, wrong, no_answer, unparsed, timed_out, ..."),
        "reasoning_gym/{reason}": ("share", "Completions without an answer, or that cannot be scored, by reason."),
        "{reward_model}/truncated": ("share", "Texts longer than the reward model reads."),
    }
    engines = {
        "weight_sync/seconds": ("s", "A sync, with its proof."),
        "weight_sync/gigabytes": ("GB", "Sent in a sync."),
        "weight_sync/share_of_time": ("share", "Of all time."),
        "weight_sync/probe_max_dlogp": ("nats", "Largest |difference| of a token's log-prob, policy to engine."),
        "weight_sync/policy_version": ("steps", "Whose weights the engine has."),
        "sampling/sampling_logp_difference/mean": ("nats", "|Difference| of a token's log-prob, sampler to policy."),
        "sampling/sampling_logp_difference/max": ("nats", "The largest of them."),
    }
    weighted = {
        "mean_token_accuracy": ("share", "Loss tokens that the model thinks likeliest."),
        "ess": ("share", "Effective sample size (sum |w|)^2 / sum w^2, of the loss tokens."),
        "max_weight_share": ("share", "The largest |w|, of the sum of |w|."),
        "negative_gradient_share": ("share", "Of the gradient's mass, from tokens of negative weight."),
        "nll": ("nats", "Of a token with a weight, unweighted."),
        "negative_nll": ("nats", "Of a token of negative weight; runs away when unlearning diverges."),
        "score": ("reward units", "Atropos: mean score of a batch's sequences."),
        "score/env_{id}": ("reward units", "Of one environment."),
        "atropos/sequences": ("sequences", "In the batch."),
        "atropos/groups": ("groups", "In the batch."),
        "atropos/staleness": ("steps", "Between sampling a group and training on it."),
        "atropos/seconds_rollout": ("s", "Waited for a batch."),
        "atropos/seconds_advantages": ("s", "Reading and checking it."),
        "atropos/seconds_training": ("s", "From batch to optimizer step."),
        "atropos/seconds_sync": ("s", "Bringing the server the weights."),
        "atropos/{count}": ("-", "So far: quarantined_groups, cut_sequences, and what the fetcher counts."),
    }
    trajectories = {
        "bc_loss": ("nats", "Weighted mean over action tokens."),
        "bc_perplexity": ("-", "exp of the unweighted mean over action tokens."),
        "bc_accuracy": ("share", "Action tokens that the model thinks likeliest."),
        "world_model_loss": ("nats", "Mean over observation tokens."),
        "world_model_perplexity": ("-", "exp of it."),
        "world_model_accuracy": ("share", "Observation tokens that the model thinks likeliest."),
        "collect/return": ("reward units", "Sum of the rewards of an episode; mean of a round."),
        "collect/success": ("share", "Episodes that succeed."),
        "collect/length": ("actions", "Of an episode."),
        "collect/truncated": ("share", "Episodes cut at `max_episode_steps`."),
        "collect/cut_actions": ("share", "Actions cut at `max_completion_length`."),
        "collect/trajectories": ("episodes", "In the buffer."),
        "collect/failed": ("share", "Episodes whose environment failed."),
        "collect/stale": ("episodes", "Dropped from the buffer as too old."),
        "collect/seconds": ("s", "A round."),
    }
    evaluation = {
        "eval_pass@{k}": ("share", "One of k samples is right (Chen et al., 2021); `_low`, `_high`: 95 % interval."),
        "eval_maj@{k}": ("share", "The majority of k samples is right."),
        "eval_avg@{n}": ("share", "Samples that are right."),
        "eval_unscorable": ("share", "Samples that cannot be graded."),
        "eval_return": ("reward units", "Of an episode; `_low`, `_high`: its 95 % interval over tasks."),
        "eval_success": ("share", "Episodes that succeed."),
        "eval_length": ("actions", "Of an episode."),
        "eval_truncated": ("share", "Episodes cut at the limit of steps."),
        "eval_failed": ("share", "Episodes whose environment failed."),
    }
    tables = {
        "all": everywhere,
        "online": online,
        "online, trajectories, Atropos (with an engine)": engines,
        "weighted, trajectories": weighted,
        "trajectories": trajectories,
        "evaluation": evaluation,
    }
    for trainers, table in tables.items():
        for name, (unit, meaning) in table.items():
            yield name, Metric(unit, meaning, trainers)


METRICS: dict[str, Metric] = dict(_metrics())


@cache
def metric_of(name: str) -> Metric | None:
    """What is known of a logged name, whole names before patterns; None: somebody else's metric."""
    for candidate in (name, name.removeprefix("eval_")):
        candidate = re.sub(r"_(low|high)$", "", candidate)
        for known, metric in METRICS.items():
            if re.fullmatch(re.sub(r"\\{\w+\\}", r"[^/]+", re.escape(known)), candidate):
                return metric
    return None
