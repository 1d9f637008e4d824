"""Workers that can be killed: deadlines, memory, and nothing left behind in any way that a process can end."""

import multiprocessing
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time

import psutil
import pytest

from online_sft.rewards.killable import Failure, KillableWorkers


def square(number):
    return number * number


def hang(_):
    while True:
        pass


def hang_in_c(_):
    return 10 ** (10**9)  # one call that never gives up the interpreter lock


def sleep_with_a_child(_):
    subprocess.run(["sleep", f"9{os.getppid()}"])  # this process's own, should another test run at the same time


def eat_memory(_):
    return len(bytearray(8 * 2**30))


def die(_):
    os.kill(os.getpid(), signal.SIGSEGV)


def recurse(number):
    return recurse(number + 1)


def refuse(_):
    raise ValueError("no squares today")


def print_it(number):
    print("a graded function may print")
    return number


def process_id(megabytes):
    kept.append(bytearray(b"1") * (megabytes * 2**20))
    return os.getpid()


kept = []


def workers_of(parent):
    """Processes of `KillableWorkers` that `parent` has started, and theirs; zombies count."""
    found = []
    for process in psutil.process_iter():
        try:
            words = process.cmdline()
            if "online_sft.rewards.worker" in " ".join(words[:4]) and words[4] == str(parent):
                found.append(process)
        except (psutil.NoSuchProcess, psutil.AccessDenied, psutil.ZombieProcess, IndexError):
            continue
    return found


def until(condition, seconds=10):
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.05)
    return condition()


def zombies():
    return [child for child in psutil.Process().children() if child.status() == psutil.STATUS_ZOMBIE]


def test_values_come_back_in_order():
    workers = KillableWorkers(square, num_workers=2)
    assert workers.run((number,) for number in range(50)) == [number**2 for number in range(50)]
    assert workers.run([]) == []


@pytest.mark.parametrize("function", [hang, hang_in_c, sleep_with_a_child])
def test_what_hangs_is_killed_at_its_deadline_with_all_that_it_started(function):
    workers = KillableWorkers(function, timeout_s=0.5, num_workers=1)
    start = time.monotonic()
    assert [failure.reason for failure in workers.run([(1,)])] == ["timed_out"]
    assert time.monotonic() - start < 3
    sleeping = [
        process
        for process in psutil.process_iter(["name", "cmdline"])
        if f"9{os.getpid()}" in (process.info["cmdline"] or ())
    ]
    for process in sleeping:
        process.kill()
    assert not sleeping
    assert not zombies()


@pytest.mark.parametrize("function", [eat_memory, die, recurse])
def test_what_dies_costs_its_own_task_only(function):
    def sometimes(number):
        return function(number) if number == 1 else number

    workers = KillableWorkers(sometimes, num_workers=1, timeout_s=5)
    results = workers.run([(0,), (1,), (2,)])
    assert (results[0], results[2]) == (0, 2)
    assert isinstance(results[1], Failure)
    assert results[1].reason == "exhausted"
    assert not zombies()


def test_an_exception_of_the_function_is_raised_with_its_traceback():
    with pytest.raises(RuntimeError, match="no squares today"):
        KillableWorkers(refuse, num_workers=1).run([(1,)])


def test_what_the_function_prints_does_not_disturb(capfd):
    assert KillableWorkers(print_it, num_workers=1).run([(7,)]) == [7]
    assert capfd.readouterr().out == ""


def test_a_process_is_kept_until_it_has_grown_to_half_its_memory():
    workers = KillableWorkers(process_id, num_workers=1, memory_gib=0.5)  # pytest itself is larger
    pids = workers.run([(0,), (0,), (230,), (0,)])
    assert pids[0] == pids[1] == pids[2] != pids[3]


def test_closures_and_lambdas_are_sent_by_value():
    factor = 3
    assert KillableWorkers(lambda number: factor * number, num_workers=1).run([(2,)]) == [6]


