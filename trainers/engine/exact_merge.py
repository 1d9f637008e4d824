"""Adapters merged for a weight sync, without a trace in the policy."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer

__all__ = ["merged_without_trace"]


@contextmanager
def merged_without_trace(model: PeftModel) -> Iterator[None]:
    """While TRL merges the adapters, sends the sums and subtracts the adapters again.

    (W + D) - D is not W when rounded: each sync would move the frozen weights, in bfloat16 by up to 2^-9 of a weight,
    and no checkpoint of an adapter would have the result. And TRL 1.16 subtracts once the last parameter has been asked
    for, in place, while vLLM's packed broadcast still holds it: the last GB, or all of a small model, would be sent
    without its adapters. Here the sums are other tensors, nothing is subtracted, and W comes back. Costs one copy of
    the adapted weights meanwhile.
    """
    layers = [module for module in model.modules() if isinstance(module, BaseTunerLayer)]
    kept = [
        (base, name, parameter, parameter.data)
        for base in (layer.get_base_layer() for layer in layers)
        for name, parameter in base.named_parameters(recurse=False)
    ]
    # makes new tensors instead of adding in place
    model.__dict__["merge_adapter"] = partial(model.merge_adapter, safe_merge=True)
    model.__dict__["unmerge_adapter"] = lambda: None
    try:
        yield
    finally:
        del model.__dict__["merge_adapter"], model.__dict__["unmerge_adapter"]
        for base, name, parameter, data in kept:
            parameter.data = data
            setattr(base, name, parameter)  # of which quantised layers make new ones
        for layer in layers:
            layer.merged_adapters.clear()
