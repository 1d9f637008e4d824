"""The fields of `TrajectorySFTConfig` that `WeightedSFTConfig` does not have. No heavy imports: `--help` reads this."""

from dataclasses import dataclass, field

__all__ = ["CollectionOptions", "SamplingOptions", "TrajectoryOptions"]


@dataclass
class TrajectoryOptions:
    """What is learnt from trajectories.

    Args:
        mode: what has loss: the policy's actions, the environment's next observations, or both.
        bc_weight, world_model_weight: of the two means in "combined": loss = bc_weight * mean over action tokens +
            world_model_weight * mean over observation tokens.
        filter_low_reward: episodes with a lower return than `min_reward_threshold` are not imitated. In "combined" the
            world model still learns from them: a failure shows what the environment does as well as a success.
        min_reward_threshold: the lowest return that is imitated, in reward units.
        reward_weighting: weights of actions, a key of `online_sft.trajectories.action_values.ACTION_VALUES`; with
            `weighting`, what that compares.
        reward_discount: of "return" and "reward_to_go".
        history_length: turns before an action's own observation that its row shows; None: all.
    """

    mode: str = field(
        default="combined",
        metadata={
            "help": "What is learnt: the policy's actions (`behavioral_cloning`), what its environment answers "
            "(`world_model`), or both in one forward pass (`combined`).",
            "choices": ["behavioral_cloning", "world_model", "combined"],
        },
    )
    bc_weight: float = field(
        default=0.5, metadata={"help": "mode=combined: what the mean loss of the actions' tokens is multiplied by."}
    )
    world_model_weight: float = field(
        default=0.5, metadata={"help": "mode=combined: what the mean loss of next observations is multiplied by."}
    )
    filter_low_reward: bool = field(
        default=False,
        metadata={
            "help": "Do not imitate episodes whose return is below min_reward_threshold. A world model learns from all."
        },
    )
    min_reward_threshold: float = field(
        default=0.0, metadata={"help": "The lowest return that filter_low_reward lets pass."}
    )
    reward_weighting: str | None = field(
        default=None,
        metadata={
            "help": "Weigh actions instead of filtering them: by the episode's `return`, the `reward_to_go`, or the "
            "step's own reward (`per_step`); through --weighting, if that is set.",
            "choices": ["return", "reward_to_go", "per_step"],
        },
    )
    reward_discount: float = field(
        default=1.0, metadata={"help": "Discount of later rewards in `return` and `reward_to_go`."}
    )
    history_length: int | None = field(
        default=None,
        metadata={"help": "Turns that an action sees before the observation it answers. Default: the whole episode."},
    )


@dataclass
class SamplingOptions:
    """How the policy plays episodes.

    Args:
        num_environments: episodes that each process has under way at the same time.
        max_episode_steps: actions after which an episode is truncated.
        max_completion_length: tokens of an action.
        sampling_temperature, sampling_top_p: of actions.
        use_transformers_continuous_batching, use_vllm: the engine, as in `trl.GRPOConfig`, where the fields that
            follow are explained too.
    """

    num_environments: int = field(default=8, metadata={"help": "Episodes that a process has under way at a time."})
    max_episode_steps: int = field(default=16, metadata={"help": "Actions after which an episode is truncated."})
    max_completion_length: int = field(default=256, metadata={"help": "Tokens of an action."})
    sampling_temperature: float = field(default=1.0, metadata={"help": "Temperature of collected actions."})
    sampling_top_p: float = field(default=1.0, metadata={"help": "Nucleus of collected actions."})
    use_transformers_continuous_batching: bool = field(
        default=False, metadata={"help": "Sample with transformers' continuous batching."}
    )
    transformers_continuous_batching_config: dict | str | None = field(
        default=None, metadata={"help": "Its settings as JSON."}
    )
    use_vllm: bool = field(default=False, metadata={"help": "Sample with vLLM."})
    vllm_mode: str = field(
        default="colocate",
        metadata={"help": "vLLM in the training processes, or a server.", "choices": ["colocate", "server"]},
    )
    vllm_server_base_url: str | None = field(default=None, metadata={"help": "Of `trl vllm-serve`."})
    vllm_server_timeout: float = field(default=240.0, metadata={"help": "Seconds to wait for that server."})
    vllm_gpu_memory_utilization: float = field(default=0.3, metadata={"help": "Share of the GPU's memory for vLLM."})
    vllm_max_model_length: int | None = field(default=None, metadata={"help": "vLLM's context length, in tokens."})
    vllm_tensor_parallel_size: int = field(default=1, metadata={"help": "GPUs that one colocated vLLM shares."})
    vllm_dtype: str | None = field(
        default=None, metadata={"help": "Of a colocated vLLM. Default: what the policy computes in."}
    )


@dataclass
class CollectionOptions(SamplingOptions):
    """How the policy collects trajectories while it trains, where there are environments to act in.

    Args:
        collect_every: optimizer steps between two rounds of collection, the first before the first step.
        collect_episodes: of a round, over all processes.
        max_trajectories: that are kept; the oldest go first.
        max_trajectory_staleness: optimizer steps after which a trajectory is not trained on any more.
    """

    collect_every: int = field(
        default=1, metadata={"help": "Optimizer steps between two collections of trajectories (with environments)."}
    )
    collect_episodes: int = field(default=16, metadata={"help": "Episodes of a collection, over all processes."})
    max_trajectories: int = field(default=1000, metadata={"help": "Trajectories that are kept; the oldest go first."})
    max_trajectory_staleness: int | None = field(
        default=None, metadata={"help": "Do not train on what was collected more optimizer steps ago."}
    )
