"""reasoning-gym's scorers as rewards."""

import json
import pickle

import pytest
import reasoning_gym

from online_sft import ReasoningGymReward
from online_sft.rewards.checked import check_dataset

KINDS = ["chain_sum", "spell_backward", "mini_sudoku", "course_schedule"]


@pytest.fixture(scope="module")
def items():
    return [item for kind in KINDS for item in reasoning_gym.create_dataset(kind, seed=3, size=2)]


def columns(items, as_json=True):
    return {
        "question": [item["question"] for item in items],
        "answer": [item["answer"] for item in items],
        "metadata": [json.dumps(item["metadata"]) if as_json else item["metadata"] for item in items],
    }


@pytest.mark.parametrize("as_json", [True, False])
def test_scores_are_those_of_the_problems_own_scorer(items, as_json):
    logged = {}
    wrong = [f"{item['answer']}1" for item in items]
    for answers in ([item["answer"] for item in items], wrong):
        expected = [
            reasoning_gym.get_score_answer_fn(item["metadata"]["source_dataset"])(answer, item)
            for item, answer in zip(items, answers, strict=True)
        ]
        completions = [f"<think>hm</think> <answer>\n{answer}\n</answer>" for answer in answers]
        found = ReasoningGymReward()(completions, **columns(items, as_json), log_metric=logged.__setitem__)
        assert found == pytest.approx(expected)
    assert 1.0 not in found
    assert logged["reasoning_gym/no_answer"] == 0


def test_answers_are_also_found_after_a_colon_or_in_a_box(items):
    sums = items[:2]
    completions = [f"Answer: {sums[0]['answer']}", rf"\boxed{{{sums[1]['answer']}}}"]
    assert ReasoningGymReward()(completions, **columns(sums)) == [1.0, 1.0]


def test_the_last_tagged_answer_counts(items):
    completion = f"<answer>7</answer> no, <answer>{items[0]['answer']}</answer>"
    assert ReasoningGymReward()([completion], **columns(items[:1])) == [1.0]


def test_no_answer_earns_nothing_and_an_unknown_source_is_unscorable(items):
    rows = columns(items[:2])
    rows["metadata"][1] = json.dumps({"source_dataset": "of another library"})
    assert ReasoningGymReward()(["I cannot tell.", "Answer: 1"], **rows) == [0.0, None]


def test_rows_are_checked_at_load(items):
    other = reasoning_gym.create_dataset("countdown", seed=3, size=1)[0]
    other["metadata"]["target"] += 1  # so that its answer is wrong
    rows = columns([items[0], other, items[1]])
    rows["metadata"][2] = json.dumps({})
    reward = ReasoningGymReward()
    assert check_dataset(reward, rows) == ["row 1: its own answer scores 0.05", "row 2: no known source_dataset"]
    with pytest.raises(ValueError, match="no row has a `source_dataset`"):
        check_dataset(reward, {name: values[2:] for name, values in rows.items()})
    with pytest.raises(ValueError, match="'reasoning_gym' needs the column metadata"):
        check_dataset(reward, {"prompt": [], "answer": []})


def test_it_pickles_after_use(items):
    reward = ReasoningGymReward(timeout_s=5)
    rows = columns(items[:1])
    assert pickle.loads(pickle.dumps(reward))([f"Answer: {items[0]['answer']}"], **rows) == [1.0]
    assert reward.__name__ == "reasoning_gym"
