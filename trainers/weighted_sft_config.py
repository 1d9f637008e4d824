"""Configuration of `WeightedSFTTrainer`: TRL's SFTConfig, less the options under which weights would be lost."""

from dataclasses import dataclass

from trl import SFTConfig

from online_sft.atropos.journal import num_entries
from online_sft.denominators import DENOMINATORS
from online_sft.normalisation import NORMALISATIONS
from online_sft.weightings import Weighting, parameters_of, weighting_of
from trainers.argument_checks import check_arguments
from trainers.atropos.options import AtroposOptions
from trainers.checkpoints.options import CheckpointOptions
from trainers.engine.options import WeightSyncOptions
from trainers.options import WeightedSFTOptions
from trainers.recording.options import RecordOptions

__all__ = ["WeightedSFTConfig"]


@dataclass
class WeightedSFTConfig(
    WeightedSFTOptions, AtroposOptions, WeightSyncOptions, CheckpointOptions, RecordOptions, SFTConfig
):
    """Every field of `trl.SFTConfig`, and of the options of ours that are its bases.

    Raises:
        ValueError: for options that would drop or distort the weights (`loss_type="dft"`, label smoothing,
            `truncation_mode="keep_end"`, `skip_prepare_dataset`), that do not fit together, or are out of range.
    """

    _VALID_DICT_FIELDS = [*SFTConfig._VALID_DICT_FIELDS, "weighting_kwargs"]  # JSON from the command line

    def __post_init__(self) -> None:
        check_arguments(self, "max_length")
        super().__post_init__()
        self._check_what_would_lose_weights()
        self._check_values()
        self.check_recording()
        self._check_combinations()
        self.check_atropos(
            self.per_device_train_batch_size * self.gradient_accumulation_steps * self.world_size,
        )
        if self.is_atropos_stream:
            self._check_stream()

    def weighting_function(self) -> Weighting | None:
        """The weighting with its parameters; None without one."""
        if self.weighting is None:
            return None
        if isinstance(self.weighting_kwargs, str):  # TrainingArguments has read what looks like JSON
            raise ValueError(f'weighting_kwargs must be JSON, as {{"temperature": 0.5}}; got {self.weighting_kwargs!r}')
        return weighting_of(self.weighting, self.weighting_kwargs)

    def _check_stream(self) -> None:
        if self.atropos_replay and self.max_steps <= 0:
            self.max_steps = num_entries(self.atropos_replay)
            if not self.max_steps:
                raise ValueError(f"there is no batch in the journal atropos_replay={self.atropos_replay!r}")
        if self.max_steps <= 0:
            raise ValueError("Atropos' batches never end: set max_steps")
        of_data_sets = ("packing", "padding_free", "weighting", "align", "completion_only_loss", "assistant_only_loss")
        for name in (*of_data_sets, "use_advantage_weighting", "shuffle_dataset", "auto_find_batch_size"):
            default = type(self).__dataclass_fields__[name].default
            if getattr(self, name) != default:
                raise ValueError(
                    f"{name}={getattr(self, name)!r} is for data sets, and has no effect on Atropos' batches"
                )

    def _check_what_would_lose_weights(self) -> None:
        if (self.dataset_kwargs or {}).get("skip_prepare_dataset"):
            raise ValueError(
                "skip_prepare_dataset would skip the checks of the advantages; tokenised rows need little time"
            )
        would_lose_weights = {
            "loss_type": (self.loss_type, "nll", "; policy_weighting='dft' is DFT with weights"),
            "label_smoothing_factor": (self.label_smoothing_factor, 0.0, ""),
            "truncation_mode": (self.truncation_mode, "keep_start", ""),
        }
        for name, (value, supported, way_out) in would_lose_weights.items():
            if value != supported:
                raise ValueError(
                    f"{name}={value!r} would lose the weights; WeightedSFTTrainer supports {supported!r} only{way_out}"
                )

    def _check_values(self) -> None:
        choices = {
            "advantage_normalization": NORMALISATIONS,
            "align": ("target", "source"),
            "policy_weighting": ("none", "dft", "importance"),
            "loss_denominator": (*DENOMINATORS, "constant"),
            "lm_head": ("weighted", "trl"),
        }
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} must be one of {', '.join(allowed)}; got {getattr(self, name)!r}")
        for name in (
            "temperature",
            "loss_denominator_value",
            "importance_max",
            "lm_head_chunk_size",
            "weight_sync_timeout",
        ):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be positive; got {getattr(self, name)}")
        bounds = self.advantage_clipping
        if bounds is not None and not (
            isinstance(bounds, (list, tuple)) and len(bounds) == 2 and bounds[0] <= bounds[1]
        ):
            raise ValueError(f"advantage_clipping must be [min, max]; got {bounds}")
        if self.negative_log_prob_floor is not None and not self.negative_log_prob_floor < 0:
            raise ValueError(f"negative_log_prob_floor must be below 0 nats; got {self.negative_log_prob_floor}")
        if self.target_ess is not None and not 0 < self.target_ess < 1:
            raise ValueError(f"target_ess must lie between 0 and 1, a share of the rows; got {self.target_ess}")

    def _check_target_ess(self) -> None:
        if self.weighting is None:
            raise ValueError("target_ess needs a weighting with a temperature, for example weighting='boltzmann'")
        if "temperature" not in parameters_of(self.weighting):
            raise ValueError(f"target_ess chooses a temperature, and weighting {self.weighting!r} has no temperature")
        if "temperature" in (self.weighting_kwargs or {}):
            raise ValueError("target_ess chooses the temperature; remove it from weighting_kwargs")

    def _check_combinations(self) -> None:
        if self.weighting is not None:
            self.weighting_function()
        elif self.weighting_kwargs:
            raise ValueError(f"weighting_kwargs={self.weighting_kwargs} without a weighting")
        self._check_what_has_no_effect()
        if self.target_ess is not None:
            self._check_target_ess()
        if self.policy_weighting == "dft" and self.negative_log_prob_floor is not None:
            raise ValueError("dft multiplies by the probability, which bounds negative weights: drop the floor")
        if self.eval_packing and not self.packing and not self.padding_free:
            raise ValueError("eval_packing without packing lets packed documents attend to each other; set packing too")
        per_sequence = {
            "advantage_normalization": ("sequence",),
            "loss_denominator": ("sequences",),
            "policy_weighting": ("importance",),
        }
        if (self.packing or self.eval_packing) and self.packing_strategy != "bfd":
            for name, values in per_sequence.items():
                if getattr(self, name) in values:
                    raise ValueError(
                        f"packing_strategy={self.packing_strategy!r} cuts sequences to pieces, and "
                        f"{name}={getattr(self, name)!r} needs them whole; use 'bfd'"
                    )

    def _check_what_has_no_effect(self) -> None:
        without_weights = ("weighting", "advantage_clipping", "advantage_normalization")
        if not self.use_advantage_weighting:
            for name in without_weights:
                if getattr(self, name) not in (None, "none"):
                    raise ValueError(f"{name}={getattr(self, name)!r} with use_advantage_weighting=False; drop one")
        needed = {
            "loss_denominator_value": ("loss_denominator", "constant"),
            "importance_max": ("policy_weighting", "importance"),
            "lm_head_chunk_size": ("lm_head", "weighted"),
        }
        for name, (option, value) in needed.items():
            default = type(self).__dataclass_fields__[name].default
            if getattr(self, name) != default and getattr(self, option) != value:
                raise ValueError(f"{name}={getattr(self, name)} has no effect without {option}={value!r}")
