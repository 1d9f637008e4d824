"""The options of a request's body: each is read, or harmless, or refused."""

from collections.abc import Mapping
from typing import TypeGuard

__all__ = ["Options", "is_token_ids"]

_HARMLESS = frozenset({"metadata", "model", "priority", "request_id", "service_tier", "store", "user"})
# What others offer and this server does not, with the values that ask for nothing
_NEUTRAL: dict[str, tuple[object, ...]] = {
    "allowed_token_ids": ([],),
    "bad_words": ([],),
    "detokenize": (True,),
    "echo": (False,),
    "frequency_penalty": (0,),
    "length_penalty": (1,),
    "logit_bias": ({},),
    "min_p": (0,),
    "min_tokens": (0,),
    "presence_penalty": (0,),
    "repetition_penalty": (1,),
    "response_format": ({"type": "text"},),
    "stream": (False,),
    "suffix": ("",),
    "tool_choice": ("none", "auto"),
    "tools": ([],),
    "use_beam_search": (False,),
}


def is_token_ids(value: object) -> TypeGuard[list[int]]:
    """Whether it is a list of integers."""
    return isinstance(value, list) and all(map(_is_integer, value))


def _is_integer(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool)


class Options:
    """Each method takes one option, of the type that it names; `refuse_rest` refuses what nobody took.

    A null stands for an option that is not there. All raise ValueError, with the option's name.
    """

    def __init__(self, body: Mapping[str, object]) -> None:
        self._left = {name: value for name, value in body.items() if value is not None}
        self._nulls = body.keys() - self._left.keys()

    def take(self, name: str) -> object:
        """Whatever it is; None when it is not there."""
        return self._left.pop(name, None)

    def is_there(self, name: str) -> bool:
        """Whether it is there, and not taken yet."""
        return name in self._left

    def is_null(self, name: str) -> bool:
        """Whether it is there, as null."""
        return name in self._nulls

    def integer(self, name: str, default: int) -> int:
        """Not a boolean."""
        value = self.integer_or_none(name)
        return default if value is None else value

    def integer_or_none(self, name: str) -> int | None:
        """None when it is not there."""
        value = self._left.pop(name, None)
        if value is not None and not _is_integer(value):
            raise ValueError(f"{name} must be an integer; got {value!r:.80}")
        return value

    def number(self, name: str, default: float) -> float:
        """An integer or a float."""
        value = self._left.pop(name, default)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise ValueError(f"{name} must be a number; got {value!r:.80}")
        return value

    def flag(self, name: str, default: bool) -> bool:
        """A boolean."""
        value = self._left.pop(name, default)
        if not isinstance(value, bool):
            raise ValueError(f"{name} must be true or false; got {value!r:.80}")
        return value

    def texts(self, name: str) -> tuple[str, ...]:
        """A text or a list of texts."""
        value = self._left.pop(name, [])
        values = [value] if isinstance(value, str) else value
        if not isinstance(values, list) or not all(isinstance(text, str) for text in values):
            raise ValueError(f"{name} must be a text or a list of texts; got {value!r:.80}")
        return tuple(values)

    def token_ids(self, name: str) -> tuple[int, ...]:
        """A list of integers."""
        value = self._left.pop(name, [])
        if not is_token_ids(value):
            raise ValueError(f"{name} must be a list of token ids; got {value!r:.80}")
        return tuple(value)

    def refuse_rest(self) -> None:
        """Nothing that could change the answer is left unread."""
        for name, value in self._left.items():
            if name in _HARMLESS or value in _NEUTRAL.get(name, ()):
                continue
            if name == "stream":
                raise ValueError("stream=true is not supported: this server answers with whole completions")
            raise ValueError(f"{name}={value!r:.80} is not supported by this server, which ignores no option")
