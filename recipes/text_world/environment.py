"""The world as an environment of text, as in `online_sft.environments`."""

from collections.abc import Sequence
from typing import Any

import gymnasium

from online_sft.environments.text_env import Step, TextEnv
from recipes.text_world.world import MAX_STEPS, STATES, State, next_state, reward_of

__all__ = ["WalkEnv"]


class WalkEnv(TextEnv):
    """Observations are the world's states, and actions its actions; an episode ends at the goal or after MAX_STEPS.

    Args:
        starts: states, one of which is drawn for each episode; it is the episode's group.
    """

    def __init__(self, starts: Sequence[State] = STATES) -> None:
        super().__init__()
        self._starts = starts

    def _begin(self) -> tuple[str, dict[str, Any]]:
        self._state = self._starts[int(self.np_random.integers(len(self._starts)))]
        self._num_steps = 0
        return str(self._state), {"group": str(self._state)}

    def _respond(self, action: str) -> Step:
        reward = reward_of(self._state, action)
        self._state = next_state(self._state, action)
        self._num_steps += 1
        arrived, late = self._state.is_final, self._num_steps == MAX_STEPS
        info = {"success": arrived} if arrived or late else {}
        return str(self._state), reward, arrived, late and not arrived, info


gymnasium.register("TextWorld-v0", f"{__name__}:WalkEnv", disable_env_checker=True)
