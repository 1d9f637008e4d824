"""The trainer's side of Atropos: reading what environments have posted."""

from online_sft.atropos.batch import AtroposBatchProcessor
from online_sft.atropos.group import MalformedGroupError, ScoredGroup, ScoredSequence, parse_group
from online_sft.atropos.weights import SCORE_NORMALISATIONS, token_weights

__all__ = [
    "SCORE_NORMALISATIONS",
    "AtroposBatchProcessor",
    "MalformedGroupError",
    "ScoredGroup",
    "ScoredSequence",
    "parse_group",
    "token_weights",
]
