"""The card of a model says how it was made, in numbers that can be looked up."""

import json
import re
from pathlib import Path

import yaml
from datasets import Dataset

from online_sft import (
    OnlineSFTConfig,
    OnlineSFTTrainer,
    SampledEvaluationCallback,
    WeightedSFTConfig,
    WeightedSFTTrainer,
)
from trainers.recording.setup import command, content_digest


def section(card, title):
    return re.search(rf"## {title}\n\n(.*?)(?=\n## |\Z)", card, re.DOTALL).group(1)


def right(completions, **columns):
    return [float("1" in text) for text in completions]


def test_the_card_of_an_online_run_has_method_ledger_data_evaluation_configuration_and_command(
    model, tokenizer, cpu_args, monkeypatch
):
    monkeypatch.setattr("sys.argv", ["train.py", "--learning_rate", "0.25"])
    data = Dataset.from_list([{"prompt": f"{a} + {a} ="} for a in range(8)])
    sizes = {"per_device_train_batch_size": 8, "max_completion_length": 4, "max_steps": 2, "eval_strategy": "steps"}
    args = OnlineSFTConfig(**{**cpu_args, **sizes}, eval_steps=2, top_p=0.5, learning_rate=0.25, seed=7)
    trainer = OnlineSFTTrainer(model, right, args, data, data.select([0]), processing_class=tokenizer)
    options = {"ks": (1,), "num_generations": 2, "max_completion_length": 4}
    trainer.add_callback(SampledEvaluationCallback(trainer, data, right, **options))
    trainer.train()
    trainer.create_model_card()
    card = Path("out/README.md").read_text()
    assert section(card, "What was optimised").startswith(
        "E[r], estimated with `prop3_stable` and baseline `optimal`.\n\nRewards: `right`."
    )
    assert "- `top_p=0.5`: unlikely tokens are never sampled" in card
    assert section(card, "Data") == f"8 rows as the trainer reads them, SHA-256 `{content_digest(data)}`.\n"
    logged = {name: value for entry in trainer.state.log_history for name, value in entry.items()}
    low, mean, high = (logged[f"eval_pass@1{end}"] for end in ("_low", "", "_high"))
    assert f"| `eval_pass@1` | {mean:.4g} | {low:.4g} to {high:.4g} | 2 |" in section(card, "Evaluation")
    assert "_low" not in section(card, "Evaluation")
    (fields,) = re.findall(r"```yaml\n(.*?)```", card, re.DOTALL)
    changed = yaml.safe_load(fields)
    assert (changed["top_p"], changed["learning_rate"], changed["seed"]) == (0.5, 0.25, 7)
    assert "beta" not in changed  # at its default
    assert f"```sh\n{command()}\n```" in card and "--learning_rate 0.25" in command()
    assert re.search(r"With online-sft \S+, python \S+, torch \S+", card) and "1 process," in card


def test_a_stream_and_a_huge_data_set_have_no_digest(model, tokenizer, cpu_args, monkeypatch):
    rows = Dataset.from_list([{"prompt": "1 + 1 =", "completion": "2", "advantages": 1.0}] * 4)
    args = WeightedSFTConfig(**{**cpu_args, "max_steps": 1})
    for data, said in ((rows.to_iterable_dataset(), "A stream: its rows were not counted."), (rows, "too many")):
        monkeypatch.setattr("trainers.recording.setup._MOST_BYTES", 10)
        WeightedSFTTrainer(model, args, train_dataset=data, processing_class=tokenizer).create_model_card()
        assert said in section(Path("out/README.md").read_text(), "Data")


def test_the_card_of_a_weighted_run_says_its_formula(model, tokenizer, cpu_args):
    rows = Dataset.from_list([{"prompt": "1 + 1 =", "completion": "2", "advantages": 1.0}] * 4)
    args = WeightedSFTConfig(**{**cpu_args, "max_steps": 1}, loss_denominator="sequences")
    trainer = WeightedSFTTrainer(model, args, train_dataset=rows, processing_class=tokenizer)
    trainer.create_model_card()  # before any training, too
    card = Path("out/README.md").read_text()
    formula = "L = -(1/D) sum_bt m_bt A_bt log p(y_bt | y_b,<t), D: sequences of the optimizer step."
    assert section(card, "What was optimised") == formula + "\n"
    assert "## Evaluation" not in card
    trainer.train()
    assert json.loads(Path("out/record/run.json").read_text())["objective"] + "." == formula
