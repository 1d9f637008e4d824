"""A vLLM server before training: is it up, can it take weights, and is it the policy's model?"""

import logging
import socket
import time
from typing import Any

import requests
from transformers import AutoConfig, PretrainedConfig

__all__ = ["ask_server", "check_server", "is_healthy", "server_url", "wait_until_healthy"]

logger = logging.getLogger(__name__)

_START = "trl vllm-serve --model {model}"
# two models that agree in these hold parameters of the same names and shapes
_ARCHITECTURE = (
    "model_type",
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "tie_word_embeddings",
)


def server_url(args: Any) -> str:
    """Where the server of a `GRPOConfig` listens."""
    url = args.vllm_server_base_url or f"http://{args.vllm_server_host}:{args.vllm_server_port}"
    return str(url).rstrip("/")


def is_healthy(url: str, timeout_s: float = 5.0) -> bool:
    """Whether the server, and the engine behind it, answers."""
    try:
        return requests.get(f"{url}/health", timeout=timeout_s).status_code == 200
    except requests.RequestException:
        return False


def ask_server(url: str) -> requests.Response:
    """How the server was started: `vllm_config`, where it says so."""
    return requests.get(f"{url}/server_info", params={"config_format": "json"}, timeout=30)


def wait_until_healthy(url: str, timeout_s: float) -> bool:
    """Whether the server answers within the time."""
    end = time.monotonic() + timeout_s
    while not is_healthy(url):
        if time.monotonic() >= end:
            return False
        time.sleep(min(1.0, max(0.0, end - time.monotonic())))
    return True


def check_server(args: Any, config: PretrainedConfig, path: str) -> None:
    """Finds what would make the run fail later, or hang.

    Args:
        args: with the `vllm_*` fields of a `GRPOConfig`.
        config: of the policy.
        path: of the policy, for the command in the messages.

    Raises:
        ConnectionError: no server within `vllm_server_timeout`.
        ValueError: it cannot take weights, has another model or too short a context, or the port for the weights is
            taken.
    """
    url, start = server_url(args), _START.format(model=path)
    if not is_healthy(url):
        logger.warning("waiting up to %.0f s for the vLLM server at %s", args.vllm_server_timeout, url)
        if not wait_until_healthy(url, args.vllm_server_timeout):
            raise ConnectionError(
                f"no vLLM server answers at {url} within vllm_server_timeout={args.vllm_server_timeout:g} s. Start it "
                f"with `{start}`, or set vllm_server_base_url"
            )
    answer = ask_server(url)
    if answer.status_code != 200:
        raise ValueError(
            f"the server at {url} does not say how it was started (/server_info: {answer.status_code}), so that it "
            f"cannot take weights either. Start it with `{start}`, or with VLLM_SERVER_DEV_MODE=1 in its environment"
        )
    found = answer.json()["vllm_config"]
    if found["weight_transfer_config"] is None:
        raise ValueError(
            f"the server at {url} cannot take weights. Start it with `{start}`, or with "
            """`--weight-transfer-config '{"backend": "nccl"}'`"""
        )
    length, model = found["model_config"]["max_model_len"], found["model_config"]["model"]
    if length <= args.max_completion_length:
        raise ValueError(
            f"the server at {url} has a context of {length} tokens, less than a prompt and "
            f"max_completion_length={args.max_completion_length}. Start it with a larger --max_model_len"
        )
    _check_architecture(url, model, config, start)
    _check_port(args.vllm_group_port)


def _check_architecture(url: str, model: str, config: PretrainedConfig, start: str) -> None:
    try:
        theirs = AutoConfig.from_pretrained(model).get_text_config()
    except (OSError, ValueError) as error:
        logger.info("the config of the server's model %s cannot be read here: %s", model, error)
        return
    ours = config.get_text_config()
    for name in _ARCHITECTURE:
        values = getattr(ours, name, None), getattr(theirs, name, None)
        if values[0] != values[1]:
            raise ValueError(
                f"the server at {url} has another model: {name} is {values[1]} in {model}, and {values[0]} in the "
                f"policy. Start it with `{start}`"
            )


def _check_port(port: int) -> None:
    with socket.socket() as trial:
        trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            trial.bind(("", port))
        except OSError as error:
            raise ValueError(
                f"port {port}, on which the weights are handed to vLLM, is taken ({error.strerror}); set "
                "vllm_group_port to a free one"
            ) from error
