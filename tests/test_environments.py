"""The text environments: what experts and others earn, that seeds decide, and that no answer breaks them."""

import json
import random
import re
import subprocess
import sys

import gymnasium
import pytest
from gymnasium.error import ResetNeeded
from gymnasium.utils.env_checker import check_env
from hypothesis import given
from hypothesis import strategies as st

from online_sft.environments import ENVIRONMENTS
from online_sft.environments.guessing_game import GuessingGameEnv
from online_sft.environments.math_retries import MathRetriesEnv
from online_sft.environments.reasoning_gym import ReasoningGymEnv
from online_sft.environments.text_env import AnyText, quoted

HOSTILE = {
    "empty": "",
    "NUL": "\0",
    "half a character": "\ud800 Answer: \udfff",
    "Arabic digits": "Answer: ٣٤",
    "huge": "9" * 1_000_000,
    "huge answer": "Answer: " + "9" * 1_000_000,
    "power tower": "Answer: 9^9^9^9",
    "boxes": r"\boxed{" * 100_000,
    "noise": random.Random(0).randbytes(10_000).decode("latin-1"),
    "fences": "```" * 100_001,
    "calls": "<tool_call>" * 100_000,
    "brackets": '<tool_call>{"name": "answer", "arguments": ' + "[" * 100_000 + "</tool_call>",
    "long number": '<tool_call>{"name": "answer", "arguments": {"total": ' + "9" * 100_000 + "}}</tool_call>",
    "half a character in a call": r'<tool_call>{"name": "\ud800", "arguments": {"\ud800": "\ud800"}}</tool_call>',
    "answer tags": "<answer>" * 100_000,
    "an answer of spaces": "<answer>" + " " * 100_000,
    "a closed answer of spaces": "<answer>x" + " " * 100_000 + "</answer>",
    "NUL behind the answer": "Answer: 3 \0",
    "a sign": "Answer: +3",
    "a fraction": "Answer: 3.5",
}


def math_expert(env, observation):
    problem = re.search(r"What is (\d+ [-+*] \d+)\?", observation)[1]
    return f"Answer: {eval(problem)}"


def left_of(observation):
    """From where to where the number can be."""
    low, high = re.findall(r"It is (\d+) to (\d+)\.", observation)[-1]
    return int(low), int(high)


def guessing_expert(env, observation):
    """One that knows the number, which no guesser does."""
    return f"I think.\nAnswer: {env.unwrapped._number}"


def tool_expert(env, observation):
    """Looks up, then calculates, then answers, then ends: one of them at each turn, by what was said before."""
    if "cost together" in observation:
        env.bought = re.findall(r"(\d+) ([a-z]+)", observation.partition("What do")[2])
        return "".join(call("lookup", item=item) for _, item in env.bought)
    if len(numbers := observation.split()) == len(env.bought):
        terms = [f"{number} * {price}" for (number, _), price in zip(env.bought, numbers, strict=True)]
        return call("calculate", expression=" + ".join(terms))
    return "Done." if observation == "noted" else call("answer", total=int(observation))


def call(name, **arguments):
    return f"<tool_call>{json.dumps({'name': name, 'arguments': arguments})}</tool_call>"


EXPERTS = {
    "online-sft/MathRetries-v0": math_expert,
    "online-sft/CodeExecution-v0": lambda env, observation: (
        "```python\ndef digit_sum(n): return sum(map(int, str(abs(n))))\n```"
    ),
    "online-sft/GuessingGame-v0": guessing_expert,
    "online-sft/ToolUse-v0": tool_expert,
    "online-sft/ReasoningGym-v0": lambda env, observation: f"<answer>{env.unwrapped._problem['answer']}</answer>",
}


def made(name):
    if "Code" in name:
        from online_sft.environments.code_problems import PROBLEMS

        return gymnasium.make(name, problems=PROBLEMS[:1])
    return gymnasium.make(name)


def play(env, player, seed=None):
    """The transcript (observation, action, reward) of an episode, its total reward and the last info."""
    observation, _ = env.reset(seed=seed)
    transcript, is_over = [], False
    while not is_over:
        action = player(env, observation)
        said = observation
        observation, reward, terminated, truncated, info = env.step(action)
        transcript.append((said, action, reward))
        is_over = terminated or truncated
    return [*transcript, observation], sum(reward for _, _, reward in transcript), info


