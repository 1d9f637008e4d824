"""The record of a run says what happened, token by token; a run that was stopped has that of one that was not."""

import json
import re
import sys
import time

import pytest
import torch
from datasets import Dataset, concatenate_datasets
from record_tools import setup as a_setup
from resume_tools import trainer_of
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE, WordLevel
from tokenizers.trainers import BpeTrainer
from trajectory_tools import chat_tokenizer, ragged_trajectories
from transformers import PreTrainedTokenizerFast, TrainerState

from online_sft import (
    OnlineSFTConfig,
    OnlineSFTTrainer,
    TrajectorySFTConfig,
    TrajectorySFTTrainer,
    WeightedSFTConfig,
    WeightedSFTTrainer,
)
from online_sft.metric_reference import METRICS, metric_of
from online_sft.record.folder import RecordError, RecordFolder, read_record
from online_sft.record.sample import Sample
from recipes.quickstart.tiny_model import build_model
from trainers.recording import setup
from trainers.recording.costs import Costs
from trainers.recording.recorder import _distribution
from trainers.recording.stopwatch import Stopwatch
from trainers.token_texts import token_texts

SUMS = [{"prompt": f"{a} + {b} ="} for a in (0, 7, 23, 456) for b in range(2)]  # of several lengths


def graded(completion_ids, **columns):
    return [None if sum(ids) % 11 == 0 else sum(ids) % 7 / 2 for ids in completion_ids]


def online(model, tokenizer, cpu_args, **options):
    sizes = {"per_device_train_batch_size": 8, "max_completion_length": 6, "max_steps": 2, "record_samples": 8}
    args = OnlineSFTConfig(**{**cpu_args, **sizes, **options})
    return OnlineSFTTrainer(model, graded, args, Dataset.from_list(SUMS), processing_class=tokenizer)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"beta": 0.3},
        {"estimator": "prop3"},
        {"normalize_logprob_by_length": True},
        {"mask_truncated_completions": True},
        {"steps_per_generation": 2, "num_iterations": 2, "learning_rate": 1e-2, "max_steps": 4},
    ],
    ids=str,
)
def test_the_recorded_weights_are_what_multiplies_the_gradients_of_the_tokens_log_probs(
    options, saved_model, tokenizer, cpu_args, monkeypatch
):
    """A step's gradient is that of sum_t w_t (-log p_t), over its denominator: the completions that count."""
    trainer = online(saved_model, tokenizer, cpu_args, max_grad_norm=1e9, **options)
    steps, compute = [], trainer._compute_loss

    def kept(model, inputs):
        loss = compute(model, inputs)
        gradients = torch.autograd.grad(loss, list(trainer.model.parameters()), retain_graph=True)
        samples = read_record("out").samples[-len(inputs["completion_ids"]) :]  # in the order of the batch
        log_probs, *_ = trainer._log_probs(model, inputs)
        weights = torch.zeros_like(log_probs)
        for row, sample in enumerate(samples):
            of_completion = [w or 0.0 for w in sample.weights[int(inputs["prompt_mask"][row].sum()) :]]
            weights[row, : len(of_completion)] = torch.tensor(of_completion)
        share = trainer.args.steps_per_generation
        by_hand = -(weights * log_probs).sum() * share / inputs["num_scored"].clamp(min=1)
        expected = torch.autograd.grad(by_hand, list(trainer.model.parameters()))
        steps.append((torch.cat([g.flatten() for g in gradients]), torch.cat([g.flatten() for g in expected])))
        return loss

    monkeypatch.setattr(trainer, "_compute_loss", kept)
    trainer.train()
    assert len(steps) == trainer.args.max_steps and any(found.abs().max() > 0 for found, _ in steps)
    for found, expected in steps:
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5 * found.abs().max().item())


