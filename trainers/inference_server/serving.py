"""`online-sft serve MODEL`."""

import argparse
import asyncio
import os
import secrets
import signal
import socket
import sys
from importlib.util import find_spec
from types import FrameType
from typing import TYPE_CHECKING

from online_sft.launching import UsageError

if TYPE_CHECKING:
    import uvicorn
    from starlette.applications import Starlette

__all__ = ["http_server", "main", "serve"]

_TOKEN = "ONLINE_SFT_SERVE_TOKEN"
_SUMMARY = (
    "Serves a model whose weights a trainer may replace, through vLLM's /generate and OpenAI's API: for Atropos' "
    f"environments on a CPU. Weights come with the token in the environment variable {_TOKEN}; without one, a token is "
    "made up and printed. Everything else is open to whoever reaches the port."
)


def main(arguments: list[str]) -> None:
    """The command.

    Raises:
        UsageError: no such model, no such port, no starlette.
    """
    parser = argparse.ArgumentParser(prog="online-sft serve", description=_SUMMARY, allow_abbrev=False)
    parser.add_argument("model", help="A folder or a hub id.")
    parser.add_argument("--host", default="127.0.0.1", help="Address to listen on. Default: 127.0.0.1.")
    parser.add_argument("--port", type=int, default=8001, help="0: any that is free. Default: 8001.")
    parser.add_argument(
        "--dtype",
        choices=("float32", "bfloat16", "float16"),
        default="float32",
        help="Of the weights. Default: float32.",
    )
    parser.add_argument("--device", help="Default: cuda where there is one, else cpu.")
    parser.add_argument("--served_model_name", help="What the answers call it. Default: MODEL.")
    parser.add_argument("--max_batch_rows", type=int, default=64, help="Completions at a time. Default: 64.")
    parser.add_argument(
        "--max_body_bytes", type=int, help="Of weights that are sent. Default: the whole model's in float32, and 1 MiB."
    )
    options = parser.parse_args(arguments)
    try:
        serve(**vars(options))
    except (ImportError, OSError, OverflowError, ValueError) as error:
        raise UsageError(error) from error


def serve(
    model: str,
    *,
    host: str = "127.0.0.1",
    port: int = 8001,
    dtype: str = "float32",
    served_model_name: str | None = None,
    max_batch_rows: int = 64,
    max_body_bytes: int | None = None,
    device: str | None = None,
) -> None:
    """Serves until SIGINT or SIGTERM, which end the process with code 0.

    Prints `serving MODEL (policy version 0) on URL` when it answers. The arguments are those of the command.

    Raises:
        ImportError: starlette or uvicorn is missing.
        OSError: no such model, or the port is taken.
        ValueError: for a model or options that do not work.
    """
    for name in ("starlette", "uvicorn"):
        if find_spec(name) is None:
            raise ImportError(f"serving needs {name}: pip install 'online-sft[serve]'")
    from trainers.inference_server.app import build_app
    from trainers.inference_server.policy import Policy
    from trainers.inference_server.weights import default_max_bytes

    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.create_server((host, port), family=family) as listener:
        policy = Policy.load(model, dtype=dtype, device=device)
        url = f"http://{f'[{host}]' if ':' in host else host}:{listener.getsockname()[1]}"
        app = build_app(
            policy,
            token=_token(),
            model_name=served_model_name or model,
            max_batch_rows=max_batch_rows,
            max_body_bytes=default_max_bytes(policy.model) if max_body_bytes is None else max_body_bytes,
            on_start=lambda: print(f"serving {model} (policy version 0) on {url}", flush=True),
        )
        server = http_server(app)
        for number in (signal.SIGINT, signal.SIGTERM):  # uvicorn raises again what has ended it
            signal.signal(number, _exit)
        server.run(sockets=[listener])


def http_server(app: "Starlette") -> "uvicorn.Server":
    """uvicorn, silent but for errors, and quick to end: who waits for an answer then hears 503."""
    import uvicorn

    class Server(uvicorn.Server):
        async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
            await asyncio.to_thread(app.state.batcher.close)
            await super().shutdown(sockets)

    return Server(
        uvicorn.Config(
            app,
            log_level="warning",
            lifespan="on",
            ws="none",
            timeout_keep_alive=60,  # trainers that send weights every few seconds keep their connection
            timeout_graceful_shutdown=1,
        )
    )


def _token() -> str:
    token = os.environ.get(_TOKEN)
    if not token:
        token = secrets.token_urlsafe(24)
        print(f"weights are taken with {_TOKEN}={token}", file=sys.stderr, flush=True)
    return token


def _exit(number: int, frame: FrameType | None) -> None:
    raise SystemExit(0)
