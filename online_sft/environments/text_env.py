"""What the text environments share: spaces, the bounds of an episode, and how a model's words are quoted."""

import re
from abc import abstractmethod
from typing import Any

import gymnasium
from gymnasium.error import ResetNeeded
from gymnasium.spaces import Text

__all__ = ["AnyText", "Step", "TextEnv", "quoted"]

Step = tuple[str, float, bool, bool, dict[str, Any]]  # observation, reward, terminated, truncated, info

_PRINTABLE = frozenset(map(chr, range(32, 127))) | {"\n"}
_OPENING_OF_A_TAG = re.compile(r"<(?=[|/\w])")


class AnyText(Text):
    """Every string. Samples are 0 to 64 characters of printable ASCII."""

    def __init__(self) -> None:
        super().__init__(64, min_length=0, charset=_PRINTABLE)

    def contains(self, x: Any) -> bool:
        """Whether it is a string."""
        return isinstance(x, str)


class TextEnv(gymnasium.Env[str, str]):
    """An environment of the convention in `online_sft.environments`; subclasses write `_begin` and `_respond`."""

    def __init__(self) -> None:
        self.action_space = AnyText()
        self.observation_space = AnyText()
        self._is_over = True

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        """Starts an episode, which `seed` determines.

        Raises:
            ValueError: for options; there are none.
        """
        super().reset(seed=seed)
        if options:
            raise ValueError(f"{type(self).__name__} knows no options; got {', '.join(map(str, options))}")
        self._is_over = False
        return self._begin()

    def step(self, action: str) -> Step:
        """What the answer `action` leads to.

        Raises:
            ResetNeeded: before the first reset and after the end of an episode.
            ValueError: when `action` is no string.
        """
        if self._is_over:
            raise ResetNeeded(f"this episode of {type(self).__name__} is over, or none has begun; call reset()")
        if not isinstance(action, str):
            raise ValueError(f"an action of {type(self).__name__} is a string; got {action!r:.80}")
        observation, reward, terminated, truncated, info = self._respond(action)
        self._is_over = terminated or truncated
        return observation, reward, terminated, truncated, info

    @abstractmethod
    def _begin(self) -> tuple[str, dict[str, Any]]:
        """The first observation and its info. Draws from `self.np_random` only."""

    @abstractmethod
    def _respond(self, action: str) -> Step:
        """What `step` returns."""


def quoted(text: str, max_characters: int = 300) -> str:
    """What a model has brought about, fit for a message to it.

    Shortened; without lone surrogates, which no tokenizer takes; and with a space after the `<` of each tag, so that
    no special token of a chat template (`<|im_end|>`, `</s>`) can be brought into a turn that is not the model's.
    """
    if len(text) > max_characters:
        text = text[: max_characters - 4] + " ..."
    return _OPENING_OF_A_TAG.sub("< ", text.encode("utf-8", "replace").decode())
