"""SampledEvaluationCallback in real trainers: its numbers, what it leaves alone, and the checkpoint that it picks."""

import copy
import json
import random
from pathlib import Path

import numpy as np
import pytest
import sampled_evaluation_worker
import torch
from datasets import Dataset
from peft import LoraConfig
from test_distributed import on_two_processes
from test_evaluation import by_enumeration
from transformers import EarlyStoppingCallback, Trainer, TrainingArguments, set_seed
from trl import GRPOConfig, GRPOTrainer

from online_sft import (
    MathVerificationReward,
    OnlineSFTConfig,
    OnlineSFTTrainer,
    SampledEvaluationCallback,
    WeightedSFTConfig,
    WeightedSFTTrainer,
)
from online_sft.evaluation import answer_value, bootstrap_mean
from online_sft.rewards.answers import final_answer
from trainers.evaluation import _dealt

PROMPTS = ["1 + 1 =", "12 + 30 =", "7 + 0 =", "5 + 222 =", "9 + 9 ="]
HELD_OUT = Dataset.from_list([{"prompt": prompt, "divisor": 2 + i % 2} for i, prompt in enumerate(PROMPTS)])
SETTINGS = {
    "ks": (1, 2, 3),
    "num_generations": 4,
    "max_completion_length": 7,
    "batch_size": 6,
    "temperature": 1.3,
    "top_p": 0.9,
}
END = 1  # the token


def divisible(prompts, completions, completion_ids, divisor, **columns):
    """A reward that depends on all tokens, and on the row."""
    return [1.0 if sum(ids) % number == 0 else -1.0 for ids, number in zip(completion_ids, divisor, strict=True)]


def last_digit(text):
    return text[-1] if text[-1:].isdigit() else None


def parity(digit):
    return int(digit) % 2


def noisy(completions, completion_ids, **columns):
    """A reward for training that takes random numbers of Python and numpy."""
    return [sum(ids) % 7 / 3 + random.random() + np.random.rand() for ids in completion_ids]


def online(model, tokenizer, args, data=HELD_OUT, **options):
    sizes = {"per_device_train_batch_size": 4, "num_generations": 2, "max_completion_length": 4, "max_steps": 3}
    sizes["baseline"] = "leave_one_out"
    config = OnlineSFTConfig(**{**args, **sizes, "per_device_eval_batch_size": 2, **options})
    return OnlineSFTTrainer(model, noisy, config, data, eval_dataset=data.select([0]), processing_class=tokenizer)


def callback(trainer, reward=divisible, data=HELD_OUT, **options):
    return SampledEvaluationCallback(
        trainer, data, reward, **{**SETTINGS, "answer": last_digit, "answer_key": parity, **options}
    )


@pytest.fixture
def trainer(model, tokenizer, cpu_args):
    return online(model, tokenizer, cpu_args)


def written_out(model, prompt_ids, seed=0, n=4, batch_size=6):
    """Completions of each prompt: one call of `generate` per batch, seeded with (seed, number of the batch)."""
    rows = [ids for ids in prompt_ids for _ in range(n)]
    completions = []
    for number, start in enumerate(range(0, len(rows), batch_size)):
        batch = rows[start : start + batch_size]
        width = max(map(len, batch))
        set_seed(int(np.random.SeedSequence([seed, number]).generate_state(1)[0]))
        tokens = model.generate(
            torch.tensor([[0] * (width - len(ids)) + ids for ids in batch]),
            attention_mask=torch.tensor([[0] * (width - len(ids)) + [1] * len(ids) for ids in batch]),
            **{"do_sample": True, "temperature": 1.3, "top_p": 0.9, "top_k": 0, "max_new_tokens": 7},
        )[:, width:]
        completions += [ids[: ids.index(END) + 1] if END in ids else ids for ids in tokens.tolist()]
    return [completions[i : i + n] for i in range(0, len(completions), n)]


def expected(completions, tokenizer):
    """avg@4, and pass@2 and maj@3 by enumeration, of each prompt."""
    values = {"eval_avg@4": [], "eval_pass@2": [], "eval_maj@3": []}
    for samples, divisor in zip(completions, HELD_OUT["divisor"], strict=True):
        correct = [sum(ids) % divisor == 0 for ids in samples]
        answers = [last_digit(tokenizer.decode(ids, skip_special_tokens=True)) for ids in samples]
        values["eval_avg@4"].append(sum(correct) / 4)
        pairs = [correct[i] or correct[j] for i in range(4) for j in range(i)]
        values["eval_pass@2"].append(sum(pairs) / len(pairs))
        values["eval_maj@3"].append(by_enumeration([answer and parity(answer) for answer in answers], correct, 3))
    return {name: torch.tensor(per_prompt, dtype=torch.float64) for name, per_prompt in values.items()}


