"""Atropos' HTTP interface, and what each of its answers means for a trainer.

`/batch` gives each batch once, keeps no copy and waits for no acknowledgement: a request whose answer is lost is never
repeated for the same batch.
"""

import time
from dataclasses import asdict, dataclass
from typing import Any

import requests
import urllib3

from online_sft.atropos.json_reading import read_json

__all__ = [
    "AtroposClient",
    "ConflictError",
    "GarbledAnswerError",
    "LostBatchError",
    "NotRegisteredError",
    "RefusedError",
    "Registration",
    "ServerFaultError",
    "UnreachableError",
    "direct_session",
]

_CONNECT_S = 10.0
_CHUNK = 1 << 20
_NO_CONNECTION = (
    urllib3.exceptions.ConnectTimeoutError,
    urllib3.exceptions.NewConnectionError,
    urllib3.exceptions.SSLError,
)


class UnreachableError(ConnectionError):
    """Nothing answers there, and no batch is lost for it."""


class LostBatchError(ConnectionError):
    """The answer to `/batch` did not arrive whole; the batch that it may have held is lost."""


class ServerFaultError(RuntimeError):
    """HTTP 500 to 599."""


class NotRegisteredError(RuntimeError):
    """The server knows no trainer: it has been started anew, or reset."""


class ConflictError(RuntimeError):
    """The server holds another registration than ours."""


class RefusedError(RuntimeError):
    """What no repetition will change: a redirect, HTTP 400 to 499, or a URL that is none."""


class GarbledAnswerError(RuntimeError):
    """HTTP 200 with a body that is no answer of `/batch`.

    Attributes:
        body: as it came.
    """

    def __init__(self, message: str, body: bytes) -> None:
        super().__init__(message)
        self.body = body


@dataclass(frozen=True)
class Registration:
    """What a trainer tells Atropos, which passes it on to the environments; by its names."""

    batch_size: int  # sequences
    max_token_len: int  # environments keep sequences of so many tokens back
    num_steps: int
    starting_step: int
    checkpoint_dir: str
    save_checkpoint_interval: int
    wandb_group: str = "online-sft"
    wandb_project: str = "online-sft"


def direct_session() -> requests.Session:
    """A session that takes neither proxies nor passwords (netrc) from its surroundings."""
    session = requests.Session()
    session.trust_env = False
    return session


