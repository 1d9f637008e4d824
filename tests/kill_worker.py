"""Trains, is killed, goes on, is killed again, ...; and writes how far that is from a run that was left alone.

A process of its own: it imports everything once and forks before anything of torch is started, so that a life costs no
start. With two processes it is their launcher, too, and kills the other one when one dies, as torchrun does.

python kill_worker.py moments|steps|saving KIND NUM_PROCESSES SEED FOLDER
"""

import json
import os
import random
import shutil
import signal
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # for `recipes`, which is not installed

import torch
from free_port import free_port
from resume_tools import STEPS, parameters, trainer_of
from transformers import TrainerCallback

NUM_KILLS = 5


class KilledAt(TrainerCallback):
    """SIGKILL at the n-th function call after the beginning of a step of this life; without n it only counts.

    Calls, not seconds, which are others whenever the machine has something else to do.
    """

    def __init__(self, step=0, number=None):
        self.step, self.number, self.count = step, number, 0

    def on_step_begin(self, *args, **kwargs):
        if not self.step:
            sys.setprofile(self.hear)
        self.step -= 1

    def hear(self, frame, event, argument):
        self.count += event in ("call", "c_call")
        if self.count == self.number:
            os.kill(os.getpid(), signal.SIGKILL)


class KilledAtFileOperation(TrainerCallback):
    """SIGKILL before the n-th thing that is done to a file in `folder` at the end of the second step."""

    def __init__(self, number, folder):
        self.number, self.folder, self.count = number, str(folder), None
        sys.addaudithook(self.hear)

    def on_step_end(self, args, state, control, **kwargs):
        self.count = 0 if state.global_step == 2 else None

    def hear(self, event, values):
        if self.count is None or event not in ("open", "os.mkdir", "os.rename", "os.remove", "os.rmdir"):
            return
        if not str(values[0]).startswith(self.folder):
            return
        self.count += 1
        if self.count == self.number:
            os.kill(os.getpid(), signal.SIGKILL)


def life(kind, output, killer=None, *, rank=0, num_processes=1, port=0, **more):
    """One process, from its beginning to its end; the parameters are in `output`-`rank`.pt."""
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(num_processes)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    if num_processes == 1:
        for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE"):
            del os.environ[name]
    else:
        more["per_device_train_batch_size"] = 4 if kind.startswith("online") else 1
    trainer = trainer_of(kind, output, **more)
    assert trainer.accelerator.num_processes == num_processes
    if killer is not None:
        trainer.add_callback(killer)
    trainer.train(resume_from_checkpoint="auto")
    sys.setprofile(None)
    torch.save({"parameters": parameters(trainer), "calls": getattr(killer, "count", None)}, f"{output}-{rank}.pt")


def lives(kind, output, num_processes=1, killers=None, **more):
    """The exit codes of the processes of one run: -9 of those that were killed."""
    port, children = free_port(), []
    for rank in range(num_processes):
        child = os.fork()
        if not child:
            try:
                killer = (killers or {}).get(rank)
                life(kind, output, killer, rank=rank, num_processes=num_processes, port=port, **more)
                os._exit(0)
            except BaseException:
                import traceback

                traceback.print_exc()
                os._exit(1)
        children.append(child)
    codes = {}
    while len(codes) < num_processes:
        child, status = os.wait()
        codes[child] = os.waitstatus_to_exitcode(status)
        if codes[child]:
            for other in set(children) - set(codes):
                os.kill(other, signal.SIGTERM)
    return [codes[child] for child in children]


def distance(folder, name, other):
    one, two = (torch.load(folder / f"{each}-0.pt")["parameters"] for each in (name, other))
    return (one - two).abs().max().item()


def at_random_moments(kind, num_processes, seed, folder):
    """Killed five times, somewhere in a step, its checkpoint, or the beginning of the next step."""
    counters = {rank: KilledAt() for rank in range(num_processes)}
    assert lives(kind, folder / "whole", num_processes, counters) == [0] * num_processes
    calls_of_step = [torch.load(folder / f"whole-{rank}.pt")["calls"] // STEPS for rank in range(num_processes)]
    moments, found = random.Random(seed), []
    while len(found) < NUM_KILLS:
        num_done = len(list((folder / "killed").glob("checkpoint-*")))
        rank, step = moments.randrange(num_processes), moments.randrange(2) if num_done < STEPS - 3 else 0
        killer = KilledAt(step, moments.randrange(1, calls_of_step[rank]))
        codes = lives(kind, folder / "killed", num_processes, {rank: killer})
        assert -signal.SIGKILL in codes, codes
        num_done = len(list((folder / "killed").glob("checkpoint-*")))
        found.append({"checkpoints": num_done, "while_saving": (folder / "killed" / "_saving").exists()})
    assert lives(kind, folder / "killed", num_processes) == [0] * num_processes
    return {"kills": found, "distance": distance(folder, "whole", "killed")}


def after_steps(kind, num_processes, seed, folder):
    """Killed after a step of the first epoch, and after one of the second."""
    assert lives(kind, folder / "whole", num_processes) == [0] * num_processes
    found = {}
    for step in (3, 6):
        shutil.copytree(folder / "whole", folder / f"after-{step}")
        for later in range(step + 1, STEPS + 1):
            shutil.rmtree(folder / f"after-{step}" / f"checkpoint-{later}")
        assert lives(kind, folder / f"after-{step}", num_processes) == [0] * num_processes
        found[step] = distance(folder, "whole", f"after-{step}")
    return found


def at_each_file_operation(kind, num_processes, seed, folder):
    """Killed while the second checkpoint replaces the first, once before each thing that is done to a file."""
    more = {"max_steps": 3, "save_total_limit": 1}
    assert lives(kind, folder / "whole", **more) == [0]
    found = []
    for number in range(1, 1000):
        output = folder / f"killed-{number}"
        (code,) = lives(kind, output, killers={0: KilledAtFileOperation(number, output)}, **more)
        if code == 0:  # fewer operations than that
            return found
        assert code == -signal.SIGKILL, code
        left = sorted(path.name for path in output.glob("checkpoint-*"))
        assert lives(kind, output, **more) == [0]
        found.append({"left": left, "distance": distance(folder, "whole", output.name)})
    raise AssertionError("never left alone")


if __name__ == "__main__":
    what, kind, num_processes, seed, folder = sys.argv[1:]
    run = {"moments": at_random_moments, "steps": after_steps, "saving": at_each_file_operation}[what]
    found = run(kind, int(num_processes), int(seed), Path(folder))
    Path(folder, "found.json").write_text(json.dumps(found))
