"""What the recipes that train tiny models in a terminal have in common."""

import warnings

import datasets
from transformers.utils import logging as transformers_logging

__all__ = ["EVERYWHERE", "quiet"]

EVERYWHERE = {
    "use_cpu": True,
    "bf16": False,
    "activation_checkpointing": False,
    "report_to": "none",
    "save_strategy": "no",
    "logging_steps": 10,
    "adam_beta2": 0.98,
}


def quiet() -> None:
    """No bars but our own, and no warning in the middle of them."""
    datasets.disable_progress_bars()
    transformers_logging.disable_progress_bar()
    # trl 1.16 still uses a name that transformers 5.23 warns about
    warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.* is deprecated", category=FutureWarning)
