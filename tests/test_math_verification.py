"""The math reward: outcomes, columns, metrics, and hostile answers wherever it is called from."""

import gzip
import json
import multiprocessing
import pickle
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import pytest
import reasoning_gym

from online_sft import MathVerificationReward
from online_sft.rewards.messages import text_of

ADVERSARIAL = Path(__file__).parent / "data" / "math" / "adversarial_answers.jsonl.gz"
SLOWEST_S = 8  # a deadline of 3 s; a loaded machine needs the rest


@pytest.mark.parametrize(
    ("completion", "solution", "expected"),
    [
        ("Answer: 42", "42", 1.0),
        (r"\boxed{\frac{84}{2}}", "42", 1.0),
        (r"Answer: $\sqrt{12}$", r"2\sqrt{3}", 1.0),
        ("Answer: 41", "42", -1.0),
        ("42", "42", -1.0),
        ("Answer: 42 or 43", "42", -1.0),
        ("The answer should be 42.\nAnswer: 7", "42", -1.0),  # quoting the solution in the reasoning earns nothing
        ("Answer: 42", "", None),
        ("Answer: 42", None, None),
        ("Answer: ", r"\frac{1}{", None),
    ],
)
def test_correct_wrong_and_unscorable(completion, solution, expected):
    assert MathVerificationReward()([completion], solution=[solution]) == [expected]


def test_solutions_may_be_the_second_argument():
    assert MathVerificationReward()(["Answer: 1", "Answer: 2"], ["1", "1"]) == [1.0, -1.0]


def test_the_three_rewards_can_be_chosen():
    reward = MathVerificationReward(correct_reward=2.0, incorrect_reward=0.5, unscorable=-7.0)
    assert reward(["Answer: 1", "Answer: 2", "Answer: 3"], solution=["1", "1", ""]) == [2.0, 0.5, -7.0]


@pytest.mark.parametrize(
    ("answer", "solution", "is_evaluated"),
    [
        ("8", "8", True),
        ("8.0 apples", "8", True),
        ("x = 8", "8", True),
        ("3 + 5", "8", False),
        ("16/2", "8", False),
        (r"\frac{16}{2}", "8", False),
        ("16/2 = 8", "8", False),
        ("0.5", "1/2", True),
        ("2/4", "1/2", True),
        ("1 - 1/2", "1/2", False),
        ("x + x", "2x", True),
    ],
)
def test_what_could_be_copied_from_the_question_need_not_be_accepted(answer, solution, is_evaluated):
    assert MathVerificationReward()([f"Answer: {answer}"], solution=[solution]) == [1.0]
    strict = MathVerificationReward(accept_expressions=False)
    assert strict([f"Answer: {answer}"], solution=[solution]) == [1.0 if is_evaluated else -1.0]


@pytest.mark.parametrize(
    ("messages", "text"),
    [
        ("plain", "plain"),
        ([{"role": "assistant", "content": "first"}, {"role": "assistant", "content": "last"}], "last"),
        ([{"role": "assistant", "content": "said"}, {"role": "tool", "content": "returned"}], "said"),
        ([{"role": "assistant", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}], "ab"),
        ([{"role": "assistant", "content": [{"type": "image"}, {"type": "text", "text": "b"}]}], "b"),
        ([{"role": "assistant", "content": None}], ""),
        ([{"role": "assistant"}], ""),
        ([], ""),
    ],
)
def test_chats_are_graded_by_their_last_assistant_message(messages, text):
    assert text_of(messages) == text


@pytest.mark.parametrize(
    ("reward", "columns"),
    [
        (MathVerificationReward(), {"solution": ["6"]}),
        (MathVerificationReward(), {"ground_truth": ["6"]}),
        (MathVerificationReward(), {"reward_model": [{"ground_truth": "6", "style": "rule"}], "data_source": ["dapo"]}),
        (MathVerificationReward(gold_column="answer"), {"answer": ["2 + 4 = 6\n#### 6"], "solution": ["ignored"]}),
        (MathVerificationReward(reward_lookup={"2 + 4": 6}), {"prompts": ["2 + 4"]}),
        (
            MathVerificationReward(reward_lookup={"2 + 4": 6}),
            {"prompts": [[{"role": "system", "content": "?"}, {"role": "user", "content": "2 + 4"}]]},
        ),
    ],
)
def test_golds_are_found_in_each_layout(reward, columns):
    assert reward(["Answer: 6"], **columns) == [1.0]
    assert reward(["Answer: 7"], **columns) == [-1.0]


