"""The policy's weights, brought to the server that the environments sample from."""

import hashlib
import os
import time
from typing import Any

import requests
from peft import PeftModel
from safetensors.torch import save
from torch import Tensor

from online_sft.atropos.client import direct_session
from trainers.engine.exact_merge import merged_without_trace
from trainers.main_process import on_main_process

__all__ = ["PolicySync", "PolicySyncError", "policy_weights"]

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
        weights = policy_weights(self._trainer)
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


def policy_weights(trainer: Any) -> dict[str, Tensor]:
    """The weights by the names that they have in the model's own checkpoints; adapters are merged. A collective call.

    A tensor that has several names (tied embeddings) is there under the first of them. On the main process, which sends
    them; the others have none.

    Raises:
        ValueError: for adapters of a sharded model.
    """
    model = trainer.accelerator.unwrap_model(trainer.model)
    if not isinstance(model, PeftModel):
        state = trainer.accelerator.get_state_dict(trainer.model_wrapped)
        return _once(state) if trainer.accelerator.is_main_process else {}
    if trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled:
        raise ValueError("the adapters of a sharded model cannot be merged for atropos_sync_url; train all weights")
    if not trainer.accelerator.is_main_process:
        return {}
    with merged_without_trace(model):
        model.merge_adapter()
        state = {
            name.removeprefix("base_model.model.")
            .replace(".base_layer", "")
            .replace(".modules_to_save.default", ""): each
            for name, each in model.state_dict().items()
            if model.prefix not in name and "original_module" not in name
        }
        return _once(state)


def _once(state: dict[str, Tensor]) -> dict[str, Tensor]:
    seen: set[tuple[int, tuple[int, ...]]] = set()
    weights = {}
    for name, tensor in state.items():
        place = (tensor.data_ptr(), tuple(tensor.shape))
        if place not in seen:
            seen.add(place)
            weights[name] = tensor.detach().cpu().contiguous().clone()
    return weights
