"""The slow, obvious versions: loops over one token or one sequence at a time, in float64."""

import itertools
import math

import torch
from torch import Tensor


def weighted_nll_loop(logits, labels, weights, denominator, temperature=1.0, ignore_index=-100) -> float:
    """-(1/D) sum w_t log p(y_t | y_<t), token by token, with Python floats."""
    total = 0.0
    for b in range(len(labels)):
        for t in range(1, labels.size(1)):
            label = labels[b, t].item()
            if label == ignore_index:
                continue
            scores = [score / temperature for score in logits[b, t - 1].tolist()]
            highest = max(scores)
            log_normaliser = highest + math.log(sum(math.exp(score - highest) for score in scores))
            total -= weights[b, t].item() * (scores[label] - log_normaliser)
    return total / denominator


class EnumerablePolicy:
    """Softmax over `vocabulary` tokens at each of `length` steps, one table of logits per prefix: every policy on these
    sequences has this form, so what holds for it holds for a language model. float64."""

    def __init__(self, *, vocabulary: int = 3, length: int = 3, seed: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.sequences = list(itertools.product(range(vocabulary), repeat=length))
        prefixes = [s for n in range(length) for s in itertools.product(range(vocabulary), repeat=n)]
        self._row = {prefix: row for row, prefix in enumerate(prefixes)}

        def draw(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator, dtype=torch.float64)

        self.logits = draw(len(prefixes), vocabulary).requires_grad_()
        self.ref_logits = draw(len(prefixes), vocabulary)
        self.rewards = draw(len(self.sequences))

    def log_probs(self, logits: Tensor) -> Tensor:
        """log pi(y) of every sequence, [num sequences]."""
        steps = logits.log_softmax(-1)
        return torch.stack([sum(steps[self._row[s[:t]], token] for t, token in enumerate(s)) for s in self.sequences])

    def exact_gradient(self, beta: float) -> Tensor:
        """Autograd gradient of -(E[r] - beta KL(pi || pi_ref)), a loss to minimise."""
        s, s_ref = self.log_probs(self.logits), self.log_probs(self.ref_logits)
        objective = (s.exp() * (self.rewards - beta * (s - s_ref))).sum()
        return torch.autograd.grad(-objective, self.logits)[0]

    def expected_gradient(self, loss_of_sequences, sampling_logits: Tensor | None = None) -> Tensor:
        """sum_y q(y) grad loss(y), q the policy itself or another one: the mean of the estimator, without sampling."""
        q = self.log_probs(self.logits if sampling_logits is None else sampling_logits).exp().detach()
        return torch.autograd.grad((q * loss_of_sequences).sum(), self.logits, retain_graph=True)[0]


def relative_error(estimate: Tensor, exact: Tensor) -> float:
    return ((estimate - exact).norm() / exact.norm()).item()
