"""The problems of reasoning-gym, one to an episode."""

from typing import Any

from online_sft.environments.text_env import Step, TextEnv
from online_sft.rewards.reasoning_gym import ReasoningGymReward

__all__ = ["ReasoningGymEnv"]

_INSTRUCTION = "Give your final answer between <answer> and </answer>."
_SEEDS = 2**31


class ReasoningGymEnv(TextEnv):
    """One problem of a data set of reasoning-gym and one answer, whose reward is that data set's own score, 0 to 1.

    Read and scored by `rewards.ReasoningGymReward`: 0 without an answer, and where the scorer runs out of time or
    memory, or raises. Success is a score of 1.

    Args:
        name: of the data set, as `reasoning_gym.create_dataset` knows it.
        timeout_s: wall clock for one answer.
        memory_gib: for each process that scores.
        **config: of the data set, like `min_terms=2`.

    Raises:
        ImportError: without reasoning-gym.
        ValueError: for a data set that reasoning-gym has not; what else it refuses in `config`, it refuses here.
    """

    def __init__(self, name: str = "chain_sum", timeout_s: float = 3.0, memory_gib: float = 4.0, **config: Any) -> None:
        super().__init__()
        try:
            import reasoning_gym
        except ImportError as error:
            raise ImportError(
                "this environment needs reasoning-gym: pip install 'online-sft[reasoning-gym]'"
            ) from error
        reasoning_gym.create_dataset(name, seed=0, size=1, **config)  # refuses now what it does not know
        self.name = name
        self.config = config
        self._reward = ReasoningGymReward(timeout_s=timeout_s, memory_gib=memory_gib)

    def _begin(self) -> tuple[str, dict[str, Any]]:
        import reasoning_gym

        seed = int(self.np_random.integers(_SEEDS))
        self._problem = reasoning_gym.create_dataset(self.name, seed=seed, size=1, **self.config)[0]
        return f"{self._problem['question']}\n\n{_INSTRUCTION}", {"group": f"reasoning_gym/{self.name}/{seed}"}

    def _respond(self, action: str) -> Step:
        answer, metadata, question = ([self._problem[column]] for column in ("answer", "metadata", "question"))
        score = self._reward([action], answer, metadata, question)[0]
        assert score is not None  # the metadata are reasoning-gym's own
        return "", score, True, False, {"messages": [], "success": score >= 1}