class AtroposClient:
    """Speaks to one server. Follows no redirects, and takes neither proxies nor passwords from its surroundings.

    Args:
        url: of the server, `http://127.0.0.1:8000`.
        timeout_s: of silence, and then of the transfer of one answer. A batch that comes later is lost.
        max_response_bytes: of one answer. A batch that is larger is lost.
        authorization: value of the `Authorization` header, for a proxy in front.
    """

    def __init__(
        self, url: str, *, timeout_s: float = 300.0, max_response_bytes: int = 1 << 30, authorization: str | None = None
    ) -> None:
        self.url = url.rstrip("/")
        self._timeout_s, self._max_response_bytes = timeout_s, max_response_bytes
        self._headers = {"Accept-Encoding": "identity"}  # gzip takes Atropos longer than the wire saves
        if authorization:
            self._headers["Authorization"] = authorization

    def register(self, registration: Registration, *, reset_on_conflict: bool = False) -> None:
        """Registers, and makes sure of it: Atropos answers 200 to a registration that it ignores.

        Args:
            reset_on_conflict: clear the server, and all data that waits there, if it holds another registration.

        Raises:
            ConflictError: when it does, and may not be cleared or does not change for it.
        """
        found = self._registered_after(registration)
        wanted = (registration.batch_size, registration.max_token_len)
        if found != wanted and reset_on_conflict:
            self._ask("GET", "/reset_data")
            found = self._registered_after(registration)
        if found == wanted:
            return
        reason = (
            "data was posted to it before a trainer had registered"
            if found[0] == -1
            else f"another trainer has registered with batch_size={found[0]} and max_token_len={found[1]}"
        )
        raise ConflictError(
            f"Atropos at {self.url} ignores our registration with batch_size={wanted[0]} and "
            f"max_token_len={wanted[1]}: {reason}. Start it anew, or allow it to be cleared with all data that waits "
            "there (atropos_reset_on_conflict)"
        )

    def is_registered(self, registration: Registration) -> bool:
        """Whether the server holds a registration like ours."""
        return self._info() == (registration.batch_size, registration.max_token_len)

    def queue_size(self) -> int:
        """Groups that wait to be put into a batch."""
        return self._numbers("/status", "queue_size")[0]

    def batch(self) -> bytes | None:
        """The next batch, as it came; None while there is not enough data. Never repeats a request.

        Raises:
            UnreachableError, LostBatchError, ServerFaultError, NotRegisteredError, GarbledAnswerError, RefusedError
        """
        body = self._ask("GET", "/batch")
        try:
            answer = read_json(body)
        except ValueError as error:
            raise GarbledAnswerError(f"the answer to /batch is no JSON: {error}", body) from None
        if not isinstance(answer, dict) or "batch" not in answer:
            raise GarbledAnswerError("the answer to /batch holds no batch", body)
        if answer["batch"] is None:
            return None
        if answer.get("status") == "error":
            raise NotRegisteredError(str(answer.get("message")))
        if not isinstance(answer["batch"], list) or not answer["batch"]:
            raise GarbledAnswerError("the batch in the answer to /batch is no list of groups", body)
        return body

    def _registered_after(self, registration: Registration) -> tuple[int, ...]:
        self._ask("POST", "/register", json=asdict(registration))
        return self._info()

    def _info(self) -> tuple[int, ...]:
        return self._numbers("/info", "batch_size", "max_token_len")

    def _numbers(self, path: str, *names: str) -> tuple[int, ...]:
        body = self._ask("GET", path)
        try:
            answer = read_json(body)
            return tuple(int(answer[name]) for name in names)
        except (LookupError, OverflowError, TypeError, ValueError):
            raise GarbledAnswerError(f"{self.url}{path} does not give {' and '.join(names)}", body) from None

    def _ask(self, method: str, path: str, **options: Any) -> bytes:
        """One connection for each request: one that was kept, and that the server gives up, looks like a lost batch."""
        try:
            with (
                direct_session() as session,
                session.request(
                    method,
                    self.url + path,
                    headers=self._headers,
                    timeout=(_CONNECT_S, self._timeout_s),
                    stream=True,
                    allow_redirects=False,
                    **options,
                ) as response,
            ):
                body = self._body(response, path)
        except requests.RequestException as error:
            raise self._as_ours(error, path) from error
        except urllib3.exceptions.ReadTimeoutError as error:
            raise self._lost(path, self._too_slow("fell silent for")) from error
        except urllib3.exceptions.HTTPError as error:
            raise self._lost(path, f"broke off: {error}") from error
        if response.is_redirect:
            raise RefusedError(
                f"{self.url}{path} redirects to {response.headers['Location']}, which is not followed; set the URL of "
                "Atropos itself"
            )
        if response.status_code >= 500:
            raise ServerFaultError(f"{self.url}{path} answers {response.status_code}: {body[:200]!r}")
        if response.status_code != 200:
            way_out = " (set ATROPOS_AUTHORIZATION)" if response.status_code in (401, 403) else ""
            raise RefusedError(f"{self.url}{path} answers {response.status_code}{way_out}: {body[:200]!r}")
        return body

    def _body(self, response: requests.Response, path: str) -> bytes:
        end = time.monotonic() + self._timeout_s
        body = bytearray()
        while chunk := response.raw.read1(_CHUNK, decode_content=True):
            body += chunk
            if len(body) > self._max_response_bytes:
                limit = self._max_response_bytes
                raise self._lost(path, f"is larger than {limit} bytes, and not read; raise atropos_max_response_bytes")
            if time.monotonic() > end:
                raise self._lost(path, self._too_slow("was not whole within"))
        return bytes(body)

    def _as_ours(self, error: requests.RequestException, path: str) -> Exception:
        if isinstance(error, ValueError):  # of the URL, or of a header
            return RefusedError(f"{self.url!r} cannot be asked: {error}")
        if isinstance(error, requests.ReadTimeout):
            return self._lost(path, self._too_slow("did not begin within"))
        reason = error.args[0] if error.args else None
        reason = getattr(reason, "reason", reason)  # what urllib3 gave up its retries for
        if isinstance(reason, _NO_CONNECTION):
            return UnreachableError(f"nothing answers at {self.url}: {reason}")
        return self._lost(path, f"broke off: {error}")

    def _too_slow(self, what: str) -> str:
        return f"{what} {self._timeout_s:g} s; raise atropos_timeout"

    def _lost(self, path: str, what: str) -> Exception:
        kind = LostBatchError if path == "/batch" else UnreachableError
        return kind(f"the answer of {self.url}{path} {what}")
