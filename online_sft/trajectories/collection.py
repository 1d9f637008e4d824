"""Episodes of a policy in environments, several at a time.

A policy is a function of the states of all episodes that wait for an action, so that a model can answer them in one
batch. Environments follow the convention of `online_sft.environments`; each acts in a thread of its own.
"""

import logging
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

from online_sft.trajectories.trajectory import Message, Trajectory, as_messages

__all__ = ["Action", "Environment", "Episodes", "Policy", "State", "collect", "one_at_a_time"]

logger = logging.getLogger(__name__)


class Environment(Protocol):
    """What of `gymnasium.Env` is used."""

    def reset(self, *, seed: int | None = None) -> tuple[Any, dict[str, Any]]: ...

    def step(self, action: str) -> tuple[Any, Any, bool, bool, dict[str, Any]]: ...

    def close(self) -> None: ...


@dataclass(frozen=True)
class State:
    """What the policy acts on."""

    messages: list[Message]
    tools: list[Any] | None  # JSON schemas, for the chat template


@dataclass(frozen=True)
class Action:
    """What the policy says."""

    text: str
    is_cut: bool = False  # it would have said more


# One action for each state; None where the policy cannot act, which truncates the episode
Policy = Callable[[Sequence[State]], Sequence[Action | None]]


@dataclass(frozen=True)
class Episodes:
    """What a collection has brought."""

    trajectories: list[Trajectory]
    failures: list[str]  # what environments raised, one line an episode


def one_at_a_time(policy: Callable[[list[Message]], str]) -> Policy:
    """A policy from a function of one conversation."""
    return lambda states: [Action(policy(state.messages)) for state in states]


def collect(
    policy: Policy,
    environments: Sequence[Callable[[], Environment]],
    seeds: Sequence[int],
    *,
    num_environments: int = 1,
    max_steps: int = 100,
    metadata: Mapping[str, Any] | None = None,
    anywhere: Callable[[bool], bool] = bool,
) -> Episodes:
    """One episode for each seed, the i-th in the i-th environment (and again from the first).

    An environment that raises ends its episode, which is a failure and no trajectory.

    Args:
        environments: make them; each instance is used again, for one episode after another.
        seeds: of the episodes.
        num_environments: episodes under way at the same time.
        max_steps: actions after which an episode is truncated.
        metadata: of all trajectories, beside `environment`, `seed`, `terminated`, `truncated`, `cut_actions` (the
            places of actions that would have gone on), and, where the environment says them, `success`, `group` and
            `tools`.
        anywhere: whether something is true in any process. The policy is called equally often in each, with no state
            where there is none left.

    Raises:
        RuntimeError: when the policy returns too few actions.
    """
    waiting = [_Episode(index, environments[index % len(environments)], seed) for index, seed in enumerate(seeds)][::-1]
    running: list[_Episode] = []
    over: list[_Episode] = []
    pool = _Pool()
    with ThreadPoolExecutor(num_environments) as threads:
        try:
            while anywhere(bool(waiting or running)):
                begun = [waiting.pop() for _ in range(min(num_environments - len(running), len(waiting)))]
                list(threads.map(lambda episode: episode.begin(pool), begun))
                running += begun
                acting = [episode for episode in running if not episode.is_over]
                actions = policy([episode.state for episode in acting])
                if len(actions) != len(acting):
                    raise RuntimeError(f"the policy returned {len(actions)} actions for {len(acting)} states")
                list(threads.map(lambda episode, action: episode.act(action, max_steps), acting, actions))
                over += [episode.give_back(pool) for episode in running if episode.is_over]
                running = [episode for episode in running if not episode.is_over]
        finally:
            pool.close()
    return _sorted_out(over, metadata or {})


