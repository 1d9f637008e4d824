"""Processes that can be killed: run a function on hostile input with a deadline and a memory limit for each task.

`multiprocessing` pools fail inside daemonic processes and in scripts without a `__main__` guard, and executors cannot
stop a task. These workers are plain child processes of an interpreter of their own.
"""

import contextlib
import json
import os
import pickle
import selectors
import signal
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Any, Literal

from online_sft.rewards.worker import LENGTH, write_frame

__all__ = ["Failure", "KillableWorkers"]

_STARTUP_S = 120.0  # imports on a busy machine with a cold file system
_COMMAND = "import sys; sys.path[:] = sys.argv[2:]; from online_sft.rewards.worker import main; main(int(sys.argv[1]))"


@dataclass(frozen=True)
class Failure:
    """Why a task has no value.

    Args:
        reason: "timed_out" (killed at the deadline), "exhausted" (memory or recursion limit, or the process died).
        detail: for people.
    """

    reason: Literal["timed_out", "exhausted"]
    detail: str


class KillableWorkers:
    """Runs `function` on tasks, in processes that are killed and replaced when a task passes its deadline.

    Callable from any thread, from daemonic processes and after a fork. Processes start with the first task and end
    with this object, with the interpreter, or, when that is killed, by themselves. Picklable, without them.

    Args:
        function: what to run; its value must be JSON. A closure, a lambda or a function of `__main__` is sent by value.
        timeout_s: wall-clock limit of one task, not counting the start of a process.
        memory_gib: limit on the address space of one process.
        num_workers: processes; by default this process's share of the machine's cores, 8 at most.
        warm_up: a first task, run when a process starts and not timed.

    Raises:
        ValueError: for limits that are not positive, and a function that cannot be sent to another process.
    """

    def __init__(
        self,
        function: Callable[..., Any],
        *,
        timeout_s: float = 2.0,
        memory_gib: float = 2.0,
        num_workers: int | None = None,
        warm_up: tuple[Any, ...] | None = None,
    ) -> None:
        for name, value in {"timeout_s": timeout_s, "memory_gib": memory_gib, "num_workers": num_workers}.items():
            if value is not None and not value > 0:
                raise ValueError(f"{name} must be positive; got {value}")
        self._setup = pickle.dumps((timeout_s, int(memory_gib * 2**30), _pickled(function), warm_up))
        self._timeout_s = timeout_s
        self._num_workers = num_workers or _share_of_cores()
        self.__setstate__({})

    def __getstate__(self) -> dict[str, Any]:
        return {name: vars(self)[name] for name in ("_setup", "_timeout_s", "_num_workers")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """A copy, in this process or another, starts processes of its own."""
        vars(self).update(state)
        self._lock = threading.Lock()
        self._pid: int | None = None  # of the process that the workers belong to

    def run(self, tasks: Iterable[tuple[Any, ...]], timeout_s: float | None = None) -> list[Any]:
        """The value of `function(*task)`, or a `Failure`, for each task, in their order; a shorter limit may be given.

        Raises:
            RuntimeError: when the function raised an exception of its own, or cannot be loaded in a worker.
        """
        executor = self._started()
        limit_s = min(timeout_s or self._timeout_s, self._timeout_s)
        return list(executor.map(lambda task: self._run_one(pickle.dumps(task), limit_s), tasks))

    def _started(self) -> ThreadPoolExecutor:
        with self._lock:
            if self._pid != os.getpid():  # first use, or first use after a fork, whose parent keeps the old ones
                self._pid = os.getpid()
                # first in, first out: a new process has time to start
                self._workers: SimpleQueue[_Worker] = SimpleQueue()
                workers = [_Worker(self._setup) for _ in range(self._num_workers)]
                for worker in workers:
                    worker.start()  # all at once: their imports take half a second
                    self._workers.put(worker)
                self._executor = ThreadPoolExecutor(self._num_workers, thread_name_prefix="killable")
                weakref.finalize(self, _end, workers, os.getpid())
        return self._executor

    def _run_one(self, payload: bytes, timeout_s: float) -> Any:
        worker = self._workers.get()
        try:
            return worker.run(payload, timeout_s)
        finally:
            self._workers.put(worker)


class _Worker:
    """One process, started when needed. Used by one thread at a time."""

    def __init__(self, setup: bytes) -> None:
        self._setup = setup
        self._process: subprocess.Popen[bytes] | None = None
        self._is_ready = False

    def run(self, payload: bytes, timeout_s: float) -> Any:
        if self._process is None or self._process.poll() is not None:
            self.start()
        if not self._is_ready:
            self._await_ready()
        reply = self._exchange(payload, timeout_s)
        if isinstance(reply, Failure) or reply["retire"]:
            self.start()  # the imports of the next one overlap with what this process does now
        if isinstance(reply, Failure):
            return reply
        if "raised" in reply:
            raise RuntimeError(f"a function in a worker process failed:\n{reply['raised']}")
        return reply["value"] if "value" in reply else Failure("exhausted", reply["exhausted"])

    def end(self) -> None:
        """Kills the process and all that it has started, and leaves no zombie."""
        process, self._process = self._process, None
        if process is not None:
            with contextlib.suppress(ProcessLookupError):  # it has ended by itself
                os.killpg(process.pid, signal.SIGKILL)  # its own session, so its own group
            process.wait()
            for pipe in (process.stdin, process.stdout):
                assert pipe
                pipe.close()

    def start(self) -> None:
        """A new process, instead of the one that may be there."""
        self.end()
        path = [entry for entry in sys.path if isinstance(entry, str)]
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-c", _COMMAND, str(os.getpid()), *path],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,
        )
        self._is_ready = False

    def _await_ready(self) -> None:
        reply = self._exchange(self._setup, _STARTUP_S)
        if isinstance(reply, Failure) or "raised" in reply:
            reason = reply.detail if isinstance(reply, Failure) else reply["raised"]
            self.end()
            raise RuntimeError(f"a worker process could not start: {reason}")
        self._is_ready = True

    def _exchange(self, payload: bytes, timeout_s: float) -> Any:
        """Sends one frame and returns the reply to it, or a `Failure`; never longer than `timeout_s`."""
        assert self._process and self._process.stdin and self._process.stdout
        deadline = time.monotonic() + timeout_s
        try:
            write_frame(self._process.stdin.fileno(), payload)
            (num_bytes,) = LENGTH.unpack(self._read(LENGTH.size, deadline))
            return json.loads(self._read(num_bytes, deadline))
        except TimeoutError:
            return Failure("timed_out", f"no answer within {timeout_s:g} s")
        except (EOFError, BrokenPipeError):  # the kernel or a crash has ended it
            return Failure("exhausted", "the process died")

    def _read(self, num_bytes: int, deadline: float) -> bytes:
        assert self._process and self._process.stdout
        received = b""
        with selectors.DefaultSelector() as selector:
            selector.register(self._process.stdout, selectors.EVENT_READ)
            while len(received) < num_bytes:
                if not selector.select(max(0.0, deadline - time.monotonic())):
                    raise TimeoutError
                chunk = os.read(self._process.stdout.fileno(), num_bytes - len(received))
                if not chunk:
                    raise EOFError
                received += chunk
        return received


def _end(workers: Sequence[_Worker], owner: int) -> None:
    if os.getpid() == owner:  # a forked child must not kill its parent's workers
        for worker in workers:
            worker.end()


def _share_of_cores() -> int:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(8, cores // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))))  # torchrun and accelerate set it


def _pickled(function: Callable[..., Any]) -> bytes:
    """By reference where a worker can import it; by value where it cannot: closures, lambdas, `__main__`."""
    import dill

    try:
        return dill.dumps(function, recurse=True)
    except (pickle.PicklingError, TypeError) as error:
        raise ValueError(f"{function!r} cannot be sent to another process: {error}") from error
