"""Completions of prompts: tokens, and the log-probs of the distribution that each was drawn from."""

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import torch
from torch import LongTensor, Tensor
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    StoppingCriteria,
    StoppingCriteriaList,
)

from trainers.inference_server.policy import Policy
from trainers.inference_server.sampling import Sampling, next_token_log_probs

__all__ = ["AbortedError", "Completion", "generate"]


class AbortedError(RuntimeError):
    """Generation was told to end."""


@dataclass(frozen=True)
class Completion:
    """What the policy said. Of L tokens; the one that ended it is among them."""

    tokens: list[int]
    log_probs: list[float]  # [L], nats
    top: list[dict[int, float]]  # [L], by token id, the likeliest first; empty dicts where not asked for
    ended_by: int | str | None  # a token, a text, or max_tokens

    @property
    def finish_reason(self) -> Literal["stop", "length"]:
        """As OpenAI's."""
        return "length" if self.ended_by is None else "stop"


def generate(
    policy: Policy,
    prompts: Sequence[Sequence[int]],
    sampling: Sampling,
    *,
    generator: torch.Generator,
    abort: threading.Event,
) -> list[Completion]:
    """One completion for each prompt, in one batch, padded on the left.

    Args:
        prompts: token ids, at least one each.
        generator: of the policy's device; the global one is not touched.
        abort: ends it before the next token, when set.

    Raises:
        AbortedError: by `abort`.
        FloatingPointError: the model's logits hold NaN.
    """
    width = max(map(len, prompts))
    rows = [[0] * (width - len(prompt)) + list(prompt) for prompt in prompts]
    masks = [[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts]
    draw = _Draw(sampling, generator)
    ends = _Ends(policy, sampling, width, abort)
    policy.model.generate(
        input_ids=torch.tensor(rows, device=policy.model.device),
        attention_mask=torch.tensor(masks, device=policy.model.device),
        generation_config=_config(sampling.max_tokens),
        logits_processor=LogitsProcessorList([draw]),
        stopping_criteria=StoppingCriteriaList([ends]),
    )
    if abort.is_set():
        raise AbortedError("generation was told to end")
    return draw.completions(ends.ended)


@lru_cache
def _config(max_tokens: int) -> GenerationConfig:
    # no EOS: `_Ends` knows it
    return GenerationConfig(max_new_tokens=max_tokens, do_sample=False, pad_token_id=0)


class _Draw(LogitsProcessor):
    """Draws the tokens itself, since `generate` knows the global random numbers only, and leaves it one each."""

    def __init__(self, sampling: Sampling, generator: torch.Generator) -> None:
        self._sampling, self._generator = sampling, generator
        self._tokens: list[Tensor] = []  # [B, 1] each
        self._log_probs: list[Tensor] = []  # [B, 1] each
        self._top: list[tuple[Tensor, Tensor]] = []  # log-probs and ids, [B, num_top] each

    def __call__(self, input_ids: LongTensor, scores: Tensor) -> Tensor:
        log_probs = next_token_log_probs(scores, self._sampling)
        if log_probs.isnan().any():
            raise FloatingPointError("the policy's logits are not finite: are its weights?")
        if self._sampling.is_greedy:
            tokens = log_probs.argmax(-1, keepdim=True)
        else:
            tokens = log_probs.exp().multinomial(1, generator=self._generator)
        self._tokens.append(tokens)
        self._log_probs.append(log_probs.gather(-1, tokens))
        if self._sampling.num_top:
            values, ids = log_probs.topk(min(self._sampling.num_top, log_probs.shape[-1]))
            self._top.append((values, ids))
        return torch.full_like(scores, -torch.inf).scatter(-1, tokens, 0.0)

    def completions(self, ended: dict[int, tuple[int, int | str]]) -> list[Completion]:
        """Of all rows, given where and by what some have ended."""
        tokens, log_probs = torch.cat(self._tokens, 1).tolist(), torch.cat(self._log_probs, 1).tolist()
        found = []
        for row in range(len(tokens)):
            length, by = ended.get(row, (self._sampling.max_tokens, None))
            top = [_finite(values[row], ids[row]) for values, ids in self._top[:length]]
            found.append(Completion(tokens[row][:length], log_probs[row][:length], top or [{}] * length, by))
        return found


def _finite(log_probs: Tensor, ids: Tensor) -> dict[int, float]:
    pairs = zip(ids.tolist(), log_probs.tolist(), strict=True)
    return {token: log_prob for token, log_prob in pairs if log_prob > -torch.inf}


class _Ends(StoppingCriteria):
    """Remembers for each row after how many tokens it ended, and by what."""

    def __init__(self, policy: Policy, sampling: Sampling, prompt_length: int, abort: threading.Event) -> None:
        self._policy, self._sampling, self._prompt_length, self._abort = policy, sampling, prompt_length, abort
        self._tokens = sampling.stop_token_ids | (frozenset() if sampling.ignore_eos else policy.eos_token_ids)
        self.ended: dict[int, tuple[int, int | str]] = {}

    def __call__(self, input_ids: LongTensor, scores: Tensor | None, **kwargs: object) -> Tensor:
        length = input_ids.shape[1] - self._prompt_length
        for row, token in enumerate(input_ids[:, -1].tolist()):
            if row in self.ended:
                continue
            if token in self._tokens:
                self.ended[row] = (length, token)
            elif self._sampling.stop:
                text = self._policy.tokenizer.decode(
                    input_ids[row, self._prompt_length :].tolist(),
                    skip_special_tokens=self._sampling.skip_special_tokens,
                )
                found = [stop for stop in self._sampling.stop if stop in text]
                if found:
                    self.ended[row] = (length, min(found, key=text.index))
        is_over = [self._abort.is_set() or row in self.ended for row in range(len(input_ids))]
        return torch.tensor(is_over, device=input_ids.device)