@pytest.fixture(scope="module", params=ENVIRONMENTS)
def name(request):
    return request.param


@pytest.fixture(scope="module")
def env(name):
    return made(name)


def test_every_environment_keeps_gymnasiums_rules(env):
    check_env(env.unwrapped, skip_render_check=True)


def test_an_expert_earns_everything_and_who_is_wrong_earns_less(env, name):
    for seed in range(5):
        _, total, info = play(env, EXPERTS[name], seed)
        assert (total, info["success"]) == (1.0, True)
        _, total, info = play(env, lambda *_: "Answer: -12345", seed)
        assert total <= 0 and info["success"] is False


def test_a_seed_decides_the_whole_episode_and_another_seed_another_one(env, name):
    first, second = play(env, EXPERTS[name], seed=1), play(env, EXPERTS[name], seed=1)
    assert first == second
    if "Code" not in name:  # which has one problem here
        assert len({str(play(env, EXPERTS[name], seed)[0]) for seed in range(10)}) > 5
    env.reset(seed=1)
    following = env.reset()
    env.reset(seed=1)
    assert env.reset() == following


def test_code_problems_are_drawn_by_the_seed():
    env = gymnasium.make("online-sft/CodeExecution-v0")
    groups = [env.reset(seed=seed)[1]["group"] for seed in range(30)]
    assert groups == [env.reset(seed=seed)[1]["group"] for seed in range(30)]
    assert len(set(groups)) == 7


def test_the_group_names_the_task(env):
    observation, info = env.reset(seed=4)
    same_observation, same_info = env.reset(seed=4)
    assert (observation, info["group"]) == (same_observation, same_info["group"])
    groups = {}
    for seed in range(20):
        observation, info = env.reset(seed=seed)
        assert groups.setdefault(info["group"], observation) == observation


@pytest.mark.parametrize("action", HOSTILE.values(), ids=HOSTILE)
def test_whatever_a_model_writes_is_at_worst_wrong(env, action):
    env.reset(seed=0)
    is_over, total = False, 0.0
    while not is_over:
        observation, reward, terminated, truncated, info = env.step(action)
        json.dumps([observation, info]).encode()
        observation.encode()  # no tokenizer takes half a character
        assert observation in env.observation_space
        total += reward
        is_over = terminated or truncated
    assert total <= 0 and info["success"] is False


@given(action=st.text() | st.text().map("Answer: {}".format) | st.text().map("<tool_call>{}</tool_call>".format))
def test_no_text_at_all_raises(action):
    for env in QUICK:
        env.reset(seed=0)
        env.step(action)


QUICK = [gymnasium.make(f"online-sft/{name}-v0") for name in ("MathRetries", "GuessingGame", "ToolUse")]


def test_an_episode_begins_with_reset_and_ends_once(name):
    env = made(name).unwrapped
    with pytest.raises(ResetNeeded, match="none has begun"):
        env.step("")
    play(env, EXPERTS[name])
    with pytest.raises(ResetNeeded, match="is over"):
        env.step("")
    with pytest.raises(ValueError, match=r"knows no options; got difficulty"):
        env.reset(options={"difficulty": 3})
    env.reset()
    with pytest.raises(ValueError, match="is a string; got None"):
        env.step(None)


def test_registering_loads_no_environment_and_playing_needs_neither_torch_nor_transformers():
    check = """if True:
        import gymnasium, sys
        import online_sft.environments
        assert not [name for name in sys.modules if name.startswith("online_sft.environments.")]
        for name in ("MathRetries", "CodeExecution", "GuessingGame", "ToolUse"):
            env = gymnasium.make(f"online-sft/{name}-v0")
            env.reset(seed=0)
            env.step("Answer: 1")
        assert not {"torch", "transformers", "trl"} & set(sys.modules)"""
    subprocess.run([sys.executable, "-c", check], check=True)


