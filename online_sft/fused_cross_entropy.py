"""Weighted cross-entropy straight from hidden states: LM head, softmax, loss and gradients in one pass over the tokens.

The weights are constants, so the gradient of the logits is known as soon as a chunk's softmax is. It is turned into the
gradients of hidden states and LM head at once, in the *forward* pass: three matrix products per token, nothing
recomputed in the backward pass, no [B, T, V] logits ever, and tokens of weight 0 are never projected.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.distributed.tensor import DTensor, Partial

from online_sft.losses import weighted_log_probs
from online_sft.objectives import Objective, value_and_slopes

__all__ = ["LogitTransform", "WeightedCrossEntropy", "gathered", "weighted_linear_cross_entropy"]


@dataclass(frozen=True)
class LogitTransform:
    """From the LM head's product x = h W^T + bias to logits: softcap tanh(scale x / softcap) / temperature."""

    scale: float = 1.0  # Cohere, Granite, Falcon-H1
    softcap: float | None = None  # Gemma 2
    temperature: float = 1.0

    def __post_init__(self) -> None:
        if not self.temperature > 0:
            raise ValueError(f"temperature must be positive; got {self.temperature}")


@dataclass(frozen=True)
class WeightedCrossEntropy:
    """`nll` carries the gradient; the rest is detached and 0 (False) where `scored` is False."""

    nll: Tensor  # scalar, nats: -sum of the objective over the scored tokens
    log_probs: Tensor  # [...], nats
    entropy: Tensor | None  # [...], nats, of the next-token distribution; None unless asked for
    is_top1: Tensor | None  # [...], the label is the most likely token, the first of equals; None unless asked for
    scored: Tensor  # [...], tokens with a label and a weight: only these were projected


def weighted_linear_cross_entropy(
    hidden: Tensor,
    head_weight: Tensor,
    labels: Tensor,
    weights: Tensor,
    *,
    head_bias: Tensor | None = None,
    transform: LogitTransform | None = None,
    temperatures: Tensor | None = None,
    objective: Objective = weighted_log_probs,
    chunk_size: int = 256,
    ignore_index: int = -100,
    with_metrics: bool = False,
) -> WeightedCrossEntropy:
    """-sum_i w_i log softmax(logits_i)[y_i], in nats, undivided: the caller knows the denominator.

    Args:
        hidden: [..., H], already shifted: `hidden[i]` predicts `labels[i]`.
        head_weight: [V, H]; a DTensor is gathered, its gradient averaged over the ranks as FSDP does.
        labels: [...] int64; `ignore_index` where a token carries no loss.
        weights: [...], any sign, constant: no gradient flows into them.
        head_bias: [V].
        transform: scale, soft-cap and temperature of the logits.
        temperatures: [...], of each token, times that of the transform; constant.
        objective: another function of (log_probs, weights), both [N], summed instead of their product, for example with
            a floor. Its derivative at the log-probs is the weight that the gradient sees.
        chunk_size: tokens projected at a time, in two buffers of chunk_size V numbers, whatever the batch. From forward
            to backward the gradients are kept: V H numbers for the head, unless it is frozen, and H per scored token.
        with_metrics: entropy and top-1 too.

    Returns:
        A `WeightedCrossEntropy`. Products run in the dtype of autocast, or of `hidden`; softmax, loss and the sum of
        the head's gradient over chunks run in float32 at least.

    Raises:
        ValueError: when the shapes disagree. RuntimeError: when backward runs twice, because gradients are handed over.
    """
    if temperatures is not None and temperatures.shape != labels.shape:
        raise ValueError(f"temperatures must be {list(labels.shape)} like the labels; got {list(temperatures.shape)}")
    if not hidden.shape[:-1] == labels.shape == weights.shape:
        raise ValueError(
            f"labels and weights must be {list(hidden.shape[:-1])} like the hidden states; "
            f"got {list(labels.shape)} and {list(weights.shape)}"
        )
    scored = (labels != ignore_index) & (weights != 0)
    nll, log_probs, entropy, is_top1 = _FusedCrossEntropy.apply(
        hidden[scored],
        gathered(head_weight),
        None if head_bias is None else gathered(head_bias),
        labels[scored],
        weights.detach()[scored],
        transform or LogitTransform(),
        None if temperatures is None else temperatures[scored],
        objective,
        chunk_size,
        with_metrics,
        torch.is_grad_enabled(),
    )

    def scatter(values: Tensor | None) -> Tensor | None:
        return None if values is None else values.new_zeros(scored.shape).masked_scatter(scored, values)

    return WeightedCrossEntropy(nll, scatter(log_probs), scatter(entropy), scatter(is_top1), scored)  # type: ignore[arg-type]


def gathered(parameter: Tensor) -> Tensor:
    """The whole of a sharded parameter. Every rank's gradient differs, so they are averaged on the way back."""
    if isinstance(parameter, DTensor):
        return parameter.full_tensor(grad_placements=[Partial("avg")] * parameter.device_mesh.ndim)
    return parameter


