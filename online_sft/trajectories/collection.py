"""Episodes of a policy in environments, several at a time.

A policy is a function of the states of all episodes that wait for an action, so that a model can answer them in one
batch. Environments follow the convention of `online_sft.environments`; each lives in a thread of its own.
"""

import logging
import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import orjson

from online_sft.trajectories.trajectory import Message, Trajectory, as_messages

__all__ = ["Action", "Environment", "Episodes", "Policy", "State", "collect", "one_at_a_time"]

logger = logging.getLogger(__name__)

_OF_STEP = ("observation", "reward", "terminated", "truncated", "info")


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

    An environment that raises, or says what JSON cannot, ends its episode, which is a failure and no trajectory.

    Args:
        environments: make them, a new one at each call; each instance is used again, for one episode after another.
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
        ValueError: without an environment, for numbers below 1, or when one instance is made twice.
    """
    if num_environments < 1 or max_steps < 1 or (seeds and not environments):
        raise ValueError(
            "at least one is needed of environments, num_environments and max_steps; got "
            f"{len(environments)}, {num_environments} and {max_steps}"
        )
    waiting = list(enumerate(seeds))[::-1]
    running: list[_Episode] = []
    over: list[_Episode] = []
    with _pool() as pool:
        while anywhere(bool(waiting or running)):
            places = min(num_environments - len(running), len(waiting))
            begun = [
                _Episode(index, seed, pool.take(environments[index % len(environments)]))
                for index, seed in (waiting.pop() for _ in range(places))
            ]
            _wait([episode.begin() for episode in begun])
            pool.check()
            running += begun
            acting = [episode for episode in running if not episode.is_over]
            actions = policy([episode.state for episode in acting])
            if len(actions) != len(acting):
                raise RuntimeError(f"the policy returned {len(actions)} actions for {len(acting)} states")
            _wait([episode.act(action, max_steps) for episode, action in zip(acting, actions, strict=True)])
            over += [episode.give_back(pool) for episode in running if episode.is_over]
            running = [episode for episode in running if not episode.is_over]
    return _sorted_out(over, metadata or {})


def _sorted_out(over: "list[_Episode]", metadata: Mapping[str, Any]) -> Episodes:
    over.sort(key=lambda episode: episode.index)
    failures = [episode.failure for episode in over if episode.failure is not None]
    if failures:
        logger.warning(
            "%d of %d episodes failed and are left out, the first: %s", len(failures), len(over), failures[0]
        )
    return Episodes([episode.trajectory(metadata) for episode in over if episode.failure is None], failures)


class _Worker:
    """An environment and the thread in which it is made, acts and is closed: a browser, say, works in no other."""

    def __init__(self, make: Callable[[], Environment]) -> None:
        self.make = make
        self.environment: Environment | None = None
        self._thread = ThreadPoolExecutor(1)
        self._is_closed = False

    def run(self, call: Callable[..., None], *arguments: Any) -> "Future[None]":
        return self._thread.submit(call, *arguments)

    def made(self) -> Environment:
        """The environment; in its thread."""
        if self.environment is None:
            self.environment = self.make()
        return self.environment

    def close(self, *, wait: bool) -> None:
        if not self._is_closed:
            self._is_closed = True
            self.run(self._close)
        self._thread.shutdown(wait=wait)

    def _close(self) -> None:
        try:
            if self.environment is not None:
                self.environment.close()
        except Exception as error:  # of an environment that has failed, perhaps; its episodes are over anyway
            logger.warning("%s cannot be closed: %r", _name(self.environment), error)


class _Pool:
    """All environments of a collection, and which of them are between two episodes."""

    def __init__(self) -> None:
        self._workers: list[_Worker] = []
        # by the id of what makes them, which need not be hashable
        self._idle: dict[int, list[_Worker]] = defaultdict(list)

    def take(self, make: Callable[[], Environment]) -> _Worker:
        if not self._idle[id(make)]:
            self._workers.append(_Worker(make))
            return self._workers[-1]
        return self._idle[id(make)].pop()

    def give_back(self, worker: _Worker) -> None:
        self._idle[id(worker.make)].append(worker)

    def check(self) -> None:
        """Raises:
        ValueError: two episodes would act in one instance.
        """
        made = [worker.environment for worker in self._workers if worker.environment is not None]
        if len(set(map(id, made))) < len(made):
            raise ValueError(
                f"a function that makes environments returned the same one twice, among them {_name(made[-1])}; "
                "episodes under way at the same time need one each"
            )

    def close(self) -> None:
        for wait in (False, True):  # all at the same time
            for worker in self._workers:
                worker.close(wait=wait)


@contextmanager
def _pool() -> Iterator[_Pool]:
    pool = _Pool()
    try:
        yield pool
    finally:
        pool.close()


def _wait(running: "Iterable[Future[None]]") -> None:
    for each in running:
        each.result()


class _Episode:
    """One episode under way."""

    def __init__(self, index: int, seed: int, worker: _Worker) -> None:
        self.index, self._seed, self._worker = index, seed, worker
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

    def begin(self) -> "Future[None]":
        return self._worker.run(self._reset)

    def act(self, action: Action | None, max_steps: int) -> "Future[None]":
        return self._worker.run(self._step, action, max_steps)

    def _reset(self) -> None:
        with self._failing():
            self._observe(*_unpacked(self._worker.made().reset(seed=self._seed), "reset", ("observation", "info")))
            if not self._observations[0]:
                raise ValueError("there is no message in the first observation")

    def _step(self, action: Action | None, max_steps: int) -> None:
        with self._failing():
            if action is None:
                if not self._actions:
                    raise ValueError("the policy cannot act on the first observation, which is too long")
                return self._end(terminated=False, truncated=True)
            returned = self._worker.made().step(action.text)
            observation, reward, terminated, truncated, info = _unpacked(returned, "step", _OF_STEP)
            if not math.isfinite(reward):
                raise ValueError(f"a reward must be a finite number; got {reward}")
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
        if self.failure is None:
            pool.give_back(self._worker)
        else:
            self._worker.close(wait=False)
        return self

    def trajectory(self, metadata: Mapping[str, Any]) -> Trajectory:
        return Trajectory(self._observations, self._actions, self._rewards, {**self._metadata, **metadata})

    def _observe(self, observation: Any, info: Mapping[str, Any]) -> None:
        self._observations.append(_as_json(as_messages(info.get("messages", observation), "user")))
        self._metadata |= _as_json({name: info[name] for name in ("tools", "group", "success") if name in info})

    def _end(self, *, terminated: bool, truncated: bool) -> None:
        self.is_over = True
        self._metadata |= {"environment": _name(self._worker.environment), "seed": self._seed}
        self._metadata |= {"terminated": bool(terminated), "truncated": bool(truncated)}
        if self._cut_actions:
            self._metadata["cut_actions"] = self._cut_actions

    @contextmanager
    def _failing(self) -> Iterator[None]:
        try:
            yield
        # of somebody's environment, which may run what a model has written: one episode is lost, and not the run
        except (Exception, SystemExit) as error:
            self.is_over, self.failure = True, f"{_name(self._worker.environment)}, seed {self._seed}: {error!r}"


def _as_json(said: Any) -> Any:
    """A copy that can be saved, also of numpy's numbers.

    Raises:
        TypeError: there is none.
    """
    return orjson.loads(orjson.dumps(said, option=orjson.OPT_SERIALIZE_NUMPY))


def _name(environment: Any) -> str:
    """Its id in Gymnasium's registry, or that of its class."""
    if environment is None:
        return "an environment"
    spec = getattr(environment, "spec", None)
    return spec.id if spec is not None else type(environment).__name__


def _unpacked(returned: Any, method: str, names: tuple[str, ...]) -> tuple[Any, ...]:
    if not isinstance(returned, tuple) or len(returned) != len(names):
        raise ValueError(f"{method} must return ({', '.join(names)}); got {returned!r:.80}")
    return returned
