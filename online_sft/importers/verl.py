"""What verl reads and writes: prompts with a ground truth (DAPO's too), conversations, and dumps of its rollouts.

prompts: {"data_source": "math_dapo", "prompt": [{"role": "user", "content": "1 + 1 ="}], "ability": "MATH",
          "reward_model": {"ground_truth": "2", "style": "rule"}, "extra_info": {"index": "a1"}}
chats:   {"messages": [{"role": "user", "content": "1 + 1 ="}, {"role": "assistant", "content": "2"}], "tools": null}
dumps:   {"input": "user\\n1 + 1 =\\nassistant\\n", "output": "2", "gts": "2", "score": 1.0, "step": 3}

https://verl.readthedocs.io/en/latest/preparation/prepare_data.html, and verl/utils/dataset/rl_dataset.py,
verl/utils/dataset/multiturn_sft_dataset.py and verl/trainer/ppo/ray_trainer.py of its version 0.9.1
"""

from collections.abc import Mapping

from online_sft.importers.chats import Row, as_weighted, checked_messages, checked_tools, number
from online_sft.layouts import layout_of

__all__ = ["read_chat", "read_prompt", "read_rollout"]

_LAYOUT = layout_of("math", ("prompt", "reward_model"))
_ROLES = ("system", "user", "assistant", "tool")


def read_prompt(row: Row) -> Row:
    """{"prompt", "solution"}; what else the reward model has becomes columns `reward_model_<name>`.

    Raises:
        ValueError: without a prompt, or a ground truth that is a text or a number.
    """
    prompt, judge = row["prompt"], row["reward_model"]
    if not isinstance(prompt, str):
        prompt = checked_messages(prompt, _ROLES, column="prompt")
        if prompt[-1]["role"] == "assistant":
            raise ValueError("the prompt ends with a message of the assistant, which is the policy's to write")
    if not prompt:
        raise ValueError("prompt is empty")
    if not isinstance(judge, Mapping) or "ground_truth" not in judge:
        raise ValueError(f"reward_model must be an object with a ground_truth; got {judge!r:.80}")
    truth, problem = judge.get("ground_truth"), _LAYOUT.read(row)
    if isinstance(truth, bool) or not isinstance(truth, str | int | float) or not problem.gold:
        raise ValueError(f"reward_model.ground_truth must be a text or a number to be a solution; got {truth!r:.80}")
    rest = {f"reward_model_{name}": value for name, value in judge.items() if name != "ground_truth"}
    return {"prompt": prompt, "solution": problem.gold, **rest}


def read_chat(row: Row) -> Row:
    """{"messages" with weight 1 on the assistant's, "tools", "chat_template_kwargs"}.

    Raises:
        ValueError: for what the format does not have.
    """
    messages = as_weighted(checked_messages(row["messages"], _ROLES), lambda message, where: 1.0)
    made = {"messages": messages, **checked_tools(row.get("tools"))}
    if "enable_thinking" not in row:
        return made
    if not isinstance(row["enable_thinking"], bool):
        raise ValueError(f"enable_thinking must be true or false in every row; got {row['enable_thinking']!r:.80}")
    return {**made, "chat_template_kwargs": {"enable_thinking": row["enable_thinking"]}}


def read_rollout(row: Row) -> Row:
    """{"prompt", "completion", "reward"}. verl has decoded both texts without their special tokens.

    Raises:
        ValueError: when a text or the score is missing, or a `reward` beside the score differs from it.
    """
    for name in ("input", "output"):
        if not isinstance(row[name], str) or (name == "input" and not row[name]):
            raise ValueError(f"{name} must be a text; got {row[name]!r:.80}")
    reward = number(row["score"], "score")
    if row.get("reward", reward) != reward:
        raise ValueError(f"has the score {row['score']} and the reward {row['reward']!r:.80}; remove one of them")
    return {"prompt": row["input"], "completion": row["output"], "reward": reward}
