"""The policy's weights, brought to the server that the environments sample from."""

import hashlib
import os
import time
from typing import Any

import requests
from safetensors.torch import save

from online_sft.atropos.client import direct_session
from trainers.main_process import on_main_process
from trainers.whole_weights import whole_weights

__all__ = ["PolicySync", "PolicySyncError"]

_PAUSE_S = 1.0


class PolicySyncError(RuntimeError):
    """The inference server does not have the policy's weights, and will not."""


class PolicySync:
    """Sends the weights to `online-sft serve`.

    The server checks names, shapes and checksum, swaps all weights or none, and answers with version and checksum; the
    run goes on only after that. `ONLINE_SFT_SERVE_TOKEN` is the password. Proxies and netrc are not used.

    Args:
        trainer: a `WeightedSFTTrainer` with `args.atropos_sync_url`.
    """

    def __init__(self, trainer: Any) -> None:
        self._trainer = trainer
        self._url, self._timeout_s = trainer.args.atropos_sync_url.rstrip("/"), trainer.args.atropos_sync_timeout

    def sync(self, policy_version: int) -> None:
        """Sends the weights as they are now. A collective call, with all processes.

        Raises:
            PolicySyncError: on every process, when the server refuses the weights, or has not answered for
                `atropos_sync_timeout` seconds.
        """
        weights = whole_weights(self._trainer)
        on_main_process(self._trainer.accelerator, lambda: self._send(save(weights), policy_version))

    def _send(self, body: bytes, policy_version: int) -> None:
        checksum = hashlib.sha256(body).hexdigest()
        headers = {
            "Authorization": f"Bearer {os.environ.get('ONLINE_SFT_SERVE_TOKEN', '')}",
            "X-Policy-Version": str(policy_version),
            "X-Sha256": checksum,
            "Content-Type": "application/octet-stream",
        }
        end = time.monotonic() + self._timeout_s
        while True:
            reason = self._attempt(body, headers)
            if reason is None:
                return
            if time.monotonic() > end:
                raise PolicySyncError(
                    f"{self._url} has not taken the weights of step {policy_version} within "
                    f"atropos_sync_timeout={self._timeout_s:g} s ({reason}). Start it again with `online-sft serve`, "
                    "and resume"
                )
            time.sleep(_PAUSE_S)

    def _attempt(self, body: bytes, headers: dict[str, str]) -> str | None:
        """None when the server has the weights, or else why another attempt may help."""
        try:
            with direct_session() as session:
                answer = session.post(
                    f"{self._url}/update_weights",
                    data=body,
                    headers=headers,
                    timeout=self._timeout_s,
                    allow_redirects=False,
                )
        except requests.RequestException as error:
            if isinstance(error, ValueError):  # of the URL
                raise PolicySyncError(f"atropos_sync_url={self._url!r} cannot be asked: {error}") from error
            return str(error)
        if answer.status_code >= 500:
            return f"HTTP {answer.status_code}: {answer.text[:200]}"
        if answer.status_code != 200:
            way_out = " Set ONLINE_SFT_SERVE_TOKEN to what the server printed." if answer.status_code == 401 else ""
            raise PolicySyncError(
                f"{self._url} refuses the policy's weights, HTTP {answer.status_code}: {answer.text[:500]}.{way_out}"
            )
        if not _confirms(answer, headers):
            raise PolicySyncError(
                f"{self._url} does not confirm the weights that it was sent ({answer.text[:200]}); is it an "
                "`online-sft serve`?"
            )
        return None


def _confirms(answer: requests.Response, headers: dict[str, str]) -> bool:
    try:
        found = answer.json()
        return (found["sha256"], str(found["policy_version"])) == (headers["X-Sha256"], headers["X-Policy-Version"])
    except (ValueError, LookupError, TypeError):
        return False
