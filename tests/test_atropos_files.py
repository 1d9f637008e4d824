"""Files that Atropos' tools wrote (tests/data/atropos/README.md), and made-up ones that are wrong in one line."""

import itertools
import json
from pathlib import Path

import pytest
from atropos_tools import group

from online_sft.atropos.batch import BatchReader
from online_sft.atropos.files import read_file

FOLDER = Path(__file__).parent / "data" / "atropos"
ZERO_ONE = group() | {"masks": [[0, 1, 1, 1]] * 2}
TEXT = {"prefix": "2+2=", "completion": "4", "score": 1}
MESSAGES = {"messages": [{"role": "user", "content": "2+2"}, {"role": "assistant", "content": "4"}], "score": 0.5}


def lines_of(name):
    return [json.loads(line) for line in (FOLDER / name).read_text().splitlines()]


def written(*lines):
    """A file with these lines; text as it is, anything else as JSON."""
    path = Path("data.jsonl")
    path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))
    return path


@pytest.mark.parametrize("without", [[], ["advantages"], ["advantages", "inference_logprobs"]])
def test_the_groups_of_process_mode_become_what_a_slow_loop_makes_of_them(without):
    groups = lines_of("process_mode_groups.jsonl")
    for each, name in itertools.product(groups, without):
        del each[name]
    expected = []
    for line, each in enumerate(groups):
        mean = sum(each["scores"]) / len(each["scores"])
        for tokens, mask, score, index in zip(each["tokens"], each["masks"], each["scores"], range(4), strict=True):
            row = {"input_ids": tokens, "labels": mask, "advantages": [], "group": line, "ref_log_probs": []}
            for t, label in enumerate(mask):
                weight = score - mean if "advantages" in without else each["advantages"][index][t]
                row["advantages"].append(pytest.approx(weight) if label != -100 else 0.0)
                log_prob = each["inference_logprobs"][index][t] if "inference_logprobs" in each else None
                row["ref_log_probs"].append(log_prob if label != -100 else 0.0)
            if "inference_logprobs" in without:
                del row["ref_log_probs"]
            expected.append(row)
    rows, quarantined = read_file(written(*groups), BatchReader(vocab_size=380))
    assert rows == expected
    assert quarantined == []


@pytest.mark.parametrize("kind", ["text", "msgs"])
def test_samples_of_sft_gen_become_prompt_and_completion_with_their_score(kind):
    rows, quarantined = read_file(FOLDER / f"gen_sft_{kind}.jsonl", BatchReader())
    assert quarantined == []
    for row, line in zip(rows, lines_of(f"gen_sft_{kind}.jsonl"), strict=True):
        assert list(row) == ["prompt", "completion", "advantages"]
        assert row["advantages"] == line["score"]
        if kind == "text":
            assert (row["prompt"], row["completion"]) == (line["prefix"], line["completion"])
        else:
            assert row["prompt"] + row["completion"] == line["messages"]
            assert [message["role"] for message in row["completion"]] == ["assistant"]


@pytest.mark.parametrize("kind", ["text", "msgs"])
def test_pairs_of_dpo_gen_are_refused_with_what_trains_on_them(kind):
    with pytest.raises(ValueError, match=r"line 1 is a pair of atropos-dpo-gen; train on pairs with trl.DPOTrainer"):
        read_file(FOLDER / f"gen_dpo_{kind}.jsonl", BatchReader())


def test_malformed_groups_come_with_their_line_and_the_others_are_used():
    path = written(group([1.0, 0.0]), ZERO_ONE, "", group([3.0, 0.0, 0.0]), group() | {"scores": [1.0]})
    rows, quarantined = read_file(path, BatchReader())
    assert [row["group"] for row in rows] == [0, 0, 3, 3, 3]
    assert [row["advantages"][-1] for row in rows] == [0.5, -0.5, 2.0, -1.0, -1.0]
    assert [(line, each.reason, each.raw["scores"]) for line, each in quarantined] == [
        (1, "masks[0][0] is 0, neither -100 nor the token 5 (a mask of 0 and 1, it seems)", [1.0, 0.0]),
        (4, "scores has 1 entries for 2 sequences", [1.0]),
    ]


def test_a_number_that_is_not_finite_is_malformed():
    _, quarantined = read_file(written(group([float("nan"), 0.0]), group()), BatchReader())
    assert [(line, each.reason) for line, each in quarantined] == [(0, "scores[0] is nan")]


