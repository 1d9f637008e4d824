"""The oracle: exact where the ledger is empty, biased where an entry binds, and blind to nothing that we break."""

from dataclasses import dataclass, replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from online_sft.baselines import RunningMean, leave_one_out
from online_sft.enumeration import EnumerablePolicy
from online_sft.group_rewards import degenerate_groups, scaled_rewards
from online_sft.ledger import bias_ledger
from online_sft.method import Method
from online_sft.verification import verify, verify_each_option

GROUPLESS = ["none", "constant", "running_mean", "optimal"]
STALE = {"stale_samples": True}

# Every measured option of the ledger, with a value that binds on the enumerable policy.
BINDING = [
    {"temperature": 0.7},
    {"top_p": 0.9},
    {"top_k": 2},
    {"min_p": 0.1},
    {"repetition_penalty": 1.3},
    STALE | {"importance_sampling_mode": "none"},
    STALE | {"importance_sampling_mode": "token_truncate"},
    STALE | {"importance_sampling_clip_max": 1.1},
    STALE | {"importance_sampling_clip_min": 0.9},
    STALE | {"importance_sampling_mode": "sequence_mask", "importance_sampling_clip_max": 1.1},
    {"use_vllm": True, "importance_sampling_mode": "none"},
    {"mask_truncated_completions": True},
    {"baseline": "group_mean"},
    {"scale_rewards": "group"},
    {"scale_rewards": "batch"},
    {"filter_groups_min_std": 0.0},
    {"filter_groups_min_std": 0.3},
    {"normalize_logprob_by_length": True},
    {"estimator": "prop3", "clip_weight_value": 0.1},
    {"clip_logprob_min": -3.0},
]


@settings(max_examples=60, deadline=None)
@given(
    estimator=st.sampled_from(["prop3", "prop3_stable"]),
    beta=st.sampled_from([0.0, 0.1, 1.0]),
    baseline=st.sampled_from(["leave_one_out", *GROUPLESS]),
    baseline_value=st.floats(-3, 3),
    num_generations=st.integers(1, 12),
    stale_samples=st.booleans(),
    use_vllm=st.booleans(),
    denom_eps=st.sampled_from([1e-3, 0.5, 2.0]),
    mode=st.sampled_from(["sequence_truncate", "sequence_mask"]),
    seed=st.integers(0, 5),
)
def test_with_an_empty_ledger_the_expected_gradient_is_exact(seed, mode, baseline, num_generations, **options):
    if baseline == "leave_one_out":
        num_generations = max(num_generations, 2)
    method = Method(**options, baseline=baseline, num_generations=num_generations, importance_sampling_mode=mode)
    assert bias_ledger(method) == []
    result = verify(method, seed)
    assert result.relative_bias < 1e-10
    assert result.cosine > 1 - 1e-10


@pytest.mark.parametrize("mode", ["sequence_truncate", "sequence_mask"])
def test_a_repetition_penalty_is_corrected_where_the_engine_reports_what_it_sampled_with(mode):
    method = Method(use_vllm=True, repetition_penalty=1.3, beta=0.1, importance_sampling_mode=mode)
    assert bias_ledger(method) == []
    assert verify(method).relative_bias < 1e-10
    assert verify(replace(method, use_vllm=False)).relative_bias > 1e-3


def test_what_the_policy_cannot_show_is_in_the_ledger_and_not_in_the_table():
    method = Method(num_iterations=2, disable_dropout=False, sync_ref_model=True, rollout_func=True, top_p=0.9)
    names = [bias.option for bias in bias_ledger(method) if not bias.is_measured]
    assert names == ["disable_dropout", "rollout_func", "num_iterations", "sync_ref_model"]
    assert [name for name, _ in verify_each_option(method)] == ["as configured", "only top_p", "none of them"]


@pytest.mark.parametrize("beta", [0.0, 0.1])
@pytest.mark.parametrize("options", BINDING, ids=str)
def test_every_entry_of_the_ledger_biases_where_it_binds(options, beta):
    method = Method(**options, beta=beta)
    assert len(bias_ledger(method)) == 1
    assert verify(method).relative_bias > 1e-3


