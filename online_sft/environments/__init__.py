"""Text environments behind Gymnasium's API: what is said to the policy, what it answers, what that earns.

A text environment is a `gymnasium.Env` whose observations and actions are strings (`gymnasium.spaces.Text`):

- `reset(seed=, options=)` returns (observation, info), `step(action)` returns (observation, reward, terminated,
  truncated, info). A reward is what that action earned. The same seed and actions give the same episode.
- An observation holds only what is new, and becomes a user's message of the conversation. Where there is an
  `info["messages"]`, these messages (of a system, user, tool, ...; none, if it is empty) are the observation instead.
- `info["group"]` at reset: the name of the task; episodes of one task share it.
- `info["tools"]` at reset: JSON schemas for the chat template.
- `info["success"]` at the end of an episode: a bool.
- Actions are written by language models. Whatever they hold is at worst a wrong answer, and never raises.

Importing this package registers the environments below with Gymnasium and loads none of them.
"""

import gymnasium

__all__ = ["ENVIRONMENTS"]

_HERE = "online_sft.environments"
ENVIRONMENTS = {
    "online-sft/MathRetries-v0": f"{_HERE}.math_retries:MathRetriesEnv",
    "online-sft/CodeExecution-v0": f"{_HERE}.code_execution:CodeExecutionEnv",
    "online-sft/GuessingGame-v0": f"{_HERE}.guessing_game:GuessingGameEnv",
    "online-sft/ToolUse-v0": f"{_HERE}.calculator:calculator_env",
    "online-sft/ReasoningGym-v0": f"{_HERE}.reasoning_gym:ReasoningGymEnv",
}
for _name, _entry_point in ENVIRONMENTS.items():
    gymnasium.register(_name, _entry_point, disable_env_checker=True)
