"""What a configuration of online SFT optimises other than E[r] - beta KL, one sentence per option in force."""

from collections.abc import Iterable

__all__ = ["bias_ledger"]


def bias_ledger(
    *,
    temperature: float = 1.0,
    top_p: float = 1.0,
    top_k: int = 0,
    min_p: float | None = None,
    repetition_penalty: float = 1.0,
    updates_per_rollout: float = 1.0,
    other_sampling_options: Iterable[str] = (),
    use_vllm: bool = False,
    mask_truncated_completions: bool = False,
    sync_ref_model: bool = False,
    baseline: str = "leave_one_out",
    beta: float = 0.0,
) -> list[str]:
    """Names the options that bias the gradient or change the objective, with their values. Empty: none of these does.

    Args:
        temperature, top_p, top_k, min_p, repetition_penalty: how completions are sampled.
        other_sampling_options: names of further options of the sampler.
        updates_per_rollout: optimizer steps taken on one batch of completions.
        use_vllm: completions come from another engine, whose log-probs differ by rounding.
        mask_truncated_completions: completions cut at the length limit get no gradient.
        sync_ref_model: the reference follows the policy.
        baseline, beta: of the estimator.
    """
    ledger = []
    if temperature != 1.0:
        ledger.append(
            f"temperature={temperature}: completions are sampled and scored at this temperature, so the tempered "
            "policy is trained, not the policy at temperature 1"
        )
    filters = {"top_p": (top_p, 1.0), "top_k": (top_k or 0, 0), "min_p": (min_p or 0.0, 0.0)}
    for name, (value, off) in filters.items():
        if value != off:
            ledger.append(
                f"{name}={value}: unlikely tokens are never sampled but the log-probs are of the full policy, so the "
                f"gradient is biased; {name}={off} samples from the policy itself"
            )
    if repetition_penalty != 1.0:
        ledger.append(
            f"repetition_penalty={repetition_penalty}: completions are not sampled from the policy whose log-probs are "
            "used, so the gradient is biased"
        )
    if other_sampling_options:
        ledger.append(
            f"generation_kwargs {', '.join(sorted(other_sampling_options))}: if they change which tokens are sampled, "
            "the log-probs are not those of the sampler and the gradient is biased"
        )
    if updates_per_rollout > 1:
        ledger.append(
            f"{updates_per_rollout:g} optimizer steps per batch of completions: after the first, the completions come "
            "from an older policy and no importance weight corrects it"
        )
    if use_vllm:
        ledger.append(
            "use_vllm=True: the engine's log-probs differ from the policy's and no importance weight corrects it"
        )
    if mask_truncated_completions:
        ledger.append(
            "mask_truncated_completions=True: completions cut at the length limit get no gradient, which favours "
            "long ones"
        )
    if sync_ref_model:
        ledger.append("sync_ref_model=True: the reference moves, so the KL is to an earlier policy, not to the start")
    if baseline == "group_mean" and beta != 0.0:
        ledger.append(
            "baseline=group_mean: scales the reward's gradient by (G-1)/G but not the KL's, which acts like a larger "
            "beta; leave_one_out does not"
        )
    return ledger