class _FusedCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,  # [N, H]
        head_weight: Tensor,  # [V, H]
        head_bias: Tensor | None,  # [V]
        labels: Tensor,  # [N]
        weights: Tensor,  # [N]
        transform: LogitTransform,
        temperatures: Tensor | None,  # [N]
        objective: Objective,
        chunk_size: int,
        with_metrics: bool,
        grad_enabled: bool,  # autograd switches it off in here
    ) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
        device = hidden.device
        autocast = torch.is_autocast_enabled(device.type)
        dtype = torch.get_autocast_dtype(device.type) if autocast else hidden.dtype
        wide = torch.promote_types(dtype, torch.float32)
        needs = [grad_enabled and needed for needed in ctx.needs_input_grad[:3]]
        grads = [
            torch.zeros(x.shape, dtype=wide, device=device) if x is not None and needed else None
            for x, needed in zip((hidden, head_weight, head_bias), needs, strict=True)
        ]
        grad_hidden, grad_weight, grad_bias = grads

        num_tokens = len(labels)
        total = torch.zeros((), dtype=wide, device=device)
        log_probs = torch.empty(num_tokens, dtype=wide, device=device)
        entropy = torch.empty_like(log_probs) if with_metrics else None
        is_top1 = torch.empty_like(labels, dtype=torch.bool) if with_metrics else None
        chain = transform.scale / transform.temperature  # d logits / d (h W^T + bias), but for the cap

        with torch.autocast(device.type, enabled=False):
            matrix = head_weight.to(dtype)
            buffers = torch.empty(2, min(chunk_size, num_tokens), len(matrix), dtype=wide, device=device)
            for start in range(0, num_tokens, chunk_size):
                chunk = slice(start, start + chunk_size)
                states, targets = hidden[chunk].to(dtype), labels[chunk]
                rows = torch.arange(len(targets), device=device)

                logits, all_log_probs = buffers[0, : len(targets)], buffers[1, : len(targets)]
                if dtype == wide:
                    torch.mm(states, matrix.T, out=logits)
                else:
                    logits.copy_(states @ matrix.T)
                if head_bias is not None:
                    logits += head_bias
                slope = None
                if transform.softcap is not None:
                    capped = logits.mul_(transform.scale / transform.softcap).tanh_()
                    slope = 1 - capped.square() if any(needs) else None
                    logits.mul_(transform.softcap / transform.temperature)
                elif chain != 1:
                    logits.mul_(chain)
                if temperatures is not None:
                    logits.div_(temperatures[chunk].unsqueeze(1))

                if is_top1 is not None:
                    is_top1[chunk] = logits.argmax(-1) == targets
                torch.log_softmax(logits, -1, out=all_log_probs)
                log_probs[chunk] = all_log_probs[rows, targets]
                probs = torch.exp(all_log_probs, out=logits)
                if entropy is not None:  # a masked token has p log p = 0, not 0 * -inf
                    finite = all_log_probs.clamp_(min=torch.finfo(wide).min)
                    entropy[chunk] = -torch.bmm(probs.unsqueeze(1), finite.unsqueeze(2)).flatten()

                if not any(needs):
                    total += objective(log_probs[chunk], weights[chunk].to(wide)).sum()
                    continue
                value, slopes = value_and_slopes(objective, log_probs[chunk], weights[chunk].to(wide))
                total += value
                # d log p / d logits = onehot - probs; each row's factor goes to the small operand of the products
                probs[rows, targets] -= 1
                error = probs if slope is None else probs.mul_(slope)
                factor = (chain * slopes).unsqueeze(1)
                if temperatures is not None:
                    factor = factor / temperatures[chunk].unsqueeze(1)
                if grad_bias is not None:
                    grad_bias += (error.T @ factor).squeeze(1)
                narrow = error.to(dtype)
                if grad_hidden is not None:
                    grad_hidden[chunk] = factor * (narrow @ matrix)
                if grad_weight is not None:
                    _add_product(grad_weight, narrow.T, (factor * states).to(dtype))

        ctx.grads, ctx.dtypes = grads, [x.dtype if x is not None else None for x in (hidden, head_weight, head_bias)]
        ctx.mark_non_differentiable(*(x for x in (log_probs, entropy, is_top1) if x is not None))
        return -total, log_probs, entropy, is_top1

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_nll: Tensor, *_: Any) -> tuple[Any, ...]:
        if ctx.grads is None:
            raise RuntimeError(
                "backward ran a second time through weighted_linear_cross_entropy; call it again instead"
            )
        grads, ctx.grads = ctx.grads, None
        scaled = (
            None if grad is None else grad.mul_(grad_nll).to(dtype)
            for grad, dtype in zip(grads, ctx.dtypes, strict=True)
        )
        return *scaled, *[None] * 8


def _add_product(total: Tensor, a: Tensor, b: Tensor) -> None:
    """total += a @ b in the dtype of `total`: half precision must not round every chunk's product before the sum."""
    if a.is_cuda and a.dtype != total.dtype:
        torch.addmm(total, a, b, out_dtype=total.dtype, out=total)
    else:
        total.addmm_(a.to(total.dtype), b.to(total.dtype))
