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
]

_CONNECT_S = 10.0
_CHUNK = 1 << 20


class UnreachableError(ConnectionError):
    """Nothing listens there: no request was served."""


class LostBatchError(ConnectionError):
    """The answer to `/batch` did not arrive whole; the batch that it may have held is lost."""


class ServerFaultError(RuntimeError):
    """HTTP 500 to 599."""


class NotRegisteredError(RuntimeError):
    """The server knows no trainer: it has been started anew, or reset."""


class ConflictError(RuntimeError):
    """The server holds another registration than ours."""


class RefusedError(RuntimeError):
    """An answer that no repetition will change: a redirect, or HTTP 400 to 499."""


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
        self._session = requests.Session()
        self._session.trust_env = False
        self._session.headers["Accept-Encoding"] = "identity"  # gzip takes Atropos longer than the wire saves
        if authorization:
            self._session.headers["Authorization"] = authorization

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
            try:
                self._ask("GET", "/reset_data")
            except ServerFaultError:
                pass  # a server that was never registered with cannot be reset, and need not be
            found = self._registered_after(registration)
        if found == wanted:
            return
        reason = (
            "data was posted to it before a trainer had registered"
            if found[0] == -1
            else f"another trainer has registered with batch_size={found[0]} and max_token_len={found[1]}"
        )
        raise ConflictError(
            f"Atropos at {self.url} ignores our registration with batch_size={wanted[0]} and max_token_len={wanted[1]}: "
            f"{reason}. Start it anew, or allow it to be cleared with all data that waits there "
            "(atropos_reset_on_conflict)"
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
        batch = answer.get("batch", answer) if isinstance(answer, dict) else answer
        if batch is None:
            return None
        if isinstance(answer, dict) and answer.get("status") == "error":
            raise NotRegisteredError(str(answer.get("message")))
        if not isinstance(batch, list) or not batch:
            raise GarbledAnswerError("the answer to /batch holds no list of groups", body)
        return body

    def close(self) -> None:
        """Closes the connections."""
        self._session.close()

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
        except (ValueError, KeyError, TypeError):
            raise GarbledAnswerError(f"{self.url}{path} does not give {' and '.join(names)}", body) from None

    def _ask(self, method: str, path: str, **options: Any) -> bytes:
        try:
            with self._session.request(
                method,
                self.url + path,
                timeout=(_CONNECT_S, self._timeout_s),
                stream=True,
                allow_redirects=False,
                **options,
            ) as response:
                body = self._body(response)
        except requests.RequestException as error:
            raise self._as_ours(error, path) from error
        except urllib3.exceptions.HTTPError as error:
            raise LostBatchError(f"the answer of {self.url}{path} broke off: {error}") from error
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

    def _body(self, response: requests.Response) -> bytes:
        end = time.monotonic() + self._timeout_s
        body = bytearray()
        while chunk := response.raw.read1(_CHUNK, decode_content=True):
            body += chunk
            if len(body) > self._max_response_bytes:
                raise LostBatchError(
                    f"an answer of {self.url} is larger than {self._max_response_bytes} bytes and was not read to its "
                    "end; raise atropos_max_response_bytes"
                )
            if time.monotonic() > end:
                raise LostBatchError(
                    f"an answer of {self.url} has not arrived whole within {self._timeout_s:g} s "
                    f"({len(body)} bytes); raise atropos_timeout"
                )
        return bytes(body)

    def _as_ours(self, error: requests.RequestException, path: str) -> Exception:
        if isinstance(error, requests.exceptions.InvalidURL | requests.exceptions.MissingSchema):
            return RefusedError(f"{self.url} is no address of a server: {error}")
        if isinstance(error, requests.ReadTimeout):
            return LostBatchError(f"{self.url}{path} has not answered within {self._timeout_s:g} s")
        reason = error.args[0] if error.args else None
        reason = getattr(reason, "reason", reason)  # what urllib3 gave up its retries for
        if isinstance(reason, urllib3.exceptions.NewConnectionError | urllib3.exceptions.ConnectTimeoutError):
            return UnreachableError(f"nothing answers at {self.url}")
        return LostBatchError(f"the connection to {self.url} broke off: {error}")
