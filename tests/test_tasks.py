"""The data of the tasks: every known layout on real rows, and what is merged, left out, held out and refused."""

import json
import logging
import re
from pathlib import Path

import pytest
from datasets import load_dataset

from online_sft import MathVerificationReward, prepare_dataset
from online_sft.layouts import LAYOUTS, layout_of
from recipes.tiny_models import CHAT_TEMPLATE, build_byte_tokenizer

DATA = Path(__file__).resolve().parent / "data" / "tasks"
PLAIN, CHAT = build_byte_tokenizer(), build_byte_tokenizer(CHAT_TEMPLATE)

NATALIA = (
    "Natalia sold clips to 48 of her friends in April, and then she sold half as many clips in May. How many clips did "
    "Natalia sell altogether in April and May?"
)
IN_DAPOS_WORDS = (
    "Solve the following math problem step by step. The last line of your response should be of the form Answer: "
    "$Answer (without quotes) where $Answer is the answer to the problem.\n\n" + NATALIA + "\n\n"
    'Remember to put your answer on its own line after "Answer:".'
)


def write(name, rows):
    Path(name).parent.mkdir(exist_ok=True)
    Path(name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return name


def prompts_and_solutions(*prompts_and_golds):
    return [{"prompt": prompt, "solution": gold} for prompt, gold in prompts_and_golds]


@pytest.fixture
def warnings_of(caplog):
    """The warnings of one call."""

    def run(*arguments, **options):
        caplog.clear()
        with caplog.at_level(logging.WARNING, logger="online_sft.tasks"):
            prepared = prepare_dataset(*arguments, **options)
        return prepared, [record.getMessage() for record in caplog.records]

    return run


# --- layouts


def test_gsm8k_is_put_into_dapos_prompt_and_its_test_split_is_the_validation():
    train, validation, lookup = prepare_dataset("math", PLAIN, str(DATA / "gsm8k"))
    assert train[0] == {"prompt": IN_DAPOS_WORDS, "solution": "72"}
    assert (len(train), len(validation), len(lookup)) == (20, 8, 28)
    assert lookup[IN_DAPOS_WORDS] == "72"
    assert validation["solution"][:3] == ["18", "3", "70000"]
    for part in (train, validation):
        assert [lookup[prompt] for prompt in part["prompt"]] == part["solution"]


def test_commas_of_gsm8k_golds_are_removed():
    write("big.jsonl", [{"question": "How many?", "answer": "1,000 times 2 is 2,000.\n#### 2,000"}])
    assert prepare_dataset("math", PLAIN, "big.jsonl")[0]["solution"] == ["2000"]


@pytest.mark.parametrize("left_out", ["solution", "answer"])
def test_math_golds_are_the_answers_and_else_what_the_solutions_box(left_out):
    rows = load_dataset("json", data_files=str(DATA / "math500.jsonl"), split="train")
    rows.remove_columns([left_out]).to_json("math.jsonl")
    train, _, lookup = prepare_dataset("math", PLAIN, "math.jsonl", validation_share=0)
    problems = [re.search(r"the problem\.\n\n(.*)\n\nRemember", text, re.DOTALL)[1] for text in train["prompt"]]
    assert problems == rows["problem"]
    assert [gold.replace(" ", "") for gold in train["solution"]] == [gold.replace(" ", "") for gold in rows["answer"]]
    assert list(lookup.values()) == train["solution"]


def test_dapos_prompts_stay_as_they_are_and_its_copies_are_merged(warnings_of):
    (train, validation, lookup), warnings = warnings_of("math", PLAIN, str(DATA / "dapo" / "train.parquet"))
    (warning,) = warnings
    assert warning.startswith("merged 24 copies of prompts in the train split of ")
    assert (len(train), len(validation), len(lookup)) == (11, 1, 12)
    assert lookup[IN_DAPOS_WORDS] == "72"
    as_chats = prepare_dataset("math", CHAT, str(DATA / "dapo"))[0]
    assert [[{"role": "user", "content": text}] for text in train["prompt"]] == as_chats["prompt"]


def test_our_own_layout_and_an_integer_gold():
    chat = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "1 + 1 ="}]
    write("texts.jsonl", prompts_and_solutions(("2 + 2 =", 4)))
    write("chats.jsonl", prompts_and_solutions((chat, "2")))
    assert prepare_dataset("math", PLAIN, "texts.jsonl")[0][0] == {"prompt": "2 + 2 =", "solution": "4"}
    train, _, lookup = prepare_dataset("math", CHAT, "chats.jsonl")
    assert train["prompt"] == [chat]
    assert lookup == {"1 + 1 =": "2"}


def test_problems_of_reasoning_gym_by_name():
    train, validation, lookup = prepare_dataset("math", PLAIN, "reasoning_gym:chain_sum", seed=3)
    assert len(train) + len(validation) == len(lookup) > 4_000
    for text, gold in list(lookup.items())[:100]:
        terms = re.search(r"problem: ([\d+ -]+) =\n", text)[1].replace(" ", "")
        assert sum(int(term) for term in re.findall(r"[+-]?\d+", terms)) == int(gold)
    assert prepare_dataset("math", PLAIN, "reasoning_gym:chain_sum", seed=3)[0]["prompt"] == train["prompt"]
    assert prepare_dataset("math", PLAIN, "reasoning_gym:chain_sum", seed=4)[0]["prompt"] != train["prompt"]