def _sorted_out(over: "list[_Episode]", metadata: Mapping[str, Any]) -> Episodes:
    over.sort(key=lambda episode: episode.index)
    failures = [episode.failure for episode in over if episode.failure is not None]
    if failures:
        logger.warning(
            "%d of %d episodes failed and are left out, the first: %s", len(failures), len(over), failures[0]
        )
    return Episodes([episode.trajectory(metadata) for episode in over if episode.failure is None], failures)


class _Pool:
    """Environments between two episodes."""

    def __init__(self) -> None:
        self._all: list[Environment] = []
        self._idle: dict[Callable[[], Environment], list[Environment]] = {}
        self._lock = threading.Lock()

    def take(self, make: Callable[[], Environment]) -> Environment:
        with self._lock:
            if self._idle.get(make):
                return self._idle[make].pop()
        environment = make()
        with self._lock:
            self._all.append(environment)
        return environment

    def give_back(self, make: Callable[[], Environment], environment: Environment) -> None:
        self._idle.setdefault(make, []).append(environment)

    def close(self) -> None:
        for environment in self._all:
            environment.close()


class _Episode:
    """One episode under way."""

    def __init__(self, index: int, make: Callable[[], Environment], seed: int) -> None:
        self.index, self._make, self._seed = index, make, seed
        self._environment: Environment | None = None
        self._observations: list[list[Message]] = []
        self._actions: list[Message] = []
        self._rewards: list[float] = []
        self._metadata: dict[str, Any] = {}
        self._cut_actions: list[int] = []
        self.is_over = False
        self.failure: str | None = None

    @property
    def state(self) -> State:
        messages = list(self._observations[0])
        for action, observation in zip(self._actions, self._observations[1:], strict=True):
            messages += [action, *observation]
        return State(messages, self._metadata.get("tools"))

    def begin(self, pool: _Pool) -> None:
        with self._failing():
            self._environment = pool.take(self._make)
            self._observe(*self._environment.reset(seed=self._seed))

    def act(self, action: Action | None, max_steps: int) -> None:
        if action is None:
            if not self._actions:
                self.failure = "the policy could not act on the first observation, which is too long"
            self._end(terminated=False, truncated=True)
            return
        with self._failing():
            assert self._environment is not None
            observation, reward, terminated, truncated, info = self._environment.step(action.text)
            if action.is_cut:
                self._cut_actions.append(len(self._actions))
            self._actions.append({"role": "assistant", "content": action.text})
            self._rewards.append(float(reward))
            self._observe(observation, info)
            truncated = truncated or (not terminated and len(self._actions) >= max_steps)
            if terminated or truncated:
                self._end(terminated=terminated, truncated=truncated)

    def give_back(self, pool: _Pool) -> "_Episode":
        """An environment that has raised is not used again."""
        if self.failure is None and self._environment is not None:
            pool.give_back(self._make, self._environment)
        return self

    def trajectory(self, metadata: Mapping[str, Any]) -> Trajectory:
        return Trajectory(self._observations, self._actions, self._rewards, {**self._metadata, **metadata})

    def _observe(self, observation: Any, info: Mapping[str, Any]) -> None:
        self._observations.append(as_messages(info.get("messages", observation), "user"))
        self._metadata |= {name: info[name] for name in ("tools", "group", "success") if name in info}

    def _end(self, *, terminated: bool, truncated: bool) -> None:
        self.is_over = True
        self._metadata |= {"environment": _name(self._environment), "seed": self._seed}
        self._metadata |= {"terminated": bool(terminated), "truncated": bool(truncated)}
        if self._cut_actions:
            self._metadata["cut_actions"] = self._cut_actions

    @contextmanager
    def _failing(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # of somebody's environment: one episode is lost, and not the run
            self.is_over, self.failure = True, f"{_name(self._environment)}, seed {self._seed}: {error!r}"


def _name(environment: Any) -> str:
    """Its id in Gymnasium's registry, or that of its class."""
    if environment is None:
        return "an environment"
    spec = getattr(environment, "spec", None)
    return spec.id if spec is not None else type(environment).__name__
