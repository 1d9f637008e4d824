"""What the models learn from: episodes of walkers of mixed quality, none of which sees a held-out state."""

import random
from collections.abc import Collection
from functools import partial

from online_sft import Trajectory, TrajectoryDataset
from online_sft.trajectories.collection import collect, one_at_a_time
from online_sft.trajectories.trajectory import Message
from recipes.text_world.environment import WalkEnv
from recipes.text_world.world import ACTIONS, STATES, State, read_state, wasted_steps

__all__ = ["Walker", "behaviour_data", "held_out_states", "states_of"]

SHARE_HELD_OUT = 0.1
# name -> chance that an action is random, episodes
WALKERS = {"expert": (0.0, 1200), "hesitant": (0.5, 1200), "random": (1.0, 1600)}


class Walker:
    """Takes a shortest way, but a random action now and then.

    Args:
        share_random: how often.
        generator: of its choices.
    """

    def __init__(self, share_random: float, generator: random.Random) -> None:
        self._share_random, self._generator = share_random, generator

    def __call__(self, messages: list[Message]) -> str:
        """The action that answers the last message."""
        state = read_state(messages[-1]["content"])
        is_random = self._generator.random() < self._share_random
        return self._generator.choice([each for each in ACTIONS if is_random or not wasted_steps(state, each)])


def held_out_states(seed: int) -> list[State]:
    """A tenth of all states, drawn with `seed`."""
    return random.Random(seed).sample(STATES, round(SHARE_HELD_OUT * len(STATES)))


def behaviour_data(held_out: Collection[State], seed: int) -> TrajectoryDataset:
    """Episodes of all walkers; those that come through a held-out state are left out."""
    starts = [state for state in STATES if state not in held_out]
    draw, kept = random.Random(seed), TrajectoryDataset()
    for name, (share_random, num_episodes) in WALKERS.items():
        episodes = collect(
            one_at_a_time(Walker(share_random, draw)),
            [partial(WalkEnv, starts)],
            [draw.getrandbits(32) for _ in range(num_episodes)],
            metadata={"walker": name},
        )
        kept.extend(each for each in episodes.trajectories if not states_of(each) & set(held_out))
    return kept


def states_of(trajectory: Trajectory) -> set[State]:
    """All states that an episode comes through, with the last one."""
    return {read_state(message["content"]) for observation in trajectory.observations for message in observation}
