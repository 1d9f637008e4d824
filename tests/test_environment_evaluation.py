"""EnvironmentEvaluationCallback in real trainers: its numbers, what it leaves alone, the checkpoint that it picks."""

import json
from itertools import combinations
from pathlib import Path
from statistics import fmean

import pytest
import torch
from collection_tools import Dice, Ignorant, collecting, forced_model, log_of
from datasets import Dataset
from torch.testing import assert_close
from trajectory_tools import chat_tokenizer, ragged_trajectories
from transformers import EarlyStoppingCallback

from online_sft import OnlineSFTConfig, OnlineSFTTrainer, TrajectorySFTConfig, TrajectorySFTTrainer
from online_sft.evaluation import bootstrap_mean
from recipes.quickstart.tiny_model import build_model
from trainers.trajectories.evaluation import EnvironmentEvaluationCallback
from trainers.trajectories.policy import play, seed_of

TOKENIZER = chat_tokenizer()
SIX = {"max_completion_length": 1}
COINS = {"6": 0.0, "1": 0.5, "end": 0.2}


def trajectory_trainer(model, cpu_args, **options):
    args = {"max_completion_length": 3, "max_steps": 3, "max_length": 300, **cpu_args, **options}
    return TrajectorySFTTrainer(
        model,
        TrajectorySFTConfig(**args),
        train_dataset=ragged_trajectories(6),
        eval_dataset=ragged_trajectories(1, seed=1),
        processing_class=TOKENIZER,
    )


def online_trainer(model, cpu_args, **options):
    sizes = {"per_device_train_batch_size": 4, "num_generations": 2, "per_device_eval_batch_size": 2}
    args = OnlineSFTConfig(**{"max_completion_length": 3, "max_steps": 3, **sizes, **cpu_args, **options})
    data = Dataset.from_list([{"prompt": f"{number}"} for number in range(8)])
    return OnlineSFTTrainer(
        model,
        lambda completion_ids, **columns: [float(sum(ids) % 7) for ids in completion_ids],
        args,
        data,
        eval_dataset=data.select([0]),
        processing_class=TOKENIZER,
    )


TRAINERS = {"trajectories": trajectory_trainer, "online": online_trainer}


def by_hand(make, seed, action, max_steps):
    """Return, success, length and whether it was truncated, of an agent that always says `action`."""
    environment, rewards, is_over, info = make(), [], False, {}
    environment.reset(seed=seed)
    while not is_over and len(rewards) < max_steps:
        _, reward, is_over, _, info = environment.step(action)
        rewards.append(reward)
    return sum(rewards), info.get("success", sum(rewards) > 2.0), len(rewards), not is_over


@pytest.mark.parametrize("kind", TRAINERS)
def test_the_metrics_of_a_policy_that_always_says_the_same_are_those_by_hand(kind, cpu_args):
    trainer = TRAINERS[kind](forced_model({"6": 0.0}), {**cpu_args, **SIX})
    callback = EnvironmentEvaluationCallback(
        trainer, [Dice, Ignorant], num_tasks=9, max_steps=2, success_above=2.0, num_environments=4, seed=3
    )
    metrics = callback.evaluate()
    found = [by_hand((Dice, Ignorant)[task % 2], seed_of(3, task), "6", 2) for task in range(9)]
    returns, successes, lengths, truncated = ([float(value) for value in column] for column in zip(*found, strict=True))
    means = {"return": returns, "success": successes, "pass@1": successes}
    for name, values in means.items():
        estimate = bootstrap_mean(torch.tensor(values), generator=torch.Generator().manual_seed(0))
        assert_close(metrics.pop(f"eval_{name}"), fmean(values))
        assert_close((metrics.pop(f"eval_{name}_low"), metrics.pop(f"eval_{name}_high")), (estimate.low, estimate.high))
    assert metrics == {"eval_length": fmean(lengths), "eval_truncated": fmean(truncated), "eval_failed": 0.0}
    assert 0 < fmean(truncated) < 1
    assert 0 < fmean(successes) < 1


def pass_at(k, successes):
    """How many of the choices of k episodes hold a success."""
    return fmean(any(choice) for choice in combinations(successes, k))


