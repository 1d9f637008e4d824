"""A process of its own that brings batches from Atropos into the journal, one for each request of the trainer.

`/batch` hands a batch out once, and the trainer may be killed while it waits for the answer. The fetcher is not killed
with it: it sees that the trainer is gone, puts what it was waiting for into the journal, and ends. The journal is the
queue between the two.
"""

import contextlib
import hashlib
import json
import logging
import os
import select
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from online_sft.atropos.client import (
    AtroposClient,
    ConflictError,
    GarbledAnswerError,
    LostBatchError,
    NotRegisteredError,
    RefusedError,
    Registration,
    ServerFaultError,
    UnreachableError,
)
from online_sft.atropos.journal import Journal, JournalBusyError, JournalError

__all__ = ["Fetcher", "FetcherError", "FetcherOptions"]

logger = logging.getLogger(__name__)

_LONGEST_PAUSE_S = 30.0
_START_S = 10.0
_MOST_DEATHS = 3  # without a batch between them
_COMMAND = "import sys; sys.path[:] = sys.argv[2:]; from online_sft.atropos.fetcher import main; main(sys.argv[1])"


class FetcherError(RuntimeError):
    """No more batches will come, and no repetition would change that."""


@dataclass(frozen=True)
class FetcherOptions:
    """What the process is told when it starts. `ATROPOS_AUTHORIZATION` in its environment is sent with each request."""

    url: str
    journal: str  # folder
    registration: Registration
    refresh_interval_s: float = 2.0  # between two requests while there is not enough data
    warn_after_s: float = 300.0  # without a batch
    timeout_s: float = 300.0
    max_response_bytes: int = 1 << 30
    reset_on_conflict: bool = False


class Fetcher:
    """The trainer's end: starts the process, asks it for batches, and logs what it has to say.

    Attributes:
        num_delivered: entries of the journal; None until the process has opened it.
        counts: attempts that failed, by trouble.
    """

    def __init__(self, options: FetcherOptions) -> None:
        self._options = options
        self.num_delivered: int | None = None
        self.counts: Counter[str] = Counter()
        self._asked: int | None = None
        self._num_deaths = 0
        self._start()

    def _start(self) -> None:
        self._has_opened = False  # the journal
        self._rest = b""
        path = [entry for entry in sys.path if isinstance(entry, str)]
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-c", _COMMAND, json.dumps(asdict(self._options)), *path],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,  # what kills the trainer's process group does not kill it
        )

    def ask(self, policy_version: int) -> None:
        """Asks for one more batch than there are; `poll` tells when it is there."""
        if self._asked is None:
            self._asked = policy_version
            if self._has_opened:
                self._send()

    def poll(self, timeout_s: float) -> None:
        """Waits for news, and takes in `num_delivered` and `counts`.

        Raises:
            FetcherError: no more batches will come.
        """
        assert self._process.stdout is not None
        if not select.select([self._process.stdout], [], [], timeout_s)[0]:
            return
        chunk = os.read(self._process.stdout.fileno(), 1 << 16)
        if not chunk:
            return self._start_again()
        *lines, self._rest = (self._rest + chunk).split(b"\n")
        for line in lines:
            self._take(json.loads(line))

    def close(self) -> None:
        """Lets the process end. It does once the request that it waits for has been answered."""
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            with contextlib.suppress(BrokenPipeError):  # it has ended already
                pipe.close()
        try:
            self._process.wait(timeout=1)
        except subprocess.TimeoutExpired:
            self._process.returncode = 0  # it ends by itself; nobody has to wait for it

    def _take(self, news: dict[str, Any]) -> None:
        if "fatal" in news:
            raise FetcherError(news["fatal"])
        if "warning" in news:
            logger.warning("%s", news["warning"])
        if "trouble" in news:
            self.counts[news["trouble"]] += 1
        if "num_delivered" in news:
            self._take_stock(news["num_delivered"])

    def _take_stock(self, num_delivered: int) -> None:
        """A batch has come, or the process has opened the journal, where one that died may have put a last batch."""
        has_come = self.num_delivered is not None and num_delivered > self.num_delivered
        self.num_delivered, self._has_opened = num_delivered, True
        if has_come:
            self._asked, self._num_deaths = None, 0
        elif self._asked is not None:
            self._send()

    def _send(self) -> None:
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # `poll` sees that it is gone
            self._process.stdin.write(json.dumps({"policy_version": self._asked}).encode() + b"\n")
            self._process.stdin.flush()

    def _start_again(self) -> None:
        self.close()
        self._num_deaths += 1
        if not self._has_opened or self._num_deaths > _MOST_DEATHS:
            raise FetcherError(
                f"the process that fetches batches has ended {self._num_deaths} times without bringing one; its error "
                "is above"
            )
        logger.warning("the process that fetches batches is gone; another one is started")
        self.counts["fetcher_restarts"] += 1
        self._start()


