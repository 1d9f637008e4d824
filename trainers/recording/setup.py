"""What a run is: method, data, configuration, versions, hardware, and the command that began it."""

import hashlib
import json
import os
import platform
import re
import shlex
import sys
import time
from dataclasses import MISSING, fields
from itertools import pairwise
from pathlib import Path
from typing import Any

import psutil
import pyarrow as pa
import torch
from datasets import Dataset
from trl.trainer.utils import get_config_model_id

import online_sft
from online_sft.ledger import Bias, bias_ledger
from trainers.checkpoints.manifest import installed_versions

__all__ = ["command", "content_digest", "setup_of_run", "without_secrets"]

_MOST_BYTES = 20e9  # a digest of so much takes a minute, in which other processes wait
_SECRET = re.compile(r"(^|_)(token|key|password|secret)$", re.IGNORECASE)
_DERIVED = ("accelerator_config", "debug")  # from nothing said to what it means
_NO_SECRET = ("eos_token", "pad_token")


def setup_of_run(trainer: Any) -> dict[str, Any]:
    """For JSON, without secrets."""
    parameters = list(trainer.model.parameters())
    method = getattr(trainer, "_method", None)  # of online SFT only
    return {
        "trainer": type(trainer).__name__,
        "objective": trainer.objective,
        "ledger": None if method is None else [_entry(bias) for bias in bias_ledger(method)],
        "model": get_config_model_id(trainer.model.config),
        "parameters": sum(_numel(each) for each in parameters),
        "trained_parameters": sum(_numel(each) for each in parameters if each.requires_grad),
        "rewards": getattr(trainer, "reward_func_names", None),
        "data": _data(trainer),
        "configuration": without_secrets(trainer.args.to_dict()),
        "changed": _changed(trainer.args),
        "versions": {"online-sft": online_sft.__version__, "python": platform.python_version(), **installed_versions()},
        "hardware": _hardware(trainer),
        "command": command(),
        "began": time.time(),
        "resumed_at": [],
    }


def content_digest(dataset: Dataset) -> str:
    """SHA-256 of the rows in their order, by their columns; the same however they are cut into files or selected."""
    found = hashlib.sha256()
    for table in dataset.with_format("arrow").iter(1000):
        # a copy: slices keep what is around them
        copied = table.take(pa.array(range(len(table)))).combine_chunks().replace_schema_metadata(None)
        written = pa.BufferOutputStream()
        with pa.ipc.new_stream(written, copied.schema) as stream:
            stream.write_table(copied)
        found.update(written.getvalue())
    return found.hexdigest()


def command() -> str:
    """What was typed, as far as the process knows; the values of options that may be secrets are masked."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    program = [Path(sys.argv[0]).name] if spec is None else ["python", "-m", spec.name.removesuffix(".__main__")]
    shown: list[str] = []
    for before, word in pairwise(["", *sys.argv[1:]]):
        name, equals, value = word.partition("=")
        if before.startswith("--") and "=" not in before and not word.startswith("--"):
            word = _shown(before, word)
        elif name.startswith("--") and equals:
            word = f"{name}={_shown(name, value)}"
        shown.append(word)
    return shlex.join([*program, *shown])


def _shown(option: str, value: str) -> str:
    """The value, which may be JSON with secrets."""
    if _is_secret(option.removeprefix("--")):
        return "***"
    try:
        content = json.loads(value)
    except ValueError:
        return value
    return json.dumps(without_secrets(content)) if isinstance(content, dict) else value


def without_secrets(content: Any) -> Any:
    """With *** in place of what has the name of a secret, however deep."""
    if isinstance(content, dict):
        return {k: "***" if _is_secret(str(k)) and v is not None else without_secrets(v) for k, v in content.items()}
    return [without_secrets(each) for each in content] if isinstance(content, list) else content


def _is_secret(name: str) -> bool:
    return name not in _NO_SECRET and _SECRET.search(name.replace("-", "_")) is not None


def _changed(args: Any) -> list[str]:
    """The fields that are not at their defaults; some are set by the configuration itself."""
    defaults = {each.name: each.default for each in fields(args) if each.default is not MISSING}
    return [name for name, default in defaults.items() if name not in _DERIVED and getattr(args, name) != default]


def _entry(bias: Bias) -> dict[str, Any]:
    return {"option": bias.option, "value": bias.value, "effect": bias.effect}


def _numel(parameter: torch.nn.Parameter) -> int:
    return int(getattr(parameter, "ds_numel", parameter.numel()))  # ZeRO-3 leaves an empty tensor


def _data(trainer: Any) -> dict[str, Any]:
    """Rows and digest as the trainer reads them: prepared, for weighted SFT. Of what is too large, no digest."""
    dataset = trainer.train_dataset
    if not isinstance(dataset, Dataset):
        return {"kind": "a stream", "rows": None, "sha256": None}
    is_small = dataset.data.nbytes <= _MOST_BYTES
    return {"kind": "a data set", "rows": len(dataset), "sha256": content_digest(dataset) if is_small else None}


def _hardware(trainer: Any) -> dict[str, Any]:
    names = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return {
        "processes": trainer.accelerator.num_processes,
        "distributed": trainer.accelerator.distributed_type.value,
        "gpus": names if trainer.args.device.type == "cuda" else [],
        "cpu": _cpu_name(),
        "cpu_cores": os.cpu_count(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "platform": platform.platform(),
    }


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:  # not Linux
        return platform.processor()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()
