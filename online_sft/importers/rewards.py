"""Plain samples with a reward: a prompt, an answer to it, and how good that was, under the names that people use.

row: {"prompt": "2 + 2 =", "response": "4", "score": 1.0}
"""

from collections.abc import Sequence

from online_sft.importers.chats import Row, checked_messages, number

__all__ = ["COMPLETIONS", "REWARDS", "read_reward"]

COMPLETIONS = ("completion", "response", "output", "text")
REWARDS = ("reward", "score", "rating")
_ROLES = ("system", "user", "assistant", "tool")


def read_reward(row: Row) -> Row:
    """{"prompt", "completion", "reward"}; both are chats if one of them is.

    Raises:
        ValueError: when one is missing or there twice, or is of another type.
    """
    completion, reward = _only(row, COMPLETIONS), _only(row, REWARDS)
    made = {"prompt": row["prompt"], "completion": row[completion]}
    for name, value in made.items():
        if not isinstance(value, str):
            made[name] = checked_messages(value, _ROLES, column=name)
    if not made["prompt"]:
        raise ValueError("prompt is empty")
    if isinstance(made["prompt"], str) != isinstance(made["completion"], str):
        roles = {"prompt": "user", "completion": "assistant"}
        texts = {name: value for name, value in made.items() if isinstance(value, str)}
        made |= {name: [{"role": roles[name], "content": text}] for name, text in texts.items()}
    return {**made, "reward": number(row[reward], reward)}


def _only(row: Row, names: Sequence[str]) -> str:
    present = [name for name in names if row.get(name) is not None]
    if len(present) != 1:
        found = " and ".join(present) if present else "none"
        raise ValueError(f"must have one of {', '.join(names)}; it has {found}")
    return present[0]
