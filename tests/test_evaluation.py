"""pass@k and maj@k against enumeration of all subsets, and the interval against a distribution that is known."""

import math
from collections import Counter
from fractions import Fraction
from itertools import combinations, product

import pytest
import torch
from torch.testing import assert_close

from online_sft import pass_at_k
from online_sft.evaluation import Estimate, GradedPrompt, answer_value, bootstrap_mean, estimates, maj_at_k


def majority(votes):
    """Expected correctness of a voter for the winner among (answer, is_correct), ties broken at random: slow way."""
    counts = Counter(answer for answer, _ in votes if answer is not None)
    winners = [answer for answer in counts if counts[answer] == max(counts.values())]
    rights = [sum(right for a, right in votes if a == answer) for answer in winners]
    shares = [Fraction(right, counts[answer]) for answer, right in zip(winners, rights, strict=True)]
    return sum(shares) / len(shares) if shares else Fraction(0)


def by_enumeration(answers, is_correct, k):
    subsets = list(combinations(list(zip(answers, is_correct, strict=True)), k))
    return float(sum(map(majority, subsets)) / len(subsets))


@pytest.mark.parametrize("n", [1, 2, 5, 8])
def test_pass_at_k_is_the_share_of_subsets_that_hold_a_correct_sample(n):
    for c, k in product(range(n + 1), range(1, n + 1)):
        subsets = list(combinations([True] * c + [False] * (n - c), k))
        assert_close(pass_at_k(n, c, k).item(), sum(map(any, subsets)) / len(subsets), rtol=1e-14, atol=1e-15)


def test_pass_at_k_by_hand_for_many_prompts_at_once():
    found = pass_at_k(torch.tensor([[4, 4], [4, 2]]), torch.tensor([[0, 1], [3, 1]]), k=2)
    assert_close(found, torch.tensor([[0.0, 0.5], [1.0, 1.0]], dtype=torch.float64))


@pytest.mark.parametrize("p", [0.1, 0.5])
def test_pass_at_k_is_unbiased_for_k_fresh_samples(p):
    """The mean over all outcomes of n = 6 draws is 1 - (1 - p)^3; that of 1 - (1 - c/n)^k is not."""
    chances = [math.comb(6, c) * p**c * (1 - p) ** (6 - c) for c in range(7)]
    assert_close(sum(w * pass_at_k(6, c, 3).item() for c, w in enumerate(chances)), 1 - (1 - p) ** 3)


def test_pass_at_k_does_not_lose_digits_where_binomials_overflow():
    n, c, k = 10_000, 3, 5_000
    exact = 1 - Fraction(math.comb(n - c, k), math.comb(n, k))
    assert_close(pass_at_k(n, c, k).item(), float(exact), rtol=1e-12, atol=0)


@pytest.mark.parametrize(("n", "c", "k"), [(3, 1, 4), (3, 1, 0), (3, 4, 1), (3, -1, 1), (torch.tensor([9, 3]), 1, 4)])
def test_fewer_samples_than_k_and_impossible_counts_are_refused(n, c, k):
    with pytest.raises(ValueError, match=r"k must be between 1 and the number of samples|num_correct must be between"):
        pass_at_k(n, c, k)


@pytest.mark.parametrize("answers", ["AABBC", "AAAAAA", "A.B..", ".....", "ABCDEF", "AABBCCD.", "BBBAAC."])
def test_maj_at_k_is_the_mean_over_all_subsets(answers):
    votes = [None if answer == "." else answer for answer in answers]
    rights = [[answer in right for answer in answers] for right in ("A", "B", "AC", "")]
    for is_correct in [*rights, [i % 3 == 0 for i in range(len(answers))]]:  # the last tells apart equal answers
        for k in range(1, len(answers) + 1):
            assert_close(maj_at_k(votes, is_correct, k), by_enumeration(votes, is_correct, k), rtol=1e-13, atol=1e-14)


@pytest.mark.parametrize(
    ("answers", "is_correct", "expected", "why"),
    [
        ("AAB", (1, 1, 0), 1.0, "two against one"),
        ("ABB", (1, 0, 0), 0.0, "one against two"),
        ("AABB", (1, 1, 0, 0), 0.5, "a tie of a right and a wrong answer"),
        ("ABC", (1, 0, 0), 1 / 3, "a tie of three"),
        ("A..", (1, 0, 0), 1.0, "the only voter"),
        ("...", (1, 1, 1), 0.0, "none votes, whatever the grader says"),
        ("AAB", (1, 0, 0), 0.5, "the grader tells the voters of one answer apart"),
    ],
)
def test_the_majority_by_hand_and_ties_are_shared(answers, is_correct, expected, why):
    votes = [None if answer == "." else answer for answer in answers]
    assert maj_at_k(votes, [bool(c) for c in is_correct], len(votes)) == pytest.approx(expected, rel=1e-15), why


def test_answers_of_equal_value_vote_together():
    answers, is_correct = [r"\frac34", "0.75", "2", "2", "3/4"], [True, True, False, False, True]
    assert maj_at_k(answers, is_correct, 5) == 0.0
    assert maj_at_k(answers, is_correct, 5, answer_key=answer_value) == 1.0
    assert answer_value("$x+1$") == answer_value("x+1") != answer_value("x+2")


