"""What the policy said, in the shapes of vLLM's `/generate`, and of OpenAI's completions and chats."""

import time
import uuid
from collections.abc import Mapping
from itertools import accumulate

from transformers import PreTrainedTokenizerBase

from trainers.inference_server.batching import Samples
from trainers.inference_server.generation import Completion
from trainers.inference_server.request_parsing import ParsedRequest
from trainers.inference_server.texts import text_of

__all__ = ["Json", "chat_answer", "completion_answer", "native_answer"]

Json = Mapping[str, object]


def native_answer(parsed: ParsedRequest, samples: Samples, tokenizer: PreTrainedTokenizerBase) -> Json:
    """One entry a completion in each list; `logprobs[i][t]` is `[{token id: nats}]`, the token that was drawn first."""
    (prompt,), completions = parsed.generation.prompts, samples.completions
    answer: dict[str, object] = {
        "text": [_text(completion, tokenizer, parsed) for completion in completions],
        "prompt": tokenizer.decode(prompt),
        "finish_reasons": [completion.finish_reason for completion in completions],
        "prompt_token_ids": prompt,
        "token_ids": [completion.tokens for completion in completions],
        "policy_version": samples.policy_version,
    }
    if parsed.wants_log_probs:
        answer["logprobs"] = [[[at] for at in _with_drawn(completion)] for completion in completions]
    return answer


def completion_answer(
    parsed: ParsedRequest, samples: Samples, tokenizer: PreTrainedTokenizerBase, model_name: str
) -> Json:
    """The choices of the first prompt come first."""
    choices = [
        {
            "index": index,
            "text": _text(completion, tokenizer, parsed),
            "logprobs": _completion_log_probs(completion, tokenizer) if parsed.wants_log_probs else None,
            "finish_reason": completion.finish_reason,
        }
        for index, completion in enumerate(samples.completions)
    ]
    return {"object": "text_completion", "choices": choices, **_frame("cmpl", parsed, samples, model_name)}


def chat_answer(parsed: ParsedRequest, samples: Samples, tokenizer: PreTrainedTokenizerBase, model_name: str) -> Json:
    """Each choice is a message of the assistant."""
    choices = [
        {
            "index": index,
            "message": {"role": "assistant", "content": _text(completion, tokenizer, parsed)},
            "logprobs": {"content": _chat_log_probs(completion, tokenizer)} if parsed.wants_log_probs else None,
            "finish_reason": completion.finish_reason,
        }
        for index, completion in enumerate(samples.completions)
    ]
    return {"object": "chat.completion", "choices": choices, **_frame("chatcmpl", parsed, samples, model_name)}


def _text(completion: Completion, tokenizer: PreTrainedTokenizerBase, parsed: ParsedRequest) -> str:
    skip = parsed.generation.sampling.skip_special_tokens
    return text_of(completion, tokenizer, skip_special_tokens=skip, include_end=parsed.include_end)


def _frame(kind: str, parsed: ParsedRequest, samples: Samples, model_name: str) -> Json:
    num_prompt = sum(map(len, parsed.generation.prompts))
    num_completion = sum(len(completion.tokens) for completion in samples.completions)
    return {
        "id": f"{kind}-{uuid.uuid4().hex}",
        "created": int(time.time()),
        "model": model_name,
        "system_fingerprint": f"policy-{samples.policy_version}",
        "usage": {
            "prompt_tokens": num_prompt,
            "completion_tokens": num_completion,
            "total_tokens": num_prompt + num_completion,
        },
    }


def _with_drawn(completion: Completion) -> list[dict[int, float]]:
    """By token id, at each position: the token that was drawn, then the likeliest."""
    drawn = zip(completion.tokens, completion.log_probs, completion.top, strict=True)
    return [{token: log_prob, **top} for token, log_prob, top in drawn]


def _completion_log_probs(completion: Completion, tokenizer: PreTrainedTokenizerBase) -> Json:
    tokens = [tokenizer.decode([token]) for token in completion.tokens]
    return {
        "tokens": tokens,
        "token_logprobs": completion.log_probs,
        "top_logprobs": [
            {tokenizer.decode([token]): log_prob for token, log_prob in at.items()} for at in _with_drawn(completion)
        ],
        "text_offset": [*accumulate(map(len, tokens), initial=0)][:-1],
    }


def _chat_log_probs(completion: Completion, tokenizer: PreTrainedTokenizerBase) -> list[Json]:
    def entry(token: int, log_prob: float) -> dict[str, object]:
        text = tokenizer.decode([token])
        return {"token": text, "logprob": log_prob, "bytes": list(text.encode())}

    drawn = zip(completion.tokens, completion.log_probs, completion.top, strict=True)
    return [
        {**entry(token, log_prob), "top_logprobs": [entry(*likely) for likely in top.items()]}
        for token, log_prob, top in drawn
    ]
