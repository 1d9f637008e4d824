"""The gradient that a method has on average, and its noise, by enumeration of every group of completions.

The loss is the one that trains (`Method`), on a policy that is small enough to list all it can say.
"""

import math
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from online_sft.baselines import Baseline, OptimalBaseline, RunningMean, leave_one_out
from online_sft.enumeration import EnumerablePolicy, sampler_logits
from online_sft.group_rewards import degenerate_groups, scaled_rewards
from online_sft.ledger import bias_ledger
from online_sft.method import Method
from online_sft.proposition3 import CompletionLoss

__all__ = ["Verification", "verify", "verify_each_option"]

_DRIFT_OF_AN_UPDATE = 0.3  # standard deviation of what an optimizer step may have changed in a logit
_DRIFT_OF_AN_ENGINE = 0.05
_CHUNK = 256  # groups at a time


@dataclass(frozen=True)
class Verification:
    """How a method's expected gradient compares with that of -(E[r] - beta KL)."""

    relative_bias: float  # |expected - exact| / |exact|
    cosine: float  # between the two
    noise: float  # G times the variance of the mean gradient of a group of G, over |exact|^2
    effective_sample_size: float  # share of the samples; 1 where the policy itself samples


def verify(method: Method, seed: int = 0) -> Verification:
    """Sums over every prompt, group and completion of `EnumerablePolicy.build(seed)`. Exact up to float64.

    What cannot be listed is fixed: samples of an older policy come from logits that have moved by 0.3 (another
    engine's: 0.05), running means are at the means, `scale_rewards="batch"` sees a batch of one group, and groups that
    are filtered out find a replacement in the end. Entries of the ledger that are not `is_measured` are left out.
    """
    return _Enumeration(method, seed).result()


def verify_each_option(method: Method, seed: int = 0) -> list[tuple[str, Verification]]:
    """The method as it is, with each measured entry of its ledger alone, and without all of them."""
    ledger = bias_ledger(method)
    exact = replace(method, **{name: off for bias in ledger for name, off in bias.without.items()})
    rows = [("as configured", method)]
    for bias in [bias for bias in ledger if bias.is_measured]:
        rows.append((f"only {bias.option}", replace(exact, **{name: getattr(method, name) for name in bias.without})))
    if len(rows) > 1:
        rows.append(("none of them", exact))
    return [(name, verify(variant, seed)) for name, variant in rows]


