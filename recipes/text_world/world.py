"""A world of text whose every transition is known: a walker on a map, told where it stands and where to go.

A state is a pair of squares, so that a model which has seen some pairs can be asked about others.
"""

from collections import deque
from functools import cache
from typing import NamedTuple

__all__ = [
    "ACTIONS",
    "MAX_STEPS",
    "SQUARES",
    "STATES",
    "State",
    "distances_to",
    "expected_return",
    "next_state",
    "read_state",
    "reward_of",
    "wasted_steps",
]

# North is up; a1 is at the bottom left, as on a chess board
MAP = """\
......
.##.#.
......
.#..#.
.##...
......"""
ACTIONS = {"north": (0, 1), "east": (1, 0), "south": (0, -1), "west": (-1, 0)}
MAX_STEPS = 10  # of an episode
COLUMNS = "abcdef"
SQUARES = [
    f"{COLUMNS[column]}{row}"
    for row, line in enumerate(reversed(MAP.splitlines()), 1)
    for column, mark in enumerate(line)
    if mark == "."
]
_WASTE = 0.1  # what a step costs that was not needed


class State(NamedTuple):
    """Where the walker stands, and where it should go."""

    at: str
    goal: str

    def __str__(self) -> str:
        return f"at {self.at}, goal {self.goal}"

    @property
    def is_final(self) -> bool:
        return self.at == self.goal


STATES = [State(at, goal) for at in SQUARES for goal in SQUARES if at != goal]  # in which one can act


def read_state(text: str) -> State:
    """The state that a text describes, the inverse of `str`.

    Raises:
        ValueError: it describes none.
    """
    at, _, goal = text.removeprefix("at ").partition(", goal ")
    if str(State(at, goal)) != text or not {at, goal} <= set(SQUARES):
        raise ValueError(f"a state reads like {str(STATES[0])!r}; got {text!r:.80}")
    return State(at, goal)


def next_state(state: State, action: str) -> State:
    """One square further, or the same state: before a wall, at the edge, and for words that are no action."""
    right, up = ACTIONS.get(action, (0, 0))
    square = f"{chr(ord(state.at[0]) + right)}{int(state.at[1]) + up}"
    return State(square, state.goal) if square in SQUARES else state


@cache
def distances_to(goal: str) -> dict[str, int]:
    """Steps that each square is away from the goal."""
    distances, waiting = {goal: 0}, deque([goal])
    while waiting:
        square = waiting.popleft()
        for action in ACTIONS:
            neighbour = next_state(State(square, goal), action).at
            if neighbour not in distances:
                distances[neighbour] = distances[square] + 1
                waiting.append(neighbour)
    return distances


def wasted_steps(state: State, action: str) -> int:
    """By how much the action makes the way longer: 0, if it is on a shortest one; 1 for staying; 2 for going away."""
    to_goal = distances_to(state.goal)
    return 1 + to_goal[next_state(state, action).at] - to_goal[state.at]


def reward_of(state: State, action: str) -> float:
    """1 on arrival, less 0.1 for each wasted step; so that the return of a shortest way is 1, however long it is."""
    return float(next_state(state, action).is_final) - _WASTE * wasted_steps(state, action)


@cache
def expected_return(state: State, share_random: float, steps: int = MAX_STEPS) -> float:
    """Of who takes a shortest way, but a random action with probability `share_random`. Exact, by recursion."""
    if state.is_final or not steps:
        return 0.0
    shortest = [action for action in ACTIONS if not wasted_steps(state, action)]
    chances = {
        action: share_random / len(ACTIONS) + (1 - share_random) * (action in shortest) / len(shortest)
        for action in ACTIONS
    }
    return sum(
        chance * (reward_of(state, action) + expected_return(next_state(state, action), share_random, steps - 1))
        for action, chance in chances.items()
    )
