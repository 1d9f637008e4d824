"""A vLLM server that goes away in mid-run: every process learns of it; the run waits for it, or ends resumable."""

import logging
import os
import queue
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import requests
from requests.adapters import HTTPAdapter
from trl import GRPOTrainer
from urllib3.util.retry import Retry

from trainers.checkpoints.within_step import save_resumable
from trainers.engine.server import ask_server, is_healthy, server_url, wait_until_healthy
from trainers.main_process import on_main_process

__all__ = ["ServerGuard", "ServerLostError"]

logger = logging.getLogger(__name__)

T = TypeVar("T")
_POLL_S, _MAX_FAILURES = 5.0, 3  # a server that fails so many checks in a row is lost
_NOTHING: dict[str, list] = {"prompt_ids": [], "completion_ids": [], "logprobs": [], "logprob_token_ids": []}


class ServerLostError(ConnectionError):
    """The vLLM server does not answer any more."""


class ServerGuard:
    """Stands between TRL's `VLLMGeneration` in server mode and its client.

    Only the main process talks to the server, and TRL has the others wait for what it hears. So a fault is kept until
    that exchange is over; then all processes raise it, or all wait for the server (`vllm_server_reconnect_timeout`),
    send it the weights again and repeat the call.

    Raises:
        ServerLostError: from `generate` and `sync_weights`, on every process, once a checkpoint has been saved.
    """

    def __init__(self, trainer: GRPOTrainer) -> None:
        self._trainer, self._generation = trainer, trainer.vllm_generation
        self._url = server_url(trainer.args)
        self._fault: Exception | None = None
        self._server: str | None = None  # which start of it has our connection
        if trainer.accelerator.is_main_process:
            client = self._generation.vllm_client
            # TRL retries for a minute, also what must not be sent twice
            adapter = HTTPAdapter(max_retries=Retry(connect=2, read=0, status=0, other=0, backoff_factor=1))
            client.session.mount("http://", adapter)
            client.session.mount("https://", adapter)
            client.generate = self._kept(client.generate, self._while_healthy, lambda *_: _NOTHING)
            client.image_features = self._kept(
                client.image_features, self._while_healthy, lambda images: [None] * len(images)
            )
            client.update_named_params = self._kept(client.update_named_params, self._within_the_deadline, _drain)
            client.reset_prefix_cache = self._kept(client.reset_prefix_cache, self._while_healthy, lambda: None)
            score = client.get_sequence_logprobs
            client.get_sequence_logprobs = lambda *args, **options: self._while_healthy(lambda: score(*args, **options))
            self._server = self._identity()
        self._generate, self._deliver = self._generation.generate, self._generation.sync_weights
        self._generation.generate, self._generation.sync_weights = self.generate, self._deliver_or_raise

    def watch(self, sync: Callable[[], None], expect_proof: Callable[[], None]) -> None:
        """Repeats this sync, with its proof, where the server has to be waited for."""
        self._sync, self._expect_proof = sync, expect_proof
        self._generation.sync_weights = self.sync_weights

    def generate(self, *args: Any, **options: Any) -> tuple:
        """TRL's `generate`."""
        while True:
            try:
                return self._attempt(lambda: self._generate(*args, **options))
            except ServerLostError as error:
                self._reconnect(error)
                self.sync_weights()

    def sync_weights(self) -> None:
        """TRL's `sync_weights`, and the proof."""
        while True:
            try:
                return self._sync()
            except ServerLostError as error:
                self._reconnect(error)

    def _deliver_or_raise(self) -> None:
        def is_the_same() -> None:
            if self._identity() != self._server:  # a broadcast to one that does not know us would never end
                raise ServerLostError(f"the vLLM server at {self._url} has been started anew")

        on_main_process(self._trainer.accelerator, is_the_same)
        self._attempt(self._deliver)

    def _attempt(self, call: Callable[[], T]) -> T:
        self._fault = None
        result = call()
        on_main_process(self._trainer.accelerator, self._raise_fault)
        return result

    def _raise_fault(self) -> None:
        if self._fault is None:
            return
        for _ in range(_MAX_FAILURES):  # an engine that dies answers 500 before its server goes away
            if isinstance(self._fault, requests.RequestException | ServerLostError) or not is_healthy(self._url):
                raise ServerLostError(f"the vLLM server at {self._url} does not answer any more: {self._fault}")
            time.sleep(1)
        raise self._fault

    def _identity(self) -> str:
        try:
            return str(ask_server(self._url).json()["vllm_config"]["instance_id"])
        except requests.RequestException as error:
            raise ServerLostError(f"the vLLM server at {self._url} does not answer any more: {error}") from error

    def _reconnect(self, error: ServerLostError) -> None:
        args, accelerator = self._trainer.args, self._trainer.accelerator
        if args.vllm_server_reconnect_timeout:
            logger.warning("%s; waiting up to %.0f s for it", error, args.vllm_server_reconnect_timeout)

        def connect() -> bool:
            client, end = self._generation.vllm_client, time.monotonic() + args.vllm_server_reconnect_timeout
            while wait_until_healthy(self._url, end - time.monotonic()):
                try:
                    client.close_communicator()
                    client.init_communicator(device=accelerator.device)
                    self._server = self._identity()
                    return True
                except Exception as fault:
                    logger.warning("the vLLM server at %s answers, but takes no connection: %s", self._url, fault)
                    if time.monotonic() >= end:
                        break
            return False

        if on_main_process(accelerator, connect):
            logger.warning("the vLLM server at %s answers again", self._url)
            self._expect_proof()
            return
        saved = save_resumable(self._trainer)
        raise ServerLostError(
            f"{error}. {saved} Start the server again, or let the run wait for it with vllm_server_reconnect_timeout"
        ) from error

    def _kept(self, method: Callable, guard: Callable, instead: Callable) -> Callable:
        """The method of the client, whose exception is kept for all processes to see; `instead` answers for it."""

        def guarded(*args: Any, **options: Any) -> Any:
            if self._fault is None:
                try:
                    return guard(lambda: method(*args, **options))
                except Exception as error:
                    self._fault = error
            return instead(*args)

        return guarded

    def _while_healthy(self, call: Callable[[], T]) -> T:
        """The call, in a thread that is left behind when the server stops answering."""
        outcome: queue.Queue = queue.Queue()

        def run() -> None:
            try:
                outcome.put((call(), None))
            except Exception as error:
                outcome.put((None, error))

        threading.Thread(target=run, daemon=True).start()
        failures = 0
        while failures < _MAX_FAILURES:
            try:
                result, error = outcome.get(timeout=_POLL_S)
            except queue.Empty:
                failures = 0 if is_healthy(self._url) else failures + 1
                continue
            if error is not None:
                raise error
            return result
        raise ServerLostError(f"no answer to {_MAX_FAILURES} health checks in a row")

    def _within_the_deadline(self, call: Callable[[], T]) -> T:
        with exit_after(self._trainer.args.weight_sync_timeout, self._url):
            return call()


def _drain(metadata: list, named_params: Iterator) -> None:
    """The other processes take part in the gathering of each parameter."""
    for _ in named_params:
        pass


@contextmanager
def exit_after(timeout_s: float, url: str) -> Iterator[None]:
    """Ends the process when the body takes too long, or the server stops answering meanwhile.

    For a weight sync: nothing else interrupts a broadcast whose other end is gone.
    """
    done = threading.Event()

    def watch() -> None:
        started, failures = time.monotonic(), 0
        while not done.wait(min(_POLL_S, timeout_s)):
            failures = 0 if is_healthy(url) else failures + 1
            seconds = time.monotonic() - started
            if failures >= _MAX_FAILURES or seconds >= timeout_s:
                reason = (
                    "the server does not answer any more"
                    if failures >= _MAX_FAILURES
                    else f"weight_sync_timeout={timeout_s:g}"
                )
                logger.critical(
                    "a weight sync to the vLLM server at %s has not ended in %.0f s (%s) and cannot be interrupted; "
                    "the process exits. Resume from its last checkpoint; the server's log says what it was doing",
                    url,
                    seconds,
                    reason,
                )
                logging.shutdown()
                os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
    try:
        yield
    finally:
        done.set()
