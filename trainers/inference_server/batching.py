"""The one thread that owns the model: batches of requests, and new weights between two of them."""

import copy
import logging
import threading
from collections import deque
from collections.abc import Iterator, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from typing import TypeVar

import torch
from torch import Tensor

from trainers.inference_server.generation import AbortedError, Completion, generate
from trainers.inference_server.policy import Policy
from trainers.inference_server.sampling import Sampling
from trainers.inference_server.weights import copy_weights

__all__ = ["Batcher", "GenerationError", "GenerationRequest", "Samples"]

logger = logging.getLogger(__name__)


class GenerationError(RuntimeError):
    """What the model raised instead of an answer."""


@dataclass(frozen=True)
class GenerationRequest:
    """`n` completions of each prompt."""

    prompts: tuple[tuple[int, ...], ...]
    n: int
    sampling: Sampling
    seed: int | None

    @property
    def num_rows(self) -> int:
        """How many completions that makes."""
        return self.n * len(self.prompts)


@dataclass(frozen=True)
class Samples:
    """The completions of a request, in the order of its rows, all of them by the same weights."""

    completions: list[Completion]
    policy_version: int


@dataclass(frozen=True)
class _Waiting:
    request: GenerationRequest
    future: "Future[Samples]" = field(default_factory=Future)


@dataclass(frozen=True)
class _Update:
    weights: Mapping[str, Tensor]
    policy_version: int
    future: "Future[None]" = field(default_factory=Future)


_Item = TypeVar("_Item", _Waiting, _Update)


class Batcher:
    """Answers requests and takes weights, one after the other, in a thread of its own.

    Requests that wait with the same sampling share a batch of at most `max_batch_rows` rows; one with more rows is
    answered in several batches, by the same weights. One with a seed has a batch, and random numbers, to itself. New
    weights go first: what waits when they arrive is sampled from them.

    Args:
        policy: which nobody else may use or change from now on.
    """

    def __init__(self, policy: Policy, *, max_batch_rows: int) -> None:
        if max_batch_rows < 1:
            raise ValueError(f"max_batch_rows must be at least 1; got {max_batch_rows}")
        # tokenizers are not safe to share between threads
        self._policy = replace(policy, tokenizer=copy.deepcopy(policy.tokenizer))
        self._max_batch_rows = max_batch_rows
        self._generator = torch.Generator(policy.model.device)
        self._generator.seed()
        self._waiting: deque[_Waiting] = deque()
        self._updates: deque[_Update] = deque()
        self._changed = threading.Condition()
        self._closing = threading.Event()
        self.policy_version = 0
        self._thread = threading.Thread(target=self._work, name="policy", daemon=True)
        self._thread.start()

    def submit(self, request: GenerationRequest) -> "Future[Samples]":
        """Puts the request in line. The future raises `GenerationError`, or `AbortedError` after `close`."""
        waiting = _Waiting(request)
        self._put(waiting, self._waiting)
        return waiting.future

    def update(self, weights: Mapping[str, Tensor], policy_version: int) -> "Future[None]":
        """Gives the policy weights that `read_weights` has checked, before the next batch."""
        update = _Update(weights, policy_version)
        self._put(update, self._updates)
        return update.future

    def close(self) -> None:
        """Ends the thread, in the middle of a batch if need be. What waits is told so."""
        with self._changed:
            self._closing.set()
            self._changed.notify()
        self._thread.join()
        unanswered: list[_Update | _Waiting] = [*self._updates, *self._waiting]
        for abandoned in unanswered:
            if abandoned.future.set_running_or_notify_cancel():
                abandoned.future.set_exception(AbortedError("the server is closing"))

    def _put(self, item: _Item, line: deque[_Item]) -> None:
        with self._changed:
            if self._closing.is_set():
                raise AbortedError("the server is closing")
            line.append(item)
            self._changed.notify()

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._closing.is_set() or self._updates or self._waiting)
                if self._closing.is_set():
                    return
                update = self._updates.popleft() if self._updates else None
                batch = [] if update else self._take_batch()
            if update is None:
                self._answer([waiting for waiting in batch if waiting.future.set_running_or_notify_cancel()])
            elif update.future.set_running_or_notify_cancel():
                copy_weights(update.weights, self._policy.model)
                self.policy_version = update.policy_version
                update.future.set_result(None)

    def _take_batch(self) -> list[_Waiting]:
        """The first that waits, and those behind it that may share its batch."""
        first = self._waiting.popleft()
        batch, num_free = [first], self._max_batch_rows - first.request.num_rows
        for _ in range(len(self._waiting)):
            waiting = self._waiting.popleft()
            request = waiting.request
            is_alike = request.sampling == first.request.sampling and request.seed is first.request.seed is None
            if is_alike and request.num_rows <= num_free:
                batch.append(waiting)
                num_free -= request.num_rows
            else:
                self._waiting.append(waiting)  # all of them once around: their order stays
        return batch

    def _answer(self, batch: list[_Waiting]) -> None:
        if not batch:
            return
        rows = [prompt for waiting in batch for prompt in waiting.request.prompts for _ in range(waiting.request.n)]
        try:
            completions = self._completions(rows, batch[0].request)
        except AbortedError as error:
            for waiting in batch:
                waiting.future.set_exception(error)
        except Exception as error:  # out of memory, a bug in a model's code: the next batch may still go well
            logger.exception("a batch of %d rows failed", len(rows))
            for waiting in batch:
                waiting.future.set_exception(GenerationError(f"{type(error).__name__}: {error}"))
        else:
            for waiting in batch:
                own = [next(completions) for _ in range(waiting.request.num_rows)]
                waiting.future.set_result(Samples(own, self.policy_version))

    def _completions(self, rows: list[tuple[int, ...]], first: GenerationRequest) -> Iterator[Completion]:
        generator = self._generator
        if first.seed is not None:
            generator = torch.Generator(self._policy.model.device).manual_seed(first.seed)
        found: list[Completion] = []
        for start in range(0, len(rows), self._max_batch_rows):
            found += generate(
                self._policy,
                rows[start : start + self._max_batch_rows],
                first.sampling,
                generator=generator,
                abort=self._closing,
            )
        return iter(found)
