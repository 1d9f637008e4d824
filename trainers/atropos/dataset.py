"""What `WeightedSFTTrainer` is given as its data set where Atropos is the source."""

from pathlib import Path
from typing import Any

from accelerate.logging import get_logger
from datasets import Dataset
from transformers import AutoConfig

from online_sft.atropos.files import read_file
from online_sft.atropos.quarantine import Quarantine
from trainers.atropos.reading import batch_reader
from trainers.weighted_sft_config import WeightedSFTConfig

__all__ = ["atropos_dataset"]

logger = get_logger(__name__)

# TRL looks at the first row of a data set for what kind it is, and Atropos hands each batch out once
_LIKE_A_BATCH = {
    "input_ids": [0, 0],
    "labels": [0, 0],
    "advantages": [0.0, 0.0],
    "ref_log_probs": [0.0, 0.0],
    "temperatures": [1.0, 1.0],
    "group": 0,
}


def atropos_dataset(args: WeightedSFTConfig, model: Any) -> Dataset | None:
    """The rows of `atropos_data_path`; for a stream, a row like those that its batches will hold; else None.

    Raises:
        ValueError: for a file without a row to train on.
    """
    if args.is_atropos_stream:
        return Dataset.from_list([_LIKE_A_BATCH])
    if args.atropos_data_path is None:
        return None
    config = model.config if not isinstance(model, str) else _config(model, args)
    rows, malformed = read_file(args.atropos_data_path, batch_reader(args, config, max_length=None))
    if args.policy_weighting == "importance" and "ref_log_probs" not in rows[0]:
        raise ValueError(
            "policy_weighting='importance' needs inference_logprobs of every loss token, and some of "
            f"{args.atropos_data_path} have none (1.0)"
        )
    if malformed and args.process_index == 0:
        quarantine = Quarantine(Path(args.output_dir) / "quarantine.jsonl")
        for line, each in malformed:
            quarantine.add(line, [each])
        logger.warning(
            "%d groups of %s are malformed and kept in %s: line %d: %s",
            len(malformed),
            args.atropos_data_path,
            quarantine.path,
            malformed[0][0] + 1,
            malformed[0][1].reason,
        )
    num_groups = len(malformed) + len({row.get("group") for row in rows})
    if len(malformed) > args.atropos_max_quarantined * num_groups:
        raise ValueError(
            f"{len(malformed)} of {num_groups} groups of {args.atropos_data_path} are malformed, a larger share than "
            f"atropos_max_quarantined={args.atropos_max_quarantined:g}: line {malformed[0][0] + 1}: "
            f"{malformed[0][1].reason}"
        )
    return Dataset.from_list(rows)


def _config(model: str, args: WeightedSFTConfig) -> Any:
    revision = (args.model_init_kwargs or {}).get("revision")
    return AutoConfig.from_pretrained(model, revision=revision, trust_remote_code=args.trust_remote_code)
