"""Losses of single transitions, for a loop of your own: the functions of MRLM, in one forward pass.

`TrajectorySFTTrainer` learns from whole episodes instead, with every action and observation in one row.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from online_sft.losses import token_log_probs
from online_sft.trajectories.trajectory import as_messages

__all__ = ["compute_behavioral_cloning_loss", "compute_combined_sft_loss", "compute_next_state_loss"]

Average = Literal["samples", "tokens"]
_MAX_LENGTH = 2048  # tokens of a row, as in MRLM


def compute_behavioral_cloning_loss(
    model: Any,
    tokenizer: Any,
    observations: Sequence[Any],
    actions: Sequence[Any],
    device: torch.device | str,
    *,
    average: Average = "samples",
    max_length: int = _MAX_LENGTH,
) -> tuple[Tensor, dict[str, float]]:
    """Cross-entropy of the actions, each after its observation, in nats per token.

    A row is the chat template of the observation with the generation prompt, then the action's text without an end of
    turn; without a template, "role: content" lines.

    Args:
        model: a causal language model.
        observations, actions: [N] strings, messages (mappings or objects with `role` and `content`), or, as
            observations, lists of them or objects with `messages`.
        average: "samples", the mean over rows of the mean over a row's tokens, as MRLM has it, where a token counts the
            more the shorter its row; "tokens", the mean over all tokens.
        max_length: tokens of a row; the rest is cut off.

    Returns:
        The loss, and `bc_loss` and `perplexity` as numbers.

    Raises:
        ValueError: when the lists differ in length or are empty, or a row has no token to learn, or not within
            max_length.
    """
    rows = _action_rows(tokenizer, observations, actions)
    (loss,) = _losses(model, tokenizer, [rows], device, average, max_length)
    return loss, {"bc_loss": loss.item(), "perplexity": loss.exp().item()}


def compute_next_state_loss(
    model: Any,
    tokenizer: Any,
    observations: Sequence[Any],
    actions: Sequence[Any],
    next_observations: Sequence[Any],
    device: torch.device | str,
    *,
    average: Average = "samples",
    max_length: int = _MAX_LENGTH,
) -> tuple[Tensor, dict[str, float]]:
    """Cross-entropy of the last message of each next observation, after observation and action, in nats per token.

    Arguments and errors are those of `compute_behavioral_cloning_loss`. Next observations without a message are left
    out, as in MRLM.

    Returns:
        The loss, 0 where no next observation has a message; and `next_state_loss` and `perplexity` as numbers.
    """
    rows = _observation_rows(tokenizer, observations, actions, next_observations)
    (loss,) = _losses(model, tokenizer, [rows], device, average, max_length)
    return loss, {"next_state_loss": loss.item(), "perplexity": loss.exp().item()}


def compute_combined_sft_loss(
    model: Any,
    tokenizer: Any,
    observations: Sequence[Any],
    actions: Sequence[Any],
    next_observations: Sequence[Any],
    device: torch.device | str,
    bc_weight: float = 0.5,
    world_model_weight: float = 0.5,
    *,
    average: Average = "samples",
    max_length: int = _MAX_LENGTH,
) -> tuple[Tensor, dict[str, float]]:
    """bc_weight * behaviour cloning + world_model_weight * next state, both of one forward pass.

    Arguments and errors are those of the two losses.

    Returns:
        The loss, and `total_loss`, `bc_loss`, `world_model_loss`, `bc_weight` and `wm_weight` as numbers.
    """
    rows = [
        _action_rows(tokenizer, observations, actions),
        _observation_rows(tokenizer, observations, actions, next_observations),
    ]
    bc_loss, world_model_loss = _losses(model, tokenizer, rows, device, average, max_length)
    loss = bc_weight * bc_loss + world_model_weight * world_model_loss
    return loss, {
        "total_loss": loss.item(),
        "bc_loss": bc_loss.item(),
        "world_model_loss": world_model_loss.item(),
        "bc_weight": bc_weight,
        "wm_weight": world_model_weight,
    }


Row = tuple[str, str]  # what is given, and what is learnt


def _action_rows(tokenizer: Any, observations: Sequence[Any], actions: Sequence[Any]) -> list[Row]:
    _check_lengths(observations=observations, actions=actions)
    pairs = zip(observations, actions, strict=True)
    return [(_prompt(tokenizer, _messages(o, "user")), _messages(a, "assistant")[-1]["content"]) for o, a in pairs]


def _observation_rows(
    tokenizer: Any, observations: Sequence[Any], actions: Sequence[Any], next_observations: Sequence[Any]
) -> list[Row]:
    _check_lengths(observations=observations, actions=actions, next_observations=next_observations)
    rows = []
    for observation, action, following in zip(observations, actions, next_observations, strict=True):
        said = [*_messages(observation, "user"), *_messages(action, "assistant")]
        answer = _messages(following, "user")
        if answer:
            rows.append((_prompt(tokenizer, said), answer[-1]["content"]))
    return rows


def _losses(
    model: Any,
    tokenizer: Any,
    groups: Sequence[Sequence[Row]],
    device: torch.device | str,
    average: Average,
    max_length: int,
) -> list[Tensor]:
    """The mean of each group of rows, all of one forward pass."""
    if average not in ("samples", "tokens"):
        raise ValueError(f"average must be 'samples' or 'tokens'; got {average!r}")
    ids, starts = [], []
    for index, (given, learnt) in enumerate(row for group in groups for row in group):
        start = min(len(tokenizer(given)["input_ids"]), max_length)
        row = tokenizer(given + learnt)["input_ids"][:max_length]
        if len(row) <= start:
            raise ValueError(f"row {index} has nothing to learn within max_length={max_length}: {learnt!r:.80}")
        ids.append(torch.tensor(row))
        starts.append(start)
    if not ids:
        return [torch.zeros((), device=device) for _ in groups]
    tokens = torch.nn.utils.rnn.pad_sequence(ids, batch_first=True).to(device)
    places = torch.arange(tokens.size(1), device=device)
    lengths = torch.tensor([len(row) for row in ids], device=device).unsqueeze(1)
    labels = tokens.masked_fill((places < torch.tensor(starts, device=device).unsqueeze(1)) | (places >= lengths), -100)
    logits = model(input_ids=tokens, attention_mask=(places < lengths).long()).logits
    nll, is_learnt = -token_log_probs(logits, labels), labels[:, 1:] != -100
    losses, first = [], 0
    for group in groups:
        of_group = slice(first, first + len(group))
        first += len(group)
        sums, counts = nll[of_group].sum(1), is_learnt[of_group].sum(1)
        if average == "samples":
            losses.append((sums / counts).sum() / max(len(group), 1))
        else:
            losses.append(sums.sum() / counts.sum().clamp(min=1))
    return losses


def _prompt(tokenizer: Any, messages: Sequence[Mapping[str, Any]]) -> str:
    if getattr(tokenizer, "chat_template", None):
        return tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=True)
    return "".join(f"{message['role']}: {message['content']}\n" for message in messages) + "assistant: "


def _messages(said: Any, role: str) -> list[dict[str, Any]]:
    """Also of objects like MRLM's `Message` and `Observation`, whose roles are enumerations."""
    if isinstance(said, str | Mapping):
        return as_messages(said, role)
    if hasattr(said, "messages"):
        return _messages(said.messages, role)
    if hasattr(said, "content"):
        return [{"role": getattr(said.role, "value", said.role), "content": said.content}]
    return [message for each in said for message in _messages(each, role)]


def _check_lengths(**lists: Sequence[Any]) -> None:
    lengths = {name: len(values) for name, values in lists.items()}
    if len(set(lengths.values())) != 1 or not all(lengths.values()):
        raise ValueError(f"the lists must be of one length, 1 or more; got {lengths}")
