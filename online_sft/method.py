"""What a configuration optimises, and how: the loss, and what is done to samples and rewards before it."""

from dataclasses import dataclass

from online_sft.baselines import BASELINES, Baseline, constant
from online_sft.proposition3 import Proposition3

__all__ = ["Method"]


@dataclass(frozen=True)
class Method(Proposition3):
    """`Proposition3` with every option that decides what its expectation is; r is the reward as configured.

    The trainer trains with it, the ledger names its biases, `online-sft verify` measures them.

    Args:
        baseline, baseline_value: `online_sft.baselines`.
        num_generations: samples of a prompt, G.
        scale_rewards: `online_sft.group_rewards.REWARD_SCALES`.
        filter_groups_min_std: groups of a smaller or equal spread are replaced; None keeps all.
        temperature: of sampling and scoring.
        top_p, top_k, min_p, repetition_penalty: of sampling alone.
        other_sampling_options: names of further options of the sampler.
        stale_samples: an optimizer step may lie between a sample and its use.
        num_iterations: updates on each batch of completions.
        use_vllm: completions come from another engine, which reports the log-probs that it sampled with.
        use_transformers_continuous_batching: completions come from another engine, which reports none.
        rollout_func: completions come from a function of the user's.
        disable_dropout: the policy that samples is the one whose log-probs are used.
        mask_truncated_completions: completions cut at the length limit get no gradient.
        sync_ref_model: the reference follows the policy.
    """

    baseline: str = "optimal"
    baseline_value: float = 0.0
    num_generations: int = 2
    scale_rewards: str = "none"
    filter_groups_min_std: float | None = None
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    other_sampling_options: tuple[str, ...] = ()
    stale_samples: bool = False
    num_iterations: int = 1
    use_vllm: bool = False
    use_transformers_continuous_batching: bool = False
    rollout_func: bool = False
    disable_dropout: bool = True
    mask_truncated_completions: bool = False
    sync_ref_model: bool = False

    @property
    def is_off_policy(self) -> bool:
        """Whether completions come from anything but the policy as it is when their gradient is taken."""
        return self.use_vllm or self.rollout_func or self.stale_samples

    def kl_baseline(self, mean_price: float) -> float:
        """What is added to r - b, so that the slope of s is 0 in the mean: beta + mean of beta (s - s_ref).

        A baseline of the reward alone leaves the mean price of the KL, and the beta of the pathwise term, in every
        slope r - b - beta (s - s_ref) - beta: a constant that only adds variance. 0 where there is no baseline, and for
        the optimal one, which is of the whole slope.

        mean_price: of beta (s - s_ref) in earlier steps, in reward units.
        """
        if self.beta == 0.0 or self.baseline in ("none", "constant", "optimal"):
            return 0.0
        return mean_price + self.beta

    @property
    def baseline_function(self) -> Baseline:
        """The baseline; `running_mean` and `optimal` know nothing yet and are moved on by whoever trains."""
        if self.baseline == "constant":
            return lambda rewards: constant(rewards, self.baseline_value)
        return BASELINES[self.baseline]
