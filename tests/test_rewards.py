"""The math reward and the checks around every reward function, one table each."""

import asyncio
import pickle
import threading
from fractions import Fraction

import pytest
import reasoning_gym

from online_sft import MathVerificationReward
from online_sft.rewards.answers import exact_number, extract_answer
from online_sft.rewards.checked import checked, missing_columns

EXTRACTED = [
    # completion, answer, why
    ("Answer: 42", "42", "plain"),
    ("First 3.\nanswer : 42.\n", "42", "case, space, final full stop"),
    ("**Answer:** $42$", "42", "markdown and dollar signs"),
    (r"Answer: $\boxed{42}$", "42", "DAPO's variant"),
    (r"so \boxed{7}, no, \boxed{42}", "42", "the last box counts"),
    ("Answer: 7\nWait.\nAnswer: 42", "42", "the last answer line counts"),
    (r"\boxed{7} Answer: 42", "42", "a line beats a box"),
    (r"Answer: \boxed{}", r"\boxed{}", "an empty box answers nothing"),
    (r"\boxed{42}, no, \boxed{\frac{1}{2}}", r"\frac{1}{2}", "a retracted box does not count, braces or not"),
    (r"\boxed{42", None, "a box that never closes"),
    ("42", None, "no bare last number is guessed"),
    ("", None, "empty"),
    ("The answer is 42", None, "no colon, no answer"),
    ("Answer:", None, "nothing after the colon"),
]

NUMBERS = [
    ("42", Fraction(42)),
    ("+042", Fraction(42)),
    ("-3", Fraction(-3)),
    ("42.", Fraction(42)),
    ("0.50", Fraction(1, 2)),
    (".5", Fraction(1, 2)),
    ("-1/2", Fraction(-1, 2)),
    ("1,234,567.0", Fraction(1234567)),
    ("1,23", None),  # neither thousands nor a decimal point
    ("1/0", None),
    ("- 3", None),
    ("--3", None),
    ("1e400000000", None),  # would take for ever to write out
    ("١٢", None),  # digits, but not ASCII
    ("1_000", None),
    ("4 2", None),
    ("9" * 5000, None),
    ("", None),
]


@pytest.mark.parametrize(("completion", "answer", "why"), EXTRACTED, ids=[row[2] for row in EXTRACTED])
def test_the_answer_is_found(completion, answer, why):
    assert extract_answer(completion) == answer


@pytest.mark.parametrize(("text", "number"), NUMBERS)
def test_a_number_is_read_exactly_or_not_at_all(text, number):
    assert exact_number(text) == number


@pytest.mark.parametrize(
    ("completion", "solution", "expected"),
    [
        ("Answer: 42", "42", 1.0),
        ("Answer: 42.0", "42", 1.0),
        ("Answer: 0.3333333333333333", "1/3", -1.0),  # close is not equal
        ("Answer: 41", "42", -1.0),
        ("42", "42", -1.0),
        ("Answer: 42 or 43", "42", -1.0),
        (r"\boxed{42}, no, \boxed{\frac{1}{2}}", "42", -1.0),
        ("The answer should be 42.\nAnswer: 7", "42", -1.0),  # quoting the solution in the reasoning earns nothing
        ("Answer: 42", "x + 1", None),  # the solution is not a number: unscorable
        ("Answer: 42", "", None),
    ],
)
def test_correct_wrong_and_unscorable(completion, solution, expected):
    assert MathVerificationReward()([completion], solution=[solution]) == [expected]


def test_chats_are_graded_by_their_last_message():
    chat = [{"role": "assistant", "content": "Answer: 1"}, {"role": "assistant", "content": "Answer: 42"}]
    assert MathVerificationReward(1.0, 0.0)([chat], solution=["42"]) == [1.0]


def test_it_is_a_trl_reward_function_with_a_stable_name_that_can_be_pickled_and_called_in_a_thread():
    reward = pickle.loads(pickle.dumps(MathVerificationReward(2.0, 0.5)))
    assert reward.__name__ == "math_verification"
    results = []
    thread = threading.Thread(
        target=lambda: results.extend(
            reward(prompts=["?"], completions=["Answer: 1"], completion_ids=[[1]], solution=["1"], trainer_state=None)
        )
    )
    thread.start()
    thread.join()
    assert results == [2.0]


def test_reasoning_gyms_scorer_agrees_on_its_own_problems():
    problems = reasoning_gym.create_dataset("chain_sum", seed=0, size=300)
    reward = MathVerificationReward()
    for index, problem in enumerate(problems):
        answer = int(problem["answer"])
        for text in (f"{answer}", f"{answer}.0", f"+0{abs(answer)}", f"{answer:,}", f"{answer + index % 3}", "", "x"):
            ours = reward([f"Answer: {text}"], solution=[problem["answer"]])[0]
            assert (ours == 1.0) == (problems.score_answer(text, problem) == 1.0), (text, answer)


# --- the checks around any reward function


def good(completions, **columns):
    return [0.5, None][: len(completions)]


async def good_async(completions, **columns):
    return [0.5, None]


def test_checked_rewards_pass_through_unchanged_under_their_name():
    assert checked(good, "good")(completions=["a", "b"]) == [0.5, None]
    assert checked(good, "other").__name__ == "other"
    assert asyncio.run(checked(good_async, "good_async")(completions=["a", "b"])) == [0.5, None]


@pytest.mark.parametrize(
    ("rewards", "message"),
    [
        ([1.0], "'f' returned 1 rewards for 2 completions"),
        ([1.0, 2.0, 3.0], "'f' returned 3 rewards for 2 completions"),
        ([1.0, float("nan")], "'f' returned nan for completion 1 of 2"),
        ([float("-inf"), 1.0], "'f' returned -inf for completion 0 of 2"),
    ],
)
def test_checked_rewards_that_cannot_be_used_are_named(rewards, message):
    with pytest.raises(ValueError, match=message):
        checked(lambda completions: rewards, "f")(completions=["a", "b"])

    async def wrong(completions):
        return rewards

    with pytest.raises(ValueError, match=message):
        asyncio.run(checked(wrong, "f")(completions=["a", "b"]))


def test_columns_that_a_reward_function_needs_are_found():
    def reward(completions, solution, hint=None, *, trainer_state, difficulty, **columns):
        return [0.0] * len(completions)

    assert missing_columns(reward, ["prompt", "solution"]) == ["difficulty"]
    assert missing_columns(MathVerificationReward(), ["prompt"]) == ["solution"]
    assert missing_columns(reward, ["solution", "difficulty"]) == []
