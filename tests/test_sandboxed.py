"""A user's reward function with a deadline and a memory limit."""

import os
import pickle
import subprocess
import sys
import textwrap
import time

import pytest

from online_sft import sandboxed
from online_sft.rewards.checked import check_dataset


def length(completions, **columns):
    return [float(len(text)) for text in completions]


def by_column(completions, weight, trainer_state=None):
    assert len(completions) == 1
    return [weight[0] * len(completions[0]) + (trainer_state or 0)]


def hostile(completions):
    text = completions[0]
    while text == "hang":
        pass
    if text == "eat":
        bytearray(16 * 2**30)
    if text == "exit":
        os._exit(1)
    return [None if text == "cannot" else 1]


def faulty(completions):
    return [1 / len(text) for text in completions]


def two_for_one(completions):
    return [1.0, 2.0]


async def asynchronous(completions):
    return [0.0]


def logs(completions, log_metric):
    return [0.0]


class Grader:
    def __init__(self, bonus):
        self.bonus = bonus

    def __call__(self, completions, **columns):
        return [self.bonus + len(text) for text in completions]


def test_rewards_are_those_of_the_function():
    assert sandboxed(length)(["a", "bcd", ""], log_extra=print, environments=[1, 2, 3]) == [1.0, 3.0, 0.0]
    assert sandboxed(Grader(0.5))(["ab"]) == [2.5]
    assert sandboxed(lambda completions: [7.0])(["?"]) == [7.0]


def test_each_completion_comes_with_its_own_row_of_the_columns_that_are_named():
    reward = sandboxed(by_column)
    assert reward(["aa", "bbb"], weight=[10.0, 100.0], trainer_state=1, other=["x", "y"]) == [21.0, 301.0]


def test_what_hangs_dies_or_takes_too_much_memory_costs_its_own_reward_only():
    logged = {}
    reward = sandboxed(hostile, timeout_s=0.5, memory_gib=1)
    start = time.monotonic()
    texts = ["fine", "hang", "eat", "exit", "cannot", "fine"]
    assert reward(texts, log_metric=logged.__setitem__) == [1.0, None, None, None, None, 1.0]
    assert time.monotonic() - start < 6
    assert logged == {"hostile/timed_out": 1 / 6, "hostile/exhausted": 2 / 6}
    assert sandboxed(hostile, timeout_s=0.5, failed=-1.0)(["hang"]) == [-1.0]


def test_a_mistake_in_the_function_is_shown_not_hidden():
    with pytest.raises(RuntimeError, match="ZeroDivisionError"):
        sandboxed(faulty)(["a", ""])
    with pytest.raises(RuntimeError, match="it returned 2 rewards for one completion"):
        sandboxed(two_for_one)(["a"])


@pytest.mark.parametrize(
    ("function", "message"),
    [(asynchronous, "'asynchronous' is asynchronous"), (logs, "'logs' takes log_metric, which cannot leave")],
)
def test_what_cannot_be_sandboxed_is_refused(function, message):
    with pytest.raises(ValueError, match=message):
        sandboxed(function)


def test_it_keeps_its_name_pickles_after_use_and_names_missing_columns():
    reward = sandboxed(length, timeout_s=2)
    assert reward(["ab"]) == [2.0]
    assert pickle.loads(pickle.dumps(reward))(["abc"]) == [3.0]
    assert reward.__name__ == "length"
    assert sandboxed(Grader(1)).__name__ == "Grader"
    with pytest.raises(ValueError, match="'by_column' needs the column weight"):
        check_dataset(sandboxed(by_column), {"prompt": []})


def test_functions_and_globals_of_a_script_without_a_main_guard(tmp_path):
    (tmp_path / "script.py").write_text(
        textwrap.dedent(
            """
            import math
            from online_sft import sandboxed
            OFFSET = 2
            def helper(text):
                return math.floor(len(text)) + OFFSET
            def mine(completions, **columns):
                return [helper(text) for text in completions]
            print(sandboxed(mine)(["abc"]))
            """
        )
    )
    done = subprocess.run([sys.executable, "script.py"], capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("[5.0]\n", "")
