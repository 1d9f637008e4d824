"""What a row of each format becomes, exactly; what is refused; and the loss that a trainer has of it."""

import json
import math

import pytest
import torch
import torch.nn.functional as F
from datasets import Dataset

from online_sft import MathVerificationReward, OnlineSFTConfig, OnlineSFTTrainer, WeightedSFTConfig, WeightedSFTTrainer
from online_sft.importers.formats import FORMATS, columns_of, format_of, imported
from recipes.quickstart.tiny_model import build_model, build_tokenizer

WEATHER = {
    "type": "function",
    "function": {"name": "weather", "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}},
}
CALL = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Rome"}'}}


def message(role, content, **keys):
    return {"role": role, "content": content, **keys}


def datum(tokens, **inputs):
    tensors = {
        name: {"data": data, "dtype": "int64" if name == "target_tokens" else "float32", "shape": [len(data)]}
        for name, data in inputs.items()
    }
    return {"model_input": {"chunks": [{"type": "encoded_text", "tokens": tokens}]}, "loss_fn_inputs": tensors}


DAPO = {
    "data_source": "math_dapo",
    "prompt": [message("user", "1 + 1 =")],
    "ability": "MATH",
    "reward_model": {"ground_truth": "2", "style": "rule-lighteval/MATH_v2"},
    "extra_info": {"index": "9a9b6eb4"},
}

# format, row, what it becomes
ROWS = [
    (
        "openai",
        {
            "messages": [
                message("developer", "Be Marv."),
                message("user", [{"type": "text", "text": "Capital of "}, {"type": "text", "text": "France?"}]),
                message("assistant", "Paris", weight=0),
                message("user", "More sarcasm"),
                message("assistant", "As if nobody knew", weight=1, name="marv"),
                message("assistant", "Bye"),
            ],
            "parallel_tool_calls": False,
        },
        {
            "messages": [
                message("system", "Be Marv.", weight=0.0),
                message("user", "Capital of France?", weight=0.0),
                message("assistant", "Paris", weight=0.0),
                message("user", "More sarcasm", weight=0.0),
                message("assistant", "As if nobody knew", name="marv", weight=1.0),
                message("assistant", "Bye", weight=1.0),
            ],
            "parallel_tool_calls": False,
        },
    ),
    (
        "openai",
        {
            "messages": [
                message("user", "Rome?", weight=None, tool_calls=None),
                message("assistant", None, tool_calls=[CALL]),
                message("tool", "Sunny", tool_call_id="c1"),
                message("assistant", "Sunny."),
            ],
            "tools": [WEATHER],
        },
        {
            "messages": [
                message("user", "Rome?", weight=0.0),
                message("assistant", "", tool_calls=[CALL], weight=1.0),
                message("tool", "Sunny", tool_call_id="c1", weight=0.0),
                message("assistant", "Sunny.", weight=1.0),
            ],
            "tools": json.dumps([WEATHER]),
        },
    ),
    (
        "ms-swift",
        {
            "messages": [
                message("user", "a"),
                message("assistant", "b", loss=False, loss_scale=3.0),
                message("user", "c", loss=None, loss_scale=None),
                message("assistant", "d", loss=True, loss_scale=0.25),
                message("human", "e"),
                message("human", "f"),
                message("gpt", "g", loss_scale=2, id="dropped there too"),
                message("user", "h", loss=False),
                message("assistant", "i", loss=True),
            ],
            "channel": "chat",
        },
        {
            "messages": [
                message("user", "a", weight=0.0),
                message("assistant", "b", weight=0.0),
                message("user", "c", weight=0.0),
                message("assistant", "d", weight=0.25),
                message("user", "ef", weight=0.0),
                message("assistant", "g", weight=2.0),
                message("user", "h", weight=0.0),
                message("assistant", "i", weight=1.0),
            ],
            "channel": "chat",
        },
    ),
    (
        "ms-swift",
        {
            "system": "Help.",
            "messages": [
                message("user", "Rome and Oslo?"),
                message("assistant", "Let me see. "),
                message("tool_call", '{"name": "weather", "arguments": {"city": "Rome"}}'),
                message("tool_call", {"name": "weather", "arguments": {"city": "Oslo"}}),
                message("tool_response", "Sunny", name="weather"),
                message("tool", "Snow"),
                message("assistant", "Sunny and snow", loss_scale=0.5),
            ],
            "tools": json.dumps([WEATHER["function"]]),
            "chat_template_kwargs": {"enable_thinking": False},
        },
        {
            "messages": [
                message("system", "Help.", weight=0.0),
                message("user", "Rome and Oslo?", weight=0.0),
                message(
                    "assistant",
                    "Let me see. ",
                    weight=1.0,
                    tool_calls=[
                        {"type": "function", "function": {"name": "weather", "arguments": '{"city": "Rome"}'}},
                        {"type": "function", "function": {"name": "weather", "arguments": '{"city": "Oslo"}'}},
                    ],
                ),
                message("tool", "Sunny", name="weather", weight=0.0),
                message("tool", "Snow", weight=0.0),
                message("assistant", "Sunny and snow", weight=0.5),
            ],
            "tools": json.dumps([WEATHER]),
            "chat_template_kwargs": {"enable_thinking": False},
        },
    ),
    (
        "ms-swift",
        {"system": "Be brief.", "history": "[['Hi', 'Yo']]", "query": "How are you?", "response": ["Fine", "Bad"]},
        {
            "messages": [
                message("system", "Be brief.", weight=0.0),
                message("user", "Hi", weight=0.0),
                message("assistant", "Yo", weight=1.0),
                message("user", "How are you?", weight=0.0),
                message("assistant", "Fine", weight=1.0),
            ]
        },
    ),
    (
        "tinker",
        datum([5, 7, 9], target_tokens=[7, 9, 4], weights=[0.0, 0.5, 1.0]),
        {"input_ids": [5, 7, 9, 4], "labels": [-100, -100, 9, 4], "advantages": [0.0, 0.0, 0.5, 1.0]},
    ),
    (
        "tinker",  # two chunks, plain lists, ids as floats, and a last target that no loss reads
        {
            "model_input": {"chunks": [{"tokens": [5]}, {"tokens": [7, 9]}]},
            "loss_fn_inputs": {"target_tokens": [7.0, 9.0, 0.0], "weights": [0, 1, 0]},
        },
        {"input_ids": [5, 7, 9, 0], "labels": [-100, -100, 9, -100], "advantages": [0.0, 0.0, 1.0, 0.0]},
    ),
    (
        "tinker",
        {
            "tokens": [5, 7, 9],
            "loss_fn_inputs": {
                "target_tokens": [7, 9, 4],
                "logprobs": [0.0, -0.5, -2.0],
                "advantages": [0.0, -1.5, 0.0],
                "mask": [0.0, 1.0, 1.0],
            },
            "group_idx": 3,
        },
        {
            "input_ids": [5, 7, 9, 4],
            "labels": [-100, -100, 9, 4],
            "advantages": [0.0, 0.0, -1.5, 0.0],
            "ref_log_probs": [0.0, 0.0, -0.5, -2.0],
            "group_idx": 3,
        },
    ),
    (
        "tinker",  # weights beside advantages are a mask
        datum([5, 7], target_tokens=[7, 9], weights=[1.0, 1.0], advantages=[0.0, 2.0], logprobs=[-1.0, -2.0]),
        {
            "input_ids": [5, 7, 9],
            "labels": [-100, 7, 9],
            "advantages": [0.0, 0.0, 2.0],
            "ref_log_probs": [0.0, -1.0, -2.0],
        },
    ),
    (
        "dapo",
        DAPO,
        {
            "prompt": [message("user", "1 + 1 =")],
            "solution": "2",
            "reward_model_style": "rule-lighteval/MATH_v2",
            "data_source": "math_dapo",
            "ability": "MATH",
            "extra_info": {"index": "9a9b6eb4"},
        },
    ),
    (
        "verl",
        {"data_source": "openai/gsm8k", "prompt": "1 + 1 =", "reward_model": {"ground_truth": 2}, "images": []},
        {"prompt": "1 + 1 =", "solution": "2", "data_source": "openai/gsm8k"},
    ),
    (
        "verl-sft",
        {
            "messages": [message("user", "a"), message("assistant", "b"), message("user", "c")],
            "tools": [WEATHER],
            "enable_thinking": False,
        },
        {
            "messages": [
                message("user", "a", weight=0.0),
                message("assistant", "b", weight=1.0),
                message("user", "c", weight=0.0),
            ],
            "tools": json.dumps([WEATHER]),
            "chat_template_kwargs": {"enable_thinking": False},
        },
    ),
    (
        "verl-rollouts",
        {"input": "user\n1 + 1 =\nassistant\n", "output": "2", "gts": "2", "score": 1, "step": 3, "acc": True},
        {
            "prompt": "user\n1 + 1 =\nassistant\n",
            "completion": "2",
            "reward": 1.0,
            "gts": "2",
            "step": 3,
            "acc": True,
        },
    ),
    (
        "rewards",
        {"prompt": "2 + 2 =", "response": "4", "score": True, "text": None, "group": "sums"},
        {"prompt": "2 + 2 =", "completion": "4", "reward": 1.0, "group": "sums"},
    ),
    (
        "rewards",
        {"prompt": [message("system", "Add."), message("user", "2 + 2")], "output": "4", "rating": -0.5},
        {
            "prompt": [message("system", "Add."), message("user", "2 + 2")],
            "completion": [message("assistant", "4")],
            "reward": -0.5,
        },
    ),
    (
        "rewards",
        {"prompt": "2 + 2", "completion": [message("assistant", "4")], "reward": 0},
        {"prompt": [message("user", "2 + 2")], "completion": [message("assistant", "4")], "reward": 0.0},
    ),
]


@pytest.mark.parametrize(("name", "row", "expected"), ROWS)
def test_a_row_becomes_exactly_this(name, row, expected):
    assert json.dumps(imported(name, row), sort_keys=True) == json.dumps(expected, sort_keys=True)


@pytest.mark.parametrize(("name", "row"), [(name, row) for name, row, _ in ROWS])
def test_reading_a_row_does_not_change_it(name, row):
    before = json.dumps(row)
    imported(name, row)
    assert json.dumps(row) == before


def test_every_format_has_a_row_here():
    assert {name for name, _, _ in ROWS} == set(FORMATS)


USER, ASSISTANT = message("user", "a"), message("assistant", "b")
PAIR = {"prompt": "1", "response": "2", "reward": 1.0}
NAN, HUGE = float("nan"), 10**30

# format, row, message
BAD = [
    ("openai", {"prompt": "a"}, "has the columns prompt; openai needs messages"),
    ("openai", {"messages": "hi"}, "messages must be a list of messages; got 'hi'"),
    ("openai", {"messages": None}, "messages must be a list of messages; got None"),
    ("openai", {"messages": []}, "messages is empty"),
    ("openai", {"messages": ["hi"]}, r"messages\[0\] must be an object with a role and a content; got 'hi'"),
    ("openai", {"messages": [message("critic", "a")]}, r"messages\[0\] has role 'critic'; the roles are system, dev"),
    ("openai", {"messages": [{"content": "a"}]}, r"messages\[0\] has role None"),
    ("openai", {"messages": [{"role": ["user"], "content": "a"}]}, r"messages\[0\] has role \['user'\]"),
    ("openai", {"messages": [message("user", None)]}, r"messages\[0\] has no content"),
    ("openai", {"messages": [message("user", 3)]}, r"messages\[0\] has the content 3"),
    ("openai", {"messages": [message("user", [{"type": "image_url"}])]}, "only parts of type text"),
    ("openai", {"messages": [message("user", ["a"])]}, "only parts of type text"),
    ("openai", {"messages": [USER]}, "no message is the assistant's"),
    ("openai", {"messages": [message("user", "a", weight=1), ASSISTANT]}, r"messages\[0\] has a weight, but role 'use"),
    ("openai", {"messages": [USER, message("assistant", "b", weight=0.5)]}, r"messages\[1\] has weight 0.5; OpenAI's"),
    (
        "openai",
        {"messages": [USER, message("assistant", "b", weight=NAN)]},
        r"messages\[1\].weight is nan, and no number",
    ),
    ("openai", {"messages": [USER, message("assistant", "b", weight="1")]}, r"messages\[1\] has weight '1'"),
    ("openai", {"messages": [USER, message("assistant", "b", weight=True)]}, r"messages\[1\] has weight True"),
    (
        "openai",
        {"messages": [USER, message("assistant", "b", weight=HUGE)]},
        r"messages\[1\].weight is 1000.*more than 64 bits",
    ),
    ("openai", {"messages": [USER, message("assistant", "b", loss=False)]}, r"`loss`, a weight of ms-swift"),
    ("openai", {"messages": [USER, message("assistant", "b", trainable=False)]}, "`trainable`, which no format here"),
    ("openai", {"messages": [USER, message("assistant", "b", refusal="no")]}, "`refusal`, which no chat template"),
    ("openai", {"messages": [USER, ASSISTANT], "functions": [{"name": "f"}]}, "has `functions`, which OpenAI has repl"),
    (
        "openai",
        {"messages": [USER, message("assistant", "b", tool_calls="f()")]},
        r"messages\[1\] has the tool_calls 'f",
    ),
    ("openai", {"messages": [USER, ASSISTANT], "tools": "[{"}, "tools is a text, but no JSON"),
    ("openai", {"messages": [USER, ASSISTANT], "tools": {"a": 1}}, "tools must be a list of function schemas"),
    ("openai", {"messages": [USER, ASSISTANT], "tools": [{"type": "function"}]}, r"tools\[0\] must be a function sche"),
    ("openai", {"messages": [USER, ASSISTANT], "tools": [{"function": 1}]}, r"tools\[0\] must be a function schema"),
    ("openai", {"messages": [USER, ASSISTANT], "chosen": "a"}, "has `chosen`, a column of preference data"),
    ("openai", {"messages": [USER, ASSISTANT], "preferred_output": []}, "has `preferred_output`, a column of prefere"),
    ("openai", {"messages": [USER, ASSISTANT], "images": ["a.png"]}, "has `images`, and only text can be read"),
    ("openai", {"messages": [USER, ASSISTANT], "advantages": 2.0}, "has `advantages`, which is not of openai and has"),
    ("openai", {"messages": [USER, ASSISTANT], "id": HUGE}, "id is 1000.*more than 64 bits"),
    ("openai", {"messages": [USER, ASSISTANT], "note": {"x": [NAN]}}, r"note.x\[0\] is nan"),
    ("openai", {"messages": [USER, ASSISTANT], "note": b"a"}, "note is of type bytes"),
    (
        "openai",
        {"messages": [message("user", "\ud83d"), ASSISTANT]},
        r"messages\[0\].content has half a surrogate pair",
    ),
    ("ms-swift", {"response": "a"}, "has the columns response; ms-swift needs messages or messages"),
    ("ms-swift", {"messages": [USER, message("assistant", "b", loss=0.5)]}, r"messages\[1\] has loss 0.5"),
    ("ms-swift", {"messages": [USER, message("assistant", "b", loss=NAN)]}, r"messages\[1\].loss is nan"),
    ("ms-swift", {"messages": [USER, message("assistant", "b", loss_scale=-1.0)]}, r"loss_scale -1.0; ms-swift masks"),
    ("ms-swift", {"messages": [USER, message("assistant", "b", loss_scale=NAN)]}, r"messages\[1\].loss_scale is nan"),
    ("ms-swift", {"messages": [USER, message("assistant", "b", loss_scale="1")]}, "must be a number; got '1'"),
    ("ms-swift", {"messages": [USER, message("assistant", "b", weight=1)]}, "`weight`, a weight of openai"),
    ("ms-swift", {"messages": [message("user", "a", loss=True), ASSISTANT]}, r"messages\[0\] has a loss, but role 'us"),
    ("ms-swift", {"messages": [message("user", "a", loss_scale=0), ASSISTANT]}, r"messages\[0\] has a loss, but role"),
    ("ms-swift", {"messages": [USER, ASSISTANT, message("assistant", "c", loss=False)]}, r"messages\[2\] continues th"),
    (
        "ms-swift",
        {"messages": [USER, message("tool_call", "weather")]},
        r"messages\[1\] calls a tool, but its content i",
    ),
    ("ms-swift", {"messages": [USER, message("tool_call", "{}")]}, r"messages\[1\] calls a tool, but has no name"),
    (
        "ms-swift",
        {"messages": [USER, message("tool_call", {"name": "f", "arguments": {}}), ASSISTANT]},
        "says something behind a tool call",
    ),
    ("ms-swift", {"messages": [USER, ASSISTANT], "system": 3}, "system must be a text; got 3"),
    (
        "ms-swift",
        {"messages": [USER, ASSISTANT], "rejected_response": "c"},
        "has `rejected_response`, a column of pref",
    ),
    ("ms-swift", {"query": "a", "response": None}, "response must be a text; got None"),
    ("ms-swift", {"query": "a", "response": []}, "response must be a text; got None"),
    ("ms-swift", {"query": "a", "response": "b", "history": [["c"]]}, r"history must be a list of \[query, response\]"),
    ("ms-swift", {"query": "a", "response": "b", "history": "[['c'"}, "history is a text, but no list"),
    (
        "tinker",
        {"model_input": {"chunks": []}, "loss_fn_inputs": {}},
        r"must have a list of one token or more; got \[\]",
    ),
    ("tinker", {"model_input": [5, 7], "loss_fn_inputs": {}}, 'model_input must be {"chunks"'),
    ("tinker", {**datum([5], target_tokens=[7], weights=[1]), "tokens": [5]}, "either model_input or tokens"),
    ("tinker", {"tokens": [5], "loss_fn_inputs": []}, r"loss_fn_inputs must be an object; got \[\]"),
    ("tinker", datum([5], weights=[1.0]), "must have target_tokens, and weights or advantages; it has weights"),
    ("tinker", datum([5], target_tokens=[7]), "must have target_tokens, and weights or advantages; it has target_tok"),
    ("tinker", datum([5, 7], target_tokens=[7, 9], weights=[1.0]), "weights has 1 entries for 2 tokens"),
    ("tinker", datum([5, 7, 9], target_tokens=[7, 9], weights=[1.0, 1.0]), "target_tokens has 2 entries for 3 tokens"),
    (
        "tinker",
        datum([5, 7], target_tokens=[5, 7], weights=[1, 1]),
        r"target_tokens\[0\] is 5, but the token after tok",
    ),
    ("tinker", datum([5], target_tokens=[7], weights=[NAN]), r"loss_fn_inputs.weights.data\[0\] is nan"),
    ("tinker", datum([5], target_tokens=[7], weights=[None]), r"weights\[0\] must be a number; got None"),
    ("tinker", datum([HUGE], target_tokens=[7], weights=[1]), "tokens.0. is 1000.*more than 64 bits"),
    ("tinker", datum([-1], target_tokens=[7], weights=[1]), r"tokens\[0\] must be a token id; got -1"),
    ("tinker", datum([5], target_tokens=[7.5], weights=[1]), r"target_tokens\[0\] must be a token id; got 7.5"),
    ("tinker", datum([5], target_tokens=[[7, 8]], weights=[[1, 0]]), "several entries for a token"),
    (
        "tinker",
        datum([5], target_tokens=[7], advantages=[1], clip_low_threshold=[0.8]),
        "has 'clip_low_threshold', whi",
    ),
    (
        "tinker",
        datum([5], target_tokens=[7], advantages=[1.0], mask=[0.5]),
        r"mask\[0\] is 0.5; a mask holds 0 and 1",
    ),
    ("tinker", datum([5], target_tokens=[7], advantages=[1.0], mask=[0.0]), "token 0 has 1.0 where mask is 0"),
    ("tinker", datum([5], target_tokens=[7], advantages=[1.0], weights=[0.5]), r"weights\[0\] is 0.5; a mask holds"),
    (
        "tinker",
        {"model_input": {"chunks": [{"type": "image", "data": ""}]}, "loss_fn_inputs": {}},
        "chunk 0 of model_input holds no tokens",
    ),
    (
        "tinker",
        {"tokens": [5], "loss_fn_inputs": {"target_tokens": {"data": [7], "sparse_crow_indices": [0, 1]}}},
        "target_tokens is sparse",
    ),
    ("tinker", {**datum([5], target_tokens=[7], weights=[1]), "labels": [7]}, "has `labels`, which is not of tinker"),
    ("dapo", {"prompt": "a", "solution": "2"}, "has the columns prompt, solution; dapo needs prompt, reward_model"),
    ("dapo", {**DAPO, "prompt": []}, "prompt is empty"),
    ("dapo", {**DAPO, "prompt": ""}, "prompt is empty"),
    ("dapo", {**DAPO, "prompt": [USER, ASSISTANT]}, "the prompt ends with a message of the assistant"),
    ("dapo", {**DAPO, "prompt": [message("user", "a", weight=1)]}, r"prompt\[0\] has `weight`, a weight of openai"),
    ("dapo", {**DAPO, "reward_model": None}, "reward_model must be an object with a ground_truth; got None"),
    ("dapo", {**DAPO, "reward_model": {"style": "rule"}}, "reward_model must be an object with a ground_truth"),
    ("dapo", {**DAPO, "reward_model": {"ground_truth": " "}}, "reward_model.ground_truth must be a text or a number"),
    ("dapo", {**DAPO, "reward_model": {"ground_truth": {"target": ["2"]}}}, "ground_truth must be a text or a number"),
    ("dapo", {**DAPO, "reward_model": {"ground_truth": True}}, "ground_truth must be a text or a number"),
    ("dapo", {**DAPO, "solution": "3"}, "has `solution`, which is not of dapo and has a meaning"),
    ("verl", {"prompt": "a", "reward_model": {"ground_truth": "2"}}, "verl needs data_source, prompt, reward_model"),
    ("verl-sft", {"messages": [USER, message("assistant", "b", weight=1)]}, "`weight`, a weight of openai"),
    ("verl-sft", {"messages": [USER, ASSISTANT], "enable_thinking": None}, "enable_thinking must be true or false in"),
    ("verl-rollouts", {"input": "", "output": "b", "score": 1}, "input must be a text; got ''"),
    ("verl-rollouts", {"input": "a", "output": None, "score": 1}, "output must be a text; got None"),
    ("verl-rollouts", {"input": "a", "output": "b", "score": None}, "score must be a number; got None"),
    ("verl-rollouts", {"input": "a", "output": "b", "score": 1, "reward": 0}, "the score 1 and the reward 0"),
    ("rewards", {"prompt": "a", "score": 1, "reward_": 2}, "rewards needs prompt, completion, reward or"),
    ("rewards", {**PAIR, "text": "3"}, "must have one of completion, .*; it has response and text"),
    ("rewards", {**PAIR, "score": 1}, "must have one of reward, score, rating; it has reward and score"),
    ("rewards", {**PAIR, "reward": None}, "must have one of reward, score, rating; it has none"),
    ("rewards", {**PAIR, "reward": NAN}, "reward is nan, and no number in a row may be"),
    ("rewards", {**PAIR, "reward": "1"}, "reward must be a number; got '1'"),
    ("rewards", {**PAIR, "prompt": ""}, "prompt is empty"),
    ("rewards", {**PAIR, "prompt": 3}, "prompt must be a list of messages; got 3"),
    ("rewards", {**PAIR, "response": [message("bot", "4")]}, r"completion\[0\] has role 'bot'"),
    ("rewards", {**PAIR, "advantages": 1.0}, "has `advantages`, which is not of rewards"),
]


@pytest.mark.parametrize(("name", "row", "message"), BAD)
def test_a_row_that_cannot_be_read_says_what_is_wrong(name, row, message):
    with pytest.raises(ValueError, match=message):
        imported(name, row)


def with_each_part_replaced(value, odd):
    """The value once per part of it, which is `odd` there."""
    yield odd
    if isinstance(value, dict):
        for key in value:
            yield from ({**value, key: part} for part in with_each_part_replaced(value[key], odd))
    elif isinstance(value, list):
        for index, entry in enumerate(value):
            parts = with_each_part_replaced(entry, odd)
            yield from ([*value[:index], part, *value[index + 1 :]] for part in parts)


@pytest.mark.parametrize(
    "odd", [None, True, -1, 0.5, NAN, math.inf, HUGE, "", "x", "[]", [], [None], [[]], {}, b"", ()]
)
def test_whatever_is_odd_in_a_row_is_read_or_refused_and_what_is_read_is_json(odd):
    for name, row, _ in ROWS:
        for odd_row in with_each_part_replaced(row, odd):
            if odd_row is odd:
                continue
            try:
                became = imported(name, odd_row)
            except ValueError:
                continue
            assert json.loads(json.dumps(became, allow_nan=False)) == became


@pytest.mark.parametrize(
    ("name", "rows"),
    [
        ("openai", [{"messages": [USER, ASSISTANT]}, {"messages": [USER, message("assistant", "b", weight=0)]}]),
        ("ms-swift", [{"messages": [USER, message("assistant", "b", loss=True)]}]),
        ("ms-swift", [{"messages": [USER, message("assistant", "b", loss_scale=2.0)]}]),
        ("ms-swift", [{"query": "a", "response": "b"}]),
        ("tinker", [datum([5], target_tokens=[7], weights=[1])]),
        ("tinker", [{"tokens": [5], "loss_fn_inputs": {}}]),
        ("dapo", [{"prompt": "a", "reward_model": {}}]),
        ("verl", [DAPO]),  # DAPO's file is in verl's columns, and becomes the same
        ("verl-sft", [{"messages": [USER, ASSISTANT], "enable_thinking": True}]),
        ("verl-rollouts", [{"input": "a", "output": "b", "gts": None, "score": 1.0, "step": 1}]),
        ("rewards", [{"prompt": "a", "text": "b", "rating": 1}]),
    ],
)
def test_the_columns_tell_the_format(name, rows):
    assert format_of(columns_of(rows)) == name


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"messages": [USER, ASSISTANT]}], "several formats, openai, ms-swift, verl-sft: say which with --from"),
        ([{"messages": [message("assistant", "b", weight=1, loss=True)]}], "several formats, openai, ms-swift: say"),
        (
            [{"a": 1, "b": 2}],
            r"the columns a, b are of no format known. Known are: openai \(messages or messages, mess",
        ),
        ([{"input": {}, "preferred_output": []}], "`preferred_output`, a column of preference data"),
    ],
)
def test_columns_that_do_not_tell_the_format_are_named_with_the_formats_known(rows, message):
    with pytest.raises(ValueError, match=message):
        format_of(columns_of(rows))


