"""What the rows of known data sets mean, by their columns: a prompt, and for math the gold answer."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

from online_sft.rewards.answers import gold_answer

__all__ = ["DAPO_TEMPLATE", "LAYOUTS", "Layout", "Problem", "layout_of"]

# DAPO (arXiv 2503.14476); `Answer: $Answer` is a placeholder for the policy, {problem} is ours.
DAPO_TEMPLATE = (
    "Solve the following math problem step by step. The last line of your response should be of the form "
    "Answer: $Answer (without quotes) where $Answer is the answer to the problem.\n\n{problem}\n\n"
    'Remember to put your answer on its own line after "Answer:".'
)
# Stiennon et al. (arXiv 2009.01325), Table 7
_TLDR_TEMPLATE = "SUBREDDIT: r/{subreddit}\n\nTITLE: {title}\n\nPOST: {post}\n\nTL;DR:"


@dataclass(frozen=True)
class Problem:
    prompt: str | list[dict[str, Any]]  # as the data set has it, or a text
    gold: str = ""  # of a math problem; TL;DR has none, a reward model grades it


@dataclass(frozen=True)
class Layout:
    name: str
    columns: tuple[str, ...]  # that tell it from the others
    read: Callable[[Mapping[str, Any]], Problem]


def layout_of(task: str, columns: Collection[str]) -> Layout:
    """The first layout of the task whose columns are all there.

    Raises:
        ValueError: when there is none; names the columns found and the layouts known.
    """
    for layout in LAYOUTS[task]:
        if set(layout.columns) <= set(columns):
            return layout
    known = "; ".join(f"{layout.name} ({', '.join(layout.columns)})" for layout in LAYOUTS[task])
    raise ValueError(f"the columns {', '.join(columns)} are of no layout known for {task}. Known are: {known}")


def _dapo(row: Mapping[str, Any]) -> Problem:
    return Problem(row["prompt"], _as_text(row["reward_model"]["ground_truth"]))


def _prompt_and_solution(row: Mapping[str, Any]) -> Problem:
    return Problem(row["prompt"], _as_text(row["solution"]))


def _reasoning_gym(row: Mapping[str, Any]) -> Problem:
    return Problem(_in_template(row["question"]), _as_text(row["answer"]))


def _gsm8k(row: Mapping[str, Any]) -> Problem:
    if "####" not in row["answer"]:
        raise ValueError(f"a GSM8K answer ends in `#### 42`; got {row['answer']!r:.80}")
    return Problem(_in_template(row["question"]), gold_answer(row["answer"]).replace(",", ""))


def _math_answer(row: Mapping[str, Any]) -> Problem:
    return Problem(_in_template(row["problem"]), _as_text(row["answer"]))


def _math_solution(row: Mapping[str, Any]) -> Problem:
    return Problem(_in_template(row["problem"]), gold_answer(row["solution"]))


def _tldr_post(row: Mapping[str, Any]) -> Problem:
    post = row.get("info", row)
    missing = [name for name in ("subreddit", "title", "post") if not post.get(name)]
    if missing:
        raise ValueError(f"a post has a subreddit, a title and a text; this one lacks {', '.join(missing)}")
    return Problem(_TLDR_TEMPLATE.format(subreddit=post["subreddit"], title=post["title"], post=post["post"]))


def _tldr_prompt(row: Mapping[str, Any]) -> Problem:
    return Problem(row["prompt"])


def _in_template(problem: str) -> str:
    return DAPO_TEMPLATE.replace("{problem}", problem)


def _as_text(gold: Any) -> str:
    return "" if gold is None else str(gold).strip()


# The order matters: items of reasoning-gym have the columns of GSM8K, too, and a prompt goes before what it is made of.
LAYOUTS = {
    "math": (
        Layout("DAPO", ("prompt", "reward_model"), _dapo),
        Layout("ours", ("prompt", "solution"), _prompt_and_solution),
        Layout("reasoning-gym", ("question", "answer", "metadata"), _reasoning_gym),
        Layout("GSM8K", ("question", "answer"), _gsm8k),
        Layout("MATH-500", ("problem", "answer"), _math_answer),
        Layout("MATH", ("problem", "solution"), _math_solution),
    ),
    "tldr": (
        Layout("TRL's", ("prompt",), _tldr_prompt),
        Layout("OpenAI's comparisons", ("info",), _tldr_post),
        Layout("OpenAI's posts", ("subreddit", "title", "post"), _tldr_post),
    ),
}
