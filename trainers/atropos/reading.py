"""How the configuration has groups of Atropos read."""

from typing import Any

from online_sft.atropos.batch import BatchReader

__all__ = ["batch_reader"]


def batch_reader(args: Any, model_config: Any, *, max_length: int | None) -> BatchReader:
    """The reader of a stream, or of a file, whose rows TRL cuts later.

    Args:
        args: a `WeightedSFTConfig`.
        model_config: of the policy, whose vocabulary the token ids must be in.
        max_length: where sequences are cut; None: nowhere.
    """
    return BatchReader(
        max_length=max_length,
        score_normalization=args.atropos_score_normalization,
        vocab_size=model_config.get_text_config().vocab_size,
        advantages_of_sequences=args.atropos_advantages_of_sequences,
        temperature=args.temperature,
    )
