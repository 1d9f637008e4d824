"""The loss of online SFT: from the log-probs of tokens to one loss per completion, with all its options."""

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from online_sft.estimators import advantage, prop3, prop3_stable
from online_sft.importance import ImportanceSamplingMode, importance_weights, reweighted, sequence_ratio

__all__ = ["CompletionLoss", "Proposition3"]


@dataclass(frozen=True)
class CompletionLoss:
    """What `Proposition3` says of each completion. All [B]; only `loss` carries a gradient."""

    loss: Tensor  # to be summed and divided by the completions of the whole optimizer step
    log_prob: Tensor  # s, nats; per token with normalize_logprob_by_length
    advantage: Tensor  # A, reward units
    weight: Tensor  # w = A / s, reward units per nat, before clip_weight_value; NaN where |s| < denom_eps
    kl: Tensor  # s - s_ref, the k1 estimate of the KL, nats; NaN without a reference
    kl_k3: Tensor  # sum over tokens of exp(-k1) - 1 + k1, the k3 estimate: never negative
    gradient_size: Tensor  # about |grad s|^2: sum over tokens of the squared slope of the logit of the token itself
    importance_ratio: Tensor  # pi(y|x) / q(y|x), before truncation; 1 where the policy itself sampled
    importance_weight: Tensor  # mean over the completion's tokens of what their gradients are multiplied by
    importance_clipped: Tensor  # share of the tokens whose ratio was beyond the limits


@dataclass(frozen=True)
class Proposition3:
    """The loss -[w s + sg(w) s^2 / 2], or its stable form -(A + sg(A) s), of each completion.

    s is the sum of the token log-probs. Their gradients are multiplied by the importance weights of a sampler that is
    not the policy, so that with whole, untruncated ratios the expectation is that of the policy's own samples.

    Args:
        estimator: "prop3_stable" or "prop3" (`online_sft.estimators`).
        beta: price of the KL, reward units per nat.
        normalize_logprob_by_length: s and s_ref are divided by the number of tokens. Another objective.
        clip_logprob_min: s and s_ref below it are cut to it, with no gradient. Biased where it binds.
        clip_weight_value: w is cut to [-c, c]; needs "prop3". Biased where it binds.
        denom_eps: `prop3` does not divide by an |s| below it.
        importance_sampling_mode, importance_sampling_clip_min, importance_sampling_clip_max:
            `online_sft.importance.importance_weights`.
    """

    estimator: str = "prop3_stable"
    beta: float = 0.0
    normalize_logprob_by_length: bool = False
    clip_logprob_min: float | None = None
    clip_weight_value: float | None = None
    denom_eps: float = 1e-2
    importance_sampling_mode: ImportanceSamplingMode = "sequence_truncate"
    importance_sampling_clip_min: float | None = None
    importance_sampling_clip_max: float | None = None

    def __call__(
        self,
        log_probs: Tensor,
        mask: Tensor,
        advantages: Tensor,
        ref_log_probs: Tensor | None = None,
        sampler_log_probs: Tensor | None = None,
    ) -> CompletionLoss:
        """One loss per completion.

        Args:
            log_probs: of each token under the policy, [B, T], nats; the gradient flows into it.
            mask: 1 at the tokens that the policy wrote, [B, T]; 0 at padding and at what tools said.
            advantages: reward less baseline, r - b, [B], constant; 0 for what is to be left out.
            ref_log_probs: under the reference, [B, T], constant; needed when beta > 0.
            sampler_log_probs: under the policy that sampled, [B, T], constant. None: the policy itself did.
        """
        ratio = torch.ones_like(advantages)
        weights = unlimited = torch.ones_like(log_probs)
        if sampler_log_probs is not None:
            ratio = sequence_ratio(log_probs, sampler_log_probs, mask)
            of = partial(importance_weights, log_probs, sampler_log_probs, mask, mode=self.importance_sampling_mode)
            unlimited = of()
            weights = of(clip_min=self.importance_sampling_clip_min, clip_max=self.importance_sampling_clip_max)
            log_probs = reweighted(log_probs, weights)
        s = self._of_completion(log_probs, mask)
        s_ref = None if ref_log_probs is None else self._of_completion(ref_log_probs, mask)
        if self.estimator == "prop3":
            loss = prop3(
                s,
                s_ref,
                advantages,
                beta=self.beta,
                denom_eps=self.denom_eps,
                clip_weight_value=self.clip_weight_value,
            )
        else:
            loss = prop3_stable(s, s_ref, advantages, beta=self.beta)

        with torch.no_grad():
            adv = advantage(s, s_ref, advantages, beta=self.beta)
            unknown = torch.full_like(s, torch.nan)
            k1 = None if ref_log_probs is None else (log_probs - ref_log_probs) * mask
            length = mask.sum(-1).clamp(min=1)
            return CompletionLoss(
                loss=loss,
                log_prob=s.detach(),
                advantage=adv,
                weight=torch.where(s.abs() >= self.denom_eps, adv / s, unknown),
                kl=unknown if k1 is None else k1.sum(-1),
                kl_k3=unknown if k1 is None else (torch.expm1(-k1) + k1).sum(-1),
                gradient_size=self._gradient_size(log_probs, weights, mask),
                importance_ratio=ratio,
                importance_weight=(weights * mask).sum(-1) / length,
                importance_clipped=((weights != unlimited) * mask).sum(-1) / length,
            )

    def _of_completion(self, log_probs: Tensor, mask: Tensor) -> Tensor:
        total = (log_probs * mask).sum(-1)
        if self.normalize_logprob_by_length:
            total = total / mask.sum(-1).clamp(min=1)
        return total if self.clip_logprob_min is None else total.clamp(min=self.clip_logprob_min)

    def _gradient_size(self, log_probs: Tensor, weights: Tensor, mask: Tensor) -> Tensor:
        """sum_t (rho_t (1 - p_t))^2, over squared length where s is; p_t the probability of the sampled token."""
        size = ((weights * -torch.expm1(log_probs)).square() * mask).sum(-1)
        return size / mask.sum(-1).clamp(min=1).square() if self.normalize_logprob_by_length else size