@settings(max_examples=40, deadline=None)
@given(chosen=st.sets(st.sampled_from(range(len(BINDING))), min_size=2, max_size=4), beta=st.sampled_from([0.0, 0.1]))
def test_what_the_ledger_names_is_all_there_is(chosen, beta):
    """Any combination is exact once every entry of its ledger is switched off."""
    method = Method(beta=beta)
    for index in sorted(chosen):
        method = replace(method, **BINDING[index])
    rows = dict(verify_each_option(method))
    assert len(rows) == len({bias.option for bias in bias_ledger(method)}) + 2
    assert rows["none of them"].relative_bias < 1e-10


def test_the_table_has_a_row_for_each_option_alone():
    method = Method(top_p=0.9, temperature=0.7, beta=0.1)
    rows = dict(verify_each_option(method))
    assert list(rows) == ["as configured", "only temperature", "only top_p", "none of them"]
    assert rows["as configured"] == verify(method)
    assert rows["only top_p"] == verify(Method(top_p=0.9, beta=0.1))


# --- known answers


def test_the_group_mean_is_a_scale_of_g_minus_1_over_g():
    result = verify(Method(baseline="group_mean", num_generations=5))
    assert_close(result.relative_bias, 1 / 5)
    assert_close(result.cosine, 1.0)


