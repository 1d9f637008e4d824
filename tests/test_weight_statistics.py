"""What is reported about the weights, against numbers worked out by hand."""

import torch
import torch.nn.functional as F
from torch.testing import assert_close

from online_sft.weight_statistics import WeightStatistics

WEIGHTS = torch.tensor([[2.0, -1.0, 0.0], [1.0, 4.0, 0.0]])
LOG_PROBS = torch.tensor([[-0.5, -3.0, 0.0], [-1.0, -2.0, 0.0]])
SCORED = WEIGHTS != 0


def statistics(rows):
    return WeightStatistics.of(WEIGHTS[rows], WEIGHTS[rows], LOG_PROBS[rows], SCORED[rows], torch.tensor(3 * len(rows)))


def test_metrics_of_two_rows():
    mass = WEIGHTS.abs() * (1 - LOG_PROBS.exp())
    assert_close(
        statistics([0, 1]).metrics(),
        {
            "ess": 8.0**2 / 22 / 6,
            "max_weight_share": 4 / 8,
            "negative_gradient_share": (mass[0, 1] / mass.sum()).item(),
            "nll": 6.5 / 4,
            "negative_nll": 3.0,
        },
    )


def test_they_add_up_over_micro_batches():
    assert_close((statistics([0]) + statistics([1])).metrics(), statistics([0, 1]).metrics())


def test_gradient_mass_is_half_the_l1_norm_of_the_gradient_at_the_logits():
    logits = torch.randn(5, 9, dtype=torch.float64, requires_grad=True)
    labels, weights = torch.arange(5), torch.tensor([1.0, -2.0, 0.5, 3.0, -1.0], dtype=torch.float64)
    log_probs = logits.log_softmax(-1)[labels, labels]
    (weights * log_probs).sum().backward()
    norms = logits.grad.abs().sum(-1) / 2
    got = WeightStatistics.of(weights, weights, log_probs, torch.ones(5, dtype=torch.bool), torch.tensor(5)).metrics()
    assert_close(got["negative_gradient_share"], (norms[weights < 0].sum() / norms.sum()).item())


def test_equal_weights_have_the_full_sample_size():
    ones = torch.ones(1, 4)
    got = WeightStatistics.of(ones, ones, -ones, ones.bool(), torch.tensor(4)).metrics()
    assert got["ess"] == 1.0
    assert got["negative_gradient_share"] == 0.0
    assert "negative_nll" not in got


def test_nothing_to_train_on_reports_nothing():
    nothing = WeightStatistics.of(*[torch.zeros(1, 2)] * 3, torch.zeros(1, 2).bool(), torch.tensor(0))
    assert nothing.metrics() == {}


def test_tokens_that_were_not_scored_do_not_count():
    padded = [F.pad(x, (0, 3)) for x in (WEIGHTS, WEIGHTS, LOG_PROBS, SCORED)]
    assert WeightStatistics.of(*padded, torch.tensor(6)).metrics() == statistics([0, 1]).metrics()


def test_the_gradient_mass_is_that_of_the_slopes():
    slopes = torch.tensor([[2.0, 0.0, 0.0], [1.0, 4.0, 0.0]])  # the negative token lies below a floor
    got = WeightStatistics.of(WEIGHTS, slopes, LOG_PROBS, SCORED, torch.tensor(6)).metrics()
    assert got["negative_gradient_share"] == 0.0
    assert got["ess"] == statistics([0, 1]).metrics()["ess"]
