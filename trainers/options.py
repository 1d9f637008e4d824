"""The fields that our configs add to TRL's. Free of heavy imports, so that `online-sft COMMAND --help` is quick."""

from dataclasses import dataclass, field

__all__ = ["OnlineSFTOptions", "WeightedSFTOptions"]


@dataclass
class OnlineSFTOptions:
    """Fields of `OnlineSFTConfig` that `trl.GRPOConfig` does not have, or has with another default or meaning.

    Args:
        estimator: how the policy gradient is estimated: "prop3_stable" or "prop3" (`online_sft.estimators`).
        beta: price of the KL divergence from the reference model, in reward units per nat. 0 loads no reference.
        baseline: what a reward is compared with, a key of `online_sft.baselines.BASELINES`.
        num_generations: samples of each prompt; 1 is possible where nothing compares within a group.
        baseline_value: the constant of `baseline="constant"`, in reward units.
        scale_rewards: what r is divided by: nothing ("none"), or the standard deviation of the prompt's ("group")
            or of all ("batch") samples, which changes the objective.
        normalize_logprob_by_length: the log-probs of a completion are divided by its tokens, which changes the
            objective.
        clip_weight_value: w = A / s is cut to [-c, c]; biased where it binds. Needs `estimator="prop3"`.
        clip_logprob_min: log-probs of completions are cut from below, in nats; biased where it binds.
        denom_eps: "prop3" does not divide by an |s| below it.
        importance_sampling_mode: how completions of an older policy or of another engine are corrected; TRL's names,
            for both (`online_sft.importance`).
        importance_sampling_clip_min, importance_sampling_clip_max: limits of the ratio; None is none.
        reward_scale, reward_shift: r = reward_scale * (weighted sum of the reward functions) + reward_shift.
        correct_reward, incorrect_reward: of the reward function "math".
        apply_overlong_penalty: adds `OverlongPenalty` to the reward functions.
        overlong_penalty_factor: the largest penalty, in reward units.
        overlong_buffer_length: tokens below `max_completion_length` over which the penalty grows; default a fifth of
            it.
        filter_groups_enable: groups whose rewards are all the same are replaced by groups of fresh prompts (DAPO).
        filter_groups_min_std: a spread (population standard deviation) of at most this is "the same".
        max_filter_retries: rounds of fresh prompts; what is left then has no gradient.
        filter_groups_patience: training stops after as many batches in a row without one useful group.
        disable_dropout: in the policy, so that it samples as it is scored. True, where TRL has False.
        unscorable_if: whether a completion is left out of baseline and loss when "any" or only when "all" of the reward
            functions return None for it.
        total_episodes: completions to train on, in place of `max_steps`.
        response_length: another name of `max_completion_length`.
        reward_use_sigmoid: reward models among `reward_funcs` return sigmoid(score) instead of their logit or log-odds.
        reward_max_length: tokens of prompt and completion that they read; None: as many as model and tokenizer allow.
        vllm_dtype: of a colocated engine; None: what the policy computes in. A server has its own `--dtype`.
    """

    estimator: str = field(
        default="prop3_stable",
        metadata={
            "help": "Gradient estimator: `prop3_stable` (no division), or `prop3`, the same gradient as "
            "the proposition writes it.",
            "choices": ["prop3", "prop3_stable"],
        },
    )
    beta: float = field(
        default=0.0,
        metadata={
            "help": "Price of the KL divergence from the reference model, in reward units per nat. 0 loads no "
            "reference model."
        },
    )
    baseline: str = field(
        default="optimal",
        metadata={
            "help": "What a reward is compared with: `optimal` (of least variance in earlier steps), `leave_one_out` "
            "(mean of the other samples of the prompt), `group_mean`, `running_mean` (of earlier batches), `constant` "
            "(`baseline_value`) or `none`. Only `leave_one_out` and `group_mean` need num_generations > 1.",
            "choices": ["optimal", "leave_one_out", "group_mean", "running_mean", "constant", "none"],
        },
    )
    num_generations: int = field(
        default=2,
        metadata={
            "help": "Samples of each prompt. Other prompts tell more than further samples of the same one; TRL's "
            "default is 8."
        },
    )
    baseline_value: float = field(
        default=0.0, metadata={"help": "The constant of `baseline=constant`, in reward units."}
    )
    scale_rewards: str = field(
        default="none",
        metadata={
            "help": "Divide rewards by the standard deviation of the prompt's (`group`) or of all (`batch`) samples: "
            "another objective. `none` does not.",
            "choices": ["none", "group", "batch"],
        },
    )
    normalize_logprob_by_length: bool = field(
        default=False,
        metadata={"help": "Divide the log-prob of a completion by its number of tokens: another objective."},
    )
    clip_weight_value: float | None = field(
        default=None,
        metadata={"help": "Cut w = A/s to [-c, c]: biased where it binds. Needs estimator=prop3."},
    )
    clip_logprob_min: float | None = field(
        default=None,
        metadata={"help": "In nats, say -100: completions that are less likely have no gradient. Biased."},
    )
    denom_eps: float = field(
        default=1e-2, metadata={"help": "estimator=prop3 does not divide by a log-prob nearer to 0 than this."}
    )
    importance_sampling_mode: str = field(
        default="sequence_truncate",
        metadata={
            "help": "Importance weights for completions of an older policy (num_iterations, steps_per_generation) or "
            "of vLLM: of whole completions (`sequence_*`, unbiased but for the limits) or single tokens (`token_*`), "
            "cut (`*_truncate`) or dropped (`*_mask`) beyond the limits; or `none`.",
            "choices": ["sequence_truncate", "sequence_mask", "token_truncate", "token_mask", "none"],
        },
    )
    importance_sampling_clip_min: float | None = field(
        default=None, metadata={"help": "Lower limit of the importance weights."}
    )
    importance_sampling_clip_max: float | None = field(
        default=3.0, metadata={"help": "Upper limit of the importance weights."}
    )
    reward_scale: float = field(default=1.0, metadata={"help": "Multiplies the sum of the rewards."})
    reward_shift: float = field(default=0.0, metadata={"help": "Is added to the sum of the rewards, after the scale."})
    correct_reward: float = field(default=1.0, metadata={"help": "What reward function `math` gives right answers."})
    incorrect_reward: float = field(default=-1.0, metadata={"help": "What `math` gives wrong or missing answers."})
    apply_overlong_penalty: bool = field(
        default=False,
        metadata={"help": "Subtract a penalty from the reward of completions that come near the length limit (DAPO)."},
    )
    overlong_penalty_factor: float = field(
        default=1.0, metadata={"help": "The largest overlong penalty, in reward units."}
    )
    overlong_buffer_length: int | None = field(
        default=None,
        metadata={
            "help": "Tokens below max_completion_length over which the penalty grows. Default: a fifth of it, as in "
            "DAPO."
        },
    )
    filter_groups_enable: bool = field(
        default=False,
        metadata={
            "help": "Replace groups whose samples all earn the same by groups of fresh prompts (DAPO's dynamic "
            "sampling)."
        },
    )
    filter_groups_min_std: float = field(
        default=0.0, metadata={"help": "The spread of rewards up to which a group counts as all the same."}
    )
    max_filter_retries: int = field(
        default=3, metadata={"help": "Rounds of fresh prompts; groups that are still all the same have no gradient."}
    )
    filter_groups_patience: int = field(
        default=10,
        metadata={"help": "Stop training after so many batches in a row without one group that is not all the same."},
    )
    disable_dropout: bool = field(
        default=True,
        metadata={"help": "No dropout in the policy, which would sample without it and be scored with it."},
    )
    unscorable_if: str = field(
        default="any",
        metadata={
            "help": "A completion is left out of baseline and loss if `any` reward function returns None for it, or "
            "only if `all` do: functions that take turns, each for its own kind of rows.",
            "choices": ["any", "all"],
        },
    )
    total_episodes: int | None = field(
        default=None, metadata={"help": "Completions to train on, in place of max_steps; rounded up to whole steps."}
    )
    response_length: int | None = field(default=None, metadata={"help": "Another name of max_completion_length."})
    reward_use_sigmoid: bool = field(
        default=False,
        metadata={
            "help": "Rewards of reward models (paths and modules in `reward_funcs`) are between 0 and 1: the sigmoid "
            "of the logit, or of the log-odds of label 1 where there are two."
        },
    )
    reward_max_length: int | None = field(
        default=None,
        metadata={
            "help": "Tokens of prompt and completion that reward models read; longer texts lose their beginning. "
            "Default: as many as model and tokenizer can take."
        },
    )
    vllm_dtype: str | None = field(
        default=None,
        metadata={"help": "Of a colocated vLLM: float32, bfloat16, float16. Default: what the policy computes in."},
    )


