"""The policy's weights, brought to the server that the environments sample from."""

import hashlib
import os
import time
from typing import Any

import requests
from peft import PeftModel
from safetensors.torch import save
from torch import Tensor
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from trainers.engine.exact_merge import merged_without_trace
from trainers.main_process import on_main_process

__all__ = ["PolicySync", "PolicySyncError", "policy_weights"]

_PAUSE_S = 1.0


class PolicySyncError(RuntimeError):
    """The inference server does not have the policy's weights, and will not."""


class PolicySync(TrainerCallback):
    """Sends the weights to `online-sft serve` before training, and after every `atropos_sync_every` optimizer steps.

    The server checks names, shapes and checksum, swaps all weights or none, and answers with version and checksum; the
    run goes on only after that. `ONLINE_SFT_SERVE_TOKEN` is the password.

    Args:
        trainer: a `WeightedSFTTrainer` with `args.atropos_sync_url`.

    Raises:
        PolicySyncError: on every process, when the server refuses the weights, or has not answered for
            `atropos_sync_timeout` seconds.
    """

    def __init__(self, trainer: Any) -> None:
        self._trainer, args = trainer, trainer.args
        self._url, self._every, self._timeout_s = (
            args.atropos_sync_url,
            args.atropos_sync_every,
            args.atropos_sync_timeout,
        )

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.sync(state.global_step)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if state.global_step % self._every == 0:
            started = time.monotonic()
            self.sync(state.global_step)
            self._trainer._metrics["train"]["atropos/seconds_sync"].append(time.monotonic() - started)

    def sync(self, policy_version: int) -> None:
        """Sends the weights as they are now. A collective call, with all processes."""
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
            answer = requests.post(
                f"{self._url.rstrip('/')}/update_weights",
                data=body,
                headers=headers,
                timeout=self._timeout_s,
                allow_redirects=False,
            )
        except requests.RequestException as error:
            return str(error)
        if answer.status_code >= 500:
            return f"HTTP {answer.status_code}: {answer.text[:200]}"
        if answer.status_code != 200:
            way_out = " Set ONLINE_SFT_SERVE_TOKEN to what the server printed." if answer.status_code == 401 else ""
            raise PolicySyncError(
                f"{self._url} refuses the policy's weights, HTTP {answer.status_code}: {answer.text[:500]}.{way_out}"
            )
        found = answer.json()
        if found["sha256"] != headers["X-Sha256"] or str(found["policy_version"]) != headers["X-Policy-Version"]:
            raise PolicySyncError(f"{self._url} has taken other weights than it was sent: {found}")
        return None


def policy_weights(trainer: Any) -> dict[str, Tensor]:
    """The weights by the names that they have in the model's own checkpoints; adapters are merged. A collective call.

    A tensor that has several names (tied embeddings) is there under the first of them. Whole on the main process;
    sharded models may leave the others with nothing.

    Raises:
        ValueError: for adapters of a sharded model.
    """
    model = trainer.accelerator.unwrap_model(trainer.model)
    if not isinstance(model, PeftModel):
        return _once(trainer.accelerator.get_state_dict(trainer.model_wrapped))
    if trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled:
        raise ValueError("the adapters of a sharded model cannot be merged for atropos_sync_url; train all weights")
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
