"""What a method optimises other than E[r] - beta KL, one sentence per option in force."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from online_sft.method import Method

__all__ = ["Bias", "bias_ledger"]


@dataclass(frozen=True)
class Bias:
    """One option in force.

    `str()` is the sentence: the option with its value, what it does, often what to do instead. `without` are the fields
    of `Method` that switch it off. What the enumerable policy cannot show is not `is_measured` by `online-sft verify`.
    """

    option: str
    value: object
    effect: str
    without: dict[str, Any] = field(hash=False)
    is_measured: bool = True

    def __str__(self) -> str:
        return f"{self.option}={self.value}: {self.effect}"


def bias_ledger(method: Method) -> list[Bias]:
    """Names the options that bias the gradient or change the objective. Empty: the expected gradient is exact."""
    return [*_of_the_sampler(method), *_of_old_samples(method), *_of_the_groups(method), *_of_the_loss(method)]


def _of_the_sampler(method: Method) -> Iterator[Bias]:
    if method.temperature != 1.0:
        yield Bias(
            "temperature",
            method.temperature,
            "completions are sampled and scored at this temperature, so the tempered policy is trained, not the policy "
            "at temperature 1",
            {"temperature": 1.0},
        )
    for name, off in (("top_p", 1.0), ("top_k", 0), ("min_p", 0.0)):
        value = getattr(method, name)
        if value != off:
            yield Bias(
                name,
                value,
                "unlikely tokens are never sampled but the log-probs are of the full policy, so the gradient is "
                f"biased, and no weight can bring back what is never seen; {name}={off} samples from the policy itself",
                {name: off},
            )
    # vLLM reports the log-probs that it sampled with, so that importance weights correct what it may have sampled
    is_corrected = method.use_vllm and method.importance_sampling_mode.startswith("sequence")
    if method.repetition_penalty != 1.0 and not is_corrected:
        yield Bias(
            "repetition_penalty",
            method.repetition_penalty,
            "completions are not sampled from the policy whose log-probs are used, so the gradient is biased",
            {"repetition_penalty": 1.0},
        )
    if method.other_sampling_options:
        yield Bias(
            "generation_kwargs",
            ", ".join(sorted(method.other_sampling_options)),
            "if they change which tokens are sampled, the log-probs are not those of the sampler and the gradient is "
            "biased",
            {"other_sampling_options": ()},
            is_measured=False,
        )
    if not method.disable_dropout:
        yield Bias(
            "disable_dropout",
            False,
            "a model that has dropout samples without it and takes its log-probs and gradients with it",
            {"disable_dropout": True},
            is_measured=False,
        )
    if method.use_transformers_continuous_batching:
        yield Bias(
            "use_transformers_continuous_batching",
            True,
            "completions come from another engine, whose log-probs differ a little and are not reported: no importance "
            "weight corrects it",
            {"use_transformers_continuous_batching": False},
            is_measured=False,
        )
    if method.rollout_func:
        yield Bias(
            "rollout_func",
            True,
            "completions are whatever it samples; importance weights correct them if it returns their `logprobs`",
            {"rollout_func": False},
            is_measured=False,
        )


def _of_old_samples(method: Method) -> Iterator[Bias]:
    if method.num_iterations > 1:
        yield Bias(
            "num_iterations",
            method.num_iterations,
            "after its first update on a batch the policy has been fitted to the same completions, which no importance "
            "weight undoes; the bias grows with the learning rate and falls with the size of the batch",
            {"num_iterations": 1},
            is_measured=False,
        )
    if not method.is_off_policy:
        return
    mode = method.importance_sampling_mode
    source = "samples of an older policy"
    if method.use_vllm or method.rollout_func:
        source = "another engine's samples (use_vllm)" if method.use_vllm else "samples of rollout_func"
    if mode == "none":
        yield Bias(
            "importance_sampling_mode",
            mode,
            f"{source} are used as if they were the policy's own; sequence_truncate corrects it",
            {
                "importance_sampling_mode": "sequence_truncate",
                "importance_sampling_clip_min": None,
                "importance_sampling_clip_max": None,
            },
        )
        return
    if mode.startswith("token"):
        yield Bias(
            "importance_sampling_mode",
            mode,
            f"{source} are corrected token by token, which leaves out that the tokens before came from elsewhere too; "
            "sequence_truncate does not",
            {"importance_sampling_mode": mode.replace("token", "sequence")},
        )
    for name in ("importance_sampling_clip_min", "importance_sampling_clip_max"):
        if getattr(method, name) is not None:
            done = "cut to it" if mode.endswith("truncate") else "set to 0"
            yield Bias(
                name,
                f"{getattr(method, name):g}",
                f"importance ratios of {source} beyond it are {done}: less variance for some bias; "
                "`importance/clipped` in the log says how often",
                {name: None},
            )


def _of_the_groups(method: Method) -> Iterator[Bias]:
    if method.baseline == "group_mean":
        acts = " but not the KL's, which acts like a larger beta" if method.beta else ""
        yield Bias(
            "baseline",
            "group_mean",
            f"scales the reward's gradient by (G-1)/G{acts}; leave_one_out does not",
            {"baseline": "leave_one_out"},
        )
    if method.scale_rewards != "none":
        yield Bias(
            "scale_rewards",
            method.scale_rewards,
            "prompts on which the policy is nearly always right or nearly always wrong count more than others, and the "
            "KL less or more than beta says",
            {"scale_rewards": "none"},
        )
    if method.filter_groups_min_std is not None:
        yield Bias(
            "filter_groups_min_std",
            f"{method.filter_groups_min_std:g}",
            "prompts whose samples earn the same are replaced, so prompts count by how undecided the policy is on them",
            {"filter_groups_min_std": None},
        )
    if method.mask_truncated_completions:
        yield Bias(
            "mask_truncated_completions",
            True,
            "completions cut at the length limit get no gradient: their rewards count for nothing, nor does their KL",
            {"mask_truncated_completions": False},
        )
    if method.sync_ref_model:
        yield Bias(
            "sync_ref_model",
            True,
            "the reference moves, so the KL is to an earlier policy, not to the start",
            {"sync_ref_model": False},
            is_measured=False,
        )


def _of_the_loss(method: Method) -> Iterator[Bias]:
    if method.normalize_logprob_by_length:
        yield Bias(
            "normalize_logprob_by_length",
            True,
            "long completions get a smaller gradient per token than short ones, and beta is a price per token",
            {"normalize_logprob_by_length": False},
        )
    if method.clip_weight_value is not None:
        yield Bias(
            "clip_weight_value",
            f"{method.clip_weight_value:g}",
            "biases the gradient wherever it binds, that is for short or likely completions; `weight/q05` and "
            "`weight/q95` in the log say whether it does",
            {"clip_weight_value": None},
        )
    if method.clip_logprob_min is not None:
        yield Bias(
            "clip_logprob_min",
            f"{method.clip_logprob_min:g}",
            "completions that are less likely get no gradient",
            {"clip_logprob_min": None},
        )