def test_items_of_reasoning_gym_in_a_file_are_not_taken_for_gsm8k():
    write("gym.jsonl", [{"question": "1 + 1 =", "answer": "2", "metadata": {"source_dataset": "chain_sum"}}])
    assert prepare_dataset("math", PLAIN, "gym.jsonl")[0]["solution"] == ["2"]


def test_openais_comparisons_become_the_tldr_prompt():
    comparison = str(DATA / "tldr" / "comparison.json")
    train, _, lookup = prepare_dataset("tldr", PLAIN, comparison)
    assert lookup is None
    assert train.column_names == ["prompt"]
    (prompt,) = train["prompt"]
    post = json.loads(Path(comparison).read_text())["info"]["post"]
    title = "Anybody with knowledge of the Dutch law around ? car accident questions."
    assert prompt == f"SUBREDDIT: r/legaladvice\n\nTITLE: {title}\n\nPOST: {post}\n\nTL;DR:"


def test_trls_tldr_data_sets_come_with_prompts():
    posts = load_dataset("json", data_files=str(DATA / "tldr" / "posts.jsonl"), split="train")
    train, validation, _ = prepare_dataset("tldr", PLAIN, str(DATA / "tldr" / "posts.jsonl"))
    assert sorted([*train["prompt"], *validation["prompt"]]) == sorted(posts["prompt"])
    preferences = [
        {"prompt": text, "chosen": [{"role": "assistant", "content": "a"}], "rejected": [], "label": 1}
        for text in posts["prompt"]
    ]
    write("preferences/train.jsonl", preferences[2:])
    write("preferences/validation.jsonl", preferences[:2])
    train, validation, _ = prepare_dataset("tldr", CHAT, "preferences")
    assert [prompt[0]["content"] for prompt in train["prompt"]] == posts["prompt"][2:]
    assert validation["prompt"] == [[{"role": "user", "content": text}] for text in posts["prompt"][:2]]


@pytest.mark.parametrize("name", ["gsm8k", "math500.jsonl", "dapo", "reasoning_gym:gcd"])
def test_the_reward_grades_what_is_prepared(name):
    train, _, lookup = prepare_dataset("math", CHAT, name if ":" in name else str(DATA / name))
    train = train.select(range(9))
    completions = [[{"role": "assistant", "content": f"Answer: {gold}"}] for gold in train["solution"]]
    for reward in (MathVerificationReward(), MathVerificationReward(reward_lookup=lookup)):
        assert reward.check_dataset({name: train[name] for name in train.column_names}) == []
        columns = {} if reward.reward_lookup else {"solution": train["solution"]}
        assert reward(completions, prompts=train["prompt"], **columns) == [1.0] * 9


def test_every_layout_is_found_by_its_own_columns():
    for task, layouts in LAYOUTS.items():
        assert [layout_of(task, [*layout.columns, "id"]) for layout in layouts] == list(layouts)


# --- lengths


@pytest.mark.parametrize("tokenizer", [PLAIN, CHAT], ids=["plain", "chat"])
def test_longer_prompts_are_left_out_and_counted(warnings_of, tokenizer):
    write("sums.jsonl", prompts_and_solutions(*[("x" * length, "1") for length in (5, 6, 7, 60)]))
    around = len("<user>") + 1 + len("<assistant>") if tokenizer is CHAT else 0  # <|end|> is one token
    (train, _, lookup), warnings = warnings_of(
        "math", tokenizer, "sums.jsonl", max_prompt_length=6 + around, validation_share=0
    )
    assert sorted(lookup) == ["x" * 5, "x" * 6]
    assert len(train) == 2
    assert warnings == [
        "left out 2 of 4 prompts of the train split of sums.jsonl, which have more than "
        f"max_prompt_length={6 + around} tokens, the longest {60 + around}"
    ]


def test_nothing_is_said_where_nothing_is_left_out(warnings_of):
    assert warnings_of("math", PLAIN, str(DATA / "gsm8k"), max_prompt_length=4096)[1] == []


# --- copies, contradictions, leaks


def test_prompts_with_two_golds_are_left_out_and_one_is_shown(warnings_of):
    rows = prompts_and_solutions(("a", "1"), ("b", "2"), ("a", "3"), ("c", "4"), ("b", " 2 "), ("a", "1"))
    write("rows.jsonl", rows)
    (_, _, lookup), warnings = warnings_of("math", PLAIN, "rows.jsonl")
    assert lookup == {"b": "2", "c": "4"}
    assert warnings == [
        "merged 3 copies of prompts in the train split of rows.jsonl",
        "left out 1 of 3 prompts of the train split of rows.jsonl, which have several golds: 'a' has '1' and '3'",
    ]


