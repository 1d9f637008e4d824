"""Configurations of runs that are described and not started, and the processes that such a run would have."""

import json
import os
from collections.abc import MutableMapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import ClassVar

import torch
from transformers import TrainingArguments

__all__ = ["Launch", "Planned", "planned"]

# By which the processes of a launcher find each other
_OF_PROCESSES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "GROUP_RANK")
_OF_SHARDING = ("ACCELERATE_USE_FSDP", "ACCELERATE_USE_DEEPSPEED")
_ALL = frozenset({"parameters", "gradients", "optimizer"})
_OF_ZERO_STAGE = {0: frozenset[str](), 1: frozenset({"optimizer"}), 2: frozenset({"gradients", "optimizer"}), 3: _ALL}


@dataclass(frozen=True)
class Launch:
    """How many processes a run has, and what they divide among themselves instead of each having all of it.

    Args:
        num_processes: of the run.
        rank: of this one.
        method: "FSDP2", "ZeRO-3" and so on; "" where every process has a whole model.
        divided: of "parameters", "gradients" and "optimizer".
        num_parts: processes that share one copy.
    """

    num_processes: int = 1
    rank: int = 0
    method: str = ""
    divided: frozenset[str] = frozenset()
    num_parts: int = 1

    @classmethod
    def taken_from(cls, environment: MutableMapping[str, str]) -> "Launch":
        """What `accelerate launch`, torchrun or the user set; removed, for nothing is to wait for other processes."""
        num_processes = int(environment.get("WORLD_SIZE", 1))
        on_node = int(environment.get("LOCAL_WORLD_SIZE", num_processes))
        method, divided = _sharding(environment)
        num_parts = on_node if "hybrid" in method else num_processes
        rank = int(environment.get("RANK", 0))
        for name in (*_OF_PROCESSES, *_OF_SHARDING):
            environment.pop(name, None)
        return cls(num_processes, rank, method, divided, num_parts)

    @property
    def is_zero(self) -> bool:
        """Whether DeepSpeed has the optimizer."""
        return self.method.startswith("ZeRO")

    def parts_of(self, name: str) -> int:
        """Among how many processes "parameters", "gradients" or "optimizer" are divided."""
        return self.num_parts if name in self.divided else 1


class Planned:
    """What `--dry_run` makes of a training configuration: one of a run on the processes of `launch`."""

    launch: ClassVar[Launch]

    @property
    def world_size(self) -> int:
        """As `TrainingArguments.world_size`, which asks the processes that are there."""
        return self.launch.num_processes

    def main_process_first(self, local: bool = True, desc: str = "work") -> AbstractContextManager[None]:
        """As `TrainingArguments.main_process_first`, which waits for the others."""
        return nullcontext()


def planned(arguments: list[str], dataclasses: tuple[type, ...]) -> tuple[list[str], tuple[type, ...]]:
    """The command line, such that no GPU is needed, and the dataclasses, the training configuration among them planned.

    The first process describes the run; the others end here.
    """
    launch = Launch.taken_from(os.environ)
    if launch.rank:
        raise SystemExit(0)
    if not torch.cuda.is_available():  # a configuration for GPUs is described here too
        arguments = ["--use_cpu", "true", *arguments]
    return arguments, tuple(
        type(each.__name__, (Planned, each), {"launch": launch}) if issubclass(each, TrainingArguments) else each
        for each in dataclasses
    )


def _sharding(environment: MutableMapping[str, str]) -> tuple[str, frozenset[str]]:
    if environment.get("ACCELERATE_USE_DEEPSPEED") == "true":
        stage = _zero_stage(environment)
        return f"ZeRO-{stage}", _OF_ZERO_STAGE[stage]
    if environment.get("ACCELERATE_USE_FSDP") != "true":
        return "", frozenset()
    method = f"FSDP{environment.get('FSDP_VERSION', '1')}"
    strategy = environment.get("FSDP_SHARDING_STRATEGY", "FULL_SHARD")
    keeps_parameters = environment.get("FSDP_RESHARD_AFTER_FORWARD", "true").lower() in ("false", "shard_grad_op")
    if strategy in ("NO_SHARD", "3"):
        return f"{method}, NO_SHARD", frozenset()
    if strategy in ("SHARD_GRAD_OP", "2") or (method == "FSDP2" and keeps_parameters):
        return f"{method}, parameters whole while they are used", _ALL - {"parameters"}
    return f"{method}, hybrid" if "HYBRID" in strategy or strategy in ("4", "5") else method, _ALL


def _zero_stage(environment: MutableMapping[str, str]) -> int:
    if path := environment.get("ACCELERATE_DEEPSPEED_CONFIG_FILE"):
        with open(path, encoding="utf-8") as file:
            return int(json.load(file).get("zero_optimization", {}).get("stage", 0))
    return int(environment.get("ACCELERATE_DEEPSPEED_ZERO_STAGE", 2))
