"""What one process of a run holds, in bytes, each with its formula. Pure: tensors may be on the meta device.

Exact are parameters, gradients and states of the optimizers that are listed; the rest says what it leaves out.
"""

import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from trl.kernels.chunked_logprob import TOKEN_CHUNK_SIZE
from trl.trainer.utils import _CHUNKED_LOGPROB_CHUNK_SIZE

__all__ = [
    "OPTIMIZERS",
    "Layers",
    "Part",
    "activations",
    "autocast_copies",
    "buckets",
    "gradients",
    "key_value_cache",
    "optimizer_states",
    "parameters",
    "total",
    "trl_head",
    "vllm_share",
    "weighted_head",
]

_EVERY = 4  # bytes of the counter of steps that torch's optimizers keep for each tensor


@dataclass(frozen=True)
class Part:
    """One thing that takes memory.

    Args:
        name: of it.
        num_bytes: None: not known, for the reason that the formula says.
        formula: how it comes about, in words and numbers.
        is_exact: whether a run holds exactly this; else it is an estimate.
        phase: "training" and "sampling" follow each other, and do not add up; "" is there always.
    """

    name: str
    num_bytes: int | None
    formula: str
    is_exact: bool = False
    phase: str = ""


@dataclass(frozen=True)
class Layers:
    """The sizes of a transformer that activations depend on."""

    num_layers: int
    hidden: int
    attention: int  # heads times their size
    key_value: int
    intermediate: int
    vocabulary: int


def parameters(
    held: Iterable[Tensor],
    *,
    parts: int = 1,
    name: str = "parameters",
    quantised: Sequence[Tensor] = (),
    bits: int | None = None,
) -> Part:
    """Numbers times bytes, by dtype.

    Args:
        held: the model's parameters, each once.
        parts: processes that divide them.
        name: of the part.
        quantised: those that bitsandbytes holds in `bits` bits; an estimate, with a scale of 4 bytes per 64.
        bits: of these.
    """
    ids = {id(each) for each in quantised}
    num_bytes, words = _of(each for each in held if id(each) not in ids)
    if bits is not None:
        count = sum(each.numel() for each in quantised)
        num_bytes += math.ceil(count * (bits / 8 + 4 / 64))
        words = f"{count:,} x {bits} bits and a scale per 64 + {words}"
    return Part(name, _divided(num_bytes, parts), words + _over(parts), is_exact=parts == 1 and bits is None)


def autocast_copies(held: Iterable[Tensor]) -> Part:
    """The weights in 16 bits, which autocast keeps from the forward to the backward pass."""
    count = sum(each.numel() for each in held if each.dtype == torch.float32)
    return Part("copies in 16 bits", 2 * count, f"{count:,} x 2 bytes (autocast), at most", phase="training")


def gradients(trained: Iterable[Tensor], *, parts: int = 1) -> Part:
    """As large as the parameters that are trained."""
    num_bytes, words = _of(trained)
    return Part("gradients", _divided(num_bytes, parts), words + _over(parts), is_exact=parts == 1)


def buckets(trained: Iterable[Tensor]) -> Part:
    """DDP's copies of the gradients, which it sends to the other processes."""
    num_bytes, words = _of(trained)
    return Part("buckets of DDP", num_bytes, words)


def _adam(trained: Sequence[Tensor]) -> tuple[int, str]:
    moments, words = _of(trained)
    return 2 * moments + _EVERY * len(trained), f"2 moments x ({words}) + {_EVERY} x {len(trained):,} tensors"


def _one_state(trained: Sequence[Tensor]) -> tuple[int, str]:
    state, words = _of(trained)
    return state + _EVERY * len(trained), f"{words} + {_EVERY} x {len(trained):,} tensors"


def _none(trained: Sequence[Tensor]) -> tuple[int, str]:
    return 0, "SGD without momentum keeps nothing"


def _adafactor(trained: Sequence[Tensor]) -> tuple[int, str]:
    num_bytes = 0
    for each in trained:
        rows_and_columns = each.numel() // each.shape[-1] + each.numel() // each.shape[-2] if each.ndim > 1 else 0
        num_bytes += ((rows_and_columns or each.numel()) + 1) * each.element_size()  # and their root mean square
    return num_bytes, "a number per row and column of each matrix, one per number of the rest, one per tensor"


def _adam_of_8_bits(trained: Sequence[Tensor]) -> tuple[int, str]:
    small = [each for each in trained if each.numel() < 4096]  # which bitsandbytes leaves in float32
    num_small = sum(each.numel() for each in small)
    num_large = sum(each.numel() for each in trained) - num_small
    num_bytes = 2 * (num_large + 4 * math.ceil(num_large / 256)) + 8 * num_small
    return num_bytes, f"2 moments x {num_large:,} x 1 byte, a scale of 4 bytes per 256; tensors below 4,096 in float32"


# What an optimizer keeps: bytes and words. Names as in `TrainingArguments.optim`; those of _ESTIMATED are close.
OPTIMIZERS: dict[str, Callable[[Sequence[Tensor]], tuple[int, str]]] = {
    "adafactor": _adafactor,
    "adagrad": _one_state,
    "adamw_8bit": _adam_of_8_bits,
    "adamw_bnb_8bit": _adam_of_8_bits,
    "adamw_torch": _adam,
    "adamw_torch_fused": _adam,
    "paged_adamw_32bit": _adam,
    "paged_adamw_8bit": _adam_of_8_bits,
    "rmsprop": _one_state,
    "sgd": _none,
}
_ESTIMATED = ("adamw_8bit", "adamw_bnb_8bit", "paged_adamw_32bit", "paged_adamw_8bit")


