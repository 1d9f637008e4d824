"""Runs a function that a model has written, on inputs, where it can do nothing but compute."""

import json
import os
import platform
import selectors
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from online_sft.environments import sandboxed_process

__all__ = ["Outcome", "Sandbox"]

_STARTUP_S = 60.0  # a tenth of a second, but for a busy machine with a cold file system
_LEAST_MEMORY_GIB = 0.05
_MAX_REPLY_BYTES = 2**20  # of all replies together: what is longer is not kept in this process
_MAX_DEPTH = 50  # of a value: what is nested deeper could exceed the recursion limit of whoever compares or prints it


@dataclass(frozen=True)
class Outcome:
    """What became of one call.

    Args:
        value: the JSON that the function returned.
        error: why there is none, for people; None where there is. The solution may have chosen its words.
    """

    value: Any = None
    error: str | None = None


@dataclass(frozen=True)
class Sandbox:
    """Calls functions that nobody trusts, each in a process of its own that is killed afterwards.

    Before the process sees the source, it gives up, by a seccomp filter that allows some thirty system calls and no
    others, all that is not computing: it opens no file, for reading either, starts no process or thread, signals nobody
    and has no network, and it cannot take that back. Its environment is empty.

    The process could also send false replies. Therefore it never gets the right answers: outcomes are compared here,
    with what the process cannot know, and whatever it sends that is no outcome is an error of the solution.

    Args:
        timeout_s: wall clock for all calls of one `run` together, without the start of the process.
        memory_gib: limit on its address space, at least 0.05: Python alone takes more than half of that.

    Raises:
        ValueError: for a limit that is not positive, or too little memory.
        RuntimeError: on platforms without seccomp, where nothing is run.
    """

    timeout_s: float = 2.0
    memory_gib: float = 0.5

    def __post_init__(self) -> None:
        if not self.timeout_s > 0:
            raise ValueError(f"timeout_s must be positive; got {self.timeout_s}")
        if not self.memory_gib >= _LEAST_MEMORY_GIB:  # below it, every function would seem to run out of memory
            raise ValueError(f"memory_gib must be at least {_LEAST_MEMORY_GIB}; got {self.memory_gib}")
        sandboxed_process.check_platform(platform.system(), platform.machine())

    def run(self, source: str, function: str, inputs: Sequence[Sequence[Any]]) -> list[Outcome]:
        """What `function` of the Python module `source` returns for each of `inputs`, lists of JSON arguments.

        Raises:
            RuntimeError: when the process cannot shut itself in; the source has not been run then.
        """
        request = json.dumps({"source": source, "function": function, "inputs": inputs}).encode()
        command = [sys.executable, "-I", "-S", sandboxed_process.__file__]
        limits = [os.getpid(), self.timeout_s, int(self.memory_gib * 2**30)]
        with subprocess.Popen(
            [*command, *map(str, limits)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            bufsize=0,
            env={},
            cwd="/",
            start_new_session=True,  # Ctrl-C is this process's to handle
        ) as process:
            try:
                return self._outcomes(process, request, len(inputs))
            finally:
                process.kill()

    def _outcomes(self, process: subprocess.Popen[bytes], request: bytes, num_calls: int) -> list[Outcome]:
        assert process.stdin and process.stdout
        replies = _Lines(process.stdout.fileno())
        try:
            greeting = json.loads(replies.next(_STARTUP_S))
        except (TimeoutError, _EndedError) as end:
            raise RuntimeError("the sandbox could not start, and has run nothing") from end
        if "ready" not in greeting:
            raise RuntimeError(f"the sandbox could not shut itself in, and has run nothing:\n{greeting['refused']}")

        outcomes: list[Outcome] = []
        deadline = time.monotonic() + self.timeout_s
        try:
            _write(process.stdin.fileno(), request)
            process.stdin.close()
            while len(outcomes) < num_calls:
                outcomes.append(_outcome(replies.next(deadline - time.monotonic())))
        except TimeoutError:
            outcomes.append(Outcome(error=f"no answer within {self.timeout_s:g} s"))
        except _EndedError as end:
            outcomes.append(Outcome(error=str(end)))
        return outcomes + [Outcome(error="not run, after what came before")] * (num_calls - len(outcomes))


class _EndedError(Exception):
    """No more replies will come."""


class _Lines:
    """What a process that nobody trusts writes, line by line."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._received = bytearray()
        self._num_returned = 0

    def next(self, timeout_s: float) -> bytes:
        """The next line.

        Raises:
            TimeoutError: when there is none in time.
            _EndedError: when the process has ended or has written too much.
        """
        deadline = time.monotonic() + timeout_s
        with selectors.DefaultSelector() as selector:
            selector.register(self._descriptor, selectors.EVENT_READ)
            while (end := self._received.find(b"\n", self._num_returned)) < 0:
                if len(self._received) > _MAX_REPLY_BYTES:
                    raise _EndedError(f"more than {_MAX_REPLY_BYTES} bytes were returned")
                left_s = deadline - time.monotonic()  # checked first: a trickle of bytes is always readable
                if left_s <= 0 or not selector.select(left_s):
                    raise TimeoutError
                chunk = os.read(self._descriptor, 2**16)
                if not chunk:
                    raise _EndedError("the process ended: it crashed, left, or ran out of memory")
                self._received += chunk
        line = bytes(self._received[self._num_returned : end])
        self._num_returned = end + 1
        return line


def _write(descriptor: int, payload: bytes) -> None:
    rest = memoryview(payload)
    try:
        while rest:
            rest = rest[os.write(descriptor, rest) :]
    except BrokenPipeError as error:  # the memory limit can end it while it reads
        raise _EndedError("the process ended before it had its input") from error


def _outcome(line: bytes) -> Outcome:
    try:
        reply = json.loads(line)
    except (ValueError, RecursionError):
        reply = None
    if isinstance(reply, dict) and reply.keys() == {"value"} and not _is_deep(reply):
        return Outcome(value=reply["value"])
    if isinstance(reply, dict) and reply.keys() == {"error"} and isinstance(reply["error"], str):
        return Outcome(error=reply["error"])
    return Outcome(error="the reply was malformed")


def _is_deep(value: Any) -> bool:
    level = [value]
    for _ in range(_MAX_DEPTH):
        containers = [
            each.values() if isinstance(each, dict) else each for each in level if isinstance(each, (dict, list))
        ]
        level = [child for container in containers for child in container]
    return bool(level)
