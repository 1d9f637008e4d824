"""New weights for the policy: checked as a whole, then taken as a whole."""

import hashlib
from collections.abc import Iterable, Mapping

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

__all__ = ["copy_weights", "default_max_bytes", "read_weights"]

_NUM_NAMED = 3  # parameters in a message


def default_max_bytes(model: nn.Module) -> int:
    """What the policy's whole state takes in float32, and a megabyte of names."""
    return sum(4 * value.numel() for value in model.state_dict().values()) + 2**20


def read_weights(body: bytes, sha256: str, model: nn.Module) -> dict[str, Tensor]:
    """The tensors of safetensors bytes, in the dtypes that the model has.

    Args:
        sha256: that the body should have, in hex.
        model: whose `state_dict` names the parameters and their shapes. Of tied weights one name is enough.

    Raises:
        ValueError: another checksum, not safetensors, parameters that are missing, unknown, of another shape, of
            integers instead of floats or the other way round, not finite, or tied and not the same.
    """
    found = hashlib.sha256(body).hexdigest()
    if found != sha256.strip().lower():
        raise ValueError(f"the body's SHA-256 is {found}, and X-Sha256 says {sha256}: it was damaged on its way")
    try:
        weights = safetensors.torch.load(body)
    except SafetensorError as error:
        raise ValueError(f"the body is not in the safetensors format: {error}") from error
    state = model.state_dict()
    tied = _tied_names(state)
    _refuse("unknown", weights.keys() - state.keys())
    _refuse("missing", (name for name in state if not tied[name] & weights.keys()))
    _refuse(
        "of another shape",
        (
            f"{name} {list(weight.shape)} instead of {list(state[name].shape)}"
            for name, weight in weights.items()
            if weight.shape != state[name].shape
        ),
    )
    _refuse(
        "of another kind of numbers",
        (
            f"{name} {weight.dtype} instead of {state[name].dtype}"
            for name, weight in weights.items()
            if weight.is_floating_point() != state[name].is_floating_point()
        ),
    )
    weights = {name: weight.to(state[name].dtype) for name, weight in weights.items()}
    _refuse("not finite", (name for name, weight in weights.items() if not weight.isfinite().all()))
    _refuse(
        "tied, but not the same",
        (
            f"{name} and {other}"
            for name in weights
            for other in tied[name] & weights.keys()
            if name < other and not torch.equal(weights[name], weights[other])
        ),
    )
    return weights


@torch.no_grad()
def copy_weights(weights: Mapping[str, Tensor], model: nn.Module) -> None:
    """Gives the model what `read_weights` returned."""
    state = model.state_dict()
    for name, weight in weights.items():
        state[name].copy_(weight)


def _tied_names(state: Mapping[str, Tensor]) -> dict[str, set[str]]:
    """For each name those of the same tensor, itself among them."""
    names: dict[tuple[int, torch.Size], set[str]] = {}
    for name, value in state.items():
        names.setdefault((value.data_ptr(), value.shape), set()).add(name)
    return {name: names[value.data_ptr(), value.shape] for name, value in state.items()}


def _refuse(what: str, parameters: Iterable[str]) -> None:
    found = sorted(parameters)
    if found:
        more = ", ..." if len(found) > _NUM_NAMED else ""
        raise ValueError(f"{len(found)} parameters are {what}: {', '.join(found[:_NUM_NAMED])}{more}")