class _Enumeration:
    """Given the counts of the reward levels in a group, its members are independent draws, level by level."""

    def __init__(self, method: Method, seed: int) -> None:
        self.method = method
        self.policy = policy = EnumerablePolicy.build(seed)
        drift = _DRIFT_OF_AN_UPDATE * method.stale_samples + _DRIFT_OF_AN_ENGINE * method.use_vllm
        noise = torch.randn(policy.logits.shape, generator=torch.Generator().manual_seed(seed + 1), dtype=torch.float64)
        self.behaviour = policy.logits + drift * noise  # logits of whoever samples
        names = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")
        options = {name: getattr(method, name) for name in names}
        filtered = policy.log_probs(sampler_logits(policy, self.behaviour, **options))
        self.probs = filtered.sum(-1).exp()  # q(y), [P, N]
        # what the trainer is told of the sampler: vLLM reports what it sampled with, TRL scores without the filters
        scored = policy.log_probs(self.behaviour, method.temperature)
        self.reported = torch.where(filtered.isinf(), scored, filtered) if method.use_vllm else scored  # [P, N, T]
        self.values, self.levels = policy.rewards.unique(return_inverse=True)  # [L], [P, N]
        self.level_probs = torch.zeros(len(self.probs), len(self.values), dtype=torch.float64)
        self.level_probs.scatter_add_(1, self.levels, self.probs)  # [P, L]

    @cached_property
    def counts(self) -> Tensor:
        """Every way in which the samples of a group can fall on the reward levels, [C, L]."""
        size, num_levels = self.method.num_generations, len(self.values)
        counts: list[list[int]] = [[]]
        for _ in range(num_levels - 1):
            counts = [[*c, n] for c in counts for n in range(size - sum(c) + 1)]
        return torch.tensor([[*c, size - sum(c)] for c in counts])

    @cached_property
    def counts_probs(self) -> Tensor:
        """Multinomial probability of each, [P, C]."""
        counts = self.counts.double()
        ways = math.lgamma(self.method.num_generations + 1) - torch.lgamma(counts + 1).sum(1)
        return (ways + torch.special.xlogy(counts, self.level_probs.unsqueeze(1)).sum(2)).exp()

    @cached_property
    def groups(self) -> Tensor:
        """Rewards of each group, in the order of the levels. [C, G]"""
        return torch.stack([self.values.repeat_interleave(c) for c in self.counts])

    @cached_property
    def rewards(self) -> Tensor:
        """The same over their spread, if asked for; each group is a batch of its own."""
        return torch.cat([scaled_rewards(group, self.method.scale_rewards) for group in self.groups.unsqueeze(1)])

    @cached_property
    def advantages(self) -> Tensor:
        """r - b of a sample of each level in each group; 0 where the group has none. [C, L]"""
        return self.by_level(torch.cat([group - self.baseline(group) for group in self.rewards.unsqueeze(1)]))

    @cached_property
    def baseline(self) -> Baseline:
        """With what it would have learnt of earlier steps."""
        baseline = self.method.baseline_function
        if isinstance(baseline, RunningMean):
            return baseline.after((self.level_probs @ self.values).mean().item(), 1.0)
        if isinstance(baseline, OptimalBaseline):
            return baseline.after(self.sums_of_the_optimal_baseline().tolist())
        return baseline

    def sums_of_the_optimal_baseline(self) -> Tensor:
        """Expectations of g, g m, g m^2, g a and g a m, group by group and level by level."""
        terms = self.terms()
        prices = -terms.advantage.view_as(self.probs)
        sizes = terms.gradient_size.view_as(self.probs)
        of_others = self.by_level(leave_one_out(self.rewards))  # [C, L]
        own = self.by_level(self.rewards)
        sums = torch.zeros(5, dtype=torch.float64)
        for prompt, probs in enumerate(self.counts_probs):
            member = self.members(prompt)  # q(y | its level), [N, L]
            g, g_price = sizes[prompt] @ member, (sizes[prompt] * prices[prompt]) @ member  # [L]
            share = probs.unsqueeze(1) * self.counts  # [C, L]
            g_a = g * (own - self.method.beta) - g_price
            parts = (g.expand_as(own), g * of_others, g * of_others**2, g_a, g_a * of_others)
            sums += torch.stack([(share * part)[self.kept].sum() for part in parts])
        return sums

    @cached_property
    def kl_baseline(self) -> float:
        """What `Method.kl_baseline` would be after earlier steps."""
        return self.method.kl_baseline((self.probs * -self.terms().advantage.view_as(self.probs)).sum(1).mean().item())

    def terms(self) -> CompletionLoss:
        """Of every prompt's completions, one after the other, with advantages of 0."""
        method, policy = self.method, self.policy

        def log_probs(logits: Tensor) -> Tensor:
            return policy.log_probs(logits, method.temperature).flatten(0, 1)

        return method(
            log_probs(policy.logits),
            policy.mask.repeat(len(self.probs), 1),
            torch.zeros(self.probs.numel(), dtype=torch.float64),
            log_probs(policy.ref_logits),
            self.reported.flatten(0, 1) if method.is_off_policy else None,
        )

    def by_level(self, of_groups: Tensor) -> Tensor:
        """[C, G] of the groups' samples, which level by level are alike, as [C, L]; 0 where a group has none."""
        levels = torch.stack([torch.arange(len(self.values)).repeat_interleave(c) for c in self.counts])
        return torch.zeros(self.counts.shape, dtype=torch.float64).scatter_(1, levels, of_groups)

    def members(self, prompt: int) -> Tensor:
        """q(y | its level) in the column of the level, [N, L]."""
        levels = self.levels[prompt]
        within = self.probs[prompt] / self.level_probs[prompt, levels].clamp(min=1e-300)
        return torch.nn.functional.one_hot(levels, len(self.values)).double() * within.unsqueeze(1)

    @cached_property
    def kept(self) -> Tensor:
        """The groups that filtering leaves, as indices."""
        groups = torch.arange(len(self.counts))
        if self.method.filter_groups_min_std is None:
            return groups
        return groups[~degenerate_groups(self.groups, self.method.filter_groups_min_std)]

    def result(self) -> Verification:
        exact = self.policy.exact_gradient(self.method.beta).flatten()
        mean, square, total = torch.zeros_like(exact), 0.0, 0.0
        for prompt in range(len(self.probs)):
            for chunk in self.kept.split(_CHUNK):
                gradients, squares = self.group_gradients(prompt, chunk)
                probs = self.counts_probs[prompt, chunk]
                block = gradients.size(1)
                mean[prompt * block : (prompt + 1) * block] += probs @ gradients
                square += (probs @ squares).item()
                total += probs.sum().item()
        mean, square = mean / total, square / total
        ratios = self.terms().importance_weight.view_as(self.probs)
        return Verification(
            relative_bias=((mean - exact).norm() / exact.norm()).item(),
            cosine=torch.cosine_similarity(mean, exact, dim=0).item(),
            noise=self.method.num_generations * (square - mean.square().sum().item()) / exact.square().sum().item(),
            effective_sample_size=((self.probs * ratios).sum() ** 2 / (self.probs * ratios**2).sum() / 2).item(),
        )

    def group_gradients(self, prompt: int, chunk: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and second moment of a group's mean gradient, given its counts. [C, K] and [C]."""
        counts, levels = self.counts[chunk].double(), self.levels[prompt]
        slopes = self.slopes(prompt, self.advantages[chunk][:, levels])  # [C, N, T]
        gradients = torch.einsum("cnt,ntk->cnk", slopes, self.policy.token_gradients(self.method.temperature)[prompt])
        member = self.members(prompt)
        means = torch.einsum("cnk,nl->clk", gradients, member)
        squares = gradients.square().sum(2) @ member  # [C, L]
        size = self.method.num_generations
        mean = torch.einsum("clk,cl->ck", means, counts) / size
        spread = (counts * (squares - means.square().sum(2))).sum(1) / size**2
        return mean, mean.square().sum(1) + spread

    def slopes(self, prompt: int, advantages: Tensor) -> Tensor:
        """d loss / d log-prob of each token of each completion, by autograd through the loss that trains. [C, N, T]."""
        method, policy = self.method, self.policy
        num_groups, num_completions = advantages.shape
        mask = policy.mask
        if method.mask_truncated_completions:
            mask = mask * ~policy.is_truncated.unsqueeze(1)

        def repeated(values: Tensor) -> Tensor:
            return values.repeat(num_groups, 1)

        log_probs = repeated(policy.log_probs(policy.logits, method.temperature)[prompt]).requires_grad_()
        reference = repeated(policy.log_probs(policy.ref_logits, method.temperature)[prompt])
        sampler = repeated(self.reported[prompt])
        terms = method(
            log_probs,
            repeated(mask),
            advantages.flatten() + self.kl_baseline,
            reference if method.beta else None,
            sampler if method.is_off_policy else None,
        )
        (slopes,) = torch.autograd.grad(terms.loss.sum(), log_probs)
        return slopes.view(num_groups, num_completions, -1)