@pytest.mark.parametrize("scale_rewards", ["none", "group"])
def test_a_completion_is_recorded_with_its_prompt_reward_and_advantage(scale_rewards, model, tokenizer, cpu_args):
    trainer = online(model, tokenizer, cpu_args, max_steps=1, scale_rewards=scale_rewards)
    trainer.train()
    record = read_record("out")
    assert len(record.samples) == 8
    for sample in record.samples:
        prompt = "".join(token for token, weight in zip(sample.tokens, sample.weights, strict=True) if weight is None)
        completion = sample.tokens[sample.weights.count(None) :]
        assert prompt in [row["prompt"] for row in SUMS]
        (reward,) = graded([tokenizer.convert_tokens_to_ids(list(completion))])
        assert sample.values["reward"] == reward
        if sample.values["reward"] is None:
            assert set(sample.weights) == {None, 0.0}  # unscorable: no gradient
            assert (sample.values["advantage"], sample.values["log_prob"]) == (None, None)
        else:
            assert set(sample.weights) == {None, sample.values["advantage"]}


def test_rows_are_recorded_as_they_are_weighted_also_packed(model, tokenizer, cpu_args):
    rows = [
        {"prompt": "1 + 1 =", "completion": "2", "advantages": 2.0},
        {"prompt": "2 + 3 =", "completion": "5", "advantages": -4.0},
        {"prompt": "7 + 1 =", "completion": "9", "advantages": 0.0},
    ]
    clipped = {"1 + 1 =2": 1.5, "2 + 3 =5": -1.5, "7 + 1 =9": 0.0}
    for packing in (False, True):
        sizes = {"per_device_train_batch_size": 3, "max_steps": 1, "packing": packing, "max_length": 64}
        args = WeightedSFTConfig(**{**cpu_args, **sizes}, advantage_clipping=[-1.5, 1.5])
        data = Dataset.from_list(rows)
        WeightedSFTTrainer(model, args, train_dataset=data, processing_class=tokenizer).train()
        samples = read_record("out").samples
        found = {"".join(sample.tokens).replace(tokenizer.eos_token, ""): sample for sample in samples}
        assert len(samples) == 3 and set(found) == set(clipped)
        for text, sample in found.items():
            num_prompt_tokens = len(tokenizer.encode(text[:7]))
            assert sample.weights[:num_prompt_tokens] == (None,) * num_prompt_tokens
            assert set(sample.weights[num_prompt_tokens:]) == {clipped[text]}


def test_the_tokens_of_trajectories_have_the_weights_of_their_actions(cpu_args):
    tokenizer = chat_tokenizer()
    sizes = {"per_device_train_batch_size": 4, "max_steps": 1, "max_length": 400, "record_samples": 4}
    args = TrajectorySFTConfig(**{**cpu_args, **sizes}, mode="combined", reward_weighting="reward_to_go", bc_weight=0.5)
    trainer = TrajectorySFTTrainer(
        build_model(tokenizer, seed=0), args, train_dataset=ragged_trajectories(4), processing_class=tokenizer
    )
    trainer.train()
    given = {}
    for row in trainer.train_dataset:
        weights = [w if label != -100 else None for w, label in zip(row["advantages"], row["labels"], strict=True)]
        given["".join(token_texts(row["input_ids"], tokenizer))] = weights
    samples = read_record("out").samples
    assert len(samples) == 4
    for sample in samples:
        expected = given["".join(sample.tokens)]
        for weight, of_row in zip(sample.weights, expected, strict=True):
            assert (weight is None) == (of_row is None) and (
                of_row is None or weight == pytest.approx(of_row, rel=1e-4)
            )


def without_times(path):
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    for line in lines:
        line.pop("time", None)
        metrics = line.get("metrics", {})
        line["metrics"] = {name: x for name, x in metrics.items() if not re.search("second|time|memory|flos", name)}
    return lines


@pytest.mark.parametrize("kind", ["online: 4 steps a generation", "weighted: rows", "trajectories: demonstrations"])
def test_a_run_that_goes_on_has_the_record_of_one_that_was_never_stopped(kind, tmp_path):
    whole = trainer_of(kind, tmp_path / "whole")
    whole.train()
    trainer_of(kind, tmp_path / "stopped", max_steps=8).train()  # up to its end: more than the checkpoint has seen
    resumed = trainer_of(kind, tmp_path / "stopped")
    resumed.train(resume_from_checkpoint=str(tmp_path / "stopped" / "checkpoint-5"))
    for name in ("metrics.jsonl", "samples.jsonl"):
        expected = without_times(tmp_path / "whole" / "record" / name)
        found = without_times(tmp_path / "stopped" / "record" / name)
        drop_end = slice(None, -1) if name == "metrics.jsonl" else slice(None)  # train_loss is of this `train` only
        assert found[drop_end] == expected[drop_end]
    before, after = (read_record(tmp_path / name).setup for name in ("whole", "stopped"))
    assert (before["resumed_at"], after["resumed_at"]) == ([], [5])
    assert {line["step"] for line in without_times(tmp_path / "stopped" / "record" / "samples.jsonl")} == set(
        range(1, 9)
    )


