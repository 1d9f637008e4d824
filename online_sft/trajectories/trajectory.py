"""One episode: what the environment said, what the policy did, what it earned."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeAlias

__all__ = ["Message", "Trajectory", "Transition", "as_messages"]

Message: TypeAlias = dict[str, Any]  # `role`, `content`, and what the chat template reads besides, like `tool_calls`


class Transition(NamedTuple):
    """(s, a, s', r), where s is all that has been said before the action."""

    observation: list[Message]
    action: Message
    next_observation: list[Message]  # new messages only
    reward: float


@dataclass(frozen=True)
class Trajectory:
    """An episode of T actions.

    Args:
        observations: T + 1 of them, or T where the last one is unknown. Each holds the messages that are *new*: the
            state before action t is all of observations 0 to t and actions 0 to t - 1 between them. A string is a
            user's message.
        actions: T messages of the assistant, or strings.
        rewards: T finite numbers; a reward t is what action t earned.
        metadata: JSON. Known keys: `terminated`, `truncated`, `success`, `environment`, `seed`, `policy_version` (the
            optimizer step whose weights acted), `group` (episodes of one task share it), and `tools`, the JSON schemas
            that the chat template gets.

    Raises:
        ValueError: for lengths that do not fit, or what is no message or no finite number.
    """

    observations: Sequence[Any]
    actions: Sequence[Any]
    rewards: Sequence[float]
    metadata: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        num_actions = len(self.actions)
        if not num_actions or len(self.rewards) != num_actions:
            raise ValueError(
                f"a trajectory needs an action at least and as many rewards; got {num_actions} actions and "
                f"{len(self.rewards)} rewards"
            )
        if len(self.observations) not in (num_actions, num_actions + 1):
            raise ValueError(
                f"a trajectory of {num_actions} actions has {num_actions + 1} observations, or {num_actions} where the "
                f"last one is unknown; got {len(self.observations)}"
            )
        observations = [as_messages(each, "user") for each in self.observations]
        if not observations[0]:
            raise ValueError("the first observation of a trajectory has no message")
        rewards = [_finite(reward, t) for t, reward in enumerate(self.rewards)]
        for name, value in {
            "observations": observations,
            "actions": [_action(each) for each in self.actions],
            "rewards": rewards,
            "metadata": dict(self.metadata),
        }.items():
            object.__setattr__(self, name, value)

    def __len__(self) -> int:
        """The number of its actions."""
        return len(self.actions)

    @property
    def total_reward(self) -> float:
        """The return: the sum of the rewards."""
        return math.fsum(self.rewards)

    def messages(self, num_turns: int | None = None) -> list[Message]:
        """The conversation; with `num_turns` t, the state before action t: observations 0 to t, actions 0 to t - 1."""
        num_turns = len(self) if num_turns is None else num_turns
        said: list[Message] = []
        for t, observation in enumerate(self.observations[: num_turns + 1]):
            said += observation
            said += self.actions[t : t + 1] if t < num_turns else []
        return said

    def transitions(self) -> list[Transition]:
        """One for each action whose next observation is known."""
        return [
            Transition(self.messages(t), action, self.observations[t + 1], self.rewards[t])
            for t, action in enumerate(self.actions[: len(self.observations) - 1])
        ]

    def to_dict(self) -> dict[str, Any]:
        """JSON in the shape of MRLM's trajectories."""
        last = len(self.observations) - 1
        is_over = last == len(self) and not self.metadata.get("truncated", False)
        return {
            "observations": [
                {"messages": messages, "done": is_over and index == last}
                for index, messages in enumerate(self.observations)
            ],
            "actions": list(self.actions),
            "rewards": [{"value": reward} for reward in self.rewards],
            "metadata": dict(self.metadata),
        }

    @classmethod
    def from_dict(cls, row: Mapping[str, Any]) -> "Trajectory":
        """What `to_dict` returns, or the same with plain lists of messages, strings and numbers.

        An episode whose last observation is not `done` is `truncated`.

        Raises:
            ValueError: as the class, and where a field is missing.
        """
        for name in ("observations", "actions", "rewards"):
            if not isinstance(row.get(name), Sequence) or isinstance(row[name], str):
                raise ValueError(f"a trajectory has the lists observations, actions and rewards; {name} is none here")
        observations, metadata = list(row["observations"]), dict(row.get("metadata") or {})
        last = observations[-1] if len(observations) > len(row["actions"]) else None
        if isinstance(last, Mapping) and last.get("done") is False:
            metadata.setdefault("truncated", True)
        return cls(
            [_value(each, "messages") for each in observations],
            row["actions"],
            [_value(each, "value") for each in row["rewards"]],
            metadata,
        )


def as_messages(said: Any, role: str) -> list[Message]:
    """A string, a message or several, as a list of messages.

    Args:
        role: of a string.

    Raises:
        ValueError: when it is none of these.
    """
    if isinstance(said, str):
        return [{"role": role, "content": said}]
    messages = [said] if isinstance(said, Mapping) else said
    if not isinstance(messages, Iterable):
        raise ValueError(f"an observation is a string or messages with role and content; got {said!r:.80}")
    checked = []
    for message in messages:
        if not isinstance(message, Mapping) or not isinstance(message.get("role"), str) or "content" not in message:
            raise ValueError(f"a message has a role and content; got {message!r:.80}")
        checked.append(dict(message))
    return checked


def _action(said: Any) -> Message:
    messages = as_messages(said, "assistant")
    if len(messages) != 1 or messages[0]["role"] != "assistant":
        raise ValueError(f"an action is one message of the assistant; got {said!r:.80}")
    return messages[0]


def _value(each: Any, name: str) -> Any:
    return each[name] if isinstance(each, Mapping) and name in each else each


def _finite(reward: Any, t: int) -> float:
    try:
        value = math.nan if isinstance(reward, bool | str) else float(reward)
    except (TypeError, ValueError):
        value = math.nan
    if not math.isfinite(value):
        raise ValueError(f"reward {t} of a trajectory is {reward!r}; it must be a finite number")
    return value