@dataclass
class _Errand:
    """The process' side."""

    options: FetcherOptions
    client: AtroposClient
    is_registered: bool = False
    num_registrations: int = 0
    warned: dict[str, float] = field(default_factory=dict)  # when, by kind

    def run(self, journal: Journal) -> None:
        _tell(num_delivered=len(journal))
        for policy_version in _requests():
            body = self._delivered()
            if body is None:
                return
            journal.append(body, policy_version=policy_version)
            _tell(num_delivered=len(journal))

    def _delivered(self) -> bytes | None:
        """The next batch; None when the trainer is gone."""
        since, self.warned["silence"], pause = time.monotonic(), time.monotonic(), self.options.refresh_interval_s
        while True:
            try:
                body = self._attempt()
                if body is not None:
                    return body
                pause = self.options.refresh_interval_s
            except UnreachableError as error:
                self.is_registered, pause = False, min(2 * pause, _LONGEST_PAUSE_S)
                self._count("outages", f"{error}; waiting for it. Start it with `run-api`, or set atropos_api_url")
            if self._is_due("silence"):
                self._warn_of_silence(time.monotonic() - since)
            if _is_trainer_gone(pause):
                return None

    def _attempt(self) -> bytes | None:
        try:
            if not self.is_registered:
                self._register()
            body = self.client.batch()
            if body is None:  # and never one again, if somebody has reset the server and data came before we noticed
                self.is_registered = self.client.is_registered(self.options.registration)
            return body
        except NotRegisteredError:
            self.is_registered = False
        except ConflictError as error:
            if not self.num_registrations:
                raise
            self._count("conflicts", f"{error}. Until then no batch will come")
        except LostBatchError as error:
            self._count("lost_batches", f"{error}. A batch may be lost: Atropos hands each out once")
        except ServerFaultError as error:
            self._server_fault(error)
        except GarbledAnswerError as error:
            self._keep(error)
        return None

    def _register(self) -> None:
        self.client.register(self.options.registration, reset_on_conflict=self.options.reset_on_conflict)
        self.is_registered = True
        self.num_registrations += 1
        if self.num_registrations > 1:
            self._count("new_registrations", f"registered with Atropos at {self.options.url} again")

    def _server_fault(self, error: ServerFaultError) -> None:
        if not self.is_registered:
            return self._count("server_faults", f"{error}, when asked to register; trying again")
        try:
            self.is_registered = self.client.is_registered(self.options.registration)
        except (OSError, RuntimeError):  # what has happened to the server shows at the next attempt
            self.is_registered = False
        if self.is_registered:  # and not reset
            self._count(
                "lost_batches",
                f"{error}. Atropos loses a batch that holds a score or a log-prob that is NaN or infinite; look for it "
                "in the environments",
            )

    def _keep(self, error: GarbledAnswerError) -> None:
        folder = Path(self.options.journal) / "garbled"
        folder.mkdir(exist_ok=True)
        path = folder / f"{hashlib.sha256(error.body).hexdigest()[:16]}.body"  # the same again and again is kept once
        path.write_bytes(error.body)
        self._count("garbled_answers", f"{error}; it begins with {error.body[:60]!r} and is kept in {folder}")

    def _warn_of_silence(self, waited: float) -> None:
        try:
            queue_size = self.client.queue_size()
        except (OSError, RuntimeError):
            return  # of which was warned
        _tell(
            warning=f"no batch from Atropos at {self.options.url} for {waited:.0f} s; {queue_size} groups wait there "
            f"(queue_size). A batch needs groups that add up to batch_size={self.options.registration.batch_size}, "
            "which the largest of them must divide. If many wait, a group of another size is in the way: restart "
            "Atropos. If none does, no environment posts"
        )

    def _count(self, kind: str, warning: str) -> None:
        _tell(trouble=kind, **({"warning": warning} if self._is_due(kind) else {}))

    def _is_due(self, kind: str) -> bool:
        """The same warning does not come more often than every `warn_after_s`."""
        now = time.monotonic()
        is_due = now - self.warned.get(kind, -1e9) >= self.options.warn_after_s
        if is_due:
            self.warned[kind] = now
        return is_due


def _tell(**news: Any) -> None:
    try:
        print(json.dumps(news), flush=True)
    except BrokenPipeError:  # the trainer is gone, and what was fetched for it goes into the journal all the same
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _requests() -> Iterator[int]:
    """The policy version of each batch that the trainer asks for, until it is gone."""
    while line := sys.stdin.readline():
        yield json.loads(line)["policy_version"]


def _is_trainer_gone(pause_s: float) -> bool:
    """Waits. The trainer does not ask for two batches at a time, so what can be read is the end."""
    return bool(select.select([sys.stdin], [], [], pause_s)[0])


def _open(folder: str, timeout_s: float) -> Journal:
    """The journal; the fetcher of a killed run may have it until its last request is answered."""
    end, has_warned = time.monotonic() + timeout_s, False
    while True:
        try:
            return Journal(folder)
        except JournalBusyError as error:
            if time.monotonic() > end:
                raise
            if not has_warned:
                _tell(warning=f"{error}. Waiting: that of a killed run ends when its last request is answered")
            has_warned = True
            time.sleep(0.1)


def main(options_json: str) -> None:
    """The process.

    Args:
        options_json: a `FetcherOptions`.
    """
    given = json.loads(options_json)
    options = FetcherOptions(**{**given, "registration": Registration(**given["registration"])})
    client = AtroposClient(
        options.url,
        timeout_s=options.timeout_s,
        max_response_bytes=options.max_response_bytes,
        authorization=os.environ.get("ATROPOS_AUTHORIZATION"),
    )
    try:
        longest_request_s = 2 * options.timeout_s
        _Errand(options, client).run(_open(options.journal, longest_request_s + _START_S))
    except (ConflictError, RefusedError, JournalError, OSError) as error:
        _tell(fatal=str(error))
