"""The child process of `sandbox.py`: shuts itself in, then runs a function that nobody trusts.

It is started as a script, by its path, and sees Python's own library only. What it gets is a source, a name and inputs;
that there are right answers it does not know. It writes one line of JSON for each thing that it has to say.
"""

import ctypes
import errno
import importlib
import json
import math
import os
import platform
import resource
import signal
import struct
import sys
import traceback
from collections.abc import Iterator, Sequence
from typing import Any

__all__ = ["MODULES", "SYSTEM_CALLS", "check_platform", "filter_program", "main", "shut_in"]

# What the function may import. It cannot open files, so that whatever else is not loaded yet stays away.
MODULES = (
    *("abc", "array", "base64", "bisect", "calendar", "cmath", "collections", "contextlib", "copy", "dataclasses"),
    *("datetime", "decimal", "enum", "fractions", "functools", "graphlib", "hashlib", "heapq", "io", "itertools"),
    *("json", "math", "numbers", "operator", "queue", "random", "re", "statistics", "string", "struct", "textwrap"),
    *("time", "types", "typing", "unicodedata", "_strptime", "encodings.ascii", "encodings.latin_1"),
)
# All that a computation needs: memory, clocks, the pipes that are open, its own signals, its end. No system call in
# here reaches a file, another process, the network or a new thread; madvise is missing because root can poison pages.
SYSTEM_CALLS = {
    "x86_64": {
        **{"read": 0, "write": 1, "close": 3, "mmap": 9, "mprotect": 10, "munmap": 11, "brk": 12, "rt_sigaction": 13},
        **{
            "rt_sigprocmask": 14,
            "rt_sigreturn": 15,
            "select": 23,
            "sched_yield": 24,
            "mremap": 25,
            "nanosleep": 35,
            "getpid": 39,
        },
        **{"exit": 60, "gettimeofday": 96, "getrusage": 98, "times": 100, "sigaltstack": 131, "gettid": 186},
        **{"futex": 202, "restart_syscall": 219, "clock_gettime": 228, "clock_getres": 229, "clock_nanosleep": 230},
        **{"exit_group": 231, "pselect6": 270, "getrandom": 318},
    },
    "aarch64": {
        **{
            "close": 57,
            "read": 63,
            "write": 64,
            "pselect6": 72,
            "exit": 93,
            "exit_group": 94,
            "futex": 98,
            "nanosleep": 101,
        },
        **{"clock_gettime": 113, "clock_getres": 114, "clock_nanosleep": 115, "sched_yield": 124},
        **{"restart_syscall": 128, "sigaltstack": 132, "rt_sigaction": 134, "rt_sigprocmask": 135, "rt_sigreturn": 139},
        **{"times": 153, "getrusage": 165, "gettimeofday": 169, "getpid": 172, "gettid": 178, "brk": 214},
        **{"munmap": 215, "mremap": 216, "mmap": 222, "mprotect": 226, "getrandom": 278},
    },
}
_ARCHITECTURES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}  # AUDIT_ARCH_*, linux/audit.h

# linux/bpf_common.h, linux/seccomp.h
_LOAD, _JUMP_IF_EQUAL, _RETURN = 0x20, 0x15, 0x06
_SYSTEM_CALL_AT, _ARCHITECTURE_AT = 0, 4  # in struct seccomp_data
_ALLOW, _REFUSE, _KILL_PROCESS = 0x7FFF0000, 0x00050000 | errno.EPERM, 0x80000000
# linux/prctl.h
_SET_PARENT_DEATH_SIGNAL, _SET_SECCOMP, _SET_NO_NEW_PRIVILEGES, _FILTER = 1, 22, 38, 2
_INSTRUCTION = struct.Struct("=HBBI")  # code, jump if true, jump if false, operand

_SOLUTION = "<solution>"


class _FilterProgram(ctypes.Structure):
    _fields_ = [("length", ctypes.c_ushort), ("instructions", ctypes.c_char_p)]


def check_platform(system: str, machine: str) -> None:
    """Whether the walls can be built.

    Raises:
        RuntimeError: elsewhere than on Linux, and on processors whose system calls are not listed here.
    """
    if system != "Linux" or machine not in SYSTEM_CALLS:
        raise RuntimeError(
            f"a model's code runs only behind seccomp, which is there on Linux on {' and '.join(SYSTEM_CALLS)}; this "
            f"is {system} on {machine}. Use a Linux machine or container; there is no mode without the wall"
        )