def test_the_effective_sample_size_of_exact_ratios_is_that_of_the_definition():
    """E_q[rho]^2 / E_q[rho^2] = 1 / sum_y pi^2 / q, the mean over the two prompts."""
    policy = EnumerablePolicy.build(0)
    noise = torch.randn(policy.logits.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    pi = policy.log_probs(policy.logits).sum(-1).exp()
    q = policy.log_probs(policy.logits + 0.3 * noise).sum(-1).exp()
    assert_close(verify(Method(stale_samples=True)).effective_sample_size, 2 / (pi**2 / q).sum().item())
    assert verify(Method()).effective_sample_size == pytest.approx(1.0)


def test_a_baseline_lowers_the_noise_and_leaving_one_out_of_two_costs_some_of_that():
    noise = {b: verify(Method(baseline=b, num_generations=2)).noise for b in ("none", "running_mean", "leave_one_out")}
    assert noise["running_mean"] < noise["leave_one_out"] < noise["none"]


@pytest.mark.parametrize("beta", [0.0, 0.3])
@pytest.mark.parametrize("seed", range(4))
def test_the_optimal_baseline_has_the_least_noise_of_all(seed, beta):
    names = ("optimal", "none", "running_mean", "leave_one_out", "group_mean")
    noise = {name: verify(Method(baseline=name, num_generations=2, beta=beta), seed).noise for name in names}
    noise["group_mean"] *= 4  # half the gradient
    assert min(noise, key=noise.__getitem__) == "optimal"


@pytest.mark.parametrize("beta", [0.1, 1.0])
def test_a_baseline_of_the_kl_lowers_the_noise_and_biases_nothing(beta):
    @dataclass(frozen=True)
    class WithoutKLBaseline(Method):
        def kl_baseline(self, mean_price):
            return 0.0

    options = {"beta": beta, "baseline": "leave_one_out", "num_generations": 8}
    kept, dropped = verify(Method(**options)), verify(WithoutKLBaseline(**options))
    assert kept.relative_bias < 1e-10
    assert kept.noise < 0.9 * dropped.noise


def regression(policy, method, q, prices, log_ratio):
    """Of r - beta (s - s_ref) - beta on the other reward of the pair, over all pairs, each with its weight."""
    rows, targets, weights = [], [], []
    probs = policy.log_probs(policy.logits).exp()
    sizes = ((1 - probs).square() * policy.mask).sum(-1) * (log_ratio.exp().square() if method.stale_samples else 1)
    if method.normalize_logprob_by_length:
        sizes = sizes / policy.mask.sum(1).square()
    for prompt in range(2):
        for own in range(40):
            for other in range(40):
                rows.append([policy.rewards[prompt, other].item(), 1.0])
                targets.append((policy.rewards[prompt, own] - prices[prompt, own] - method.beta).item())
                weights.append((q[prompt, own] * q[prompt, other] * sizes[prompt, own]).item())
    root = torch.tensor(weights, dtype=torch.float64).sqrt()
    design = torch.tensor(rows, dtype=torch.float64) * root.unsqueeze(1)
    slope, intercept = torch.linalg.lstsq(design, torch.tensor(targets, dtype=torch.float64) * root).solution.tolist()
    assert 0 < slope < 1
    return lambda rewards: slope * rewards.flip(1) + intercept


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"beta": 0.2, "estimator": "prop3"},
        {"baseline": "running_mean"},
        {"baseline": "group_mean", "scale_rewards": "group", "beta": 0.2},
        {"filter_groups_min_std": 0.3, "beta": 0.2},
        {"stale_samples": True, "importance_sampling_clip_max": 1.2, "mask_truncated_completions": True},
        {"temperature": 0.6, "normalize_logprob_by_length": True, "beta": 0.2},
        {"baseline": "optimal", "beta": 0.2},
        {"baseline": "optimal", "beta": 0.2, "normalize_logprob_by_length": True, "stale_samples": True},
    ],
    ids=str,
)
def test_it_equals_a_loop_over_all_groups_of_two(options):
    """Pair by pair, through autograd down to the logits."""
    method = Method(**{"baseline": "leave_one_out", **options}, num_generations=2)
    policy = EnumerablePolicy.build(0)
    noise = torch.randn(policy.logits.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    behaviour = policy.logits + (0.3 * noise if method.stale_samples else 0.0)
    exact = policy.exact_gradient(method.beta).flatten()
    q = policy.log_probs(behaviour, method.temperature).sum(-1).exp()
    baseline = method.baseline_function
    if method.baseline == "running_mean":
        baseline = RunningMean(total=(q * policy.rewards).sum(1).mean().item(), count=1.0)
    mask = policy.mask * ~policy.is_truncated.unsqueeze(1) if method.mask_truncated_completions else policy.mask
    s, s_ref = (policy.log_probs(x, method.temperature).sum(-1) for x in (policy.logits, policy.ref_logits))
    lengths = policy.mask.sum(1) if method.normalize_logprob_by_length else 1
    prices = method.beta * (s - s_ref) / lengths
    kl_baseline = method.beta + (q * prices).sum(1).mean() if method.baseline != "optimal" else 0.0
    if method.baseline == "optimal":
        baseline = regression(policy, method, q, prices, s - policy.log_probs(behaviour).sum(-1))
    mean, square, total = torch.zeros_like(exact), 0.0, 0.0
    for prompt in range(2):
        logits = policy.logits.clone().requires_grad_()
        log_probs = policy.log_probs(logits, method.temperature)[prompt]
        ref = policy.log_probs(policy.ref_logits, method.temperature)[prompt]
        sampler = policy.log_probs(behaviour, method.temperature)[prompt]
        jacobian = torch.stack(
            [torch.autograd.grad(x, logits, retain_graph=True)[0].flatten() for x in log_probs.flatten()]
        ).view(*log_probs.shape, -1)
        for first in range(40):
            for second in range(40):
                pair = [first, second]
                rewards = policy.rewards[prompt, pair].view(1, 2)
                if method.filter_groups_min_std is not None and degenerate_groups(
                    rewards, method.filter_groups_min_std
                ):
                    continue
                leaf = log_probs[pair].detach().requires_grad_()
                scaled = scaled_rewards(rewards, method.scale_rewards)
                advantages = (scaled - baseline(scaled))[0] + kl_baseline
                terms = method(
                    leaf, mask[pair], advantages, ref[pair] if method.beta else None,
                    sampler[pair] if method.is_off_policy else None,
                )  # fmt: skip
                (slopes,) = torch.autograd.grad(terms.loss.mean(), leaf)
                gradient = torch.einsum("nt,ntk->k", slopes, jacobian[pair])
                probability = (q[prompt, first] * q[prompt, second]).item()
                mean += probability * gradient
                square += probability * gradient.square().sum().item()
                total += probability
    mean, square = mean / total, square / total
    result = verify(method)
    assert_close(result.relative_bias, ((mean - exact).norm() / exact.norm()).item(), rtol=1e-9, atol=1e-12)
    assert_close(result.noise, (2 * (square - mean.square().sum()) / exact.square().sum()).item(), rtol=1e-9, atol=0.0)


# --- what would be wrong, by name: the oracle sees it


@dataclass(frozen=True)
class FlippedSign(Method):
    def __call__(self, log_probs, mask, advantages, ref_log_probs=None, sampler_log_probs=None):
        return super().__call__(log_probs, mask, -advantages, ref_log_probs, sampler_log_probs)


@dataclass(frozen=True)
class DroppedMask(Method):
    def __call__(self, log_probs, mask, advantages, ref_log_probs=None, sampler_log_probs=None):
        return super().__call__(log_probs, mask * (torch.arange(3) > 0), advantages, ref_log_probs, sampler_log_probs)


@dataclass(frozen=True)
class ForgottenImportanceWeight(Method):
    def __call__(self, log_probs, mask, advantages, ref_log_probs=None, sampler_log_probs=None):
        return super().__call__(log_probs, mask, advantages, ref_log_probs)


@dataclass(frozen=True)
class DetachedWeight(Method):
    def __call__(self, log_probs, mask, advantages, ref_log_probs=None, sampler_log_probs=None):
        terms = super().__call__(log_probs, mask, advantages, ref_log_probs)
        s = log_probs.sum(-1)
        return replace(terms, loss=-(terms.weight * s + 0.5 * terms.weight * s.square()))


@dataclass(frozen=True)
class BaselineWithItself(Method):
    @property
    def baseline_function(self):
        return lambda rewards: (rewards + rewards.mean(1, keepdim=True)) / 2


@pytest.mark.parametrize(
    ("broken", "options"),
    [
        (FlippedSign, {}),
        (DroppedMask, {}),
        (ForgottenImportanceWeight, STALE),
        (DetachedWeight, {}),
        (BaselineWithItself, {}),
    ],
)
@pytest.mark.parametrize("beta", [0.0, 0.1])
def test_a_broken_loss_is_seen(broken, options, beta):
    assert verify(Method(**options, beta=beta)).relative_bias < 1e-10
    assert verify(broken(**options, beta=beta)).relative_bias > 0.01


# --- where it leads: pi* = pi_ref exp(r / beta) / Z


def kl_to_the_optimum(policy, logits, beta):
    s, s_ref = policy.log_probs(logits).sum(-1), policy.log_probs(policy.ref_logits).sum(-1)
    best = (s_ref + policy.rewards / beta).log_softmax(-1)
    return (s.exp() * (s - best)).sum(-1).max().item()


@pytest.mark.parametrize("estimator", ["prop3", "prop3_stable"])
def test_exact_steps_lead_to_the_optimal_policy(estimator):
    policy, method = EnumerablePolicy.build(0), Method(estimator=estimator, beta=0.5)
    logits = policy.logits.clone().requires_grad_()
    optimizer = torch.optim.Adam([logits], lr=0.05)
    ref = policy.log_probs(policy.ref_logits)
    assert kl_to_the_optimum(policy, logits, 0.5) > 1
    for _ in range(2000):
        log_probs = policy.log_probs(logits)
        terms = method(log_probs.flatten(0, 1), policy.mask.repeat(2, 1), policy.rewards.flatten(), ref.flatten(0, 1))
        probs = log_probs.detach().sum(-1).exp().flatten()
        optimizer.zero_grad()
        (probs * terms.loss).sum().backward()
        optimizer.step()
    assert kl_to_the_optimum(policy, logits, 0.5) < 1e-6


@pytest.mark.parametrize("num_updates", [1, 4])
def test_sampled_steps_lead_to_the_optimal_policy_on_old_samples_too(num_updates):
    """Groups of 4 with a leave-one-out baseline; with 4 updates per batch, importance weights keep the aim."""
    beta, generator = 0.5, torch.Generator().manual_seed(0)
    policy, method = EnumerablePolicy.build(0), Method(beta=beta, stale_samples=num_updates > 1)
    logits = policy.logits.clone().requires_grad_()
    optimizer = torch.optim.Adam([logits], lr=0.02)
    ref = policy.log_probs(policy.ref_logits)
    num_steps = 3000
    for step in range(num_steps):
        for group in optimizer.param_groups:
            group["lr"] = 0.02 * (1 - step / num_steps)
        if step % num_updates == 0:
            sampler = policy.log_probs(logits).detach()
            drawn = sampler.sum(-1).exp().multinomial(512, replacement=True, generator=generator)  # [2, 512]
            rewards = policy.rewards.gather(1, drawn).view(-1, 4)
            advantages = (rewards - leave_one_out(rewards)).flatten()
            prompts = torch.arange(2).repeat_interleave(512)
            drawn = drawn.flatten()
        log_probs = policy.log_probs(logits)[prompts, drawn]
        old = sampler[prompts, drawn] if num_updates > 1 else None
        terms = method(log_probs, policy.mask[drawn], advantages, ref[prompts, drawn], old)
        optimizer.zero_grad()
        terms.loss.mean().backward()
        optimizer.step()
    assert kl_to_the_optimum(policy, logits, beta) < 1e-3
