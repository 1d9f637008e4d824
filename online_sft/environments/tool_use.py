"""Tools over several turns: TRL's environment classes behind Gymnasium's API."""

import copy
import inspect
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from online_sft.environments.text_env import Step, TextEnv, quoted
from online_sft.environments.tool_schemas import tool_schema

__all__ = ["ToolCall", "ToolEnv", "tool_calls"]

_OPENING, _CLOSING = "<tool_call>", "</tool_call>"
_MAX_CALLS = 32  # in one message; each answer costs context


@dataclass(frozen=True)
class ToolCall:
    """A call as a model has written it.

    Args:
        name: of the tool.
        arguments: by name.
        fault: what is wrong with how it is written; None where nothing is.
    """

    name: str
    arguments: Mapping[str, Any]
    fault: str | None = None


class ToolEnv(TextEnv):
    """An environment class of TRL's GRPOTrainer (`environment_factory`), one action a turn.

    Its public methods are tools; `reset(**row)` starts an episode and may return text, which is appended to the last
    message of the prompt; `get_reward()`, where it is defined, is the reward. An action is the assistant's text. Each
    tool call in it, in Hermes' and Qwen's format, is run and answered by a message of the role tool:

        <tool_call>{"name": "lookup", "arguments": {"item": "tea"}}</tool_call>

    As in TRL, a tool's answer is `str` of what it returns, and of `{"error": ...}` when it raises; so are answered
    calls of tools that are not there, with wrong arguments, or in broken JSON. A message without calls ends the
    episode; after `max_turns` messages with calls it is truncated. The reward then is `get_reward()`, and 0 before.

    Args:
        environment_factory: makes an instance, of which one serves all episodes; methods are not asynchronous.
        prompts: rows of a data set, each a mapping; a prompt is drawn for each episode. `prompt` is a string or a list
            of messages; without it, the text of `reset` alone is the prompt. `reset` gets the whole row.
        max_turns: messages with calls in one episode.
        success_reward: an episode that earns as much has succeeded.
        tools: JSON schemas, where `tool_schemas.tool_schema` cannot make them.

    Raises:
        ValueError: for no prompts, a factory whose class does not fit, and tools of which no schema can be made.
    """

    def __init__(
        self,
        environment_factory: Callable[[], Any],
        prompts: Sequence[Mapping[str, Any]],
        max_turns: int = 8,
        success_reward: float = 1.0,
        tools: Sequence[Mapping[str, Any]] | None = None,
    ) -> None:
        super().__init__()
        if not len(prompts):
            raise ValueError("prompts is empty; an episode starts from one of them")
        if max_turns < 1:
            raise ValueError(f"max_turns must be at least 1; got {max_turns}")
        self.prompts = prompts
        self.max_turns = max_turns
        self.success_reward = success_reward
        self._environment = environment_factory()
        self._tools = _methods(self._environment)
        self._schemas = list(map(tool_schema, self._tools.values())) if tools is None else list(tools)

    def _begin(self) -> tuple[str, dict[str, Any]]:
        index = int(self.np_random.integers(len(self.prompts)))
        row = copy.deepcopy(dict(self.prompts[index]))  # what `reset` does to it must not reach the next episode
        prompt = row.get("prompt", "")
        messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else list(prompt)
        told = self._environment.reset(**row)
        if told is not None:
            messages[-1] = messages[-1] | {"content": _appended(messages[-1]["content"], told)}
        self._num_turns = 0
        info = {"messages": messages, "tools": copy.deepcopy(self._schemas), "group": f"tool_use/{index}"}
        return _text(messages), info

    def _respond(self, action: str) -> Step:
        calls = tool_calls(action)
        if not calls:
            return self._end([], terminated=True)
        self._num_turns += 1
        answers = [self._answer(call) for call in calls]
        if self._num_turns == self.max_turns:
            return self._end(answers, terminated=False)
        return _text(answers), 0.0, False, False, {"messages": answers}

    def _answer(self, call: ToolCall) -> dict[str, str]:
        """The message of the role tool."""
        try:
            if call.fault:
                raise ValueError(call.fault)
            if call.name not in self._tools:
                raise ValueError(f"Tool {call.name} not found.")
            content = str(self._tools[call.name](**call.arguments))
        except Exception as error:  # the model's mistake is the model's to mend
            content = quoted(str({"error": str(error)}))
        # no tokenizer takes lone surrogates, which arguments may have brought in
        return {"role": "tool", "name": quoted(call.name, 64), "content": content.encode("utf-8", "replace").decode()}

    def _end(self, messages: list[dict[str, str]], terminated: bool) -> Step:
        has_reward = hasattr(self._environment, "get_reward")  # optional in TRL's classes, too
        reward = float(self._environment.get_reward()) if has_reward else 0.0
        info = {"messages": messages, "success": reward >= self.success_reward}
        return _text(messages), reward, terminated, not terminated, info


def tool_calls(text: str) -> list[ToolCall]:
    """The tool calls in a message of the assistant, behind its last `</think>`; 32 at most, then one that says so."""
    parts = text.rpartition("</think>")[2].split(_OPENING)[1:]
    calls = [_call(part) for part in parts[:_MAX_CALLS]]
    if len(parts) > _MAX_CALLS:
        calls.append(_broken(f"{len(parts)} tool calls in one message; {_MAX_CALLS} are run"))
    return calls


def _call(part: str) -> ToolCall:
    written, closing, _ = part.partition(_CLOSING)
    if not closing:
        return _broken(f"a tool call is not closed by {_CLOSING}")
    try:
        call = json.loads(written)
    except (ValueError, RecursionError) as error:
        return _broken(f"a tool call is not JSON: {error}")
    if not isinstance(call, dict) or not isinstance(call.get("name"), str):
        return _broken('a tool call is an object like {"name": "...", "arguments": {...}}')
    arguments = call.get("arguments", {})
    if not isinstance(arguments, dict):
        return _broken(f"the arguments of {call['name']} are not an object, by name")
    return ToolCall(call["name"], arguments)


def _broken(fault: str) -> ToolCall:
    return ToolCall("unknown", {}, fault)


def _methods(environment: Any) -> dict[str, Callable[..., Any]]:
    """The tools, found as TRL finds them: on the class, since looking at an instance runs its properties."""
    functions = dict(inspect.getmembers(type(environment), inspect.isfunction))
    if "reset" not in functions:
        raise ValueError(f"{type(environment).__name__} has no method reset, with which an episode starts")
    asynchronous = [name for name, function in functions.items() if inspect.iscoroutinefunction(function)]
    if asynchronous:
        raise ValueError(
            f"{type(environment).__name__}.{asynchronous[0]} is asynchronous; Gymnasium's step() cannot wait for it. "
            "Write it as a plain method"
        )
    public = (name for name in functions if name not in ("reset", "get_reward") and not name.startswith("_"))
    return {name: getattr(environment, name) for name in public}


def _appended(content: Any, told: str) -> Any:
    return content + (told if isinstance(content, str) else [{"type": "text", "text": told}])


def _text(messages: Sequence[Mapping[str, Any]]) -> str:
    """The contents of messages, as one observation for those who do not read `info["messages"]`."""
    return "\n\n".join(str(message["content"]) for message in messages)
