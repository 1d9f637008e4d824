"""Which parameters a broken sync has left out: those that, as they were at first, explain what the engine computes."""

import re
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from transformers import PreTrainedModel

__all__ = ["explanation", "find_suspects", "layer_of"]

_TakenBack = Callable[[set[str]], AbstractContextManager[None]]
_LAYER = re.compile(r"^(.*?\blayers\.\d+)\.|^(.*)\.[^.]+$")


def layer_of(name: str) -> str:
    """The decoder layer, or else the module, that a parameter or module belongs to."""
    name = name.removeprefix("base_model.model.")
    found = _LAYER.match(name)
    return (found[1] or found[2]) if found else name


def find_suspects(layers: list[str], distance: Callable[[set[str]], float], tolerance: float) -> tuple[set[str], float]:
    """The layers that, taken back together, bring policy and engine nearest to each other, and how near.

    Greedy: the one that helps most, then the one that helps most beside it, until they agree or nothing helps.

    Args:
        layers: to choose from.
        distance: max |Δ log-prob| of policy and engine with these layers of the policy taken back.
        tolerance: up to which they agree, nats.
    """
    suspects: set[str] = set()
    nearest = distance(suspects)
    while nearest > tolerance:
        found = {layer: distance(suspects | {layer}) for layer in layers if layer not in suspects}
        best = min(found, key=lambda layer: found[layer], default=None)
        if best is None or not found[best] < nearest:
            break
        suspects, nearest = suspects | {best}, found[best]
    return suspects, nearest


def explanation(
    model: PreTrainedModel | PeftModel, policy: Callable[[], Tensor], engine: Tensor, tolerance: float
) -> str:
    """A sentence on what the engine computes instead of the policy.

    Args:
        model: the policy, whole on this process; it is as before afterwards, to the bit.
        policy: its log-probs of the probe.
        engine: the engine's.
        tolerance: up to which they agree, nats.
    """
    if isinstance(model, PeftModel):
        layers, taken_back, first = sorted(_adapters(model)), _without_adapters(model), "without its adapters"
    else:
        layers, taken_back = sorted({layer_of(name) for name, _ in model.named_parameters()}), _as_at_first(model)
        first = f"as in {model.name_or_path}, where it started"

    def distance(layers: set[str]) -> float:
        with taken_back(layers):
            return (policy() - engine).abs().max().item()

    whole = distance(set(layers))
    if whole <= tolerance:
        return f"the engine computes the model {first} (max |Δ log-prob| {whole:.1g}): no weight has arrived"
    suspects, nearest = find_suspects(layers, distance, tolerance)
    if not suspects:
        return f"no layer {first} explains what the engine computes"
    verb = "agree" if nearest <= tolerance else "come nearest"
    return (
        f"suspect parameters: {', '.join(f'{layer}.*' for layer in sorted(suspects))}. With these {first}, policy and "
        f"engine {verb} (max |Δ log-prob| {nearest:.1g})"
    )


def _adapters(model: PeftModel) -> dict[str, list[BaseTunerLayer]]:
    by_layer = defaultdict(list)
    for name, module in model.named_modules():
        if isinstance(module, BaseTunerLayer):
            by_layer[layer_of(name)].append(module)
    return by_layer


def _without_adapters(model: PeftModel) -> _TakenBack:
    adapters = _adapters(model)
    trainable = {parameter: parameter.requires_grad for parameter in model.parameters()}  # which PEFT switches, too

    @contextmanager
    def taken_back(layers: set[str]) -> Iterator[None]:
        chosen = [adapter for layer in layers for adapter in adapters[layer]]
        for adapter in chosen:
            adapter.enable_adapters(False)
        try:
            yield
        finally:
            for adapter in chosen:
                adapter.enable_adapters(True)
            for parameter, requires_grad in trainable.items():
                parameter.requires_grad_(requires_grad)

    return taken_back


def _as_at_first(model: PreTrainedModel) -> _TakenBack:
    """With weights as in the checkpoint, with which the engine was started, too."""
    revision = getattr(model.config, "_commit_hash", None)
    first = type(model).from_pretrained(model.name_or_path, dtype="auto", revision=revision).state_dict()
    parameters: dict[str, list[tuple[nn.Parameter, Tensor]]] = defaultdict(list)
    for name, parameter in model.named_parameters():
        if name in first:
            parameters[layer_of(name)].append((parameter, first[name]))

    @contextmanager
    def taken_back(layers: set[str]) -> Iterator[None]:
        chosen = [pair for layer in layers for pair in parameters[layer]]
        now = [parameter.detach().to("cpu", copy=True) for parameter, _ in chosen]  # beside a colocated engine
        try:
            for parameter, value in chosen:
                parameter.data.copy_(value)
            yield
        finally:
            for (parameter, _), value in zip(chosen, now, strict=True):
                parameter.data.copy_(value)

    return taken_back
