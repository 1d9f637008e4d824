"""Which distribution a token is drawn from, and where a completion ends."""

import math
from dataclasses import dataclass
from functools import lru_cache

from torch import Tensor
from transformers import LogitsProcessorList, TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

__all__ = ["Sampling", "next_token_log_probs"]

_GREEDY_BELOW = 1e-5  # as in vLLM
_MAX_TOP = 20  # as in vLLM


@dataclass(frozen=True)
class Sampling:
    """Requests that have the same share a batch.

    Raises:
        ValueError: for what no distribution has.
    """

    max_tokens: int
    temperature: float = 1.0  # 0: greedy
    top_p: float = 1.0
    top_k: int = 0  # 0 or -1: all
    stop: tuple[str, ...] = ()  # texts that end a completion
    stop_token_ids: frozenset[int] = frozenset()  # beside the EOS
    ignore_eos: bool = False
    skip_special_tokens: bool = True  # in the text in which `stop` is looked for
    num_top: int = 0  # how many of the likeliest tokens to tell at each position

    def __post_init__(self) -> None:
        if self.max_tokens < 1:
            raise ValueError(f"max_tokens must be at least 1; got {self.max_tokens}")
        if not 0 <= self.temperature < math.inf:
            raise ValueError(f"temperature must be 0 or more; got {self.temperature}")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p must be above 0 and at most 1; got {self.top_p}")
        if self.top_k < -1:
            raise ValueError(f"top_k must be -1 (all), 0 (all) or more; got {self.top_k}")
        if "" in self.stop:
            raise ValueError("stop must not hold an empty string")
        if not 0 <= self.num_top <= _MAX_TOP:
            raise ValueError(f"at most {_MAX_TOP} log-probs a token can be told, and not below 0; got {self.num_top}")

    @property
    def is_greedy(self) -> bool:
        """Whether the likeliest token is taken."""
        return self.temperature < _GREEDY_BELOW


def next_token_log_probs(logits: Tensor, sampling: Sampling) -> Tensor:
    """log_softmax of what temperature, then top_k, then top_p leave: vLLM's order, and its `processed_logprobs`.

    At temperature 0 that of the logits themselves, to which the other two are not applied. [B, V] -> [B, V], nats;
    -inf where a token cannot be drawn.
    """
    if sampling.is_greedy:
        return logits.log_softmax(-1)
    return _shaped_by(sampling.temperature, sampling.top_k, sampling.top_p)(None, logits).log_softmax(-1)


@lru_cache
def _shaped_by(temperature: float, top_k: int, top_p: float) -> LogitsProcessorList:
    shapes = LogitsProcessorList([TemperatureLogitsWarper(float(temperature))])
    if top_k > 0:
        shapes.append(TopKLogitsWarper(top_k))
    if top_p < 1:
        shapes.append(TopPLogitsWarper(top_p))
    return shapes
