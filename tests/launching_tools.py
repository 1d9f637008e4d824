"""Starts a script on two processes of the CPU in one of the modes of recipes/accelerate, with a time-out that holds."""

import contextlib
import os
import subprocess
import sys
from pathlib import Path

import psutil
from free_port import free_port

TESTS = Path(__file__).resolve().parent
RECIPES = TESTS.parent / "recipes" / "accelerate"
MODES = ("ddp", "fsdp2", "zero2", "zero3")
# what makes a mode, on a CPU and with a tiny model, what it is on GPUs
SHIMS = {"fsdp2": "fsdp2_on_cpu.py", "zero3": "zero3_of_tiny_models.py"}
_ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "TRL_EXPERIMENTAL_SILENCE": "1",
    "HF_HUB_OFFLINE": "1",
    # DeepSpeed compiles with the ninja that is installed beside this Python; 40 s, once for each TORCH_EXTENSIONS_DIR
    "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
}


def launch(mode, script, *arguments, seconds=300, num_processes=2):
    """Runs `script` with the recipe that GPUs take, but for their number and bf16.

    Raises:
        AssertionError: with the end of what was said, when it fails or takes longer than `seconds`; no process is left.
    """
    shim = [str(TESTS / SHIMS[mode])] if mode in SHIMS else []
    cpu = ["--num_processes", str(num_processes), "--mixed_precision", "no", "--main_process_port", str(free_port())]
    command = [
        *(sys.executable, "-m", "accelerate.commands.launch"),
        *("--config_file", str(RECIPES / f"{mode}.yaml"), *cpu),
        *(*shim, script, *map(str, arguments)),
    ]
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, **_ENVIRONMENT},
    )
    try:
        said, _ = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        _kill(process)
        said, _ = process.communicate()
        raise AssertionError(f"{mode}: still running after {seconds} s\n{said[-4000:]}") from None
    finally:
        _kill(process)
    assert process.returncode == 0, said[-6000:]
    return said


def _kill(process):
    """With all that it has started: each has a session of its own, and would outlive the launcher's process group."""
    if process.poll() is None:
        launcher = psutil.Process(process.pid)
        for each in (launcher, *launcher.children(recursive=True)):
            with contextlib.suppress(psutil.NoSuchProcess):
                each.kill()