def test_no_validation_prompt_is_in_train(warnings_of):
    write("data/train.jsonl", prompts_and_solutions(("a", "1"), ("b", "2"), ("c", "3"), ("d", "4")))
    write("data/test.jsonl", prompts_and_solutions(("b", "2"), ("c", "33"), ("e", "5")))
    (train, validation, lookup), warnings = warnings_of("math", PLAIN, "data")
    assert train["prompt"] == ["a", "d"]
    assert validation["prompt"] == ["b", "e"]
    assert lookup == {"a": "1", "b": "2", "d": "4", "e": "5"}
    assert warnings == [
        "left out 2 of 4 training prompts of data, which are validation prompts, and 1 of those, too, since their "
        "golds differ"
    ]


def test_the_validation_split_goes_before_the_test_split():
    for split in ("train", "validation", "test"):
        write(f"data/{split}.jsonl", prompts_and_solutions((split, "1")))
    assert prepare_dataset("math", PLAIN, "data")[1]["prompt"] == ["validation"]


@pytest.mark.parametrize(("share", "number"), [(0.0, 0), (0.001, 1), (0.25, 10), (0.99, 39)])
def test_a_share_is_held_out_by_seed(share, number):
    write("rows.jsonl", prompts_and_solutions(*[(f"{n}?", str(n)) for n in range(40)]))
    parts = [prepare_dataset("math", PLAIN, "rows.jsonl", validation_share=share, seed=seed)[:2] for seed in (1, 1, 2)]
    train, validation = parts[0]
    assert len(validation) == number
    assert sorted([*train["prompt"], *validation["prompt"]]) == sorted(f"{n}?" for n in range(40))
    assert parts[1][1].to_list() == validation.to_list()
    assert number == 0 or parts[2][1].to_list() != validation.to_list()


def test_copies_are_merged_before_the_share_is_held_out():
    write("rows.jsonl", prompts_and_solutions(*[(f"{n % 5}?", str(n % 5)) for n in range(500)]))
    train, validation, _ = prepare_dataset("math", PLAIN, "rows.jsonl", validation_share=0.4)
    assert (len(train), len(validation)) == (3, 2)
    assert not set(train["prompt"]) & set(validation["prompt"])


# --- mistakes

SQUAD = [{"context": "c", "question": "q", "answers": ["a"]}]
TWO_MESSAGES = [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}]


@pytest.mark.parametrize(
    ("task", "rows", "message"),
    [
        ("math", SQUAD, r"the columns context, question, answers are of no layout known for math\. Known are: DAPO \("),
        ("math", SQUAD, r"reward_model\); ours \(prompt, solution\); .* GSM8K \(question, answer\); MATH-500 \("),
        ("tldr", SQUAD, r"no layout known for tldr\. Known are: TRL's \(prompt\); OpenAI's comparisons \(info\); "),
        ("math", [{"question": "q", "answer": "42"}], "row 0 of the train split of rows.jsonl, read as GSM8K: .* '42'"),
        ("tldr", [{"info": {"id": "x", "article": "news"}}], "row 0 .*: .* this one lacks subreddit, title, post"),
        ("math", prompts_and_solutions((7, "7")), "row 0 .*, read as ours: .* a string or a list of messages; got 7"),
        (
            "math",
            prompts_and_solutions((TWO_MESSAGES, "7")),
            "a chat of 2 messages, and the tokenizer has no chat temp",
        ),
        ("math", prompts_and_solutions(("a", "1"), ("a", "2")), "no prompt of rows.jsonl is left to train on"),
        ("code", SQUAD, "task must be one of tldr, math; got 'code'"),
    ],
)
def test_data_that_cannot_be_used_is_named(task, rows, message):
    with pytest.raises(ValueError, match=message):
        prepare_dataset(task, PLAIN, write("rows.jsonl", rows))


def test_data_that_cannot_be_loaded_is_named():
    with pytest.raises(ValueError, match=r"cannot load 'missing.jsonl': .*missing.jsonl"):
        prepare_dataset("math", PLAIN, "missing.jsonl")
    Path("broken.jsonl").write_text('{"a": 1')
    with pytest.raises(ValueError, match=r"cannot load 'broken.jsonl': JSON parse error"):
        prepare_dataset("math", PLAIN, "broken.jsonl")
    write("data/test.jsonl", SQUAD)
    with pytest.raises(ValueError, match="data has no train split; it has test"):
        prepare_dataset("math", PLAIN, "data")
    with pytest.raises(ValueError, match="no_such_problems"):
        prepare_dataset("math", PLAIN, "reasoning_gym:no_such_problems")
    with pytest.raises(ValueError, match="validation_share must be at least 0 and less than 1; got 1"):
        prepare_dataset("math", PLAIN, str(DATA / "gsm8k"), validation_share=1)


def test_without_a_name_the_task_chooses_the_data():
    """Offline, what cannot be loaded is named."""
    with pytest.raises(ValueError, match="cannot load 'BytedTsinghua-SIA/DAPO-Math-17k'"):
        prepare_dataset("math", PLAIN)
    with pytest.raises(ValueError, match="cannot load 'trl-internal-testing/tldr-preference-sft-trl-style'"):
        prepare_dataset("tldr", PLAIN)
