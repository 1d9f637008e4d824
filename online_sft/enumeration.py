"""A policy small enough that every completion can be listed, so that expectations are sums and not estimates."""

import itertools
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["EnumerablePolicy", "sampler_logits"]

_END = 0  # the token that ends a completion
_REWARDS = (0.0, 0.5, 1.0)


@dataclass(frozen=True)
class EnumerablePolicy:
    """Two prompts, an easy and a hard one, and all completions over 4 tokens of at most 3: 40 for each. float64.

    A softmax over the tokens for each prompt and prefix, which is the most that any language model can be on them. One
    token ends a completion; those of full length without it are truncated.

    logits, ref_logits: [P, rows, V], of the policy and of the reference; a row for each prefix.
    rewards: [P, N], one of 0, 0.5 and 1.
    tokens, rows, mask: [N, T], what is written after which prefix; 0 where mask is.
    is_truncated: [N].
    """

    logits: Tensor
    ref_logits: Tensor
    rewards: Tensor
    tokens: Tensor
    rows: Tensor
    mask: Tensor
    is_truncated: Tensor

    @classmethod
    def build(cls, seed: int = 0, vocabulary: int = 4, length: int = 3) -> "EnumerablePolicy":
        generator = torch.Generator().manual_seed(seed)

        def draw(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator, dtype=torch.float64)

        words = range(1, vocabulary)
        prefixes = [p for n in range(length) for p in itertools.product(words, repeat=n)]
        row_of = {prefix: row for row, prefix in enumerate(prefixes)}
        ended = [(*prefix, _END) for prefix in prefixes]
        truncated = list(itertools.product(words, repeat=length))
        completions = ended + truncated
        tokens, rows, mask = (torch.zeros(len(completions), length, dtype=torch.long) for _ in range(3))
        for n, completion in enumerate(completions):
            for t, token in enumerate(completion):
                tokens[n, t], rows[n, t], mask[n, t] = token, row_of[completion[:t]], 1
        chances = torch.tensor([[0.3, 0.2, 0.5], [0.8, 0.1, 0.1]])  # of 0, 0.5 and 1: the easy and the hard prompt
        levels = chances.multinomial(len(completions), replacement=True, generator=generator)
        return cls(
            logits=draw(2, len(prefixes), vocabulary),
            ref_logits=draw(2, len(prefixes), vocabulary),
            rewards=torch.tensor(_REWARDS, dtype=torch.float64)[levels],
            tokens=tokens,
            rows=rows,
            mask=mask,
            is_truncated=torch.tensor([False] * len(ended) + [True] * len(truncated)),
        )

    def log_probs(self, logits: Tensor, temperature: float = 1.0) -> Tensor:
        """Of each token of each completion, [P, N, T], nats; 0 at padding."""
        steps = (logits / temperature).log_softmax(-1)
        return steps[:, self.rows, self.tokens].masked_fill(self.mask == 0, 0.0)

    def exact_gradient(self, beta: float) -> Tensor:
        """Of -(E[r] - beta KL(policy || reference)), the mean over the prompts, with respect to `logits`."""
        logits = self.logits.detach().requires_grad_()
        s, s_ref = self.log_probs(logits).sum(-1), self.log_probs(self.ref_logits).sum(-1)
        objective = (s.exp() * (self.rewards - beta * (s - s_ref))).sum(-1).mean()
        return torch.autograd.grad(-objective, logits)[0]

    def token_gradients(self, temperature: float = 1.0) -> Tensor:
        """d log p(token) / d logits, [P, N, T, rows * V]: what carries a slope in log-probs over to the parameters."""
        num_prompts, num_rows, vocabulary = self.logits.shape
        probs = (self.logits / temperature).softmax(-1)[:, self.rows]  # [P, N, T, V]
        slopes = (torch.nn.functional.one_hot(self.tokens, vocabulary) - probs) / temperature * self.mask.unsqueeze(-1)
        gradients = torch.zeros(*slopes.shape[:3], num_rows, vocabulary, dtype=slopes.dtype)
        index = self.rows.view(1, *self.rows.shape, 1, 1).expand(num_prompts, -1, -1, 1, vocabulary)
        return gradients.scatter_(3, index, slopes.unsqueeze(3)).flatten(3)


def sampler_logits(
    policy: EnumerablePolicy,
    logits: Tensor,
    *,
    temperature: float = 1.0,
    top_p: float = 1.0,
    top_k: int = 0,
    min_p: float = 0.0,
    repetition_penalty: float = 1.0,
) -> Tensor:
    """The logits that completions are drawn from, in the order of transformers' generation. [P, rows, V]."""
    if repetition_penalty != 1.0:
        logits = torch.where(
            _is_repetition(policy),
            torch.where(logits < 0, logits * repetition_penalty, logits / repetition_penalty),
            logits,
        )
    logits = logits / temperature
    if top_k:
        weakest = logits.topk(min(top_k, logits.size(-1)), dim=-1).values[..., -1:]
        logits = logits.masked_fill(logits < weakest, -torch.inf)
    if top_p < 1.0:
        ordered, order = logits.sort(-1)
        unlikely = ordered.softmax(-1).cumsum(-1) <= 1 - top_p
        unlikely[..., -1:] = False  # one token stays
        logits = logits.masked_fill(torch.zeros_like(unlikely).scatter(-1, order, unlikely), -torch.inf)
    if min_p:
        probs = logits.softmax(-1)
        logits = logits.masked_fill(probs < min_p * probs.amax(-1, keepdim=True), -torch.inf)
    return logits


def _is_repetition(policy: EnumerablePolicy) -> Tensor:
    """Whether a token is in the row's prefix. [rows, V]."""
    repeated = torch.zeros(policy.logits.shape[1:], dtype=torch.bool)
    for tokens, rows, mask in zip(policy.tokens, policy.rows, policy.mask, strict=True):
        for t in range(int(mask.sum())):
            repeated[rows[t], tokens[:t]] = True
    return repeated
