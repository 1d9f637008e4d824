"""Weighted negative log-likelihood, the one loss behind every trainer here. Derivation: docs/algorithm.md, section 1.

Whoever sums does not divide: the caller knows how many loss tokens the whole optimizer step holds, these do not.
"""

import torch
from torch import Tensor

__all__ = ["per_token", "token_log_probs", "weighted_log_probs", "weighted_nll", "weighted_nll_from_logits"]


def token_log_probs(logits: Tensor, labels: Tensor, *, temperature: float = 1.0, ignore_index: int = -100) -> Tensor:
    """Log-probability of each label given what came before it: log softmax(logits[t-1] / temperature)[labels[t]], nats.

    Args:
        logits: [B, T, V], as a causal language model returns them: position t-1 predicts token t.
        labels: [B, T] int64, aligned with the tokens themselves ("target"). The shift happens here.
        temperature: divides the logits.
        ignore_index: labels that are not scored.

    Returns:
        [B, T-1]; entry t-1 belongs to label t; 0 where the label is `ignore_index`. float32, or float64 for float64
        logits: half precision is widened before the softmax.

    Raises:
        ValueError: when the shapes disagree or `temperature` is not positive.
    """
    if logits.shape[:-1] != labels.shape:
        raise ValueError(f"labels must be [B, T] = {list(logits.shape[:-1])} like the logits; got {list(labels.shape)}")
    if not temperature > 0:
        raise ValueError(f"temperature must be positive; got {temperature}")
    logits = logits[:, :-1]
    if logits.dtype in (torch.float16, torch.bfloat16):
        logits = logits.float()
    labels = labels[:, 1:]
    ignored = labels == ignore_index
    log_probs = (logits / temperature).log_softmax(-1)
    return log_probs.gather(-1, labels.masked_fill(ignored, 0).unsqueeze(-1)).squeeze(-1).masked_fill(ignored, 0.0)


def per_token(weights: Tensor, like: Tensor) -> Tensor:
    """Weights [B], one per sequence, repeated over the tokens of `like`, [B, T]; any others as they are."""
    if weights.dim() == 1 and like.dim() == 2 and len(weights) == len(like):
        return weights.unsqueeze(1).expand_as(like)
    return weights


def weighted_log_probs(log_probs: Tensor, weights: Tensor) -> Tensor:
    """w_bt log p_bt, in nats. A token of weight 0 gives exactly 0, not the NaN of 0 * inf, and gets no gradient.

    Args:
        log_probs: [B, T] or [N], already shifted (`token_log_probs`, or the output of a fused LM head).
        weights: of the same shape, advantage times loss mask, any sign; or [B], one weight for every token of a
            sequence. Constant: no gradient flows into them.

    Returns:
        As the log-probs.

    Raises:
        ValueError: when the shapes disagree.
    """
    weights = per_token(weights, log_probs)
    if weights.shape != log_probs.shape:
        raise ValueError(
            f"weights must be [B, T] = {list(log_probs.shape)} or [B] = [{len(log_probs)}] like the log-probs; "
            f"got {list(weights.shape)}"
        )
    weights = weights.detach()
    return weights * log_probs.masked_fill(weights == 0, 0.0)


def weighted_nll(log_probs: Tensor, weights: Tensor, *, denominator: Tensor | float) -> Tensor:
    """Weighted negative log-likelihood, in nats per unit of `denominator`: -(1/D) sum_bt w_bt log p(y_bt | y_b,<t).

    Args:
        log_probs, weights: as in `weighted_log_probs`.
        denominator: D, for example the loss tokens of the whole optimizer step over all ranks and micro-batches.
            0 (a step without a loss token, whose sum is 0) counts as 1.

    Returns:
        Scalar.
    """
    denominator = torch.as_tensor(denominator, device=log_probs.device)
    return -weighted_log_probs(log_probs, weights).sum() / denominator.masked_fill(denominator == 0, 1)


def weighted_nll_from_logits(
    logits: Tensor,
    labels: Tensor,
    weights: Tensor,
    *,
    denominator: Tensor | float,
    temperature: float = 1.0,
    ignore_index: int = -100,
) -> Tensor:
    """`weighted_nll` of `token_log_probs`.

    Args:
        logits: [B, T, V], unshifted.
        labels: [B, T] int64; `ignore_index` where a token carries no loss.
        weights: [B, T], aligned with the tokens themselves ("target"): `weights[t]` multiplies the loss of token t, so
            `weights[:, 0]` is never used; or [B].
        denominator, temperature, ignore_index: as above.

    Returns:
        Scalar; its gradient at the logits of position t-1 is w_t (softmax - onehot(y_t)) / (temperature D).
    """
    log_probs = token_log_probs(logits, labels, temperature=temperature, ignore_index=ignore_index)
    if weights.dim() == 2:
        weights = weights[:, 1:]
    return weighted_nll(log_probs, weights, denominator=denominator)
