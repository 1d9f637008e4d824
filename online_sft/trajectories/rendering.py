"""Which tokens of a conversation the policy says, and which its environment."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from online_sft.trajectories.trajectory import Message

__all__ = ["ACTION", "NEITHER", "OBSERVATION", "PLAIN_TEMPLATE", "Rendered", "Renderer"]

NEITHER, ACTION, OBSERVATION = 0, 1, 2

# For tokenizers without a chat template: messages one after another, each with an end
PLAIN_TEMPLATE = "{% for message in messages %}{{ message['content'] }}{{ eos_token }}{% endfor %}"

_PLACE = "\ue000"  # of private use: no template has it
_WAY_OUT = (
    "; choose a template that only appends with chat_template_path (TRL's *_training.jinja do), or train on one turn "
    "at a time with history_length=0"
)


@dataclass(frozen=True)
class Rendered:
    """The tokens of a conversation."""

    input_ids: list[int]
    kinds: list[int]  # of each token: ACTION, OBSERVATION or NEITHER
    messages: list[int]  # of each token with a kind, the message that it belongs to; else -1


@dataclass(frozen=True)
class Renderer:
    """Conversations as tokens, by the tokenizer's chat template (`PLAIN_TEMPLATE` where it has none).

    An action is what the policy generates: all that follows the generation prompt, with the end of turn, the
    tokenizer's `eos_token`. An observation is a message's content, with the end of turn where there is one. What the
    template writes around them, headers and line breaks, is neither. A token across a border belongs to what follows.

    Args:
        tokenizer: a fast one.
        chat_template: instead of the tokenizer's own.
        template_kwargs: of the template.
    """

    tokenizer: Any
    chat_template: str | None = None
    template_kwargs: Mapping[str, Any] | None = None

    def prompt_ids(self, messages: Sequence[Message], tools: Sequence[Any] | None = None) -> list[int]:
        """What the policy reads before it acts."""
        return self.tokenizer(self._text(messages, tools, add_generation_prompt=True), add_special_tokens=False)[
            "input_ids"
        ]

    def __call__(self, messages: Sequence[Message], tools: Sequence[Any] | None = None) -> Rendered:
        """Tokens and their kinds. The assistant's messages are actions, all others observations.

        Raises:
            ValueError: when the template renders the first messages differently once more follow, or cannot render
                them alone, so that it cannot be told which tokens are whose.
        """
        spans = self._spans(messages, partial(self._text, tools=tools))
        text = self._text(messages, tools)
        encoded = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        kinds, owners = [], []
        index = 0
        for start, end in encoded["offset_mapping"]:
            last = max(start, end - 1)
            while index < len(spans) and last >= spans[index].end:
                index += 1
            is_inside = index < len(spans) and last >= spans[index].start
            kinds.append(spans[index].kind if is_inside else NEITHER)
            owners.append(index if is_inside else -1)
        return Rendered(encoded["input_ids"], kinds, owners)

    def _spans(self, messages: Sequence[Message], text: Callable[..., str]) -> list["_Span"]:
        spans, before = [], ""
        for index, message in enumerate(messages):
            until = self._prefix(text, messages, index + 1)
            if not until.startswith(before):
                raise ValueError(
                    f"the chat template renders the first {index} messages differently when more follow, so it cannot "
                    f"be told which tokens are whose{_WAY_OUT}"
                )
            is_action = message["role"] == "assistant"
            start = self._start_of_action(text, messages, index, until) if is_action else None
            if start is None:
                start = self._start_of_content(text, messages, index, len(before))
            end_of_turn = self.tokenizer.eos_token
            end = until.rfind(end_of_turn, start) + len(end_of_turn) if end_of_turn in until[start:] else len(until)
            spans.append(_Span(start, end, ACTION if is_action else OBSERVATION))
            before = until
        return spans

    def _start_of_action(self, text: Callable[..., str], messages: Sequence[Message], index: int, until: str) -> int:
        if not index:
            raise ValueError("the assistant speaks first in this conversation, before any observation")
        prompt = text(messages[:index], add_generation_prompt=True)
        if not until.startswith(prompt):
            raise ValueError(
                f"the chat template does not begin message {index} with its generation prompt "
                f"({prompt[-30:]!r}), so the policy would be trained on what it is never asked{_WAY_OUT}"
            )
        return len(prompt)

    def _start_of_content(
        self, text: Callable[..., str], messages: Sequence[Message], index: int, earliest: int
    ) -> int:
        marked = [*messages[:index], {**messages[index], "content": _PLACE}]
        start = self._prefix(text, marked, index + 1).find(_PLACE, earliest)
        if start < 0:  # a template may leave out what it does not know
            raise ValueError(
                f"the chat template does not show the content of a message of role {messages[index]['role']!r}"
            )
        return start

    def _prefix(self, text: Callable[..., str], messages: Sequence[Message], length: int) -> str:
        try:
            return text(messages[:length])
        except Exception as error:  # templates raise what they like, of jinja2 mostly
            raise ValueError(
                f"the chat template cannot render the first {length} messages: {error}{_WAY_OUT}"
            ) from error

    def _text(self, messages: Sequence[Message], tools: Sequence[Any] | None, **options: Any) -> str:
        return self.tokenizer.apply_chat_template(
            list(messages),
            tools=list(tools) if tools else None,
            chat_template=self.chat_template or (None if self.tokenizer.chat_template else PLAIN_TEMPLATE),
            tokenize=False,
            **(self.template_kwargs or {}),
            **options,
        )


@dataclass(frozen=True)
class _Span:
    start: int  # characters of the rendered text
    end: int
    kind: int