def test_a_new_run_in_the_same_folder_keeps_the_record_of_the_old_one(tmp_path):
    folder = RecordFolder(tmp_path)
    for number in range(3):
        folder.begin(a_setup(number=number), step=0)
    numbers = {path.name: json.loads((path / "run.json").read_text())["number"] for path in tmp_path.iterdir()}
    assert numbers == {"record": 2, "record.1": 0, "record.2": 1}


def test_a_line_that_was_cut_by_a_kill_is_no_line(tmp_path):
    folder = RecordFolder(tmp_path)
    folder.begin(a_setup(), step=0)
    folder.add_entry({"step": 1, "time": 0.0, "metrics": {"loss": float("nan")}})
    with open(tmp_path / "record" / "metrics.jsonl", "a") as file:
        file.write('{"step": 2, "ti')
    assert [entry["step"] for entry in read_record(tmp_path).entries] == [1]
    assert read_record(tmp_path).entries[0]["metrics"] == {"loss": None}  # JSON has no NaN
    folder.begin(a_setup(began=9.0), step=1)
    folder.add_entry({"step": 2, "time": 0.0, "metrics": {}})
    assert [entry["step"] for entry in read_record(tmp_path).entries] == [1, 2]
    assert read_record(tmp_path).setup["began"] == a_setup()["began"]


def test_a_folder_without_a_record_is_told_from_one_whose_runs_have_some(tmp_path):
    with pytest.raises(RecordError, match="is it the output_dir of a run"):
        read_record(tmp_path)
    RecordFolder(tmp_path / "inner").begin(a_setup(), step=0)
    with pytest.raises(RecordError, match=f"there are some in {tmp_path / 'inner'}"):
        read_record(tmp_path)


def test_a_line_that_is_cut_within_a_character_is_no_line_and_a_damaged_one_is_named(tmp_path):
    folder = RecordFolder(tmp_path)
    folder.begin(a_setup(), step=0)
    folder.add_entry({"step": 1, "time": 0.0, "metrics": {}})
    path = tmp_path / "record" / "metrics.jsonl"
    path.write_bytes(path.read_bytes() + '{"step": 2, "é'.encode()[:-1])
    assert [entry["step"] for entry in read_record(tmp_path).entries] == [1]
    path.write_bytes(b"\0\0\0\n" + path.read_bytes())
    with pytest.raises(RecordError, match=r"metrics.jsonl, line 1, is damaged .*; delete the line"):
        read_record(tmp_path)
    folder.begin(a_setup(), step=1)  # a run goes on all the same
    assert path.read_bytes().startswith(b"\0\0\0\n")


def test_the_record_of_another_version_is_named(tmp_path):
    RecordFolder(tmp_path).begin({name: value for name, value in a_setup().items() if name != "ledger"}, step=0)
    with pytest.raises(RecordError, match=r"run.json lacks ledger: another version of online-sft wrote it"):
        read_record(tmp_path)


def test_some_samples_of_a_long_record_are_read_evenly(tmp_path):
    folder = RecordFolder(tmp_path)
    folder.begin(a_setup(), step=0)
    folder.add_samples(Sample(step, ("a",), (1.0,), {}) for step in range(100))
    record = read_record(tmp_path, most_samples=5)
    assert [sample.step for sample in record.samples] == [0, 20, 40, 60, 80] and record.num_samples == 100


def test_a_run_that_goes_on_in_another_folder_says_from_where(tmp_path):
    RecordFolder(tmp_path).begin(a_setup(), step=7)
    assert read_record(tmp_path).setup["resumed_at"] == [7]


