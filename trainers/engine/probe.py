"""The probe: fixed texts, scored by the policy and by the engine. Equal weights give equal log-probs."""

from typing import Any

import torch
from accelerate.utils import is_peft_model
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase
from trl.generation.vllm_generation import VLLMGeneration

__all__ = ["engine_log_probs", "policy_log_probs", "probe_sequences"]

_TEXTS = (
    "The quick brown fox jumps over the lazy dog. Pack my box with five dozen liquor jugs.",
    "def add(a: int, b: int) -> int:\n    return a + b\n\n\nassert add(2, 3) == 5",
    "12 * 12 = 144, 7 + 8 = 15, 90 - 45 = 45, so the answer is 42.",
)
_MAX_LENGTH = 48


def probe_sequences(tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
    """Token ids of the texts, at most 48 each; the same for every run with this tokenizer.

    Raises:
        ValueError: when the tokenizer has no tokens for them.
    """
    sequences = [tokenizer(text, add_special_tokens=False)["input_ids"][:_MAX_LENGTH] for text in _TEXTS]
    sequences = [ids for ids in sequences if len(ids) > 1]
    if not sequences:
        raise ValueError(
            "the tokenizer has no tokens for English text, code and numbers, which the weights of vLLM are checked "
            "with; set weight_sync_probe_every=0 to go without the check"
        )
    return sequences


@torch.no_grad()
def policy_log_probs(model: nn.Module, sequences: list[list[int]], device: torch.device) -> Tensor:
    """log p(token | the tokens before it) of all but the first tokens, nats, float64, in one row."""
    width = max(map(len, sequences))
    ids = torch.tensor([sequence + [0] * (width - len(sequence)) for sequence in sequences], device=device)
    is_token = torch.tensor([[t < len(sequence) for t in range(width)] for sequence in sequences], device=device)
    was_training = model.training
    model.eval()
    try:
        logits = model(input_ids=ids, attention_mask=is_token.long(), use_cache=False).logits
    finally:
        model.train(was_training)
    log_probs = logits[:, :-1].double().log_softmax(-1).gather(-1, ids[:, 1:, None]).squeeze(-1)
    return log_probs[is_token[:, 1:]]


def engine_log_probs(generation: VLLMGeneration, sequences: list[list[int]], device: torch.device) -> Tensor:
    """The same by vLLM. With a server: on the process that talks to it."""
    if generation.mode == "server":
        scores: dict[str, Any] = generation.vllm_client.get_sequence_logprobs(
            sequences, prompt_lengths=[1] * len(sequences), top_logprobs=1
        )
        values = [entry[0] for sequence in scores["actual_logprobs"] for entry in sequence]
    else:
        from vllm import SamplingParams  # here, because vLLM is optional

        if generation.enable_sleep_mode:
            generation.llm.wake_up(tags=["kv_cache"])
        if is_peft_model(generation.model) and generation.tensor_parallel_size > 1:
            # as in TRL's `generate`: https://github.com/huggingface/trl/issues/3671
            torch.distributed.barrier(device_ids=[generation.accelerator.local_process_index])
        outputs = generation.llm.generate(
            [{"prompt_token_ids": ids} for ids in sequences],
            SamplingParams(max_tokens=1, temperature=1.0, prompt_logprobs=0),
            use_tqdm=False,
        )
        values = [
            found[token].logprob
            for ids, output in zip(sequences, outputs, strict=True)
            for token, found in zip(ids[1:], output.prompt_logprobs[1:], strict=True)
        ]
    return torch.tensor(values, dtype=torch.float64, device=device)
