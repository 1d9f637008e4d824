"""What ends a run on several processes: the launcher says it last."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch.distributed as dist
from torch.distributed.distributed_c10d import _get_default_store
from torch.distributed.elastic.multiprocessing.errors import get_error_handler

__all__ = ["told_to_the_launcher"]


@contextmanager
def told_to_the_launcher() -> Iterator[None]:
    """torchrun and `accelerate launch` end with the exception of the process that failed first.

    Otherwise it stands somewhere above: the others fail next, of the connections that it has closed, and the launcher
    stops those that are left and says that they were stopped.
    """
    try:
        yield
    except Exception as error:
        if "TORCHELASTIC_ERROR_FILE" in os.environ and _is_first():
            get_error_handler().record_exception(error)
        raise


def _is_first() -> bool:
    if not dist.is_initialized():
        return True
    rank = str(dist.get_rank())
    try:
        return _get_default_store().compare_set("online_sft_failed", "", rank).decode() == rank
    except RuntimeError:  # the store was another process's, and is gone with it
        return False
