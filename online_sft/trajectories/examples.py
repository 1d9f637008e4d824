"""From trajectories to rows of tokens, each with the weight and the kind of what it teaches."""

from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from online_sft.trajectories.rendering import ACTION, NEITHER, OBSERVATION, Renderer
from online_sft.trajectories.trajectory import Message, Trajectory

__all__ = ["MODES", "Example", "Window", "examples_of"]

# what each mode learns
MODES = {
    "behavioral_cloning": frozenset({ACTION}),
    "world_model": frozenset({OBSERVATION}),
    "combined": frozenset({ACTION, OBSERVATION}),
}


@dataclass(frozen=True)
class Example:
    """A row, aligned with its tokens. One without tokens stands for a turn that was too long for any."""

    input_ids: list[int]
    labels: list[int]  # -100 where nothing is learnt
    advantages: list[float]  # of an action's tokens, its weight; of an observation's, 1; elsewhere 0
    kinds: list[int]  # ACTION or OBSERVATION; NEITHER where nothing is learnt
    is_cut: bool = False  # it has lost the end of its last observation


@dataclass(frozen=True)
class Window:
    """How trajectories become rows.

    Args:
        learns: kinds of tokens.
        history_length: turns (an observation and the action that follows it) that a row shows before the observation
            that its action answers; None: all of them.
        max_length: tokens of a row; None: any number.
    """

    learns: frozenset[int] = MODES["combined"]
    history_length: int | None = None
    max_length: int | None = None


def examples_of(
    trajectory: Trajectory, renderer: Renderer, window: Window, weights: Sequence[float | None] | None = None
) -> list[Example]:
    """The rows of a trajectory.

    Every action, and every observation after the first, is learnt once. A trajectory is one row where it can be: where
    neither `history_length` nor `max_length` divides it. Else later rows begin with the system messages of the first
    observation and with a later turn. What is too long is divided between turns; a turn that alone is too long loses
    the end of its last observation, never a part of an action, without which it is left out.

    Args:
        weights: of the actions, T; default: 1. An action of weight None is not learnt; what follows it is.

    Raises:
        ValueError: of the renderer.
    """
    weights = [1.0] * len(trajectory) if weights is None else weights
    examples, start = [], 0
    while start < len(trajectory):
        row = _longest_fitting(
            [
                partial(_row, trajectory, turns, renderer, window.learns, weights)
                for turns in _candidates(len(trajectory), start, window.history_length)
            ],
            window.max_length,
        )
        if row.example.input_ids:
            examples.append(_cut(row, window.max_length))
        start = row.turns.last + 1
    return examples


@dataclass(frozen=True)
class _Turns:
    """Turns `first` to `last` of a trajectory, of which those from `target` on are learnt."""

    first: int
    target: int
    last: int


def _candidates(num_turns: int, start: int, history: int | None) -> list[_Turns]:
    """The rows that may teach turn `start`, the longest first."""
    if history is None:
        return [_Turns(start, start, last) for last in range(num_turns - 1, start - 1, -1)]
    if not start:  # the first turns have no more than this history, so that one row shows it to all of them
        return [_Turns(0, 0, last) for last in range(min(history, num_turns - 1), -1, -1)]
    return [_Turns(first, start, start) for first in range(max(0, start - history), start + 1)]


def _longest_fitting(rows: Sequence[Callable[[], "_Row"]], max_length: int | None) -> "_Row":
    """The first that is short enough, of rows that become shorter; the last where none is."""
    made: dict[int, _Row] = {}

    def fits(index: int) -> bool:
        made[index] = rows[index]()
        return max_length is None or len(made[index].example.input_ids) <= max_length

    if fits(0):  # most do, and a row takes time to make
        return made[0]
    return made[min(bisect_left(range(len(rows)), True, lo=1, key=fits), len(rows) - 1)]


@dataclass(frozen=True)
class _Row:
    turns: _Turns
    example: Example
    end_of_actions: int  # the tokens up to the last one of an action


def _row(
    trajectory: Trajectory,
    turns: _Turns,
    renderer: Renderer,
    learns: frozenset[int],
    weights: Sequence[float | None],
) -> _Row:
    messages, of_turn = _conversation(trajectory, turns, with_last=OBSERVATION in learns)
    rendered = renderer(messages, trajectory.metadata.get("tools"))
    labels, advantages, kinds = [], [], []
    for token, kind, message in zip(rendered.input_ids, rendered.kinds, rendered.messages, strict=True):
        weight = weights[of_turn[message]] if kind == ACTION else 1.0
        is_learnt = kind in learns and of_turn[message] >= turns.target and weight is not None
        labels.append(token if is_learnt else -100)
        advantages.append(float(weight) if is_learnt and weight is not None else 0.0)
        kinds.append(kind if is_learnt else NEITHER)
    end = max((place for place, kind in enumerate(kinds, 1) if kind), default=0)  # nothing is learnt behind it
    example = Example(rendered.input_ids[:end], labels[:end], advantages[:end], kinds[:end])
    return _Row(turns, example, len(rendered.kinds) - rendered.kinds[::-1].index(ACTION))


def _conversation(trajectory: Trajectory, turns: _Turns, *, with_last: bool) -> tuple[list[Message], list[int]]:
    """The messages of these turns, and to which turn each belongs: an observation to that whose action it answers."""
    opening = trajectory.observations[0] if turns.first else []
    messages = [message for message in opening if message["role"] == "system"]
    of_turn = [-1] * len(messages)
    for turn in range(turns.first, turns.last + 1):
        said = [*trajectory.observations[turn], trajectory.actions[turn]]
        messages += said
        of_turn += [turn - 1] * (len(said) - 1) + [turn]
    if with_last:
        answer = trajectory.observations[turns.last + 1] if turns.last + 1 < len(trajectory.observations) else []
        messages += answer
        of_turn += [turns.last] * len(answer)
    return messages, of_turn


def _cut(row: _Row, max_length: int | None) -> Example:
    example = row.example
    if max_length is None or len(example.input_ids) <= max_length:
        return example
    kinds = example.kinds[:max_length]
    if row.end_of_actions > max_length or not any(kinds):
        return Example([], [], [], [])
    return Example(
        example.input_ids[:max_length], example.labels[:max_length], example.advantages[:max_length], kinds, True
    )
