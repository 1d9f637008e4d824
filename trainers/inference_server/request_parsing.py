"""From the bodies of vLLM's `/generate`, and of OpenAI's completions and chats, to what the policy is asked.

All raise ValueError, with what is wrong and where.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from trainers.inference_server.batching import GenerationRequest
from trainers.inference_server.options import Options, is_token_ids
from trainers.inference_server.policy import Policy
from trainers.inference_server.sampling import Sampling
from trainers.inference_server.texts import chat_text, encode

__all__ = ["ParsedRequest", "chat_request", "completion_request", "native_request"]

_DEFAULT_MAX_TOKENS = 16  # as in vLLM, but for chats
_MAX_N = 16384  # as in vLLM
_MAX_SEED = 2**63 - 1


@dataclass(frozen=True)
class ParsedRequest:
    """What to generate, and how to tell it."""

    generation: GenerationRequest
    include_end: bool  # whether texts show what ended them
    wants_log_probs: bool


def native_request(body: Mapping[str, object], policy: Policy) -> ParsedRequest:
    """vLLM's: one prompt, as text, as `{"prompt": text}`, or as `{"prompt_token_ids": ids}`."""
    options = Options(body)
    prompt = options.take("prompt")
    if isinstance(prompt, dict) and len(prompt) == 1:
        ((kind, prompt),) = prompt.items()
        if kind not in ("prompt", "prompt_token_ids") or isinstance(prompt, str) != (kind == "prompt"):
            raise ValueError("prompt must hold a text, `prompt`, or a list of ids, `prompt_token_ids`")
    elif not isinstance(prompt, str):
        raise ValueError('prompt must be a text, {"prompt": text} or {"prompt_token_ids": ids}')
    ids = (_prompt_ids(prompt, policy),)
    return _parsed(options, ids, policy, options.integer_or_none("logprobs"), _DEFAULT_MAX_TOKENS)


def completion_request(body: Mapping[str, object], policy: Policy) -> ParsedRequest:
    """OpenAI's completion: a prompt, or a list of prompts, each a text or a list of ids."""
    options = Options(body)
    prompt = options.take("prompt")
    prompts = prompt if isinstance(prompt, list) and not is_token_ids(prompt) else [prompt]
    ids = tuple(_prompt_ids(one, policy) for one in prompts)
    return _parsed(options, ids, policy, options.integer_or_none("logprobs"), _DEFAULT_MAX_TOKENS)


def chat_request(body: Mapping[str, object], policy: Policy) -> ParsedRequest:
    """OpenAI's chat, by the tokenizer's template; `chat_template_kwargs`, as in vLLM, are handed to it."""
    options = Options(body)
    messages, template_kwargs = options.take("messages"), options.take("chat_template_kwargs") or {}
    if not isinstance(messages, list) or not messages or not all(isinstance(message, dict) for message in messages):
        raise ValueError("messages must be a list of objects with `role` and `content`")
    if not isinstance(template_kwargs, dict):
        raise ValueError(f"chat_template_kwargs must be an object; got {template_kwargs!r:.80}")
    text = chat_text(policy.tokenizer, messages, template_kwargs)
    ids = _checked(encode(policy.tokenizer, text, add_special_tokens=False), policy)
    wants_log_probs, num_top = options.flag("logprobs", False), options.integer("top_logprobs", 0)
    if num_top and not wants_log_probs:
        raise ValueError("top_logprobs needs logprobs=true")
    return _parsed(options, (ids,), policy, num_top if wants_log_probs else None, None)


def _parsed(
    options: Options,
    prompts: tuple[tuple[int, ...], ...],
    policy: Policy,
    num_top: int | None,
    default_max_tokens: int | None,
) -> ParsedRequest:
    """The rest of the options, which all three share. A `num_top` of None asks for no log-probs."""
    sampling = Sampling(
        max_tokens=_max_tokens(options, max(map(len, prompts), default=0), policy, default_max_tokens),
        temperature=options.number("temperature", 1.0),
        top_p=options.number("top_p", 1.0),
        top_k=options.integer("top_k", 0),
        stop=options.texts("stop"),
        stop_token_ids=frozenset(options.token_ids("stop_token_ids")),
        ignore_eos=options.flag("ignore_eos", False),
        skip_special_tokens=options.flag("skip_special_tokens", True),
        num_top=num_top or 0,
    )
    include_end = options.flag("include_stop_str_in_output", False)
    n, seed = options.integer("n", 1), options.integer_or_none("seed")
    if not 1 <= n * len(prompts) <= _MAX_N:
        raise ValueError(f"n must make between 1 and {_MAX_N} completions; got n={n} for {len(prompts)} prompts")
    if seed is not None and not 0 <= seed <= _MAX_SEED:
        raise ValueError(f"seed must be between 0 and {_MAX_SEED}; got {seed}")
    options.refuse_rest()
    request = GenerationRequest(prompts, n, sampling, seed)
    return ParsedRequest(request, include_end, wants_log_probs=num_top is not None)


def _max_tokens(options: Options, prompt_length: int, policy: Policy, default: int | None) -> int:
    """As in vLLM: null, and a chat that does not say, stand for the rest of the context."""
    name = "max_completion_tokens" if options.is_there("max_completion_tokens") else "max_tokens"
    left = policy.context_length - prompt_length
    if left < 1:
        raise ValueError(
            f"the maximum context length is {policy.context_length} tokens; a prompt of {prompt_length} leaves none"
        )
    max_tokens = options.integer(name, left if default is None or options.is_null(name) else default)
    if max_tokens > left:
        raise ValueError(
            f"the maximum context length is {policy.context_length} tokens; the prompt has {prompt_length}, and "
            f"{name} is {max_tokens}"
        )
    return max_tokens


def _prompt_ids(prompt: object, policy: Policy) -> tuple[int, ...]:
    if isinstance(prompt, str):
        return _checked(encode(policy.tokenizer, prompt, add_special_tokens=True), policy)
    if not is_token_ids(prompt):
        raise ValueError(f"prompt must be a text or a list of token ids; got {prompt!r:.80}")
    return _checked(tuple(prompt), policy)


def _checked(ids: tuple[int, ...], policy: Policy) -> tuple[int, ...]:
    if not ids:
        raise ValueError("the prompt is empty")
    for token in ids:
        if not 0 <= token < policy.vocab_size:
            raise ValueError(f"token id {token} is out of the vocabulary of {policy.vocab_size}")
    return ids
