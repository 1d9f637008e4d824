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
    and no checkpoint of an adapter would have the result. Here the sums are other tensors, and W comes back. Costs one
    copy of the adapted weights meanwhile.
    """
    layers = [module for module in model.modules() if isinstance(module, BaseTunerLayer)]
    kept = [
        (base, name, parameter, parameter.data)
        for base in (layer.get_base_layer() for layer in layers)
        for name, parameter in base.named_parameters(recurse=False)
    ]
    # makes new tensors instead of adding in place
    model.__dict__["merge_adapter"] = partial(model.merge_adapter, safe_merge=True)
    try:
        yield
    finally:
        del model.__dict__["merge_adapter"]
        for base, name, parameter, data in kept:
            parameter.data = data
            setattr(base, name, parameter)  # of which quantised layers make new ones
        for layer in layers:
            layer.merged_adapters.clear()
