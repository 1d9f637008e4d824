"""The forms in which weights may come, and what is left of them after TRL's preparation."""

import json

import numpy as np
import pytest
import torch
from datasets import Dataset, IterableDataset

from online_sft import WeightedSFTConfig, WeightedSFTTrainer
from recipes.quickstart.tiny_model import build_model, build_tokenizer

# One token each, so that which token is whose can be counted by hand; <|end|> ends every message.
TEMPLATE = (
    "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
CONVERSATION = [
    {"role": "user", "content": "12"},
    {"role": "assistant", "content": "3", "weight": 0.0},
    {"role": "user", "content": "4"},
    {"role": "assistant", "content": "56", "weight": -2.0},
]


@pytest.fixture
def chat_tokenizer():
    tokenizer = build_tokenizer(["<user>", "<assistant>", " + ", " =", " Answer: "])
    tokenizer.chat_template = TEMPLATE
    return tokenizer


@pytest.fixture
def prepared(chat_tokenizer, cpu_args):
    """Rows as the trainer will read them, with the arguments given."""

    def prepare(rows, stream=False, weighting=None, **options):
        data = IterableDataset.from_generator(lambda: iter(rows)) if stream else Dataset.from_list(rows)
        trainer = WeightedSFTTrainer(
            build_model(chat_tokenizer, seed=0),
            WeightedSFTConfig(**{**cpu_args, "max_steps": 1, **options}),
            train_dataset=data,
            processing_class=chat_tokenizer,
            weighting=weighting,
        )
        return list(trainer.train_dataset)

    return prepare


def column(rows, name="advantages"):
    return [row[name] for row in rows]


def test_a_number_per_row_is_on_every_token(prepared):
    (row,) = prepared([{"prompt": "1 + 2 =", "completion": "3", "advantages": -0.5}])
    assert row["advantages"] == [-0.5] * len(row["input_ids"])
    assert [label != -100 for label in row["labels"]] == [False] * 4 + [True] * 2  # `3` and the end


def test_text_takes_one_advantage_per_token_or_per_completion_token(prepared):
    text = {"prompt": "1 + 2 =", "completion": "3"}
    per_completion = prepared([{**text, "advantages": [2.0, -1.0]}])
    per_token = prepared([{**text, "advantages": [0.0, 0.0, 0.0, 0.0, 2.0, -1.0]}])
    assert column(per_completion) == column(per_token) == [[0.0] * 4 + [2.0, -1.0]]


@pytest.mark.parametrize("stream", [False, True])
def test_a_weight_on_a_message_is_on_its_tokens_and_multiplies_the_rows(prepared, stream):
    (row,) = prepared([{"messages": CONVERSATION, "advantages": 3.0}], stream=stream)
    assert row["advantages"] == [3.0] * 4 + [0.0] * 3 + [3.0] * 3 + [-6.0] * 4
    assert len(row["input_ids"]) == 14


def test_message_weights_alone_are_enough_and_missing_ones_are_one(prepared):
    rows = prepared(
        [{"messages": CONVERSATION}, {"messages": CONVERSATION[:1] + [{"role": "assistant", "content": "7"}]}]
    )
    assert column(rows) == [[1.0] * 4 + [0.0] * 3 + [1.0] * 3 + [-2.0] * 4, [1.0] * 7]


def test_messages_of_prompt_and_completion_have_weights_too(prepared):
    (row,) = prepared([{"prompt": CONVERSATION[:3], "completion": CONVERSATION[3:]}])
    assert row["advantages"] == [1.0] * 4 + [0.0] * 3 + [1.0] * 3 + [-2.0] * 4
    assert [label != -100 for label in row["labels"]] == [False] * 11 + [True] * 3  # after the generation prompt


def test_from_value_conversations_have_weights_too(prepared):
    names = {"role": "from", "content": "value", "weight": "weight"}
    foreign = [{names[key]: value for key, value in message.items()} for message in CONVERSATION]
    assert column(prepared([{"conversations": foreign}])) == column(prepared([{"messages": CONVERSATION}]))


def test_a_template_that_renders_history_differently_is_named(prepared, chat_tokenizer):
    chat_tokenizer.chat_template = TEMPLATE.replace(
        "{{ m['content'] }}", "{% if loop.last %}{{ m['content'] }}{% endif %}"
    )
    with pytest.raises(ValueError, match=r"row 0 .* renders the first 1 messages differently when more follow"):
        prepared([{"messages": CONVERSATION}])


def test_a_template_that_refuses_part_of_a_conversation_is_named(prepared, chat_tokenizer):
    chat_tokenizer.chat_template = "{% if messages|length < 4 %}{{ raise_exception('no query') }}{% endif %}" + TEMPLATE
    with pytest.raises(ValueError, match=r"row 0 .* cannot render the first 1: no query; set chat_template_path"):
        prepared([{"messages": CONVERSATION}])


def test_tools_may_be_json_as_trl_takes_them(prepared, chat_tokenizer):
    tool = {"type": "function", "function": {"name": "add", "description": "", "parameters": {}}}
    chat_tokenizer.chat_template = "{% for tool in tools %}7{% endfor %}" + TEMPLATE
    (row,) = prepared([{"messages": CONVERSATION, "tools": json.dumps([tool])}])
    assert row["advantages"] == [1.0] * 5 + [0.0] * 3 + [1.0] * 3 + [-2.0] * 4


def test_source_aligned_rows_move_to_their_targets(prepared):
    source = {"input_ids": [2, 3, 4, 5], "advantages": [1.0, 2.0, 3.0, 9.0], "loss_mask": [0, 1, 1, 0]}
    (row,) = prepared([source], align="source")
    assert row["labels"] == [-100, -100, 4, 5]
    assert row["advantages"] == [0.0, 1.0, 2.0, 3.0]


def test_labels_are_targets_in_source_alignment_too(prepared):
    (row,) = prepared([{"input_ids": [2, 3, 4], "labels": [-100, 3, 4], "advantages": [5.0, 6.0, 7.0]}], align="source")
    assert row["labels"] == [-100, 3, 4]
    assert row["advantages"] == [0.0, 5.0, 6.0]


def test_source_alignment_of_text_is_refused(prepared):
    with pytest.raises(ValueError, match=r"row 0 .* align='source' is for tokenised rows"):
        prepared([{"prompt": "1 + 2 =", "completion": "3", "advantages": [1.0, 2.0]}], align="source")


def test_without_advantage_weighting_every_weight_is_one(prepared):
    rows = [{"messages": CONVERSATION, "advantages": 3.0}]
    assert column(prepared(rows, use_advantage_weighting=False)) == [[1.0] * 14]
    assert column(prepared([{"prompt": "1", "completion": "2"}], use_advantage_weighting=False)) == [[1.0] * 3]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("strategy", "expected"),
    [
        ("bfd", [[0.1, 0.2, 0.3], [0.6, 0.7, 0.8]]),
        ("bfd_split", [[0.1, 0.2, 0.3], [0.6, 0.7, 0.8], [0.4, 0.5]]),
        ("wrapped", [[0.1, 0.2, 0.3], [0.4, 0.5, 0.6], [0.7, 0.8]]),
    ],
)
def test_packing_moves_each_weight_with_its_token(prepared, strategy, expected, stream):
    rows = [
        {"input_ids": [1, 2, 3, 4, 5], "labels": [1, 2, 3, 4, 5], "advantages": [0.1, 0.2, 0.3, 0.4, 0.5]},
        {"input_ids": [6, 7, 8], "labels": [6, 7, 8], "advantages": [0.6, 0.7, 0.8]},
    ]
    packed = prepared(rows, stream, packing=True, packing_strategy=strategy, max_length=3, shuffle_dataset=False)
    assert sorted(column(packed)) == sorted(expected)
    for row in packed:
        assert [round(10 * advantage) for advantage in row["advantages"]] == row["input_ids"]