@dataclass
class WeightedSFTOptions:
    """Fields of `WeightedSFTConfig` that `trl.SFTConfig` does not have.

    Args:
        use_advantage_weighting: False is plain SFT: every weight is 1 and no `advantages` column is needed.
        advantage_normalization: which loss tokens of the optimizer step share a z-score; "global" is running statistics
            over all steps so far, saved with checkpoints. In evaluation each batch counts as a step, so that its size
            matters. `online_sft/normalisation.py`.
        advantage_clipping: [min, max] of the advantages, after normalisation.
        align: "target": `advantages[t]` and `loss_mask[t]` belong to token t. "source" (verl): to the position t that
            predicts token t+1. Tokenised rows only; `labels` are targets always.
        weighting: turns a `reward` column into weights, a key of `online_sft.weightings.WEIGHTINGS`.
        weighting_kwargs: its parameters.
        target_ess: choose the weighting's temperature so that the effective sample size is this share of the rows.
        policy_weighting: weights that move with the policy. "importance" needs `ref_log_probs`, one per token.
        importance_max: where `policy_weighting="importance"` cuts the ratio of a sequence's probabilities.
        loss_denominator: what the loss is divided by, over the whole optimizer step: a key of
            `online_sft.denominators.DENOMINATORS`, or "constant".
        loss_denominator_value: D of `loss_denominator="constant"`; 1 is a sum.
        temperature: divides the logits before the softmax.
        negative_log_prob_floor: in nats; tokens of negative weight below it have no gradient any more.
        lm_head: "weighted" computes the gradients of the LM head in the forward pass and never projects a token of
            weight 0; "trl" is TRL's fused head.
        lm_head_chunk_size: tokens that "weighted" projects at a time; its memory grows with this times the vocabulary.
    """

    use_advantage_weighting: bool = field(
        default=True, metadata={"help": "False: plain SFT, every weight 1, no `advantages` column needed."}
    )
    advantage_normalization: str = field(
        default="none",
        metadata={
            "help": "Which loss tokens share a z-score: `none`, `batch` (the optimizer step), `sequence`, `group` "
            "(the samples of one prompt in the step) or `global` (running statistics, saved with checkpoints).",
            "choices": ["none", "batch", "sequence", "global", "group"],
        },
    )
    advantage_clipping: list[float] | None = field(
        default=None, metadata={"help": "MIN MAX of the advantages, after normalisation."}
    )
    align: str = field(
        default="target",
        metadata={
            "help": "`target`: advantages[t] and loss_mask[t] belong to token t. `source` (verl): to the position that "
            "predicts token t+1.",
            "choices": ["target", "source"],
        },
    )
    weighting: str | None = field(
        default=None,
        metadata={
            "help": "Turns a `reward` column into weights: `uniform`, `reward`, `rejection`, `top_k` (RAFT), "
            "`exponential` (RWR), `advantage_exponential` (AWR) or `boltzmann` (exp(r/temperature)/Z per prompt)."
        },
    )
    weighting_kwargs: dict | str | None = field(
        default=None, metadata={"help": 'Parameters of the weighting as JSON: {"temperature": 0.5}.'}
    )
    target_ess: float | None = field(
        default=None,
        metadata={
            "help": "Choose the weighting's temperature so that the effective sample size is this share of the rows."
        },
    )
    policy_weighting: str = field(
        default="none",
        metadata={
            "help": "Weights that move with the policy: `none`, `dft` (the token's probability), `importance` (iw-SFT: "
            "the sequence's probability over that under its author; needs a `ref_log_probs` column).",
            "choices": ["none", "dft", "importance"],
        },
    )
    importance_max: float = field(
        default=10.0, metadata={"help": "Where policy_weighting=importance cuts the ratio of probabilities."}
    )
    loss_denominator: str = field(
        default="tokens",
        metadata={
            "help": "What the loss is divided by, counted over the whole optimizer step: `tokens`, `sequences`, "
            "`abs_advantages` or `constant` (`loss_denominator_value`).",
            "choices": ["tokens", "sequences", "abs_advantages", "constant"],
        },
    )
    loss_denominator_value: float = field(default=1.0, metadata={"help": "D of loss_denominator=constant; 1 is a sum."})
    temperature: float = field(default=1.0, metadata={"help": "Divides the logits before the softmax."})
    negative_log_prob_floor: float | None = field(
        default=None,
        metadata={
            "help": "In nats, say -12: tokens of negative weight that are less likely have no gradient any more."
        },
    )
    lm_head: str = field(
        default="weighted",
        metadata={
            "help": "`weighted` computes gradients in the forward pass and skips tokens of weight 0; `trl` is TRL's.",
            "choices": ["weighted", "trl"],
        },
    )
    lm_head_chunk_size: int = field(
        default=256, metadata={"help": "Tokens projected at a time; memory grows with this times the vocabulary."}
    )
