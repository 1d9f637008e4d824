"""What is summed over tokens and maximised: functions of a token's log-prob and weight, differentiated in the log-prob.

`weighted_log_probs` (online_sft/losses.py) is the plain one, w log p.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from online_sft.losses import weighted_log_probs

__all__ = ["Objective", "dft", "floored", "importance_weights", "value_and_slopes"]

# (log_probs, weights) -> what is summed and maximised, all of one shape. Differentiated in the log-probs.
Objective = Callable[[Tensor, Tensor], Tensor]


def value_and_slopes(objective: Objective, log_probs: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """The objective's sum over the tokens, and its derivative at each log-prob: the weight that the gradient sees."""
    with torch.enable_grad():
        log_probs = log_probs.detach().requires_grad_()
        value = objective(log_probs, weights).sum()
        (slopes,) = torch.autograd.grad(value, log_probs)
    return value.detach(), slopes


def floored(log_probs: Tensor, weights: Tensor, *, floor: float) -> Tensor:
    """w max(log p, floor) where w < 0, w log p elsewhere, in nats.

    -w log p with w < 0 is unbounded below: the more unlikely the token, the lower the loss, for ever, and the logits
    grow until they overflow. Below the floor such a token has no gradient any more. Shapes as in `weighted_log_probs`.

    Args:
        floor: in nats, negative; -log V is the chance level of a vocabulary of V tokens.
    """
    return weighted_log_probs(torch.where(weights < 0, log_probs.clamp(min=floor), log_probs), weights)


def dft(log_probs: Tensor, weights: Tensor) -> Tensor:
    """w sg(p) log p: dynamic fine-tuning, which takes the 1/p out of SFT's implicit importance weight.

    Wu et al., On the Generalization of SFT (2025), https://arxiv.org/abs/2508.05629. Shapes as in `weighted_log_probs`.
    """
    return weighted_log_probs(log_probs, weights * log_probs.exp())  # which takes its weights as constants


def importance_weights(
    log_probs: Tensor, ref_log_probs: Tensor, mask: Tensor, sequences: Tensor, *, max_weight: float
) -> Tensor:
    """min(pi(y|x) / pi_ref(y|x), max_weight) of each token's sequence, constant: iw-SFT.

    Weights the curated data by how likely the current policy makes it against the policy that wrote it, which tightens
    SFT's lower bound on the reward. Qin & Springenberg, Supervised Fine Tuning on Curated Data is Reinforcement
    Learning (and can be improved) (2025), https://arxiv.org/abs/2507.12856, with the current policy as the proposal q.

    Args:
        log_probs, ref_log_probs: [...], of each token under the policy and under the one that wrote it, nats; NaN,
            unknown, counts as the policy's own.
        mask: [...] bool, the loss tokens.
        sequences: [...] int64, the sequence of each token.
        max_weight: where the ratio is cut.

    Returns:
        [...]; the ratio is that of whole sequences, over their loss tokens.
    """
    found, inverse = sequences.unique(return_inverse=True)
    log_ratios = (log_probs - ref_log_probs).detach().masked_fill(~mask | ref_log_probs.isnan(), 0.0)
    sums = log_ratios.new_zeros(len(found)).index_add_(0, inverse.flatten(), log_ratios.flatten())
    return sums.exp().clamp(max=max_weight)[inverse]