def test_the_numbers_are_those_of_a_written_out_loop_over_generate(model, tokenizer, cpu_args):
    plain, seen = copy.deepcopy(model).eval(), []

    def reward(prompts, completions, completion_ids, **columns):
        seen.extend(completion_ids)
        return divisible(prompts, completions, completion_ids, **columns)

    model.generation_config.top_k, model.generation_config.repetition_penalty = 1, 5.0  # must not be inherited
    metrics = callback(online(model, tokenizer, cpu_args), reward, seed=3).evaluate()
    completions = written_out(plain, [tokenizer(prompt)["input_ids"] for prompt in PROMPTS], seed=3)
    assert seen == [ids for samples in completions for ids in samples]
    assert len(set(map(len, seen))) > 2, "some completions must end early for this test to mean anything"
    values = expected(completions, tokenizer)
    for name, per_prompt in values.items():
        estimate = bootstrap_mean(per_prompt, generator=torch.Generator().manual_seed(0))
        found = [metrics[name + end] for end in ("", "_low", "_high")]
        assert found == pytest.approx([estimate.mean, estimate.low, estimate.high])
    assert len({metrics[name] for name in values}) == 3
    assert metrics["eval_pass@1"] == metrics["eval_avg@4"]
    assert metrics["eval_unscorable"] == 0.0 and "eval_maj@1" not in metrics


def test_conversations_are_rendered_with_the_template_and_graded_as_messages(model, tokenizer, cpu_args):
    chat = copy.deepcopy(tokenizer)
    chat.chat_template = (
        "{% for m in messages %}{{ m['content'] }} = {% endfor %}{% if add_generation_prompt %}{{ sign }}{% endif %}"
    )
    rows = [{**row, "prompt": [{"role": "user", "content": row["prompt"]}]} for row in HELD_OUT]
    seen = []

    def reward(prompts, completions, **columns):
        seen.extend(zip(prompts, completions, strict=True))
        return divisible(prompts, completions, **columns)

    plain, data = copy.deepcopy(model).eval(), Dataset.from_list(rows)
    trainer = online(model, chat, cpu_args, data, chat_template_kwargs={"sign": "-"})
    metrics = callback(trainer, reward, data).evaluate()
    completions = written_out(plain, [tokenizer(f"{prompt} = -")["input_ids"] for prompt in PROMPTS])
    means = {name: per_prompt.mean().item() for name, per_prompt in expected(completions, tokenizer).items()}
    assert {name: metrics[name] for name in means} == pytest.approx(means)
    texts = [tokenizer.decode(ids, skip_special_tokens=True) for samples in completions for ids in samples]
    assert [completion for _, completion in seen] == [[{"role": "assistant", "content": text}] for text in texts]
    assert seen[4][0] == rows[1]["prompt"]


def test_every_trainer_gives_the_same_numbers(model, tokenizer, cpu_args, trainer):
    """LoRA, too, whose adapters begin as zeros."""
    found = callback(trainer).evaluate()
    rows = Dataset.from_list([{"prompt": "1 + 1 =", "completion": " 2", "advantages": 1.0}])
    weighted = WeightedSFTTrainer(model, WeightedSFTConfig(**cpu_args), train_dataset=rows, processing_class=tokenizer)
    grpo = GRPOTrainer(model, noisy, GRPOConfig(**_trl(cpu_args)), HELD_OUT, processing_class=tokenizer)
    plain = Trainer(model, TrainingArguments("out", use_cpu=True, report_to="none"), processing_class=tokenizer)
    args, lora = OnlineSFTConfig(**cpu_args), LoraConfig(target_modules=["q_proj"])
    adapted = OnlineSFTTrainer(
        copy.deepcopy(model), noisy, args, HELD_OUT, processing_class=tokenizer, peft_config=lora
    )
    for other in (weighted, grpo, plain, adapted):
        assert callback(other).evaluate() == found
    assert callback(trainer, seed=1).evaluate() != found


def _trl(args):
    return {name: value for name, value in args.items() if name != "activation_checkpointing"}