def test_a_prompt_without_a_gold_is_unscorable():
    assert MathVerificationReward(reward_lookup={"a": "1"})(["Answer: 1"], prompts=["b"]) == [None]


@pytest.mark.parametrize(
    ("reward", "columns", "message"),
    [
        (MathVerificationReward(), {}, "the data has none of solution, ground_truth, reward_model; set gold_column"),
        (MathVerificationReward(), {"solution": ["1"], "ground_truth": ["2"]}, "has solution and ground_truth"),
        (MathVerificationReward(gold_column="x"), {"solution": ["1"]}, "has none of x"),
        (MathVerificationReward(reward_lookup={}), {}, "no prompts were passed"),
    ],
)
def test_where_the_golds_are_is_never_guessed(reward, columns, message):
    with pytest.raises(ValueError, match=message):
        reward(["Answer: 1"], **columns)


def test_one_place_for_golds():
    with pytest.raises(ValueError, match="not both"):
        MathVerificationReward(gold_column="answer", reward_lookup={})


def test_golds_are_checked_at_load_and_the_bad_ones_are_reported():
    reward = MathVerificationReward(gold_column="answer")
    golds = ["42", r"\frac{1}{2}", "9^{9^{9^9}}", None, r"\frac{1}{", "Paris"]
    assert reward.check_dataset({"answer": golds}) == [
        "row 2: gold '9^{9^{9^9}}': screened",
        "row 3: gold 'None': no_answer",
        r"row 4: gold '\\frac{1}{': unparsed",
    ]
    with pytest.raises(ValueError, match="no gold of 2 can be graded against; row 0: gold 'None': no_answer"):
        reward.check_dataset({"answer": [None, ""]})


def test_verdicts_reach_the_trackers_and_the_unscorable_are_not_in_the_accuracy():
    logged = {}
    MathVerificationReward()(
        ["Answer: 1", "Answer: 2", "2", r"Answer: \frac{1}{", "Answer: 9^{9^{9^9}}", "Answer: 1"],
        solution=["1", "1", "1", "1", "1", ""],
        log_metric=logged.__setitem__,
    )
    counts = {name.removeprefix("math_verification/"): value * 6 for name, value in logged.items() if "acc" not in name}
    assert logged["math_verification/accuracy"] == 1 / 5
    assert counts == pytest.approx(
        {"wrong": 1, "no_answer": 1, "unparsed": 1, "screened": 1, "timed_out": 0, "exhausted": 0, "bad_gold": 1}
    )


def test_no_accuracy_is_logged_where_nothing_can_be_scored():
    logged = {}
    MathVerificationReward()(["Answer: 1"], solution=[""], log_metric=logged.__setitem__)
    assert "math_verification/accuracy" not in logged


def test_it_is_picklable_with_a_stable_name_also_after_use():
    reward = MathVerificationReward(2.0, 0.5, reward_lookup={"?": r"\sqrt{4}"})
    assert reward(["Answer: 2"], prompts=["?"]) == [2.0]
    copy = pickle.loads(pickle.dumps(reward))
    assert copy.__name__ == "math_verification"
    assert copy(["Answer: 3"], prompts=["?"], completion_ids=[[1]], trainer_state=None) == [0.5]


def test_reasoning_gyms_scorer_agrees_on_its_own_problems():
    problems = reasoning_gym.create_dataset("chain_sum", seed=0, size=300)
    reward = MathVerificationReward()
    for index, problem in enumerate(problems):
        answer = int(problem["answer"])
        for text in (f"{answer}", f"{answer}.0", f"+0{abs(answer)}", f"{answer:,}", f"{answer + index % 3}", "", "x"):
            ours = reward([f"Answer: {text}"], solution=[problem["answer"]])[0]
            assert (ours == 1.0) == (problems.score_answer(text, problem) == 1.0), (text, answer)


# --- hostile answers