def test_rewards_since_the_last_entry_are_not_forgotten_by_a_resume(tmp_path):
    options = {"logging_steps": 3}
    trainer_of("online: a batch a step", tmp_path / "whole", **options).train()
    trainer_of("online: a batch a step", tmp_path / "stopped", **options).train()
    resumed = trainer_of("online: a batch a step", tmp_path / "stopped", **options)
    resumed.train(resume_from_checkpoint=str(tmp_path / "stopped" / "checkpoint-5"))
    whole, stopped = (read_record(tmp_path / name).entries for name in ("whole", "stopped"))
    assert [entry.get("rewards") for entry in whole] == [entry.get("rewards") for entry in stopped]
    assert sum(count for _, count in whole[1]["rewards"]) > sum(count for _, count in whole[0]["rewards"]) / 2


def test_samples_come_back_as_they_were():
    sample = Sample(3, ("a", "", "é\n", "</script>"), (None, None, 0.5, -1.25), {"reward": None, "advantage": 0.125})
    assert Sample.from_dict(json.loads(json.dumps(sample.to_dict()))) == sample


def test_record_samples_is_how_many_of_each_step_are_kept(model, tokenizer, cpu_args):
    for number in (0, 3):
        online(model, tokenizer, cpu_args, record_samples=number, gradient_accumulation_steps=2).train()
        steps = [sample.step for sample in read_record("out").samples]
        assert steps == [1] * number + [2] * number


def test_rewards_are_counted_exactly_or_by_quantiles():
    assert _distribution(torch.tensor([1.0, 0.0, 1.0, 1.0])) == [(0.0, 1), (1.0, 3)]
    many = _distribution(torch.linspace(0, 1, 1001).flip(0))
    assert len(many) == 101 and many[0] == (0.0, 1) and many[50] == (0.5, 1) and many[100] == (1.0, 1)


def test_every_second_is_in_one_section():
    stopwatch, start = Stopwatch(), time.perf_counter()
    stopwatch.pop()
    with stopwatch("rollout"):
        time.sleep(0.02)
        with stopwatch("sync"):
            time.sleep(0.05)
        time.sleep(0.02)
    with stopwatch("evaluation"), stopwatch("rollout"):
        time.sleep(0.04)
    seconds, passed = stopwatch.pop(), time.perf_counter() - start
    assert sum(seconds.values()) == pytest.approx(passed, abs=5e-3)
    assert 0.04 <= seconds["rollout"] < 0.05 <= seconds["sync"] and seconds["evaluation"] >= 0.04
    assert sum(stopwatch.pop().values()) < 5e-3


def test_tokens_a_second_are_right_where_several_steps_share_a_batch():
    costs = Costs()
    costs.on_train_begin(None, TrainerState(global_step=0), None)
    rates = []
    for step, num_tokens in enumerate((100, None, None, 300), 1):
        time.sleep(0.01)
        rates.append(costs.pop(step, num_tokens).get("tokens_per_second"))
    assert rates[1:3] == [None, None]
    assert 200 / 0.05 < rates[3] <= 200 / 0.03
    costs.on_train_begin(None, TrainerState(global_step=4), None)  # resumed: how many are new nobody knows
    assert "tokens_per_second" not in costs.pop(5, 1000)


def test_a_section_that_was_entered_once_is_told_as_nothing_later():
    stopwatch = Stopwatch()
    with stopwatch("evaluation"):
        pass
    stopwatch.pop()
    assert stopwatch.pop()["evaluation"] == 0.0


def test_the_seconds_of_the_log_add_up_to_the_time_of_the_run(model, tokenizer, cpu_args):
    trainer = online(model, tokenizer, cpu_args, max_steps=6, logging_steps=2)
    trainer.train()
    *entries, end = trainer.state.log_history
    logged = 2 * sum(value for entry in entries for name, value in entry.items() if name.startswith("seconds/"))
    assert all({"seconds/rollout", "seconds/reward", "seconds/train", "memory_gib"} <= set(entry) for entry in entries)
    assert 0.5 * end["train_runtime"] < logged <= 1.01 * end["train_runtime"]
    tokens = entries[-1]["num_tokens"] - entries[0]["num_tokens"]
    seconds = 2 * sum(sum(v for n, v in entry.items() if n.startswith("seconds/")) for entry in entries[1:])
    rates = [entry["tokens_per_second"] for entry in entries[1:]]
    assert min(rates) <= tokens / seconds <= max(rates)