@pytest.mark.parametrize("options", [{}, {"gradient_checkpointing": True}], ids=["", "checkpointed"])
def test_random_numbers_losses_and_parameters_of_the_training_do_not_change(model, tokenizer, cpu_args, options):
    """The policy has dropout, and its reward draws with Python and numpy: each kind of random number would show."""
    model.config.attention_dropout = 0.1
    runs = []
    for is_evaluated in (False, True):
        set_seed(5)
        schedule = {"eval_strategy": "steps", "eval_steps": 1, "eval_on_start": True, "learning_rate": 1e-2}
        trainer = online(copy.deepcopy(model), tokenizer, cpu_args, **schedule, **options)
        for layer in trainer.model.model.layers:
            layer.self_attn.attention_dropout = 0.1
        if is_evaluated:
            trainer.add_callback(callback(trainer))
        trainer.train()
        names = ("loss", "grad_norm", "reward", "entropy", "eval_loss", "eval_reward")
        log = [{name: entry.get(name) for name in names} for entry in trainer.state.log_history]
        sampled = [entry for entry in trainer.state.log_history if "eval_pass@2" in entry]
        assert [entry["step"] for entry in sampled] == ([0, 1, 2, 3] if is_evaluated else [])
        drawn = (random.random(), np.random.rand(), torch.rand(1).item())
        runs.append(([entry for entry in log if any(entry.values())], drawn, list(trainer.model.parameters())))
    assert runs[0][0] == runs[1][0]
    assert runs[0][1] == runs[1][1]
    assert all(torch.equal(one, two) for one, two in zip(runs[0][2], runs[1][2], strict=True))


def test_an_unchanged_model_has_the_same_numbers_at_every_evaluation(model, tokenizer, cpu_args):
    def moody(completions, **columns):
        return [random.random() - 0.5 for _ in completions]

    trainer = online(model, tokenizer, cpu_args, eval_strategy="steps", eval_steps=1, learning_rate=0.0)
    trainer.add_callback(callback(trainer))
    trainer.train()
    entries = [entry for entry in trainer.state.log_history if "eval_pass@2" in entry]
    numbers = [{name: entry[name] for name in entry if name not in ("step", "epoch")} for entry in entries]
    assert len(numbers) == 3 and numbers[0] == numbers[1] == numbers[2]
    chance = callback(trainer, moody)
    assert chance.evaluate() == chance.evaluate()


def test_the_mode_of_every_module_is_restored_and_sampling_is_without_dropout(model, tokenizer, cpu_args):
    trainer = online(model, tokenizer, cpu_args)
    evaluation = callback(trainer)
    found = evaluation.evaluate()
    for layer in model.model.layers:
        layer.self_attn.attention_dropout = 0.9
    model.train()
    model.model.layers[0].eval()
    before = [module.training for module in model.modules()]
    assert evaluation.evaluate() == found
    assert [module.training for module in model.modules()] == before


def test_the_best_checkpoint_by_pass_at_1_is_loaded_at_the_end(model, tokenizer, cpu_args):
    schedule = {"eval_strategy": "steps", "eval_steps": 1, "eval_on_start": True, "max_steps": 5, "learning_rate": 3e-2}
    best = {"save_strategy": "best", "load_best_model_at_end": True, "metric_for_best_model": "eval_pass@1"}
    trainer = online(model, tokenizer, {**cpu_args, **schedule, **best}, max_steps=5)
    evaluation = callback(trainer)
    trainer.add_callback(evaluation)
    trainer.train()
    numbers = {entry["step"]: entry["eval_pass@1"] for entry in trainer.state.log_history if "eval_pass@1" in entry}
    assert sorted(numbers) == [0, 1, 2, 3, 4, 5]
    del numbers[0]  # saved nothing yet
    step = max(numbers, key=lambda step: (numbers[step], -step))
    assert step != 5 and numbers[step] > numbers[5], "the last must not be the best for this test to mean anything"
    assert trainer.state.best_global_step == step and trainer.state.best_metric == numbers[step]
    assert evaluation.evaluate()["eval_pass@1"] == numbers[step]


def test_early_stopping_sees_the_metrics_and_is_refused_where_it_would_not(model, tokenizer, cpu_args):
    schedule = {"eval_strategy": "steps", "eval_steps": 1, "save_strategy": "best", "learning_rate": 0.0}
    trainer = online(model, tokenizer, {**cpu_args, **schedule}, metric_for_best_model="eval_pass@2")
    trainer.add_callback(callback(trainer))
    trainer.add_callback(EarlyStoppingCallback(1))
    trainer.train()
    assert trainer.state.global_step == 2
    trainer.callback_handler.callbacks.reverse()
    with pytest.raises(ValueError, match=r"add it with trainer\.add_callback after SampledEvaluationCallback"):
        trainer.train()


def test_a_trainer_whose_policy_is_more_than_one_turn_of_text_is_refused(model, tokenizer, cpu_args, trainer):
    def multiply(a: int, b: int) -> int:
        """Multiplies two integers.

        Args:
            a: The first integer.
            b: The second integer.
        """
        return a * b

    trainer.tools = [multiply]  # no known chat template renders tools with so small a vocabulary
    with pytest.raises(ValueError, match="one turn and no tools"):
        callback(trainer)
    without = Trainer(model, TrainingArguments("out", use_cpu=True, report_to="none"))
    with pytest.raises(ValueError, match="needs a tokenizer; got NoneType"):
        callback(without)