def test_temperatures_are_there_where_a_row_needs_them():
    hot = group(overrides=[{"temperature": 0.5}, {}])
    rows, _ = read_file(written(group(), hot), BatchReader())
    assert [row["temperatures"] for row in rows] == [[1.0] * 4, [1.0] * 4, [0.5] * 4, [1.0] * 4]
    rows, _ = read_file(written(group(), group()), BatchReader())
    assert {"input_ids", "labels", "advantages", "group"} == set(rows[0])
    rows, _ = read_file(written(group(), group()), BatchReader(temperature=0.7))
    assert "temperatures" not in rows[0]  # all have that of the run
    said = group(generation_params={"temperature": 1.0})
    rows, _ = read_file(written(said, said), BatchReader(temperature=0.7))
    assert rows[0]["temperatures"] == [1.0] * 4


def test_sequences_without_gradient_are_marked_where_there_are_any():
    zeroed = group(overrides=[{"set_advantage_to_zero": True}, {}])
    rows, _ = read_file(written(group(), zeroed), BatchReader())
    assert [row["has_gradient"] for row in rows] == [[1] * 4, [1] * 4, [0] * 4, [1] * 4]


def test_log_probs_are_there_where_every_loss_token_has_one():
    known = group(inference_logprobs=[[1.0, -0.1, -0.2, -0.3]] * 2)
    rows, _ = read_file(written(known, known), BatchReader())
    assert [row["ref_log_probs"] for row in rows] == [[0.0, -0.1, -0.2, -0.3]] * 4
    gap = group(inference_logprobs=[[1.0, -0.1, -0.2, -0.3], [1.0, -0.1, 1.0, -0.3]])
    for others in (gap, group()):
        rows, _ = read_file(written(known, others), BatchReader())
        assert not any("ref_log_probs" in row for row in rows)


MIXED = {
    "groups and texts": [group(), TEXT],
    "conversations and texts": [TEXT, TEXT, MESSAGES],
    "conversations and groups": [MESSAGES, group()],
}


@pytest.mark.parametrize("kinds", MIXED)
def test_kinds_are_not_mixed(kinds):
    with pytest.raises(ValueError, match=rf"data.jsonl mixes {kinds}; make a file of each kind"):
        read_file(written(*MIXED[kinds]), BatchReader())


NEITHER = "neither a group .`tokens`. nor a sample of atropos-sft-gen .*; it has "
WRONG = {
    "no JSON": ("{'tokens': 1}", "line 2 is no JSON: "),
    "half a line": ('{"tokens": [[1', "line 2 is no JSON: "),
    "a number": ("5", "line 2 is no object"),
    "a list": ("[]", "line 2 is no object"),
    "a score of NaN": (TEXT | {"score": float("nan")}, "line 2 has score nan; it must be a finite number"),
    "a score of infinity": (MESSAGES | {"score": float("-inf")}, "line 2 has score -inf; it must be a finite number"),
    "a score that is text": (TEXT | {"score": "1"}, "line 2 has score '1'; it must be a finite number"),
    "a score that is true": (TEXT | {"score": True}, "line 2 has score True; it must be a finite number"),
    "no score": ({"prefix": "a", "completion": "b"}, "line 2 has score None; it must be a finite number"),
    "no prefix": ({"completion": "b", "score": 1}, NEITHER + "completion, score"),
    "a completion that is no text": (TEXT | {"completion": 5}, NEITHER + "prefix, completion, score"),
    "no message": ({"messages": [], "score": 1}, NEITHER + "messages, score"),
    "messages that are text": ({"messages": ["a", "b"], "score": 1}, NEITHER + "messages, score"),
    "a question without an answer": ({"messages": MESSAGES["messages"][:1], "score": 1}, NEITHER + "messages, score"),
    "something else": ({"text": "a", "score": 1}, NEITHER + "text, score"),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_a_line_that_is_none_of_these_is_named(wrong):
    line, message = WRONG[wrong]
    with pytest.raises(ValueError, match=rf"data.jsonl, {message}" if message.startswith("line") else message):
        read_file(written(TEXT, line), BatchReader())


def test_a_file_without_a_row_is_refused_with_the_reason():
    for lines in ([], ["", "  "]):
        with pytest.raises(ValueError, match=r"data.jsonl holds no row that can be trained on: it is empty"):
            read_file(written(*lines), BatchReader())
    with pytest.raises(ValueError, match=r"can be trained on: line 2: masks\[0\]\[0\] is 0"):
        read_file(written("", ZERO_ONE, ZERO_ONE), BatchReader())