def filter_program(machine: str) -> bytes:
    """The BPF program that lets the `SYSTEM_CALLS` of a machine pass and refuses all others with EPERM.

    A call by the numbers of another architecture (32 bits on a machine of 64) ends the process.
    """
    numbers = sorted(SYSTEM_CALLS[machine].values())
    program = [
        (_LOAD, 0, 0, _ARCHITECTURE_AT),
        (_JUMP_IF_EQUAL, 1, 0, _ARCHITECTURES[machine]),
        (_RETURN, 0, 0, _KILL_PROCESS),
        (_LOAD, 0, 0, _SYSTEM_CALL_AT),
        *((_JUMP_IF_EQUAL, len(numbers) - index, 0, number) for index, number in enumerate(numbers)),
        (_RETURN, 0, 0, _REFUSE),
        (_RETURN, 0, 0, _ALLOW),
    ]
    return b"".join(_INSTRUCTION.pack(*instruction) for instruction in program)


def shut_in(timeout_s: float, memory_bytes: int) -> None:
    """Takes from this process, for good, all that is not computing: files, processes, threads, the network.

    Args:
        timeout_s: after a second more than this, and what it has used so far, of processor time the kernel ends it.
        memory_bytes: of its address space.

    Raises:
        RuntimeError: where there is no seccomp.
        OSError: when the kernel refuses.
    """
    check_platform(platform.system(), platform.machine())
    used = resource.getrusage(resource.RUSAGE_SELF)
    processor_s = math.ceil(used.ru_utime + used.ru_stime + timeout_s) + 1
    limits = {
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_FSIZE: 0,
        resource.RLIMIT_NOFILE: 4,  # the request, nowhere twice, and the replies; all are open
        resource.RLIMIT_NPROC: 0,
        resource.RLIMIT_CPU: processor_s,
        resource.RLIMIT_AS: memory_bytes,
    }
    program = filter_program(platform.machine())
    for limit, value in limits.items():
        _, hard = resource.getrlimit(limit)
        allowed = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(limit, (allowed, allowed))
    _prctl(_SET_NO_NEW_PRIVILEGES, 1)
    filter_ = _FilterProgram(len(program) // _INSTRUCTION.size, program)
    _prctl(_SET_SECCOMP, _FILTER, ctypes.addressof(filter_))


def main(parent: int, timeout_s: float, memory_bytes: int) -> None:
    """Says `ready` from behind the wall, reads a request up to its end, and answers it; or says why it is `refused`."""
    replies = os.dup(1)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for descriptor in (1, 2):
        os.dup2(nowhere, descriptor)
    os.close(nowhere)
    try:
        _prctl(_SET_PARENT_DEATH_SIGNAL, signal.SIGKILL)
        if os.getppid() != parent:  # it died before this could be asked for
            return
        for name in MODULES:
            importlib.import_module(name)
        shut_in(timeout_s, memory_bytes)
    except Exception:  # for the parent to raise; no request will come
        _say(replies, {"refused": traceback.format_exc()})
        return
    _say(replies, {"ready": True})
    request = json.loads(_everything(0))
    for outcome in _outcomes(**request):
        _say(replies, outcome)
    os._exit(0)


def _prctl(option: int, *arguments: int) -> None:
    numbers = [ctypes.c_ulong(number) for number in (*arguments, 0, 0, 0, 0)[:4]]
    if ctypes.CDLL(None, use_errno=True).prctl(option, *numbers):
        code = ctypes.get_errno()
        raise OSError(code, f"prctl {option}: {os.strerror(code)}")


def _say(descriptor: int, something: dict[str, Any]) -> None:
    rest = json.dumps(something).encode() + b"\n"
    while rest:
        rest = rest[os.write(descriptor, rest) :]


def _everything(descriptor: int) -> bytes:
    chunks = []
    while chunk := os.read(descriptor, 2**16):
        chunks.append(chunk)
    return b"".join(chunks)


def _outcomes(source: str, function: str, inputs: Sequence[Sequence[Any]]) -> Iterator[dict[str, Any]]:
    """`{"value": ...}` or `{"error": ...}` for each input."""
    namespace: dict[str, Any] = {"__name__": "solution"}
    try:
        exec(compile(source, _SOLUTION, "exec"), namespace)
        fault = None if callable(namespace.get(function)) else f"there is no function {function}"
    except BaseException as error:  # SystemExit and KeyboardInterrupt, too
        fault = _described(error)
    if fault is not None:
        yield from [{"error": fault}] * len(inputs)
        return
    for arguments in inputs:
        try:
            outcome = {"value": namespace[function](*arguments)}
            json.dumps(outcome)
        except BaseException as error:
            outcome = {"error": _described(error)}
        yield outcome


def _described(error: BaseException) -> str:
    """`ZeroDivisionError: division by zero (line 3)`."""
    try:
        text = f"{type(error).__name__}: {error}"
    except BaseException:  # its __str__ may be the solution's own
        text = type(error).__name__
    lines = [line for frame, line in traceback.walk_tb(error.__traceback__) if frame.f_code.co_filename == _SOLUTION]
    return f"{text} (line {lines[-1]})" if lines else text


if __name__ == "__main__":
    main(int(sys.argv[1]), float(sys.argv[2]), int(sys.argv[3]))
