"""What a newcomer does wrong ends in one line that names the thing, the value and the way out."""

import logging
import warnings

import pytest
from datasets import Dataset, DatasetDict
from wrong_inputs import DEMONSTRATIONS, MISTAKES, PAGE, PROMPTS, Mistake, cell_of, online, outcome, rows, weighted

from online_sft import OnlineSFTConfig, OnlineSFTTrainer, WeightedSFTConfig, WeightedSFTTrainer
from recipes.quickstart.tiny_model import build_model


@pytest.fixture(scope="module")
def tiny_model(tokenizer, tmp_path_factory):
    """One folder for all mistakes."""
    folder = tmp_path_factory.mktemp("tiny") / "model"
    build_model(tokenizer, seed=0).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda mistake: mistake.words)
def test_a_mistake_is_one_line_with_the_thing_the_value_and_the_way_out(mistake, tiny_model, tmp_path):
    code, lines = outcome(mistake, tiny_model, tmp_path)
    (message,) = [line for line in lines if ": error: " in line]
    assert code == 2
    assert message == lines[-1] and not [line for line in lines if "Traceback" in line]
    for part in (mistake.thing, mistake.value, mistake.way_out):
        assert part in message
    assert f"| {mistake.words} | {cell_of(message)} |\n" in PAGE.read_text(encoding="utf-8")


def test_the_page_has_no_other_mistakes():
    in_table = [line.split(" | ")[0].removeprefix("| ") for line in PAGE.read_text().splitlines() if " | `" in line]
    assert in_table == [mistake.words for mistake in MISTAKES]


RAISES = """
def raises(completions, trainer_state, **columns):
    if trainer_state.global_step == 1:
        raise KeyError("answer")
    return [1.0 for _ in completions]
"""


@pytest.mark.parametrize(
    ("options", "saved"),
    [
        ("--save_steps 1", "out/checkpoint-1 is saved: set resume_from_checkpoint=auto to go on from it"),
        ("--save_strategy no", "no step is saved yet"),
    ],
)
def test_a_reward_function_that_raises_keeps_its_traceback_and_says_what_is_saved(options, saved, tiny_model, tmp_path):
    mistake = Mistake("", online(options, reward="rewards.raises"), "", "", "", {"rewards.py": RAISES})
    with pytest.raises(ValueError) as failed:
        outcome(mistake, tiny_model, tmp_path)
    assert "reward function 'raises' raised KeyError: 'answer'. This was step 2 of 2; " in str(failed.value)
    assert saved in str(failed.value)
    assert isinstance(failed.value.__cause__, KeyError)


def test_advantages_that_are_all_0_are_told(tiny_model, tmp_path, caplog):
    mistake = Mistake("", weighted(), "", "", "", rows(DEMONSTRATIONS, advantages=0.0))
    with caplog.at_level(logging.WARNING):
        assert outcome(mistake, tiny_model, tmp_path)[0] == 0
    assert "every token of the train dataset has weight 0, so nothing is learnt" in caplog.text


def test_a_run_does_not_repeat_warnings_that_its_user_cannot_act_on(tiny_model, tmp_path):
    mistake = Mistake("", weighted("--activation_checkpointing true", "demonstrations.jsonl"), "", "", "")
    with warnings.catch_warnings(record=True) as shown:
        warnings.simplefilter("always")
        assert outcome(mistake, tiny_model, tmp_path)[0] == 0
    assert not [warning for warning in shown if "gradient_checkpointing" in str(warning.message)]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (PROMPTS, "the train dataset is a list; pass a data set of `datasets`, as Dataset.from_list"),
        (DatasetDict({"train": Dataset.from_list(PROMPTS)}), r"is one of splits \(train\); pass one of them"),
    ],
)
def test_what_is_no_data_set_is_named_in_python(data, message, cpu_args, tiny_model):
    with pytest.raises(ValueError, match=message):
        OnlineSFTTrainer(str(tiny_model), "math", OnlineSFTConfig(**cpu_args), data)


def test_a_reward_that_is_no_function_is_named_in_python(cpu_args, tiny_model):
    with pytest.raises(ValueError, match=r"3 is no reward function; give one that takes \(completions"):
        OnlineSFTTrainer(str(tiny_model), [3], OnlineSFTConfig(**cpu_args), Dataset.from_list(PROMPTS))


def test_a_folder_without_a_tokenizer_needs_one_as_argument(cpu_args, tokenizer, tmp_path):
    build_model(tokenizer, seed=0).save_pretrained(tmp_path / "bare")
    data = Dataset.from_list(DEMONSTRATIONS)
    config = WeightedSFTConfig(**cpu_args)
    WeightedSFTTrainer(str(tmp_path / "bare"), config, train_dataset=data, processing_class=tokenizer)
    with pytest.raises(ValueError, match=r"has no tokenizer \(tokenizer.json\)"):
        WeightedSFTTrainer(str(tmp_path / "bare"), config, train_dataset=data)
