"""Small files of trajectories, and what is read of them."""

import logging
from pathlib import Path

from online_sft.trajectories.encoding import EncodedTrajectory
from online_sft.trajectories.files import read_trajectories, write_trajectories
from online_sft.trajectories.trajectory import Trajectory

SUFFIXES = ["json", "jsonl", "parquet"]


def episode(name, num_turns=2):
    turns = range(num_turns)
    observations = [f"o{name}\n\u2028ü", *(f"o{name}.{t}" for t in turns)]
    return Trajectory(observations, [f"a{name}.{t}" for t in turns], [0.1 * name + t for t in turns], {"seed": name})


EPISODES = [episode(name) for name in range(6)]


def write(path, trajectories=EPISODES):
    write_trajectories(path, [EncodedTrajectory.of(each) for each in trajectories])


def read(path, **options):
    return list(read_trajectories(path, **options))


def lines_of(path):
    return Path(path).read_bytes().splitlines(keepends=True)


def read_damaged(path, caplog):
    """What is read of a file where damage is skipped, and the one warning."""
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        intact = read(path, skip_damaged=True)
    (warning,) = caplog.records
    return "".join(str(each.metadata["seed"]) for each in intact), warning.getMessage()
