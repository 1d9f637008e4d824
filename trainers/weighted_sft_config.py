"""Configuration of `WeightedSFTTrainer`: TRL's SFTConfig, less the options under which weights would be lost."""

from dataclasses import dataclass

from trl import SFTConfig

__all__ = ["WeightedSFTConfig"]


@dataclass
class WeightedSFTConfig(SFTConfig):
    """Every field of `trl.SFTConfig`.

    Raises:
        ValueError: for options that would drop or distort the weights: packing, padding-free batches,
            `loss_type="dft"`, label smoothing and `truncation_mode="keep_end"`.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.dataset_kwargs or {}).get("skip_prepare_dataset"):
            raise ValueError(
                "skip_prepare_dataset would skip the checks of the advantages; tokenised rows need little time"
            )
        would_lose_weights = {
            "packing": (self.packing, False),
            "eval_packing": (bool(self.eval_packing), False),
            "padding_free": (self.padding_free, False),
            "loss_type": (self.loss_type, "nll"),
            "label_smoothing_factor": (self.label_smoothing_factor, 0.0),
            "truncation_mode": (self.truncation_mode, "keep_start"),
        }
        for name, (value, supported) in would_lose_weights.items():
            if value != supported:
                raise ValueError(
                    f"{name}={value!r} would lose the weights; WeightedSFTTrainer supports {supported!r} only"
                )
