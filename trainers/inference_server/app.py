"""The HTTP side: routes, the token for weights, and errors as JSON."""

import asyncio
import hmac
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from concurrent.futures import Future
from contextlib import asynccontextmanager
from http import HTTPStatus
from typing import TYPE_CHECKING, TypeVar

from trainers.inference_server.answers import Json, chat_answer, completion_answer, native_answer
from trainers.inference_server.batching import Batcher, GenerationError, Samples
from trainers.inference_server.generation import AbortedError
from trainers.inference_server.policy import Policy
from trainers.inference_server.request_parsing import (
    ParsedRequest,
    chat_request,
    completion_request,
    native_request,
)
from trainers.inference_server.weights import read_weights

if TYPE_CHECKING:
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import Response

__all__ = ["build_app"]

_MAX_JSON_BYTES = 64 * 2**20
_Answer = TypeVar("_Answer")


def build_app(
    policy: Policy,
    *,
    token: str,
    model_name: str,
    max_batch_rows: int,
    max_body_bytes: int,
    on_start: Callable[[], None] = lambda: None,
) -> "Starlette":
    """`/generate`, `/v1/...` and `/health` for whoever can reach them, `/update_weights` for who has the token.

    Args:
        policy: which the app owns from now on, weights and all.
        model_name: what it says that it serves; requests may name any.
        max_body_bytes: of `/update_weights`.
        on_start: called when it can answer.

    Returns:
        The app, whose `state.batcher` is to be closed at the end.
    """
    from starlette.applications import Starlette
    from starlette.requests import ClientDisconnect
    from starlette.responses import JSONResponse, Response
    from starlette.routing import Route

    def route(method: str, path: str, answer: Callable[["Request"], Awaitable[Json]]) -> Route:
        async def endpoint(request: "Request") -> "Response":
            try:
                return JSONResponse(await answer(request))
            except _RefusedError as error:
                return JSONResponse(error.as_json(), error.status, error.headers)
            except ClientDisconnect:  # in the middle of its request
                return Response(status_code=400)

        return Route(path, endpoint, methods=[method])

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        on_start()
        yield

    batcher = Batcher(policy, max_batch_rows=max_batch_rows)
    server = _Server(policy, batcher, token, model_name, max_body_bytes)
    routes = [
        route("POST", "/generate", server.generate),
        route("POST", "/v1/completions", server.complete),
        route("POST", "/v1/chat/completions", server.chat),
        route("GET", "/v1/models", server.models),
        route("GET", "/health", server.health),
        route("POST", "/update_weights", server.update_weights),
    ]
    app = Starlette(routes=routes, lifespan=lifespan)
    app.state.batcher = batcher
    return app


class _RefusedError(Exception):
    """The answer is an error."""

    def __init__(self, status: int, message: object) -> None:
        super().__init__(str(message))
        self.status = status
        self.headers = {"WWW-Authenticate": "Bearer"} if status == 401 else None

    def as_json(self) -> Json:
        """As OpenAI's clients read it."""
        kind = HTTPStatus(self.status).phrase
        return {"error": {"message": str(self), "type": kind, "param": None, "code": self.status}}


class _Server:
    """A method for each route."""

    def __init__(self, policy: Policy, batcher: Batcher, token: str, model_name: str, max_body_bytes: int) -> None:
        self._policy, self._batcher, self._model_name = policy, batcher, model_name
        self._token, self._max_body_bytes = token, max_body_bytes

    async def generate(self, request: "Request") -> Json:
        parsed, samples = await self._sampled(request, native_request)
        return native_answer(parsed, samples, self._policy.tokenizer)

    async def complete(self, request: "Request") -> Json:
        parsed, samples = await self._sampled(request, completion_request)
        return completion_answer(parsed, samples, self._policy.tokenizer, self._model_name)

    async def chat(self, request: "Request") -> Json:
        parsed, samples = await self._sampled(request, chat_request)
        return chat_answer(parsed, samples, self._policy.tokenizer, self._model_name)

    async def models(self, request: "Request") -> Json:
        model = {"id": self._model_name, "object": "model", "created": 0, "owned_by": "online-sft"}
        return {"object": "list", "data": [{**model, "max_model_len": self._policy.context_length}]}

    async def health(self, request: "Request") -> Json:
        return {"status": "ok", "policy_version": self._batcher.policy_version}

    async def update_weights(self, request: "Request") -> Json:
        given = request.headers.get("Authorization", "")
        if not hmac.compare_digest(given.encode(), f"Bearer {self._token}".encode()):
            raise _RefusedError(401, "weights need `Authorization: Bearer TOKEN`, with the token of this server")
        body = await _read(request, max_bytes=self._max_body_bytes)
        try:
            version, sha256 = _version(request.headers), _header(request.headers, "X-Sha256")
            weights = await asyncio.to_thread(read_weights, body, sha256, self._policy.model)
        except ValueError as error:
            raise _RefusedError(400, error) from error
        await _answered(lambda: self._batcher.update(weights, version))
        return {"policy_version": version, "parameters": len(weights), "sha256": sha256.lower()}

    async def _sampled(
        self, request: "Request", parse: Callable[[Mapping[str, object], Policy], ParsedRequest]
    ) -> tuple[ParsedRequest, Samples]:
        try:
            body = json.loads(await _read(request, max_bytes=_MAX_JSON_BYTES))
            if not isinstance(body, dict):
                raise ValueError(f"the body must be a JSON object; got {type(body).__name__}")
            parsed = parse(body, self._policy)
        except ValueError as error:
            raise _RefusedError(400, error) from error
        return parsed, await _answered(lambda: self._batcher.submit(parsed.generation))


async def _answered(ask: Callable[[], "Future[_Answer]"]) -> _Answer:
    try:
        return await asyncio.wrap_future(ask())
    except GenerationError as error:
        raise _RefusedError(500, error) from error
    except AbortedError as error:
        raise _RefusedError(503, error) from error


async def _read(request: "Request", *, max_bytes: int) -> bytes:
    chunks, size = [], 0
    async for chunk in request.stream():
        size += len(chunk)
        if size > max_bytes:
            raise _RefusedError(413, f"the body is too long: at most {max_bytes} bytes are taken")
        chunks.append(chunk)
    return b"".join(chunks)


def _header(headers: Mapping[str, str], name: str) -> str:
    if name not in headers:
        raise ValueError(f"the header {name} is missing")
    return headers[name].strip()


def _version(headers: Mapping[str, str]) -> int:
    name = "X-Policy-Version"
    given = _header(headers, name)
    if not (given.isascii() and given.isdigit()):
        raise ValueError(f"{name} must be an integer of 0 or more; got {given!r:.80}")
    return int(given)