@pytest.mark.parametrize("options", [{"packing": True, "max_length": 6}, {"align": "source"}], ids=str)
def test_evaluating_a_dataset_that_is_prepared_already_does_not_prepare_it_again(chat_tokenizer, cpu_args, options):
    rows = Dataset.from_list([{"input_ids": [2, 3, 4, 5], "advantages": [3.0, -1.0, 2.0, 0.0]}] * 4)
    trainer = WeightedSFTTrainer(
        build_model(chat_tokenizer, seed=0),
        WeightedSFTConfig(**cpu_args, **options),
        train_dataset=rows,
        eval_dataset=rows,
        processing_class=chat_tokenizer,
    )
    direct, again = trainer.evaluate()["eval_loss"], trainer.evaluate(trainer.eval_dataset)["eval_loss"]
    assert again == direct != 0.0


def test_a_part_of_a_prepared_dataset_is_prepared_too_and_the_users_own_is_not_marked(chat_tokenizer, cpu_args):
    rows = Dataset.from_list([{"input_ids": [2, 3, 4, 5 + i], "advantages": [3.0, -1.0, 2.0, 0.0]} for i in range(4)])
    args = WeightedSFTConfig(**cpu_args, align="source")
    model = build_model(chat_tokenizer, seed=0)
    trainer = WeightedSFTTrainer(model, args, train_dataset=rows, processing_class=chat_tokenizer)
    raw, prepared = rows.select([1, 2]), trainer.train_dataset.select([1, 2])
    assert trainer.evaluate(prepared)["eval_loss"] == trainer.evaluate(raw)["eval_loss"]
    again = WeightedSFTTrainer(model, args, train_dataset=rows, processing_class=chat_tokenizer)
    assert again.train_dataset[0]["advantages"] == [0.0, 3.0, -1.0, 2.0]