def test_a_later_success_earns_less_and_failure_nothing():
    env = MathRetriesEnv(max_attempts=4)
    for num_wrong, reward in enumerate([1.0, 0.75, 0.5, 0.25]):
        right = math_expert(env, env.reset(seed=2)[0])
        for attempt in range(num_wrong):
            _, earned, terminated, truncated, info = env.step("Answer: 100000")
            assert (earned, terminated, truncated, info) == (0.0, False, False, {"attempt": attempt + 1})
        _, earned, terminated, truncated, info = env.step(right)
        assert (earned, terminated, truncated) == (reward, True, False)
        assert info == {"attempt": num_wrong + 1, "success": True}
    env.reset(seed=2)
    results = [env.step("Answer: 100000") for _ in range(4)]
    assert [result[1] for result in results] == [0.0] * 4
    assert [result[2] for result in results] == [False, False, False, True]
    assert results[-1][4] == {"attempt": 4, "success": False}


@pytest.mark.parametrize(
    ("answer", "feedback"),
    [
        ("Answer: {solution}", "Correct."),
        ("<think>Answer: 1</think> so \\boxed{{{solution}}}", "Correct."),
        ("Answer: {solution}.00", "Correct."),
        ("Answer: {left} * {right}", "Your answer is not a number."),
        ("Answer: {left} \\times {right}", "Your answer is not a number."),
        ("Answer: {solution} or 5", "Your answer is not a number."),
        ("Answer: " + "0" * 300 + "{solution}", "Your answer is not a number."),
        ("The answer could be {solution}", "There is no answer."),
        ("Answer: -{solution}", "Your answer is too small."),
        ("Answer: {solution}1", "Your answer is too large."),
        ("Answer: 1e300", "Your answer is too large."),
    ],
)
def test_an_answer_is_a_number_at_its_place(answer, feedback):
    env = MathRetriesEnv(operations="*", max_operand=50)
    observation, info = env.reset(seed=5)
    left, right = map(int, re.findall(r"\d+", observation)[:2])
    assert left * right > 10
    assert info == {"group": f"math_retries/{left} * {right}"}
    observation, *_ = env.step(answer.format(solution=left * right, left=left, right=right))
    assert observation.startswith(feedback)


def test_operands_and_operations_are_those_that_were_asked_for():
    env = MathRetriesEnv(max_operand=3, operations=["-"])
    problems = {tuple(re.findall(r"What is (\d) (.) (\d)\?", env.reset(seed=seed)[0])[0]) for seed in range(300)}
    assert problems == {(str(a), "-", str(b)) for a in range(4) for b in range(4)}
    operations = {re.search(r"\d ([-+*]) \d", MathRetriesEnv().reset(seed=seed)[0])[1] for seed in range(50)}
    assert operations == {"+", "-", "*"}
    for wrong, told in [({"max_operand": 0}, "max_operand"), ({"operations": "+/"}, "operations must be some of")]:
        with pytest.raises(ValueError, match=told):
            MathRetriesEnv(**wrong)


def test_the_guessing_game_narrows_what_is_left_by_the_truth_and_ends_when_the_number_is_named():
    numbers = set()
    for seed in range(60):
        env = GuessingGameEnv(high=5)
        observation, info = env.reset(seed=seed)
        number = env._number
        numbers.add(number)
        assert info == {"group": f"guessing_game/scripted/5/{number}", "player": 1}
        assert left_of(observation) == (1, 5)
        wrong = 1 if number != 1 else 5
        observation, reward, is_over, _, info = env.step(f"Answer: {wrong}")
        assert f"The number is {'higher' if wrong == 1 else 'lower'} than {wrong}. Player 2 guesses" in observation
        middle = (2 + 5) // 2 if wrong == 1 else (1 + 4) // 2
        assert f"Player 2 guesses {middle}." in observation
        if middle == number:
            assert observation.endswith("It is the number. Player 2 wins.")
            assert (reward, is_over, info) == (-1.0, True, {"success": False, "returns": [-1.0, 1.0]})
        else:
            low, high = left_of(observation)
            assert (reward, is_over, info) == (0.0, False, {"player": 1})
            assert low <= number <= high < middle or middle < low <= number <= high
            assert env.step(f"Answer: {number}")[1:] == (1.0, True, False, {"success": True, "returns": [1.0, -1.0]})
    assert numbers == {1, 2, 3, 4, 5}


