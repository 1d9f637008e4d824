"""What the recipes use of GRPOTrainer works through OnlineSFTTrainer, with our numbers in it."""

import copy
from pathlib import Path

import pandas as pd
import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from torch.testing import assert_close

from online_sft import OnlineSFTConfig, OnlineSFTTrainer

PLAIN = Dataset.from_list([{"prompt": f"{a} + {b} =", "target": a + b} for a in range(4) for b in range(2)])
CHAT = PLAIN.map(lambda row: {"prompt": [{"role": "user", "content": row["prompt"]}]})
TEMPLATE = "{% for m in messages %}{{ m['content'] }}{% endfor %}{% if add_generation_prompt %} Answer: {% endif %}"


def score(completions, target):
    texts = [c if isinstance(c, str) else c[-1]["content"] for c in completions]
    return [float(text.count(str(t))) for text, t in zip(texts, target, strict=True)]


def sync_reward(completions, target, **columns):
    return score(completions, target)


async def async_reward(completions, target, **columns):
    return score(completions, target)


@pytest.fixture
def args(cpu_args):
    sizes = {"per_device_train_batch_size": 8, "num_generations": 4, "max_completion_length": 6, "max_steps": 2}
    return {**cpu_args, **sizes, "baseline": "leave_one_out", "learning_rate": 1e-2}


def train(model, tokenizer, reward, args, data=PLAIN, **options):
    trainer = OnlineSFTTrainer(model, reward, OnlineSFTConfig(**args), data, processing_class=tokenizer, **options)
    trainer.train()
    return trainer


def numbers(trainer):
    names = ("loss", "grad_norm", "reward", "advantage", "log_prob", "rewards/sync_reward/mean")
    return [{k: v for k, v in entry.items() if k in names} for entry in trainer.state.log_history if "loss" in entry]


def test_an_async_reward_gives_the_run_of_the_same_function_called_plainly(model, tokenizer, args):
    plain = numbers(train(copy.deepcopy(model), tokenizer, sync_reward, args))
    awaited = numbers(train(model, tokenizer, async_reward, args))
    assert len(plain) == 2
    for a, b in zip(plain, awaited, strict=True):
        a.pop("rewards/sync_reward/mean")
        assert a == b


def test_conversations_are_prompted_through_the_chat_template_and_rewarded_as_messages(model, tokenizer, args):
    chatty = copy.deepcopy(tokenizer)
    chatty.chat_template = TEMPLATE
    conversations = train(copy.deepcopy(model), chatty, sync_reward, args, CHAT)
    templated = PLAIN.map(lambda row: {"prompt": row["prompt"] + " Answer: "})
    plain = train(model, tokenizer, sync_reward, args, templated)
    assert numbers(conversations) == numbers(plain)
    assert conversations._logs["completion"][0][0]["role"] == "assistant"


@pytest.mark.parametrize("log_unique_prompts", [False, True])
def test_the_table_of_completions_has_our_advantages(model, tokenizer, args, log_unique_prompts, capsys):
    """Of the last batch: reward less the mean of the prompt's other samples."""
    options = {"log_completions": True, "max_steps": 1, "log_unique_prompts": log_unique_prompts}
    train(model, tokenizer, sync_reward, {**args, **options})
    (file,) = Path("out/completions").glob("*.parquet")
    table = pd.read_parquet(file)
    rewards = torch.tensor(table["sync_reward"].to_numpy()).view(-1, 4)
    expected = rewards - (rewards.sum(1, keepdim=True) - rewards) / 3
    assert_close(torch.tensor(table["advantage"].to_numpy()), expected.flatten(), check_dtype=False)
    assert list(table["prompt"][:4]) == [table["prompt"][0]] * 4
    assert "Advantage" in capsys.readouterr().out


def test_evaluation_during_training_logs_the_estimators_terms(saved_model, tokenizer, args):
    more = {"eval_strategy": "steps", "eval_steps": 1, "per_device_eval_batch_size": 8, "beta": 0.1}
    trainer = train(saved_model, tokenizer, sync_reward, {**args, **more}, eval_dataset=PLAIN)
    evaluations = [entry for entry in trainer.state.log_history if "eval_reward" in entry]
    assert len(evaluations) == 2
    for entry in evaluations:
        names = (
            "kl",
            "kl_k3",
            "log_prob",
            "advantage",
            "entropy",
            "unscorable",
            "weight/q50",
            "rewards/sync_reward/mean",
        )
        assert {f"eval_{name}" for name in names} <= entry.keys()
        assert entry["eval_kl_k3"] >= 0


def test_lora_trains_on_conversations_with_an_async_reward_and_a_reference(model, tokenizer, args):
    chatty = copy.deepcopy(tokenizer)
    chatty.chat_template = TEMPLATE
    lora = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    trainer = train(model, chatty, async_reward, {**args, "beta": 0.1}, CHAT, peft_config=lora)
    kl = [entry["kl"] for entry in trainer.state.log_history if "kl" in entry]
    assert abs(kl[0]) < 1e-5 < abs(kl[1])
    grads = [name for name, p in trainer.model.named_parameters() if p.requires_grad]
    assert grads
    assert all("lora" in name for name in grads)


def test_several_rewards_with_weights_are_logged_each_by_name(model, tokenizer, args):
    trainer = train(model, tokenizer, [sync_reward, async_reward], {**args, "reward_weights": [1.0, 0.5]})
    for entry in [e for e in trainer.state.log_history if "reward" in e]:
        assert_close(entry["reward"], 1.5 * entry["rewards/sync_reward/mean"])
        assert entry["rewards/async_reward/mean"] == entry["rewards/sync_reward/mean"]