def test_a_stream_may_yield_arrays_tensors_and_numpys_numbers(prepared):
    plain = {"input_ids": [2, 3, 4, 5], "advantages": [1.0, 2.0, 3.0, 9.0], "loss_mask": [0, 1, 1, 0]}
    arrays = {name: np.array(values) for name, values in plain.items()}
    tensors = {name: torch.tensor(values) for name, values in plain.items()}
    expected = prepared([plain], align="source")
    for rows in ([arrays], [tensors]):
        (row,) = prepared(rows, stream=True, align="source")
        assert {name: list(row[name]) for name in expected[0]} == expected[0]
    (row,) = prepared([{"input_ids": [2, 3], "advantages": np.float32(2.5)}], stream=True)
    assert row["advantages"] == [2.5, 2.5]


def test_whole_numbers_and_fractions_mix(prepared):
    """Message weights make fractions of whole numbers, late in a table whose column holds integers."""
    rows = [{"messages": CONVERSATION[:1], "advantages": 3}] * 1500
    half = [{**CONVERSATION[0], "weight": 0.5}]
    assert prepared([*rows, {"messages": half, "advantages": 3}])[-1]["advantages"] == [1.5] * 4


def test_a_later_row_of_a_stream_without_advantages_is_named(prepared):
    rows = [{"input_ids": [2, 3], "advantages": 2.0}, {"input_ids": [4, 5]}]
    with pytest.raises(ValueError, match="row 1 of the train dataset has no `advantages`, and earlier rows have"):
        prepared(rows, stream=True)


def test_labels_and_masks_apply_together(prepared):
    (row,) = prepared([{"input_ids": [2, 3, 4], "labels": [2, 3, -100], "loss_mask": [0, 1, 1], "advantages": 1.0}])
    assert row["labels"] == [-100, 3, -100]


def test_labels_that_are_not_the_tokens_stay_under_a_mask(prepared):
    (row,) = prepared([{"input_ids": [2, 3, 4], "labels": [-100, 7, 8], "loss_mask": [1, 1, 0], "advantages": 1.0}])
    assert row["labels"] == [-100, 7, -100]


@pytest.mark.parametrize(
    ("row", "options", "message"),
    [
        ({"labels": [2, -1, 4]}, {}, "row 0 .* has the label -1; a token without loss has the label -100"),
        ({"labels": [2, 3], "loss_mask": [1, 1, 1]}, {}, "row 0 .* has 2 labels for 3 tokens"),
        ({"ref_log_probs": -5.0}, {}, "row 0 .* has ref_log_probs -5.0; give a list, one per token"),
        ({"ref_log_probs": [-5.0]}, {}, "row 0 .* has 1 ref_log_probs for 3 tokens"),
    ],
)
def test_tokenised_rows_that_would_be_misread_are_named(prepared, row, options, message):
    with pytest.raises(ValueError, match=message):
        prepared([{"input_ids": [2, 3, 4], "advantages": 1.0, **row}], **options)


def test_an_empty_dataset_is_named(chat_tokenizer, cpu_args):
    rows = Dataset.from_list([{"input_ids": [2, 3], "advantages": 1.0}])
    model, args = build_model(chat_tokenizer, seed=0), WeightedSFTConfig(**cpu_args)
    with pytest.raises(ValueError, match="the eval dataset is empty"):
        WeightedSFTTrainer(
            model, args, train_dataset=rows, eval_dataset={"eval": rows.select([])}, processing_class=chat_tokenizer
        )


