"""100,000 trajectories made, saved, loaded and compared in each format, beside MRLM's `json.dump(..., indent=2)`.

    PYTHONPATH=. .venv/bin/python benchmarks/trajectory_files.py

Each format has a process of its own, whose peak memory is ru_maxrss: the first data set, its file and what is loaded
from it are all there at once. "list + json" is what MRLM's TrajectoryDataset does, with our Trajectory.
"""

import argparse
import json
import random
import resource
import string
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from online_sft.trajectories.dataset import TrajectoryDataset
from online_sft.trajectories.trajectory import Trajectory

FORMATS = ("jsonl", "json", "parquet", "list + json")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num_trajectories", type=int, default=100_000)
    parser.add_argument("--formats", nargs="+", choices=FORMATS, default=FORMATS)
    parser.add_argument("--child", action="store_true", help="the only format, in this process")
    args = parser.parse_args()
    if args.child:
        print(row(args.formats[0], args.num_trajectories), flush=True)
        return
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    print(f"commit {commit}, {args.num_trajectories} trajectories of 3 to 6 turns\n")
    print(
        "| format | make, s | save, s | load, s | file, MB | peak memory, MB |\n|---|---|---|---|---|---|", flush=True
    )
    for each in args.formats:
        options = ["--child", "--formats", each, "--num_trajectories", str(args.num_trajectories)]
        subprocess.run([sys.executable, __file__, *options], check=True)


def row(name: str, num_trajectories: int) -> str:
    with tempfile.TemporaryDirectory(prefix="trajectories-") as folder:
        path = Path(folder) / f"data.{name.split()[-1]}"
        if name == "list + json":
            seconds = round_trip(lambda: list(make(num_trajectories)), save_list, load_list, path)
        else:
            seconds = round_trip(
                lambda: TrajectoryDataset(make(num_trajectories)), TrajectoryDataset.save, TrajectoryDataset.load, path
            )
        megabytes = path.stat().st_size / 1e6
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6
    return f"| {name} | {' | '.join(f'{each:.1f}' for each in seconds)} | {megabytes:.0f} | {peak:.0f} |"


def round_trip(make_all: Callable, save: Callable, load: Callable, path: Path) -> list[float]:
    made, *others = timed(make_all)
    _, *others_of_save = timed(lambda: save(made, path))
    loaded, *others_of_load = timed(lambda: load(path))
    assert len(made) == len(loaded)
    assert all(ours == theirs for ours, theirs in zip(made, loaded, strict=True))
    return others + others_of_save + others_of_load


def timed(call: Callable) -> tuple[object, float]:
    start = time.perf_counter()
    result = call()
    return result, time.perf_counter() - start


def save_list(trajectories: list[Trajectory], path: Path) -> None:
    rows = [each.to_dict() for each in trajectories]
    document = {"trajectories": rows, "num_trajectories": len(rows), "num_transitions": sum(map(len, trajectories))}
    with path.open("w") as file:
        json.dump(document, file, indent=2)


def load_list(path: Path) -> list[Trajectory]:
    with path.open() as file:
        return [Trajectory.from_dict(each) for each in json.load(file)["trajectories"]]


def make(num_trajectories: int) -> Iterator[Trajectory]:
    """3 to 6 turns, 100 to 300 characters a message, words of 1 to 9 letters."""
    rng = random.Random(0)
    words = ["".join(rng.choices(string.ascii_lowercase, k=rng.randint(1, 9))) for _ in range(20_000)]

    def text() -> str:
        return " ".join(rng.choices(words, k=60))[: rng.randint(100, 300)]

    for index in range(num_trajectories):
        num_turns = rng.randint(3, 6)
        yield Trajectory(
            [text() for _ in range(num_turns + 1)],
            [text() for _ in range(num_turns)],
            [round(rng.random(), 3) for _ in range(num_turns)],
            {"environment": "words", "seed": index, "group": index // 8, "policy_version": index // 1000}
            | {"terminated": True, "truncated": False, "success": rng.random() < 0.5},
        )


if __name__ == "__main__":
    main()
