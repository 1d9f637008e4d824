"""Weightings of offline data: by hand, and where they lead on a problem whose every answer can be enumerated."""

import math
from itertools import pairwise

import pytest
import torch
from reference import EnumerablePolicy
from torch import Tensor
from torch.testing import assert_close

from online_sft import WEIGHTINGS, effective_sample_size, fit_temperature, weighted_nll
from online_sft.weightings import boltzmann, exponential, top_k, weighting_of

REWARDS = torch.tensor([1.0, 0.0, 3.0, 2.0, 5.0, 5.0, -1.0], dtype=torch.float64)
GROUPS = torch.tensor([7, 7, 7, 2, 2, 2, 9])


def group_means(values: Tensor) -> Tensor:
    return torch.stack([values[g == GROUPS].mean() for g in GROUPS])


BY_HAND = {
    "uniform": ({}, torch.ones(7, dtype=torch.float64)),
    "reward": ({}, REWARDS),
    "rejection": ({"threshold": 1.0}, torch.tensor([0.0, 0, 1, 1, 1, 1, 0], dtype=torch.float64)),
    "top_k": ({"k": 2}, torch.tensor([1.0, 0, 1, 0, 1, 1, 1], dtype=torch.float64)),
    "exponential": ({"temperature": 2.0}, 7 * (REWARDS / 2).exp() / (REWARDS / 2).exp().sum()),
    "advantage_exponential": (
        {"temperature": 0.5, "max_weight": 6.0},
        ((REWARDS - group_means(REWARDS)) / 0.5).exp().clamp(max=6.0),
    ),
    "boltzmann": ({"temperature": 2.0}, (REWARDS / 2).exp() / group_means((REWARDS / 2).exp())),
}


@pytest.mark.parametrize("name", WEIGHTINGS)
def test_by_hand(name):
    parameters, expected = BY_HAND[name]
    assert_close(weighting_of(name, parameters)(REWARDS, GROUPS), expected)


@pytest.mark.parametrize("name", WEIGHTINGS)
def test_the_order_of_the_rows_does_not_matter(name):
    order = torch.tensor([4, 6, 0, 2, 5, 1, 3])
    weights = WEIGHTINGS[name](REWARDS, GROUPS)
    assert_close(WEIGHTINGS[name](REWARDS[order], GROUPS[order])[torch.argsort(order)], weights)


def test_of_equal_rewards_top_k_keeps_the_earlier():
    assert top_k(torch.tensor([2.0, 2.0, 2.0]), torch.zeros(3), k=2).tolist() == [1.0, 1.0, 0.0]


@pytest.mark.parametrize("name", ["exponential", "boltzmann"])
def test_huge_rewards_do_not_overflow_and_an_offset_changes_nothing(name):
    assert_close(WEIGHTINGS[name](REWARDS + 1e4, GROUPS), WEIGHTINGS[name](REWARDS, GROUPS))


@pytest.mark.parametrize("name", ["exponential", "boltzmann"])
def test_softmax_weights_have_mean_one(name):
    assert_close(WEIGHTINGS[name](REWARDS, GROUPS).mean(), torch.tensor(1.0, dtype=torch.float64))


def test_effective_sample_size():
    assert effective_sample_size(torch.ones(5)) == 5.0
    assert effective_sample_size(torch.tensor([0.0, 0.0, -3.0])) == 1.0
    assert_close(effective_sample_size(torch.tensor([1.0, 2.0, -1.0])), 16 / 6)
    assert effective_sample_size(torch.zeros(4)) == 0.0