def test_a_function_that_cannot_be_sent_is_refused():
    lock = threading.Lock()
    generator = (number for number in range(3))
    with pytest.raises(ValueError, match="cannot be sent to another process"):
        KillableWorkers(lambda number: (lock, next(generator)))


@pytest.mark.parametrize("limit", ["timeout_s", "memory_gib", "num_workers"])
def test_limits_must_be_positive(limit):
    with pytest.raises(ValueError, match=f"{limit} must be positive; got -1"):
        KillableWorkers(square, **{limit: -1})


def test_calls_from_several_threads_do_not_mix():
    workers = KillableWorkers(square, num_workers=2)
    results = {}

    def call(start):
        results[start] = workers.run((number,) for number in range(start, start + 20))

    threads = [threading.Thread(target=call, args=(start,)) for start in range(0, 100, 20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == {start: [n**2 for n in range(start, start + 20)] for start in range(0, 100, 20)}


def test_the_workers_end_with_the_object():
    workers = KillableWorkers(square, num_workers=2)
    workers.run([(1,), (2,)])
    before = len(workers_of(os.getpid()))
    del workers
    assert until(lambda: len(workers_of(os.getpid())) <= before - 1)
    assert not zombies()


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_a_forked_process_starts_its_own_and_leaves_its_parents_alone():
    workers = KillableWorkers(square, num_workers=1)
    assert workers.run([(2,)]) == [4]
    context = multiprocessing.get_context("fork")
    child = context.Process(target=lambda: os._exit(workers.run([(3,)]) != [9]), daemon=True)
    child.start()
    child.join(20)
    assert child.exitcode == 0
    assert workers.run([(4,)]) == [16]
    assert until(lambda: not workers_of(child.pid))


SCRIPT = """
    import os, sys, threading, time
    from online_sft.rewards.killable import KillableWorkers
    def hang(kind):
        print("in", kind, flush=True)
        while kind == "python": pass
        if kind == "c": 10 ** (10**9)
        if kind == "sleep": time.sleep(1000)
    workers = KillableWorkers(hang, timeout_s=1000 if sys.argv[2] == "killed" else 0.5, num_workers=2)
    run = threading.Thread(target=lambda: workers.run([(sys.argv[1],)] * 2), daemon=True)
    run.start()
    if sys.argv[2] == "killed":
        time.sleep(1000)
    run.join()
    if sys.argv[2] == "raises":
        raise SystemExit(3)
"""


@pytest.fixture
def started(tmp_path):
    """Starts `SCRIPT`, and ends whatever the test leaves of it."""
    scripts = []

    def start(kind, end, source=SCRIPT):
        (tmp_path / "script.py").write_text(textwrap.dedent(source))
        script = subprocess.Popen([sys.executable, "script.py", kind, end], stderr=subprocess.PIPE, text=True)
        scripts.append(script)
        assert script.stderr.readline() == f"in {kind}\n"  # both workers print to stderr; one is enough
        return script

    yield start
    for script in scripts:
        script.kill()
        script.wait()
        script.stderr.close()
        for process in workers_of(script.pid):
            process.kill()


@pytest.mark.parametrize(
    ("kind", "end"), [("python", "killed"), ("sleep", "killed"), ("none", "raises"), ("c", "ends")]
)
def test_no_worker_outlives_a_script_without_a_main_guard(started, kind, end):
    """A function of `__main__`, hanging in its workers while the script ends, fails or is killed."""
    script = started(kind, end)
    if end == "killed":
        script.send_signal(signal.SIGKILL)
    script.wait(20)
    assert until(lambda: not workers_of(script.pid))


def test_a_hung_c_call_whose_parent_was_killed_is_ended_by_the_kernel(started):
    script = started("c", "killed", SCRIPT.replace("1000 if", "1 if"))
    script.send_signal(signal.SIGKILL)
    script.wait(20)
    assert until(lambda: not workers_of(script.pid), seconds=20)  # 1 s and 2 s more of processor time
