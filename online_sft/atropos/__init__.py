"""The trainer's side of Atropos: fetching what environments have posted, keeping it, reading it.

Names are imported when they are first used: the process that fetches needs no torch.
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from online_sft.atropos.batch import AtroposBatchProcessor
    from online_sft.atropos.group import MalformedGroupError, ScoredGroup, ScoredSequence, parse_group
    from online_sft.atropos.weights import SCORE_NORMALISATIONS, token_weights

_HOME_OF = {
    "SCORE_NORMALISATIONS": "weights",
    "AtroposBatchProcessor": "batch",
    "MalformedGroupError": "group",
    "ScoredGroup": "group",
    "ScoredSequence": "group",
    "parse_group": "group",
    "token_weights": "weights",
}

__all__ = [
    "SCORE_NORMALISATIONS",
    "AtroposBatchProcessor",
    "MalformedGroupError",
    "ScoredGroup",
    "ScoredSequence",
    "parse_group",
    "token_weights",
]


def __getattr__(name: str) -> object:
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME_OF[name]}"), name)