# One token each, so that which token is whose can be counted by hand; <|end|> ends every message.
TEMPLATE = (
    "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


@pytest.fixture
def chat_tokenizer():
    tokenizer = build_tokenizer(["<user>", "<assistant>", "<system>", "user\n", "assistant\n", " + ", " ="])
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def dense_loss(model, sequences):
    """-(1/D) sum_t w_t log p(y_t | y_<t), of the whole softmax; w None: no loss token. sequences: (ids, weights)."""
    total, num_loss_tokens = 0.0, 0
    for ids, weights in sequences:
        with torch.no_grad():
            logits = model(torch.tensor([ids])).logits[0]
        nll = F.cross_entropy(logits[:-1], torch.tensor(ids[1:]), reduction="none").tolist()
        total += sum(weight * value for weight, value in zip(weights[1:], nll, strict=True) if weight is not None)
        num_loss_tokens += sum(weight is not None for weight in weights[1:])
    return total / num_loss_tokens


def pieces(tokenizer, *texts_and_weights):
    """(ids, weights) of texts that are tokenised one by one."""
    ids, weights = [], []
    for text, weight in texts_and_weights:
        of_text = tokenizer(text)["input_ids"]
        ids += of_text
        weights += [weight] * len(of_text)
    return ids, weights


CHAT = [message("user", "12"), message("assistant", "345"), message("user", "6"), message("assistant", "78")]
FIRST, SECOND = ("<user>12<|end|>", 0.0), ("<user>6<|end|>", 0.0)
# format, rows, options of the trainer, the texts and their weights by hand
TRAINED = [
    (
        "openai",
        [
            {"messages": [CHAT[0], {**CHAT[1], "weight": 0}, CHAT[2], {**CHAT[3], "weight": 1}]},
            {"messages": CHAT[:2]},
        ],
        {},
        [
            [FIRST, ("<assistant>345<|end|>", 0.0), SECOND, ("<assistant>78<|end|>", 1.0)],
            [FIRST, ("<assistant>345<|end|>", 1.0)],
        ],
    ),
    (
        "ms-swift",
        [
            {"messages": [CHAT[0], {**CHAT[1], "loss_scale": 0.25}, CHAT[2], {**CHAT[3], "loss_scale": 3.0}]},
            {"messages": [CHAT[0], {**CHAT[1], "loss": False}, *CHAT[2:]]},
        ],
        {},
        [
            [FIRST, ("<assistant>345<|end|>", 0.25), SECOND, ("<assistant>78<|end|>", 3.0)],
            [FIRST, ("<assistant>345<|end|>", 0.0), SECOND, ("<assistant>78<|end|>", 1.0)],
        ],
    ),
    (
        "verl-sft",
        [{"messages": CHAT}],
        {},
        [[FIRST, ("<assistant>345<|end|>", 1.0), SECOND, ("<assistant>78<|end|>", 1.0)]],
    ),
    (
        "verl-rollouts",
        [
            {"input": "user\n1 + 2assistant\n", "output": "3", "gts": "3", "score": 1.0, "step": 1},
            {"input": "user\n1 + 2assistant\n", "output": "45", "gts": "3", "score": -0.5, "step": 1},
        ],
        {"weighting": "reward"},
        [
            [("user\n1 + 2assistant\n", None), ("3<|end|>", 1.0)],
            [("user\n1 + 2assistant\n", None), ("45<|end|>", -0.5)],
        ],
    ),
    (
        "rewards",
        [{"prompt": "1 + 2 =", "text": "3", "rating": 2.0}, {"prompt": "1 + 2 =", "text": "4", "rating": 0.5}],
        {"weighting": "reward"},
        [[("1 + 2 =", None), ("3<|end|>", 2.0)], [("1 + 2 =", None), ("4<|end|>", 0.5)]],
    ),
]


def loss_of(rows, tokenizer, cpu_args, **options):
    """What the trainer logs for one step on all the rows, and the model before it."""
    args = WeightedSFTConfig(**cpu_args, max_steps=1, per_device_train_batch_size=len(rows), **options)
    model = build_model(tokenizer, seed=0)
    trainer = WeightedSFTTrainer(model, args, train_dataset=Dataset.from_list(rows), processing_class=tokenizer)
    trainer.train()
    return trainer.state.log_history[0]["loss"], build_model(tokenizer, seed=0)


@pytest.mark.parametrize(("name", "rows", "options", "by_hand"), TRAINED, ids=[name for name, *_ in TRAINED])
def test_the_trainers_loss_of_converted_text_is_the_weighted_cross_entropy(
    chat_tokenizer, cpu_args, name, rows, options, by_hand
):
    loss, model = loss_of([imported(name, row) for row in rows], chat_tokenizer, cpu_args, **options)
    expected = dense_loss(model, [pieces(chat_tokenizer, *texts) for texts in by_hand])
    assert loss == pytest.approx(expected, rel=1e-5)


def test_where_the_template_marks_the_assistants_tokens_only_those_have_loss_and_count(chat_tokenizer, cpu_args):
    """As ms-swift divides: the headers, and what the user says, are no loss tokens."""
    chat_tokenizer.chat_template = (
        "{% for m in messages %}<{{ m['role'] }}>{% if m['role'] == 'assistant' %}{% generation %}{{ m['content'] }}"
        "<|end|>{% endgeneration %}{% else %}{{ m['content'] }}<|end|>{% endif %}{% endfor %}"
    )
    row = imported("ms-swift", {"messages": [CHAT[0], {**CHAT[1], "loss_scale": 0.25}, *CHAT[2:]]})
    loss, model = loss_of([row], chat_tokenizer, cpu_args, assistant_only_loss=True)
    first = [("<user>12<|end|><assistant>", None), ("345<|end|>", 0.25)]
    second = [("<user>6<|end|><assistant>", None), ("78<|end|>", 1.0)]
    assert loss == pytest.approx(dense_loss(model, [pieces(chat_tokenizer, *first, *second)]), rel=1e-5)


def test_the_trainers_loss_of_datums_is_tinkers_cross_entropy_over_the_tokens_that_it_trains_on(tokenizer, cpu_args):
    """Tinker: sum_t -weights[t] log p(target_tokens[t] | model_input[: t + 1]), by its own indices."""
    datums = [([5, 7, 9, 3], [7, 9, 3, 1], [0.0, 0.5, 2.0, 1.0]), ([4, 6], [6, 2], [0.0, -1.5])]
    rows = [imported("tinker", datum(x, target_tokens=y, weights=w)) for x, y, w in datums]
    loss, model = loss_of(rows, tokenizer, cpu_args)
    total = 0.0
    for tokens, targets, weights in datums:
        with torch.no_grad():
            log_probs = model(torch.tensor([tokens])).logits[0].log_softmax(-1)
        total -= sum(w * log_probs[t, y].item() for t, (y, w) in enumerate(zip(targets, weights, strict=True)))
    assert loss == pytest.approx(total / 4, rel=1e-5)


def test_at_the_policy_that_sampled_the_gradient_of_datums_is_tinkers_importance_sampling(tokenizer, cpu_args):
    """Tinker: sum_t -exp(log p - logprobs[t]) advantages[t], whose ratio is 1 there."""
    tokens, targets, advantages = [5, 7, 9], [7, 9, 3], [0.0, -1.5, 0.5]
    model = build_model(tokenizer, seed=0)
    of_targets = model(torch.tensor([tokens])).logits[0].log_softmax(-1)[range(3), targets]
    sampled = of_targets.detach()
    (-((of_targets - sampled).exp() * torch.tensor(advantages)).sum() / 2).backward()
    inputs = {"target_tokens": targets, "logprobs": sampled.tolist(), "advantages": advantages, "mask": [0, 1, 1]}
    row = imported("tinker", datum(tokens, **inputs))

    ours = build_model(tokenizer, seed=0)
    args = WeightedSFTConfig(**cpu_args, max_steps=1)
    trainer = WeightedSFTTrainer(ours, args, train_dataset=Dataset.from_list([row]), processing_class=tokenizer)
    batch = next(iter(trainer.get_train_dataloader()))
    trainer.compute_loss(ours, batch).backward()
    for theirs, mine in zip(model.parameters(), ours.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, theirs.grad, rtol=1e-4, atol=1e-6)


def test_online_sft_asks_the_prompts_of_verl_and_grades_by_their_ground_truth(chat_tokenizer, cpu_args):
    rows = [imported("verl", {**DAPO, "reward_model": {"ground_truth": str(n), "style": "rule"}}) for n in (2, 3)]
    seen = []

    def grade(prompts, completions, solution, reward_model_style, data_source, **columns):
        questions = [prompt[-1]["content"] for prompt in prompts]
        seen.extend(zip(questions, solution, reward_model_style, data_source, strict=True))
        return [math.sin(len(seen) + index) for index in range(len(completions))]

    sizes = {"max_steps": 1, "per_device_train_batch_size": 4, "max_completion_length": 4}
    trainer = OnlineSFTTrainer(
        build_model(chat_tokenizer, seed=0),
        [grade, MathVerificationReward()],
        OnlineSFTConfig(**cpu_args, **sizes),
        train_dataset=Dataset.from_list(rows),
        processing_class=chat_tokenizer,
    )
    trainer.train()
    assert set(seen) == {("1 + 1 =", "2", "rule", "math_dapo"), ("1 + 1 =", "3", "rule", "math_dapo")}