GRADED = [
    {"prompt": "1 + 1 =", "completion": "2", "reward": 1.0},
    {"prompt": "1 + 1 =", "completion": "3", "reward": 0.0},
    {"prompt": "2 + 1 =", "completion": "3", "reward": 0.5},
    {"prompt": "2 + 1 =", "completion": "5", "reward": -1.0},
]


def test_rewards_become_weights_prompt_by_prompt(chat_tokenizer, cpu_args):
    args = WeightedSFTConfig(**cpu_args, weighting="top_k", weighting_kwargs={"k": 1})
    trainer = WeightedSFTTrainer(
        build_model(chat_tokenizer, seed=0),
        args,
        train_dataset=Dataset.from_list(GRADED),
        processing_class=chat_tokenizer,
    )
    kept = [chat_tokenizer.decode(row["input_ids"][-2:-1]) for row in trainer.train_dataset]
    assert kept == ["2", "3"]
    assert all(set(row["advantages"]) == {1.0} for row in trainer.train_dataset)


def test_a_weighting_of_ones_own_sees_rewards_and_groups(prepared):
    seen = {}

    def halved(rewards, groups):
        seen.update(rewards=rewards.tolist(), groups=groups.tolist())
        return rewards / 2 + 1

    rows = prepared(GRADED, weighting=halved)
    assert seen["rewards"] == [1.0, 0.0, 0.5, -1.0]
    assert seen["groups"][0] == seen["groups"][1] != seen["groups"][2] == seen["groups"][3]
    assert [row["advantages"][0] for row in rows] == [1.5, 1.0, 1.25, 0.5]


def test_rows_of_weight_zero_stay_where_a_normalisation_compares_them(prepared, caplog):
    binary = [{**row, "reward": float(row["reward"] > 0)} for row in GRADED]
    assert len(prepared(binary, weighting=lambda rewards, groups: rewards)) == 2
    assert "gives 2 of 4 rows of the train dataset weight 0; they are left out" in caplog.text
    kept = prepared(binary, weighting=lambda rewards, groups: rewards, advantage_normalization="group")
    assert [row["advantages"][0] for row in kept] == [1.0, 0.0, 1.0, 0.0]


def test_a_group_column_takes_the_place_of_the_prompt(prepared):
    groups = {}
    rows = [{**row, "group": name} for row, name in zip(GRADED, ["a", "b", "a", "b"], strict=True)]
    prepared(rows, weighting=lambda rewards, ids: groups.update(ids=ids.tolist()) or rewards + 2)
    assert groups["ids"][0] == groups["ids"][2] != groups["ids"][1] == groups["ids"][3]


@pytest.mark.parametrize(
    ("rows", "options", "message"),
    [
        ([{**GRADED[0], "advantages": 1.0}], {}, "a weighting makes weights from a `reward` column, instead of"),
        ([{"prompt": "1", "completion": "2"}], {}, "makes weights from a `reward` column.* has prompt, completion"),
        ([{**GRADED[0], "reward": float("nan")}], {}, "row 0 of the train dataset has reward nan"),
        ([{**GRADED[0], "reward": "1.0"}], {}, "row 0 of the train dataset has reward '1.0'"),
        ([{**GRADED[0], "group": "a"}, {**GRADED[1], "group": None}], {}, "row 1 .* has group None"),
        (GRADED, {"stream": True}, "compares the rewards of the whole train dataset, which is a stream"),
        ([{"input_ids": [2, 3], "reward": 1.0}], {}, "row 0 .* has no prompt: .*; add a `group` column"),
    ],
)
def test_data_that_a_weighting_cannot_use_is_named(prepared, rows, options, message):
    with pytest.raises(ValueError, match=message):
        prepared(rows, weighting=lambda rewards, groups: rewards, **options)


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ([1.0], r"must return one finite weight per row, \[4\]; got \[1\]"),
        ([1.0, 1.0, 1.0, float("inf")], "got .4., 1 of them not finite"),
        ([0.0] * 4, "gives every row of the train dataset weight 0"),
    ],
)
def test_weights_that_cannot_be_used_are_named(prepared, weights, message):
    with pytest.raises(ValueError, match=message):
        prepared(GRADED, weighting=lambda rewards, groups: rewards.new_tensor(weights))