@pytest.mark.parametrize("name", ["exponential", "boltzmann", "advantage_exponential"])
@pytest.mark.parametrize("target", [0.6, 0.9])
def test_the_temperature_that_is_found_gives_the_sample_size_asked_for(name, target):
    rewards = torch.randn(400, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    groups = torch.arange(400) // 8
    temperature = fit_temperature(WEIGHTINGS[name], rewards, groups, target_ess=target)
    weights = WEIGHTINGS[name](rewards, groups, temperature=temperature)
    assert_close(effective_sample_size(weights) / 400, target, rtol=1e-6, atol=0)


def test_a_sample_size_that_only_temperatures_in_between_have_is_found():
    """Where AWR cuts its weights the sample size rises again as it gets colder."""
    rewards, groups = torch.tensor([0.0, 1.0] * 20, dtype=torch.float64), torch.arange(40) // 2
    rewards[:4] = torch.tensor([0.0, 30.0, 0.0, 40.0])
    awr = WEIGHTINGS["advantage_exponential"]
    shares = [effective_sample_size(awr(rewards, groups, temperature=t)) / 40 for t in (1e-3, 0.1, 0.3, 30.0)]
    target = (min(shares) + shares[-1]) / 2
    assert min(shares) < shares[0]
    found = awr(rewards, groups, temperature=fit_temperature(awr, rewards, groups, target_ess=target))
    assert_close(effective_sample_size(found) / 40, target, rtol=1e-6, atol=0)


def test_a_sample_size_out_of_reach_is_refused_with_what_is_within():
    half_are_best = torch.tensor([0.0, 1.0] * 10)
    with pytest.raises(ValueError, match=r"effective sample size of 0.2 of the rows.* between 0.5 and 1; choose"):
        fit_temperature(exponential, half_are_best, torch.zeros(20), target_ess=0.2)


@pytest.mark.parametrize(
    ("name", "parameters", "message"),
    [
        ("raft", None, "weighting must be one of advantage_exponential, .*; got 'raft'"),
        ("boltzmann", {"beta": 1.0}, "'boltzmann' has no parameter 'beta'; it has temperature"),
        ("uniform", {"k": 1}, "'uniform' has no parameter 'k'; it has none"),
        ("boltzmann", {"temperature": 0.0}, "temperature of weighting 'boltzmann' must be a positive number; got 0"),
    ],
)
def test_unknown_names_and_parameters_are_named(name, parameters, message):
    with pytest.raises(ValueError, match=message):
        weighting_of(name, parameters)


def test_k_of_zero_is_refused():
    with pytest.raises(ValueError, match="k must be a whole number of samples per prompt, at least 1; got 0"):
        top_k(REWARDS, GROUPS, k=0)


# Where they lead: 27 sequences, every one enumerated, a policy that can be any distribution over them.


def fit(policy: EnumerablePolicy, weight_of_sequence: Tensor, steps: int = 60) -> Tensor:
    """log pi of every sequence after maximising sum_y weight_y log pi(y), the weighted SFT loss, by L-BFGS."""
    logits = torch.zeros_like(policy.ref_logits).requires_grad_()
    optimizer = torch.optim.LBFGS([logits], max_iter=steps, tolerance_grad=1e-12, line_search_fn="strong_wolfe")

    def loss():
        optimizer.zero_grad()
        nll = weighted_nll(policy.log_probs(logits).unsqueeze(1), weight_of_sequence.unsqueeze(1), denominator=1)
        nll.backward()
        return nll

    for _ in range(5):
        optimizer.step(loss)
    return policy.log_probs(logits).detach()


def sampled(log_probs: Tensor, num: int, generator: torch.Generator) -> Tensor:
    return torch.multinomial(log_probs.exp(), num, replacement=True, generator=generator)


@pytest.mark.parametrize("beta", [0.5, 1.0, 3.0])
def test_boltzmann_weighting_converges_to_the_solution_of_kl_regularised_rlhf(beta):
    """On samples of pi_ref, here one per expected count, the fit is pi_ref exp(r / beta) / Z."""
    policy = EnumerablePolicy(seed=0)
    counts = (policy.log_probs(policy.ref_logits).exp() * 2000).round().long()
    rows = torch.arange(27).repeat_interleave(counts)
    weights = boltzmann(policy.rewards[rows], torch.zeros_like(rows), temperature=beta)
    per_sequence = torch.zeros(27, dtype=torch.float64).index_add_(0, rows, weights) / len(rows)
    fitted = fit(policy, per_sequence)
    target = (counts / counts.sum()).log() + policy.rewards / beta
    target = target - target.logsumexp(0)
    kl = torch.where(counts > 0, target.exp() * (target - fitted), torch.zeros_like(fitted)).sum()
    assert 0 <= kl + 1e-12 < 1e-6


def test_boltzmann_weighting_of_random_samples_comes_within_a_thousandth_of_a_nat():
    policy = EnumerablePolicy(seed=1)
    reference = policy.log_probs(policy.ref_logits).detach()
    rows = sampled(reference, 200_000, torch.Generator().manual_seed(0))
    weights = boltzmann(policy.rewards[rows], torch.zeros_like(rows), temperature=1.0)
    fitted = fit(policy, torch.zeros(27, dtype=torch.float64).index_add_(0, rows, weights) / len(rows))
    target = (reference + policy.rewards).log_softmax(0)
    assert (target.exp() * (target - fitted)).sum() < 1e-3


@pytest.mark.parametrize("name", ["top_k", "exponential"])
def test_raft_and_rwr_improve_monotonically(name):
    """Sample from the policy, weight, fit, repeat: the expected reward rises every time, almost to the best reward."""
    policy = EnumerablePolicy(seed=2)
    generator = torch.Generator().manual_seed(0)
    log_probs = policy.log_probs(policy.ref_logits).detach()
    history = [(log_probs.exp() * policy.rewards).sum().item()]
    for _ in range(6):
        rows = sampled(log_probs, 4000, generator)
        weights = WEIGHTINGS[name](policy.rewards[rows], torch.arange(4000) // 4)
        log_probs = fit(policy, torch.zeros(27, dtype=torch.float64).index_add_(0, rows, weights) / len(rows))
        history.append((log_probs.exp() * policy.rewards).sum().item())
    best = policy.rewards.max().item()
    assert all(later > earlier or later > best - 1e-3 for earlier, later in pairwise(history)), history
    assert history[-1] > history[0] + 0.8 * (best - history[0]), history


def test_awr_with_the_mean_as_value_is_rwr_up_to_a_factor():
    one_prompt = torch.zeros(7)
    awr = WEIGHTINGS["advantage_exponential"](REWARDS, one_prompt, temperature=2.0, max_weight=math.inf)
    ratio = awr / exponential(REWARDS, one_prompt, temperature=2.0)
    assert_close(ratio, ratio[0].expand(7))