def test_several_evaluation_sets_are_one_sampled_evaluation(model, tokenizer, cpu_args):
    trainer = online(model, tokenizer, cpu_args)
    trainer.eval_dataset = {"easy": HELD_OUT.select([0]), "hard": HELD_OUT.select([1])}
    evaluation = callback(trainer)
    trainer.add_callback(evaluation)
    metrics = trainer.evaluate()
    assert {"eval_easy_loss", "eval_hard_loss"} < metrics.keys()
    assert metrics["eval_pass@2"] == evaluation.evaluate()["eval_pass@2"]
    assert sum("eval_pass@2" in entry for entry in trainer.state.log_history) == 1


def test_a_foreign_test_set_is_not_given_the_held_out_numbers(trainer):
    trainer.add_callback(callback(trainer))
    assert "eval_pass@2" in trainer.evaluate()
    assert not {"eval_pass@2", "test_pass@2"} & trainer.evaluate(HELD_OUT.select([1]), metric_key_prefix="test").keys()


def test_unscorable_samples_are_counted_and_a_threshold_moves_what_is_correct(trainer):
    async def partly(completions, completion_ids, divisor, **columns):
        return [None if d == 3 else len(ids) - 3 for ids, d in zip(completion_ids, divisor, strict=True)]

    metrics = callback(trainer, partly).evaluate()
    assert metrics["eval_unscorable"] == 2 / 5
    assert callback(trainer, partly, correct_above=5).evaluate()["eval_pass@2"] == 0.0 < metrics["eval_pass@2"]
    assert callback(trainer, partly, correct_above=-3).evaluate()["eval_pass@1"] == 1.0


def test_the_math_reward_and_its_answers_work_unchanged(trainer):
    reward, seen = MathVerificationReward(), []

    def recorded(prompts, completions, solution, **columns):
        rewards = reward(completions, solution)
        seen.extend(zip(completions, rewards, strict=True))
        return rewards

    rows = Dataset.from_list([{"prompt": prompt, "solution": str(i)} for i, prompt in enumerate(PROMPTS)])
    sizes = {"ks": (1, 64), "num_generations": 64, "max_completion_length": 12, "batch_size": 320}
    metrics = SampledEvaluationCallback(trainer, rows, recorded, **sizes).evaluate()
    prompts = [seen[i : i + 64] for i in range(0, 320, 64)]
    assert 0 < metrics["eval_avg@64"] == pytest.approx(sum(right == 1.0 for _, right in seen) / 320)
    votes = [[(answer := final_answer(text)) and answer_value(answer) for text, _ in prompt] for prompt in prompts]
    rights = [[right == 1.0 for _, right in prompt] for prompt in prompts]
    majorities = [by_enumeration(vote, right, 64) for vote, right in zip(votes, rights, strict=True)]
    assert 0 < metrics["eval_maj@64"] == pytest.approx(sum(majorities) / 5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ks": (1, 8)}, r"each k must be between 1 and num_generations=4; got \[1, 8\]"),
        ({"ks": ()}, r"each k must be"),
        ({"temperature": 0.0}, r"would draw the same completion each time"),
        ({"data": HELD_OUT.remove_columns("prompt")}, r"needs a `prompt` column"),
        ({"data": HELD_OUT.select([])}, r"it has 0 rows"),
        ({"data": HELD_OUT.remove_columns("divisor")}, r"'divisible' needs the column divisor"),
    ],
)
def test_what_cannot_work_is_refused_at_once(trainer, options, message):
    with pytest.raises(ValueError, match=message):
        callback(trainer, **options)


def test_a_wrong_number_of_rewards_is_named(trainer):
    with pytest.raises(ValueError, match="returned 1 rewards for 6 completions"):
        callback(trainer, lambda completions, **columns: [1.0]).evaluate()


@pytest.mark.parametrize("num_ranks", [1, 2, 3, 8])
@pytest.mark.parametrize("num_batches", [1, 2, 7])
def test_batches_are_dealt_once_and_every_rank_generates_equally_often(num_batches, num_ranks):
    dealt = [_dealt(num_batches, rank, num_ranks) for rank in range(num_ranks)]
    assert sorted(batch for mine in dealt for batch, is_spare in mine if not is_spare) == list(range(num_batches))
    assert {len(mine) for mine in dealt} == {-(-num_batches // num_ranks)}
    assert all(0 <= batch < num_batches for mine in dealt for batch, _ in mine)


@pytest.mark.distributed
def test_two_processes_give_the_numbers_of_one(saved_model, tmp_path):
    output = tmp_path / "metrics.json"
    on_two_processes(sampled_evaluation_worker.__file__, str(output), str(tmp_path / "model"))
    assert json.loads(Path(output).read_text()) == [sampled_evaluation_worker.metrics(str(tmp_path / "model"))] * 2