def optimizer_states(optim: str, trained: Sequence[Tensor], *, parts: int = 1, keeps_copy: bool = False) -> Part:
    """What the optimizer keeps for the parameters that are trained; nothing for those that are frozen.

    Args:
        optim: its name in `TrainingArguments.optim`.
        trained: the parameters.
        parts: processes that divide the states.
        keeps_copy: DeepSpeed keeps float32 parameters and moments beside a model of 16 bits.
    """
    if optim not in OPTIMIZERS:
        return Part(
            "optimizer", None, f"what {optim} keeps is not known here; Adam keeps two numbers for each one trained"
        )
    if keeps_copy:
        trained = [torch.empty(each.shape, device="meta") for each in trained]
    num_bytes, words = OPTIMIZERS[optim](trained)
    if keeps_copy:
        num_bytes += sum(4 * each.numel() for each in trained)
        words += ", and the parameters in float32"
    is_exact = parts == 1 and not keeps_copy and optim not in _ESTIMATED
    return Part("optimizer", _divided(num_bytes, parts), f"{optim}: {words}{_over(parts)}", is_exact)


def activations(layers: Layers, num_tokens: int, *, width: int, is_checkpointed: bool) -> Part:
    """What the layers keep for the backward pass, of one micro-batch.

    Per token and layer 4 hidden + 3 attention + 3 key-value + 4 intermediate numbers (inputs of norms and products,
    queries, keys and values before and after rotation); with checkpointing the layer's input, and all of one layer.

    Args:
        layers: sizes of the model.
        num_tokens: of a micro-batch, with padding.
        width: bytes of a number.
    """
    of_layer = 4 * layers.hidden + 3 * layers.attention + 3 * layers.key_value + 4 * layers.intermediate
    words = f"{num_tokens:,} tokens x {width} bytes x "
    if is_checkpointed:
        per_token = layers.num_layers * layers.hidden + of_layer
        words += f"({layers.num_layers} layers x {layers.hidden:,} + {of_layer:,} of one layer), with checkpointing"
    else:
        per_token = layers.num_layers * of_layer
        words += f"{layers.num_layers} layers x {of_layer:,}, without checkpointing"
    return Part("activations", num_tokens * width * per_token, words, phase="training")


def weighted_head(layers: Layers, num_tokens: int, *, chunk_size: int, is_trained: bool, width: int) -> Part:
    """`online_sft.fused_cross_entropy`: two buffers of a chunk's logits, and gradients kept until the backward pass."""
    chunk = min(chunk_size, num_tokens)
    num_bytes = 2 * chunk * layers.vocabulary * 4 + num_tokens * layers.hidden * width
    words = f"2 x {chunk:,} tokens x {layers.vocabulary:,} x 4 bytes + {num_tokens:,} x {layers.hidden:,} x {width}"
    if is_trained:
        num_bytes += layers.vocabulary * layers.hidden * 4
        words += f" + {layers.vocabulary:,} x {layers.hidden:,} x 4 (the head's gradient)"
    return Part("logits", num_bytes, f"weighted head: {words}", phase="training")


def trl_head(layers: Layers, num_tokens: int, *, is_trained: bool, width: int) -> Part:
    """TRL's fused head: a tile of logits, and in the backward pass float32 gradients of hidden states and head."""
    tile = min(num_tokens, TOKEN_CHUNK_SIZE) * min(layers.vocabulary, _CHUNKED_LOGPROB_CHUNK_SIZE)
    num_bytes = tile * (width + 4) + num_tokens * layers.hidden * 4
    words = f"a tile of {tile:,} x {width + 4} bytes + {num_tokens:,} x {layers.hidden:,} x 4"
    if is_trained:
        num_bytes += layers.vocabulary * layers.hidden * 4
        words += f" + {layers.vocabulary:,} x {layers.hidden:,} x 4 (the head's gradient)"
    return Part("logits", num_bytes, f"TRL's fused head: {words}", phase="training")


def key_value_cache(layers: Layers, num_sequences: int, num_tokens: int, *, width: int) -> Part:
    """Of transformers' `generate`, when all sequences are as long as they may be."""
    num_bytes = num_sequences * num_tokens * layers.num_layers * 2 * layers.key_value * width
    words = (
        f"{num_sequences:,} sequences x {num_tokens:,} tokens x {layers.num_layers} layers x 2 x {layers.key_value:,} "
        f"x {width} bytes"
    )
    return Part("key-value cache", num_bytes, words, phase="sampling")


def vllm_share(utilization: float, device_bytes: int | None) -> Part:
    """What a colocated vLLM takes for weights and cache."""
    if device_bytes is None:
        return Part("vLLM", None, f"{utilization:g} x the memory of the device, which is not known without a GPU")
    return Part(
        "vLLM", math.ceil(utilization * device_bytes), f"{utilization:g} x {device_bytes:,} bytes of the device"
    )


def total(parts: Iterable[Part]) -> int:
    """The largest sum of what is there at one time, of the parts that are known."""
    sums = Counter[str]()
    for part in parts:
        sums[part.phase] += part.num_bytes or 0
    return sums[""] + max(sums["training"], sums["sampling"])


def _of(tensors: Iterable[Tensor]) -> tuple[int, str]:
    """Bytes, and the numbers of each dtype in words."""
    counts = Counter[torch.dtype]()
    for each in tensors:
        counts[each.dtype] += each.numel()
    words = " + ".join(
        f"{count:,} x {dtype.itemsize} bytes ({str(dtype).removeprefix('torch.')})" for dtype, count in counts.items()
    )
    return sum(count * dtype.itemsize for dtype, count in counts.items()), words or "none"


def _divided(num_bytes: int, parts: int) -> int:
    return math.ceil(num_bytes / parts)


def _over(parts: int) -> str:
    return f", over {parts} processes" if parts > 1 else ""