@pytest.mark.parametrize("kind", TRAINERS)
def test_pass_at_k_is_that_of_all_choices_of_k_episodes_of_a_task(kind, cpu_args):
    trainer = TRAINERS[kind](forced_model(COINS), cpu_args)
    callback = EnvironmentEvaluationCallback(
        trainer, [Dice], num_tasks=6, ks=(3, 1, 2, 4), num_generations=4, success_above=0.0, max_steps=9
    )
    metrics = callback.evaluate()
    episodes = play(
        trainer,
        [Dice] * 24,
        [seed_of(0, task) for task in range(6) for _ in range(4)],
        sampling_seed=0,
        num_environments=8,
        max_steps=9,
        metadata={},
    ).trajectories
    successes = [[each.metadata["success"] for each in episodes[4 * task : 4 * task + 4]] for task in range(6)]
    assert len({sum(each) for each in successes}) > 2  # tasks differ, and so do episodes of one
    for k in (1, 2, 3, 4):
        assert_close(metrics[f"eval_pass@{k}"], fmean(pass_at(k, each) for each in successes), rtol=1e-5, atol=1e-6)
    assert_close(metrics["eval_success"], metrics["eval_pass@1"], rtol=1e-5, atol=1e-6)
    assert_close(metrics["eval_return"], fmean(each.total_reward for each in episodes), rtol=1e-5, atol=1e-6)


class Fragile(Dice):
    """Fails for one seed of three."""

    def reset(self, *, seed=None):
        if seed % 3 == 0:
            raise LookupError("out of order")
        return super().reset(seed=seed)


def test_episodes_that_fail_are_a_share_and_when_all_do_it_is_an_error(cpu_args):
    class Broken(Dice):
        def reset(self, *, seed=None):
            raise LookupError("out of order")

    trainer = trajectory_trainer(forced_model({"6": 0.0}), {**cpu_args, **SIX})
    metrics = EnvironmentEvaluationCallback(trainer, [Fragile], num_tasks=20, max_steps=9).evaluate()
    seeds = [seed_of(0, task) for task in range(20)]
    left = [by_hand(Dice, seed, "6", 9)[0] for seed in seeds if seed % 3]
    assert metrics["eval_failed"] == (20 - len(left)) / 20 > 0
    assert_close(metrics["eval_return"], fmean(left))
    with pytest.raises(RuntimeError, match=r"all 5 episodes failed, the first: Broken, seed .*out of order"):
        EnvironmentEvaluationCallback(trainer, [Broken], num_tasks=5).evaluate()


@pytest.mark.parametrize("kind", TRAINERS)
def test_a_model_with_dropout_is_evaluated_without_it_and_the_same_at_every_call(kind, cpu_args):
    model = build_model(TOKENIZER, seed=0)
    for layer in model.model.layers:
        layer.self_attn.attention_dropout = 0.9
    trainer = TRAINERS[kind](model, cpu_args, **{"temperature" if kind == "online" else "sampling_temperature": 1e-3})
    callback = EnvironmentEvaluationCallback(trainer, [Dice], num_tasks=8, num_generations=2)
    model.eval()
    wanted = callback.evaluate()
    assert not model.training
    model.train()
    torch.manual_seed(123)
    before = torch.get_rng_state()
    assert callback.evaluate() == wanted
    assert torch.equal(torch.get_rng_state(), before)
    assert model.training


@pytest.mark.parametrize("kind", TRAINERS)
def test_training_is_the_same_to_the_bit_with_and_without_the_callback(kind, cpu_args):
    found = []
    for with_callback in (False, True):
        model = build_model(TOKENIZER, seed=0)
        for layer in model.model.layers:
            layer.self_attn.attention_dropout = 0.3
        trainer = TRAINERS[kind](model, cpu_args, eval_strategy="steps", eval_steps=1)
        if with_callback:
            trainer.add_callback(EnvironmentEvaluationCallback(trainer, [Dice], num_tasks=3))
        trainer.train()
        parameters = torch.cat([value.detach().flatten() for value in model.parameters()])
        found.append((log_of(trainer, "loss", "grad_norm"), parameters.tolist()))
        evaluations = [entry for entry in trainer.state.log_history if "eval_return" in entry]
        assert len(evaluations) == (3 if with_callback else 0)
    assert found[0] == found[1]


