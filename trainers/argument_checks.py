"""Arguments of transformers and TRL that would fail deep inside, when the model is loaded or training has begun."""

import json
import math
from typing import Any

from transformers.integrations import get_available_reporting_integrations
from transformers.utils import is_liger_kernel_available

__all__ = ["check_arguments"]

_AT_LEAST_ONE = ("per_device_train_batch_size", "per_device_eval_batch_size", "gradient_accumulation_steps")
# What to install for a tracker, where that can be told
_PACKAGES = {
    "clearml": "clearml",
    "codecarbon": "codecarbon",
    "comet_ml": "comet-ml",
    "dvclive": "dvclive",
    "mlflow": "mlflow",
    "neptune": "neptune",
    "swanlab": "swanlab",
    "tensorboard": "tensorboard",
    "trackio": "trackio",
    "wandb": "wandb",
}


def check_arguments(args: Any, *counts: str) -> None:
    """Refuses numbers that cannot be, and options whose package is missing.

    Args:
        args: a config whose `__post_init__` may not have run.
        counts: its fields that are at least 1, or None, beside those of every trainer.

    Raises:
        ValueError, ImportError
    """
    for name in (*_AT_LEAST_ONE, *counts):
        value = getattr(args, name)
        if value is not None and value < 1:
            raise ValueError(f"{name} must be at least 1; got {value}")
    if args.max_steps == 0 or (args.max_steps < 0 and args.num_train_epochs <= 0):
        raise ValueError(
            f"max_steps={args.max_steps} with num_train_epochs={args.num_train_epochs} trains nothing; set "
            "max_steps to 1 or more, or to -1 for whole epochs"
        )
    for name in args._VALID_DICT_FIELDS:
        _check_json(name, getattr(args, name))
    if not 0 <= args.learning_rate < math.inf:
        raise ValueError(f"learning_rate must be a number of 0 or more, 1e-5 for example; got {args.learning_rate}")
    if args.use_liger_kernel and not is_liger_kernel_available():
        raise ImportError("use_liger_kernel=True needs liger-kernel: pip install liger-kernel, or set it to false")
    trackers = [args.report_to] if isinstance(args.report_to, str) else args.report_to or []
    for name in _PACKAGES.keys() & set(trackers) - set(get_available_reporting_integrations()):
        raise ImportError(
            f"report_to={name!r} needs {_PACKAGES[name]}: pip install {_PACKAGES[name]}, or set report_to=none"
        )


def _check_json(name: str, value: Any) -> None:
    if isinstance(value, str) and value.startswith("{"):
        try:
            json.loads(value)
        except json.JSONDecodeError as error:
            raise ValueError(f'{name} must be JSON, as {{"name": 1.0}}; got {value!r}: {error}') from error