def adversarial():
    with gzip.open(ADVERSARIAL, "rt", encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def seconds_by_answer(reward):
    seconds = {}
    for row in adversarial():
        start = time.monotonic()
        (outcome,) = reward([row["completion"]], solution=[row["gold"]])
        seconds[row["name"]] = time.monotonic() - start
        assert outcome in (1.0, -1.0, None)
    assert len(seconds) == 60
    return seconds


def in_main_thread(reward, send):
    send(seconds_by_answer(reward))


def in_a_thread(reward, send):
    thread = threading.Thread(target=in_main_thread, args=(reward, send))
    thread.start()
    thread.join()


def in_a_daemonic_process(reward, send):
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    process = context.Process(target=in_main_thread, args=(reward, queue.put), daemon=True)
    process.start()
    send(queue.get(timeout=120))
    process.join()


@pytest.mark.parametrize(
    "called",
    [
        in_main_thread,
        pytest.param(in_a_thread, marks=pytest.mark.slow),
        pytest.param(in_a_daemonic_process, marks=pytest.mark.slow),
    ],
)
def test_every_hostile_answer_returns_in_time(called):
    received = []
    called(MathVerificationReward(), received.append)
    assert max(received[0].values()) < SLOWEST_S, received[0]


FOUND_IN_REVIEW = [
    # completion, gold, why
    ("Answer: " + "a " * 1990, "42", "words, which one pattern read in exponentially many ways"),
    ("Answer: 42", "a " * 30, "the same in a gold"),
    ("Answer: (" + r"\text{a}" * 440 + ")", "42", "much markup"),
    ("Answer: 1", r"\boxed{" * 8000, "boxes that never close in a gold"),
    ("Answer: x = 0.5 = 1/2", "0.25 < 0.5 < x", "decimals in relations"),
    (r"\boxed{\lfloor \begin{pmatrix}1.5\\2.5\end{pmatrix} \rfloor}", "2", "sympy raises"),
    (r"Answer: \{\infty\} \pm \infty 1.25", r"|\langle \sqrt{2},\ldots\rangle|", "sympy raises on the gold"),
    (
        r"Answer: \int_0^\infty e^{-x^2}\sin(x^3)\cos(x^{1/3}) dx+0",
        r"\int_0^\infty e^{-x^2}\sin(x^3)\cos(x^{1/3}) dx",
        "both hang",
    ),
    ("Answer: 1", 10**5000, "an integer that str() refuses"),
    ([{}, {"content": "x"}, {"role": "assistant", "content": [{"text": "x"}, {"type": "text"}]}], "1", "odd chats"),
]


@pytest.mark.parametrize(("completion", "gold", "why"), FOUND_IN_REVIEW, ids=[row[2] for row in FOUND_IN_REVIEW])
def test_what_a_review_found(completion, gold, why):
    reward = MathVerificationReward()
    start = time.monotonic()
    assert reward([completion], solution=[gold]) in ([-1.0], [None])
    assert time.monotonic() - start < SLOWEST_S


@pytest.mark.parametrize("completion", [None, 5, b"Answer: 5"])
def test_what_is_no_completion_is_named(completion):
    with pytest.raises(ValueError, match="a completion must be a string or a list of messages; got"):
        MathVerificationReward()([completion], solution=["5"])


@pytest.mark.slow
def test_a_script_without_a_main_guard_and_its_memory(tmp_path):
    """The whole table in one script: in time, and the process that would train grows by less than 50 MB."""
    (tmp_path / "script.py").write_text(
        textwrap.dedent(
            rf"""
            import gzip, json, re, time
            from online_sft import MathVerificationReward
            with gzip.open({str(ADVERSARIAL)!r}, "rt") as file:
                rows = [json.loads(line) for line in file]
            def megabytes(name):  # VmRSS now, VmHWM at its peak; getrusage would count the parent's before exec
                with open("/proc/self/status") as file:
                    return int(re.search(name + r":[ \t]+([0-9]+) kB", file.read())[1]) / 1000
            before = megabytes("VmRSS")
            reward = MathVerificationReward()
            slowest = 0.0
            for row in rows:
                start = time.monotonic()
                reward([row["completion"]], solution=[row["gold"]])
                slowest = max(slowest, time.monotonic() - start)
            print(json.dumps([slowest, megabytes("VmHWM") - before]))
            """
        )
    )
    done = subprocess.run([sys.executable, "script.py"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    slowest_s, grown_mb = json.loads(done.stdout)
    assert slowest_s < SLOWEST_S
    assert grown_mb < 50
    assert done.stderr == ""