def test_a_collecting_trainer_is_evaluated_on_other_tasks_than_it_trains_on():
    """Also where both have the same seed."""
    options = {"options": {"eval_dataset": ragged_trajectories(1)}, "seed": 0, "max_length": 300}
    alone = collecting(output_dir="alone", eval_strategy="steps", eval_steps=2, **options)
    alone.train()
    trainer = collecting(output_dir="evaluated", eval_strategy="steps", eval_steps=2, **options)
    seen = []

    class Noted(Dice):
        def reset(self, *, seed=None):
            seen.append(seed)
            return super().reset(seed=seed)

    trainer.add_callback(EnvironmentEvaluationCallback(trainer, [Noted], num_tasks=20, seed=0))
    trainer.train()
    assert log_of(trainer, "loss", "grad_norm") == log_of(alone, "loss", "grad_norm")
    files = sorted(Path("evaluated/trajectories").iterdir())
    trained = {json.loads(line)["metadata"]["seed"] for file in files for line in file.read_text().splitlines()}
    assert len(trained) == 16
    assert len(seen) == 40
    assert len(set(seen)) == 20
    assert not trained & set(seen)
    for file in files:
        assert file.read_bytes() == Path("alone/trajectories", file.name).read_bytes()


def test_a_policy_that_was_trained_on_parts_of_episodes_is_refused(cpu_args):
    trainer = trajectory_trainer(build_model(TOKENIZER, seed=0), cpu_args, history_length=1)
    with pytest.raises(ValueError, match="history_length=1 is not what the policy sees in environments"):
        EnvironmentEvaluationCallback(trainer, [Dice])
    with pytest.raises(ValueError, match="history_length=1 is not what the policy sees in environments"):
        TrajectorySFTConfig(**cpu_args, history_length=1, max_steps=1).check_stream()


def test_early_stopping_must_come_behind_it(cpu_args):
    options = {"eval_strategy": "steps", "eval_steps": 1, "metric_for_best_model": "eval_return"}
    trainer = trajectory_trainer(build_model(TOKENIZER, seed=0), cpu_args, **options)
    trainer.add_callback(EarlyStoppingCallback(1))
    trainer.add_callback(EnvironmentEvaluationCallback(trainer, [Dice]))
    with pytest.raises(ValueError, match=r"add it with trainer\.add_callback after EnvironmentEvaluationCallback"):
        trainer.train()


def test_the_checkpoint_with_the_best_return_is_loaded_at_the_end(cpu_args):
    options = {"eval_strategy": "steps", "eval_steps": 1, "save_strategy": "steps", "save_steps": 1, "max_steps": 4}
    options |= {"metric_for_best_model": "eval_return", "load_best_model_at_end": True, "learning_rate": 0.05}
    trainer = trajectory_trainer(build_model(TOKENIZER, seed=0), {**cpu_args, **options})
    callback = EnvironmentEvaluationCallback(trainer, [Dice], num_tasks=6)
    trainer.add_callback(callback)
    trainer.train()
    returns = [entry["eval_return"] for entry in trainer.state.log_history if "eval_return" in entry]
    assert len(returns) == 4
    assert len(set(returns)) > 1
    assert trainer.state.best_metric == max(returns)
    assert callback.evaluate()["eval_return"] == max(returns)


def test_of_several_evaluation_sets_only_the_first_has_it_evaluate(cpu_args):
    trainer = trajectory_trainer(forced_model({"6": 0.0}), cpu_args)
    sets = {"a": trainer.eval_dataset, "b": trainer.eval_dataset}
    trainer.eval_dataset = sets
    trainer.add_callback(EnvironmentEvaluationCallback(trainer, [Dice], num_tasks=2))
    metrics = trainer.evaluate()
    assert "eval_return" in metrics
    assert sum("eval_return" in entry for entry in trainer.state.log_history) == 1


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"ks": ()}, r"each k must be between 1 and num_generations=1; got \[\]"),
        ({"ks": (0, 1)}, "each k must be between 1"),
        ({"ks": (1, 3), "num_generations": 2}, r"num_generations=2; got \[1, 3\]"),
        ({"num_tasks": 0}, "num_tasks must be at least 1; got 0"),
        ({"environments": []}, "with one at least"),
        ({"environments": ["online-sft/Chess-v9"]}, "no environment 'online-sft/Chess-v9'"),
    ],
    ids=str,
)
def test_what_cannot_be_evaluated_is_refused(options, words, cpu_args):
    trainer = trajectory_trainer(forced_model({"6": 0.0}), cpu_args)
    with pytest.raises(ValueError, match=words):
        EnvironmentEvaluationCallback(trainer, options.pop("environments", [Dice]), **options)