def test_a_majority_of_hundreds_of_samples_is_exact():
    answers = ["A"] * 120 + ["B"] * 100 + [f"{i}" for i in range(36)]
    found = maj_at_k(answers, [answer == "A" for answer in answers], 64)
    subsets = torch.rand(20_000, 256, generator=torch.Generator().manual_seed(0)).argsort(1)[:, :64]
    a, b = (subsets < 120).sum(1), ((subsets >= 120) & (subsets < 220)).sum(1)
    drawn = ((a > b).double() + 0.5 * (a == b).double()).mean().item()
    assert abs(found - drawn) < 4 * math.sqrt(0.25 / 20_000)  # four standard errors of the drawn subsets


def test_wrong_sizes_of_a_vote_are_refused():
    with pytest.raises(ValueError, match=r"2; got k=3"):
        maj_at_k(["1", "2"], [True, False], 3)
    with pytest.raises(ValueError, match=r"got 1 answers and 2 samples"):
        maj_at_k(["1"], [True, False], 1)
    with pytest.raises(ValueError, match="at most 1000 samples; got 1001"):
        maj_at_k(["1"] * 1001, [True] * 1001, 500)
    assert maj_at_k(["1"] * 600 + [None] * 400, [True] * 1000, 500) == pytest.approx(1.0)


def test_the_interval_covers_the_true_mean_as_often_as_it_says_when_samples_of_a_prompt_agree():
    """400 data sets of 50 prompts, each wholly right or wrong (p = 0.4), 8 samples a prompt.

    An interval over the 400 samples, as if each were a prompt, would be sqrt(8) times too narrow and cover 52 %.
    """
    generator = torch.Generator().manual_seed(0)
    covered = 0
    for seed in range(400):
        right = (torch.rand(50, generator=generator) < 0.4).tolist()
        prompts = [GradedPrompt([r] * 8, ["1"] * 8) for r in right]
        found = estimates(prompts, [1], seed=seed)["avg@8"]
        covered += found.low <= 0.4 <= found.high
    assert abs(covered / 400 - 0.95) < 0.035  # measured: 0.9425; three standard errors of 400 draws are 0.033


def test_the_interval_is_that_of_the_normal_distribution_for_many_prompts():
    values = torch.randn(2000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = bootstrap_mean(values, generator=torch.Generator().manual_seed(1), num_resamples=5000)
    half = 1.96 * values.std().item() / math.sqrt(2000)
    assert found.mean == values.mean().item()
    assert_close([found.low, found.high], [found.mean - half, found.mean + half], rtol=0, atol=0.05 * half)
    narrower = bootstrap_mean(values, generator=torch.Generator().manual_seed(1), level=0.5, num_resamples=5000)
    assert_close(narrower.high - narrower.low, 2 * half * 0.6745 / 1.96, rtol=0.05, atol=0)


def test_the_interval_of_one_prompt_is_its_value_and_of_none_is_refused():
    assert bootstrap_mean(torch.tensor([0.25])) == Estimate(0.25, 0.25, 0.25)
    with pytest.raises(ValueError, match="one value per prompt"):
        bootstrap_mean(torch.tensor([]))


def test_the_same_seed_gives_the_same_interval_and_the_global_generator_is_left_alone():
    values, state = torch.rand(30, generator=torch.Generator().manual_seed(3)), torch.get_rng_state()
    one, two, other = (bootstrap_mean(values, generator=torch.Generator().manual_seed(s)) for s in (7, 7, 8))
    assert one == two != other
    assert torch.equal(torch.get_rng_state(), state)


def test_unscorable_samples_are_left_out_and_so_are_prompts_with_too_few_others():
    prompts = [
        GradedPrompt([True, None, False, True], ["4", "4", "5", "4"]),  # three samples, of which two are right
        GradedPrompt([False, False, False, True], ["1", "1", None, "2"]),
        GradedPrompt([True, None, None, None], ["7", "8", "8", "8"]),  # too few for k = 2
        GradedPrompt([None] * 4, ["9"] * 4),
    ]
    found = {name: estimate.mean for name, estimate in estimates(prompts, [1, 2, 3]).items()}
    assert found == pytest.approx(
        {
            "avg@4": (2 / 3 + 1 / 4 + 1) / 3,
            "pass@1": (2 / 3 + 1 / 4 + 1) / 3,
            "pass@2": (1 + 1 / 2) / 2,
            "maj@2": ((1 + 1 / 2 + 1 / 2) / 3 + (0 + 0 + 1 / 2 + 0 + 1 / 2 + 1) / 6) / 2,
            "pass@3": (1 + 3 / 4) / 2,
            "maj@3": (1 + (0 + 0 + 1 / 2 + 1 / 2) / 4) / 2,
        }
    )


def test_estimates_without_a_scorable_prompt_are_nan_and_ragged_prompts_are_refused():
    found = estimates([GradedPrompt([None, True], ["1", "1"])], [1, 2])
    assert found["pass@1"].mean == 1.0 and math.isnan(found["pass@2"].mean) and math.isnan(found["maj@2"].low)
    with pytest.raises(ValueError, match=r"same number of samples; got \[1, 2\]"):
        estimates([GradedPrompt([True], ["1"]), GradedPrompt([True, True], ["1", "1"])], [1])
    with pytest.raises(ValueError, match=r"2; got k=3"):
        estimates([GradedPrompt([True, True], ["1", "1"])], [3])