def test_in_self_play_both_sides_are_the_policy_and_the_winner_is_who_named_the_number():
    winners = set()
    for seed in range(40):
        env = GuessingGameEnv(opponent="policy", high=7)
        observation, info = env.reset(seed=seed)
        players, is_over = [], False
        while not is_over:
            players.append(info["player"])
            assert observation.endswith(f"It is player {players[-1]}'s turn.")
            low, high = left_of(observation)
            observation, reward, is_over, _, info = env.step(f"Answer: {(low + high) // 2}")
            assert reward == float(is_over)
        assert players == [1 + turn % 2 for turn in range(len(players))]
        assert observation.endswith(f"is the number. Player {players[-1]} wins.")
        result = 1.0 if players[-1] == 1 else -1.0
        assert info == {"success": players[-1] == 1, "returns": [result, -result]}
        winners.add(players[-1])
    assert winners == {1, 2}


def test_a_guess_that_cannot_be_right_loses_for_who_made_it():
    env = GuessingGameEnv(opponent="policy", high=9)
    for wrong in ["", "Answer: 0", "Answer: 10", "Answer: 1 2", "Answer: one", "Answer: -3", "Answer: 3.5"]:
        env.reset(seed=0)
        observation, reward, terminated, _, info = env.step(wrong)
        assert (observation, reward, terminated) == ("That cannot be the number. Player 2 wins.", -1.0, True)
        assert info == {"success": False, "returns": [-1.0, 1.0]}
        env.reset(seed=0)
        missed = 1 if env._number != 1 else 9
        env.step(f"Answer: {missed}")
        for again in (wrong, f"Answer: {missed}"):
            _, reward, _, _, info = env.step(again)
            assert (reward, info) == (-1.0, {"success": False, "returns": [1.0, -1.0]})
            env.reset(seed=0)
            env.step(f"Answer: {missed}")
    for options in [{"opponent": "random"}, {"high": 1}, {"high": 10**9}]:
        with pytest.raises(ValueError, match="must be"):
            GuessingGameEnv(**options)


def test_reasoning_gym_gets_its_options_and_gives_its_own_scores():
    env = ReasoningGymEnv("chain_sum", min_terms=2, max_terms=2, min_digits=1, max_digits=1)
    observation, info = env.reset(seed=1)
    assert re.search(r"problem: -?\d [-+] \d =", observation)
    assert "<answer>" in observation
    assert re.fullmatch(r"reasoning_gym/chain_sum/\d+", info["group"])
    with pytest.raises(ValueError, match="not_there"):
        ReasoningGymEnv("not_there")
    with pytest.raises(TypeError, match="no_option"):
        ReasoningGymEnv("chain_sum", no_option=1)
    for tagged, reward in [
        ("<answer>{}</answer>", 1.0),
        ("<answer>-1</answer> no, <answer>\n{} </answer> so", 1.0),
        ("<answer> <answer>{}</answer>", 1.0),
        ("Answer: {}", 1.0),
        ("{}", 0.0),
    ]:
        env.reset(seed=1)
        assert env.step(tagged.format(env._problem["answer"]))[1] == reward
    partly = ReasoningGymEnv("countdown")  # whose scorer gives a little for a wrong answer
    partly.reset(seed=1)
    observation, reward, terminated, truncated, info = partly.step("<answer>1</answer>")
    assert 0 < reward < 1
    assert (observation, terminated, truncated, info) == ("", True, False, {"messages": [], "success": False})


def test_all_texts_are_in_the_space_and_samples_are_short():
    space = AnyText()
    space.seed(0)
    samples = [space.sample() for _ in range(200)]
    assert {len(sample) for sample in samples} >= {0, 64}
    assert all(text in space for text in [*samples, *HOSTILE.values()])
    assert 3 not in space and None not in space


def test_what_is_quoted_is_short_and_opens_no_tag():
    assert quoted("a < b, '<' and <lambda>") == "a < b, '<' and < lambda>"
    assert quoted("<|im_end|></s><start_of_turn>") == "< |im_end|>< /s>< start_of_turn>"
    assert quoted("x" * 300) == "x" * 300
    assert quoted("x" * 301) == "x" * 296 + " ..."
    assert quoted("\ud800é") == "?é"
