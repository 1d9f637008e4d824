"""Configuration of `TrajectorySFTTrainer`."""

import math
from dataclasses import dataclass

from online_sft.trajectories.action_values import ACTION_VALUES
from online_sft.trajectories.examples import MODES, Window
from online_sft.trajectories.rendering import ACTION, OBSERVATION
from trainers.trajectories.options import CollectionOptions, TrajectoryOptions
from trainers.weighted_sft_config import WeightedSFTConfig

__all__ = ["TrajectorySFTConfig"]

# What is about rows of other data sets, or would mix actions with observations
_MUST_BE_DEFAULT = (
    "advantage_normalization",
    "align",
    "assistant_only_loss",
    "average_tokens_across_devices",
    "completion_only_loss",
    "use_advantage_weighting",
)


@dataclass
class TrajectorySFTConfig(TrajectoryOptions, CollectionOptions, WeightedSFTConfig):
    """Every field of `WeightedSFTConfig`, of `TrajectoryOptions` and of `CollectionOptions`.

    `weighting`, `weighting_kwargs` and `target_ess` make the weights of actions, from `reward_weighting` (default: the
    return). `loss_denominator` counts actions and observations apart. `max_length` divides long episodes into rows, and
    never an action.

    Raises:
        ValueError: for options that do not fit together, are out of range, or have no effect.
    """

    # JSON from the command line
    _VALID_DICT_FIELDS = [*WeightedSFTConfig._VALID_DICT_FIELDS, "transformers_continuous_batching_config"]

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_learning()
        self._check_collection()

    @property
    def coefficients(self) -> dict[int, float]:
        """What the mean loss of each kind of token is multiplied by."""
        if self.mode != "combined":
            return {kind: float(kind in MODES[self.mode]) for kind in (ACTION, OBSERVATION)}
        return {ACTION: self.bc_weight, OBSERVATION: self.world_model_weight}

    @property
    def window(self) -> Window:
        """How trajectories become rows."""
        return Window(MODES[self.mode], self.history_length, self.max_length)

    def check_stream(self) -> None:
        """Refuses what is for data sets, and takes what collected trajectories need.

        Raises:
            ValueError
        """
        if self.max_steps <= 0:
            raise ValueError("collected trajectories never end: set max_steps")
        for name in ("packing", "shuffle_dataset", "auto_find_batch_size"):
            self._refuse_unless_default(name, "is for data sets, and has no effect on collected trajectories")
        self._refuse_unless_default("history_length", "is not what the policy sees in environments: all of the episode")
        if self.target_ess is not None:
            raise ValueError(
                "target_ess fits a temperature to one data set, and every round collects another; set "
                "weighting_kwargs={'temperature': ...}"
            )

    def _check_learning(self) -> None:
        if self.mode not in MODES:
            raise ValueError(f"mode must be one of {', '.join(MODES)}; got {self.mode!r}")
        for name in ("bc_weight", "world_model_weight"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(
                    f"{name} must be positive; got {getattr(self, name)}. What is learnt at all, mode says"
                )
            if self.mode != "combined":
                self._refuse_unless_default(name, f"has no effect with mode={self.mode!r}")
        if self.mode == "world_model":
            for name in ("filter_low_reward", "reward_weighting", "weighting"):
                self._refuse_unless_default(name, "is about actions, and mode='world_model' learns none")
        if not self.filter_low_reward:
            self._refuse_unless_default("min_reward_threshold", "has no effect without filter_low_reward")
        if self.reward_weighting is not None and self.reward_weighting not in ACTION_VALUES:
            raise ValueError(
                f"reward_weighting must be one of {', '.join(ACTION_VALUES)}; got {self.reward_weighting!r}"
            )
        if not 0 < self.reward_discount <= 1:
            raise ValueError(f"reward_discount must lie above 0 and at most at 1; got {self.reward_discount}")
        if self.history_length is not None and self.history_length < 0:
            raise ValueError(f"history_length counts turns, 0 or more; got {self.history_length}")
        for name in _MUST_BE_DEFAULT:
            self._refuse_unless_default(name, "does not fit trajectories, whose tokens are of two kinds")
        if self.loss_denominator == "constant":
            raise ValueError("loss_denominator='constant' would weigh both kinds of tokens by their number")
        if self.policy_weighting == "importance":
            raise ValueError(
                "policy_weighting='importance' needs log-probs of who acted, which trajectories do not hold"
            )
        if self.atropos_sources:
            raise ValueError(f"{self.atropos_sources[0]} is a source for WeightedSFTTrainer; trajectories are another")

    def _check_collection(self) -> None:
        for name in ("collect_every", "collect_episodes", "num_environments", "max_episode_steps", "max_trajectories"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1; got {getattr(self, name)}")
        for name in ("sampling_temperature", "sampling_top_p", "max_completion_length"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be positive; got {getattr(self, name)}")
        if self.sampling_top_p > 1:
            raise ValueError(f"sampling_top_p is a share of the probability, at most 1; got {self.sampling_top_p}")
        staleness = self.max_trajectory_staleness
        if staleness is not None and staleness < self.collect_every - 1:
            raise ValueError(
                f"collect_every={self.collect_every} lets trajectories get {self.collect_every - 1} steps old before "
                f"new ones come, more than max_trajectory_staleness={staleness}; collect more often, or allow more"
            )
        if self.use_vllm and self.use_transformers_continuous_batching:
            raise ValueError("use_vllm beside use_transformers_continuous_batching; drop one")
        if self.use_vllm and self.vllm_mode == "server" and self.vllm_server_base_url is None:
            raise ValueError("vllm_mode='server' needs vllm_server_base_url, the address of `trl vllm-serve`")

    def _refuse_unless_default(self, name: str, why: str) -> None:
        if getattr(self, name) != type(self).__dataclass_fields__[name].default:
            raise ValueError(f"{name}={getattr(self, name)!r} {why}; drop it")