def test_every_metric_that_is_logged_is_in_the_reference(tmp_path):
    kinds = ["online: filtered", "online: 4 steps a generation", "weighted: rows", "trajectories: collected"]
    for kind in kinds:
        trainer = trainer_of(
            kind, tmp_path / kind, eval_strategy="steps" if kind == "weighted: rows" else "no", eval_steps=4
        )
        trainer.train()
        for entry in trainer.state.log_history:
            for name in entry:
                assert metric_of(name) is not None, f"{kind}: {name}"
    assert metric_of("somebody/elses") is None and metric_of("eval_pass@4_low") is METRICS["eval_pass@{k}"]


def test_equal_rows_have_equal_digests_however_they_are_stored():
    rows = [{"prompt": [{"role": "user", "content": "é" * (i % 4)}], "x": [float(i)] * (i % 3)} for i in range(2500)]
    data = Dataset.from_list(rows)
    part = Dataset.from_list(rows[700:2100], features=data.features)
    assert setup.content_digest(data.select(range(700, 2100))) == setup.content_digest(part)
    glued = concatenate_datasets([data.select(range(700, 1001)), data.select(range(1001, 2100))])
    assert setup.content_digest(glued) == setup.content_digest(part)
    rows[900]["x"] = [1.0, 2.0, 3.0]
    assert setup.content_digest(Dataset.from_list(rows[700:2100], features=data.features)) != setup.content_digest(part)
    assert setup.content_digest(part.select(range(1399, -1, -1))) != setup.content_digest(part)


def test_the_command_is_told_without_secrets(monkeypatch):
    words = ["online-sft", "online", "--hub_token", "hf_abc", "--api_key=xyz", "--output_dir", "my runs/a"]
    words += ["--average_tokens_across_devices", "--eos_token", "<end>", "--model_init_kwargs", '{"token": "hf_abc"}']
    monkeypatch.setattr("sys.argv", words)
    monkeypatch.setitem(sys.modules, "__main__", object())  # started as a script
    assert setup.command() == (
        "online-sft online --hub_token '***' '--api_key=***' --output_dir 'my runs/a' --average_tokens_across_devices "
        "--eos_token '<end>' --model_init_kwargs '{\"token\": \"***\"}'"
    )
    assert setup.without_secrets({"a": [{"Api-Key": "x", "max_tokens": 3}], "hub_token": None}) == {
        "a": [{"Api-Key": "***", "max_tokens": 3}],
        "hub_token": None,
    }


def test_a_character_of_several_tokens_is_one_text():
    tokenizer = chat_tokenizer()  # a token a byte
    text = "né 😀"
    texts = token_texts(tokenizer.encode(text), tokenizer)
    assert "".join(texts) == text and texts == ["n", "", "é", " ", "", "", "", "😀"]
    assert "".join(token_texts(tokenizer.encode(text)[:-1], tokenizer)).startswith("né ")


@pytest.mark.parametrize("size", [256, 300, 330, 400])
def test_tokens_that_end_within_characters_are_the_whole_text_together(size):
    texts = ["日本語の文章です。", "😀😃😄😁😆😅", "नमस्ते दुनिया", "👨‍👩‍👧‍👦 family", "😀日😃本😄語 x"]
    tokens = Tokenizer(BPE())
    tokens.pre_tokenizer, tokens.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokens.train_from_iterator(texts * 50, BpeTrainer(vocab_size=size, initial_alphabet=alphabet, show_progress=False))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=tokens)
    for text in texts:
        assert "".join(token_texts(tokenizer.encode(text), tokenizer)) == text


def test_spaces_of_sentencepiece_are_kept():
    pieces = ["<unk>", "▁", "▁▁▁", "▁def", "▁return", ":", "\n"]
    tokens = Tokenizer(WordLevel({piece: index for index, piece in enumerate(pieces)}, unk_token="<unk>"))
    tokens.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=tokens, unk_token="<unk>")
    ids = [pieces.index(piece) for piece in ("▁def", ":", "\n", "▁▁▁", "▁return")]
    assert token_texts(ids, tokenizer) == [" def", ":", "\n", "   ", " return"]
