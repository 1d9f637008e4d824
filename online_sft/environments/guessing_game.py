"""A guessing game for two: against a scripted opponent, or with the policy on both sides."""

import re
from typing import Any, Literal

from online_sft.environments.text_env import Step, TextEnv
from online_sft.rewards.answers import final_answer

__all__ = ["GuessingGameEnv"]

_NUMBER = re.compile(r"[0-9]{1,9}")
_RULES = (
    "Two players guess a number from {low} to {high} in turn. After each guess both are told whether the number is "
    'higher or lower; who names it wins, and a guess that cannot be right any more loses. End with "Answer: " and your '
    'guess, like "Answer: {low}".'
)


class GuessingGameEnv(TextEnv):
    """Two players look for one number, which only the environment knows; who names it wins.

    Neither player knows more than the other, so that one conversation serves both: in a game where one player keeps the
    secret, the other would read it there. Each guess narrows what is left, so that an episode ends.

    A guess is the final answer, like `Answer: 12`; anything else, or a number that is ruled out, loses at once. Rewards
    are those of the player who guessed:

    - `opponent="scripted"`: the policy begins. +1 for naming the number, -1 for a guess that loses or lets the opponent
      name it, 0 before. The opponent takes the middle of what is left.
    - `opponent="policy"`: the policy plays both sides, as each observation says. +1 for naming the number, -1 for a
      guess that loses. The game is zero-sum: at its end `info["returns"]` is [r, -r], the results of players 1 and 2.

    `info["player"]` is who guesses next (1 or 2; absent at the end). `info["success"]`: player 1 named it.

    Args:
        opponent: who plays player 2.
        high: the greatest number, 2 to 999,999,999; the least is 1.

    Raises:
        ValueError: for another opponent or a number out of range.
    """

    def __init__(self, opponent: Literal["scripted", "policy"] = "scripted", high: int = 31) -> None:
        super().__init__()
        if opponent not in ("scripted", "policy"):
            raise ValueError(f"opponent must be 'scripted' or 'policy'; got {opponent!r}")
        if not 2 <= high <= 999_999_999:
            raise ValueError(f"high must be 2 to 999999999; got {high}")
        self.opponent, self.high = opponent, high

    def _begin(self) -> tuple[str, dict[str, Any]]:
        self._number = int(self.np_random.integers(1, self.high + 1))
        self._left = (1, self.high)
        self._player = 1
        group = f"guessing_game/{self.opponent}/{self.high}/{self._number}"
        return f"{_RULES.format(low=1, high=self.high)}\n\n{self._turn()}", {"group": group, "player": 1}

    def _respond(self, action: str) -> Step:
        guess = self._guess(action)
        if guess is None:
            return self._end("That cannot be the number.", winner=3 - self._player, reward=-1.0)
        if guess == self._number:
            return self._end(f"{guess} is the number.", winner=self._player, reward=1.0)
        told = self._narrow(guess)
        if self.opponent == "policy":
            self._player = 3 - self._player
            return f"{told} {self._turn()}", 0.0, False, False, {"player": self._player}
        theirs = sum(self._left) // 2
        told = f"{told} Player 2 guesses {theirs}."
        if theirs == self._number:
            return self._end(f"{told} It is the number.", winner=2, reward=-1.0)
        return f"{told} {self._narrow(theirs)} {self._turn()}", 0.0, False, False, {"player": 1}

    def _narrow(self, guess: int) -> str:
        low, high = self._left
        is_higher = self._number > guess
        self._left = (guess + 1, high) if is_higher else (low, guess - 1)
        return f"The number is {'higher' if is_higher else 'lower'} than {guess}."

    def _guess(self, action: str) -> int | None:
        """The number that an answer names, if it can be the one."""
        text = (final_answer(action) or "").strip(" .*`$")
        low, high = self._left
        return int(text) if _NUMBER.fullmatch(text) and low <= int(text) <= high else None

    def _turn(self) -> str:
        return f"It is {self._left[0]} to {self._left[1]}. It is player {self._player}'s turn."

    def _end(self, told: str, winner: int, reward: float) -> Step:
        info = {"success": winner == self._player == 1, "returns": [1.0, -1.0] if winner == 1 else [-1.0, 1.0]}
        return f"{told} Player {winner} wins.", reward, True, False, info
