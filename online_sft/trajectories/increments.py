"""Observations of other programs that hold the whole conversation so far."""

from collections.abc import Mapping, Sequence
from typing import Any

from online_sft.trajectories.trajectory import as_messages

__all__ = ["as_increments"]


def as_increments(row: Mapping[str, Any]) -> Mapping[str, Any]:
    """The row with new messages only in each observation, if every one repeats what was said before.

    That is so when each observation t + 1 begins, in role and content, with the messages of observation t and then
    action t: the conversation so far; or when each begins with action t. Any other row comes back as it is.
    """
    observations, actions = row.get("observations"), row.get("actions")
    if not isinstance(observations, Sequence) or not isinstance(actions, Sequence) or len(observations) < 2:
        return row
    states = [as_messages(_messages(each), "user") for each in observations]
    echoes = [as_messages(action, "assistant") for action in actions]
    if len(echoes) < len(states) - 1:
        return row
    conversations = [[*state, *echo] for state, echo in zip(states, echoes, strict=False)]
    for repeated in (conversations, echoes):
        if all(map(_begins_with, states[1:], repeated)):
            new = [state[len(said) :] for state, said in zip(states[1:], repeated, strict=False)]
            return {**row, "observations": [states[0], *_like(observations[1:], new)]}
    return row


def _like(observations: Sequence[Any], new: Sequence[Any]) -> list[Any]:
    """The new messages, beside what the observations hold besides."""
    return [
        {**each, "messages": messages} if isinstance(each, Mapping) and "messages" in each else messages
        for each, messages in zip(observations, new, strict=True)
    ]


def _messages(observation: Any) -> Any:
    return observation.get("messages", observation) if isinstance(observation, Mapping) else observation


def _begins_with(messages: list[dict[str, Any]], said: list[dict[str, Any]]) -> bool:
    names = ("role", "content")
    head = messages[: len(said)]
    return [[each[n] for n in names] for each in head] == [[each[n] for n in names] for each in said]
