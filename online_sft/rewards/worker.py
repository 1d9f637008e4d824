"""The child process of `killable.py`: runs one function on one task after another, and cannot outlive its parent.

Frames are 4 bytes of length and a payload. Towards the worker payloads are pickles; back come JSON objects only,
because what has run hostile input is not to be unpickled.
"""

import contextlib
import json
import os
import pickle
import resource
import signal
import struct
import threading
import time
import traceback
from collections.abc import Callable
from typing import Any, BinaryIO

import psutil

__all__ = ["LENGTH", "main", "write_frame"]

LENGTH = struct.Struct("!I")


def _read_frame(stream: BinaryIO) -> bytes | None:
    """The next payload; None at the end of the stream."""
    header = stream.read(LENGTH.size)
    return stream.read(*LENGTH.unpack(header)) if len(header) == LENGTH.size else None


def write_frame(descriptor: int, payload: bytes) -> None:
    """Sends one payload."""
    rest = memoryview(LENGTH.pack(len(payload)) + payload)
    while rest:
        rest = rest[os.write(descriptor, rest) :]


def main(parent: int) -> None:
    """Serves the process `parent` until its pipe closes or it is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    requests, replies = os.fdopen(os.dup(0), "rb"), os.dup(1)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(2, 1)  # what a graded function prints must not enter the protocol

    setup = _read_frame(requests)
    if setup is None:
        return
    timeout_s, memory_bytes, pickled, warm_up = pickle.loads(setup)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    _limit(resource.RLIMIT_AS, memory_bytes)
    try:
        function = pickle.loads(pickled)
        if warm_up is not None:
            function(*warm_up)
    except BaseException:  # the reason goes to the parent, which raises it
        write_frame(replies, json.dumps({"raised": traceback.format_exc()}).encode())
        return
    write_frame(replies, b'{"ready": true}')
    process = psutil.Process()

    while (payload := _read_frame(requests)) is not None:
        # The kernel's own deadline: a hung C call holds the interpreter lock, so that no thread here could end it.
        _limit(resource.RLIMIT_CPU, int(time.process_time() + timeout_s) + 2)
        reply = _reply(function, payload)
        # What a task has allocated stays with the process; a new one is cheap.
        reply["retire"] = "exhausted" in reply or process.memory_info().rss > memory_bytes / 2
        write_frame(replies, json.dumps(reply).encode())


def _reply(function: Callable[..., Any], payload: bytes) -> dict[str, Any]:
    try:
        return {"value": json.loads(json.dumps(function(*pickle.loads(payload))))}
    except (MemoryError, RecursionError) as error:
        return {"exhausted": type(error).__name__}
    except BaseException:  # SystemExit too; the parent says what happened
        return {"raised": traceback.format_exc()}


def _end_with(parent: int) -> None:
    """Ends this process and all that it has started when the parent is gone, whoever else still holds its pipe."""
    while os.getppid() == parent:
        time.sleep(0.2)
    os.killpg(0, signal.SIGKILL)


def _limit(resource_: int, value: int) -> None:
    """Sets the soft limit; the hard one stays, so that it can be raised again for the next task."""
    _, hard = resource.getrlimit(resource_)
    allowed = value if hard == resource.RLIM_INFINITY else min(value, hard)
    with contextlib.suppress(ValueError):  # macOS knows no limit on the address space; the deadline remains
        resource.setrlimit(resource_, (allowed, hard))
