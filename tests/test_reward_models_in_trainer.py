"""Reward models in OnlineSFTTrainer: as a path, a module or a NeuralRewardModel, beside functions, in real steps."""

import copy

import pytest
import torch
from datasets import Dataset
from reward_model_tools import CHAT_TEMPLATE, build_classifier, logits_of, pairs_of_sevens, reward_trainer
from torch.testing import assert_close

from online_sft import CombinedReward, NeuralRewardModel, OnlineSFTConfig, OnlineSFTTrainer

DATA = Dataset.from_list([{"prompt": f"{n} + {n} ="} for n in range(8)])
EOS = "<|end|>"


class Seen:
    """A reward function that remembers what it was asked."""

    __name__ = "seen"

    def __init__(self):
        self.rows = []

    def __call__(self, prompts, completions, completion_ids, **columns):
        self.rows += zip(prompts, completions, completion_ids, strict=True)
        return [0.5] * len(completions)


@pytest.fixture
def args(cpu_args):
    limits = {"max_steps": 1, "per_device_train_batch_size": 32, "num_generations": 4, "max_completion_length": 6}
    return {**cpu_args, **limits, "baseline": "none"}


@pytest.fixture
def on_disk(tokenizer, tmp_path):
    def save(model, name):
        model.save_pretrained(tmp_path / name)
        tokenizer.save_pretrained(tmp_path / name)
        return str(tmp_path / name)

    return save


def run(model, tokenizer, rewards, args, data=DATA, **options):
    trainer = OnlineSFTTrainer(model, rewards, OnlineSFTConfig(**args), data, processing_class=tokenizer, **options)
    trainer.train()
    return trainer, trainer.state.log_history[0]


def logits_seen(seen, classifier, tokenizer, cut=slice(None)):
    """[B, num_labels] of what the policy wrote, its EOS included where it wrote one."""
    assert {ids[-1] == tokenizer.eos_token_id for _, _, ids in seen.rows} == {True, False}, "both kinds, please"
    texts = [p + c + (EOS if ids[-1] == tokenizer.eos_token_id else "") for p, c, ids in seen.rows]
    return torch.stack([logits_of(classifier, tokenizer(text)["input_ids"][cut]) for text in texts])


def test_a_path_beside_a_function_scores_what_the_policy_wrote(model, tokenizer, args, on_disk):
    """TRL's way drops every EOS; here only completions that were cut off have none."""
    classifier, seen = build_classifier(tokenizer), Seen()
    path = on_disk(classifier, "helpful")
    _, entry = run(model, tokenizer, [seen, path], {**args, "reward_weights": [2.0, -0.5]})
    scores = logits_seen(seen, classifier, tokenizer)[:, 0]
    assert_close(entry["rewards/helpful/mean"], scores.mean().item(), rtol=1e-5, atol=1e-5)
    assert_close(entry["advantage"], (1.0 - 0.5 * scores).mean().item(), rtol=1e-5, atol=1e-5)
    assert entry["rewards/seen/mean"] == 0.5


def test_a_path_keeps_its_two_labels_and_obeys_the_options(model, tokenizer, args, on_disk):
    classifier, seen = build_classifier(tokenizer, num_labels=2), Seen()
    options = {"reward_use_sigmoid": True, "reward_max_length": 5}
    _, entry = run(model, tokenizer, [on_disk(classifier, "two"), seen], {**args, **options})
    probabilities = logits_seen(seen, classifier, tokenizer, cut=slice(-5, None)).softmax(-1)[:, 1]
    assert_close(entry["rewards/two/mean"], probabilities.mean().item(), rtol=1e-5, atol=1e-5)
    assert entry["two/truncated"] > 0.5


@pytest.mark.parametrize("positional", [False, True])
def test_a_module_is_read_with_the_processing_class_of_its_place(model, tokenizer, args, positional):
    classifier, seen = build_classifier(tokenizer), Seen()
    rewards, tokenizers = [seen, classifier], [None, tokenizer]
    if positional:
        config = OnlineSFTConfig(**args)
        trainer = OnlineSFTTrainer(model, rewards, config, DATA, None, tokenizer, tokenizers)
        trainer.train()
        entry = trainer.state.log_history[0]
    else:
        _, entry = run(model, tokenizer, rewards, args, reward_processing_classes=tokenizers)
    scores = logits_seen(seen, classifier, tokenizer)[:, 0]
    assert_close(entry["rewards/Qwen2ForSequenceClassification/mean"], scores.mean().item(), rtol=1e-5, atol=1e-5)
    assert rewards == [seen, classifier], "the caller's list is the caller's"


def test_a_model_inside_a_combination_is_placed_and_told_of_the_policys_eos(model, tokenizer, args):
    classifier, seen = build_classifier(tokenizer), Seen()
    combined = CombinedReward({seen: 1.0, NeuralRewardModel(classifier, tokenizer, name="rm"): 3.0})
    _, entry = run(model, tokenizer, combined, args)
    scores = logits_seen(seen, classifier, tokenizer)[:, 0]
    assert_close(entry["rewards/seen+rm/mean"], (0.5 + 3 * scores).mean().item(), rtol=1e-5, atol=1e-5)
    assert classifier._is_accelerate_prepared  # as TRL prepares its reward models: moved, autocast, sharded


def test_chats_go_through_the_reward_models_own_template(model, tokenizer, args):
    data = Dataset.from_list([{"prompt": [{"role": "user", "content": str(n)}]} for n in range(8)])
    policys, own = copy.deepcopy(tokenizer), copy.deepcopy(tokenizer)
    policys.chat_template = "{% for m in messages %}{{ m.content }}{% endfor %}"
    own.chat_template = CHAT_TEMPLATE
    classifier, seen = build_classifier(tokenizer), Seen()
    _, entry = run(model, policys, [NeuralRewardModel(classifier, own, name="rm"), seen], args, data=data)
    texts = [f" + {p[0]['content']}{EOS} ={c[0]['content']}{EOS}" for p, c, _ in seen.rows]
    scores = [logits_of(classifier, tokenizer(text)["input_ids"])[0].item() for text in texts]
    assert_close(entry["rewards/rm/mean"], sum(scores) / len(scores), rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_a_policy_learns_what_the_reward_model_was_trained_to_prefer(model, tokenizer, args, tmp_path):
    """Completions with a 7 in them: from one in four to nine in ten, and the model's score rises with them."""
    trained = reward_trainer(build_classifier(tokenizer), tokenizer, pairs_of_sevens(1024, 0), tmp_path, max_steps=40)
    trained.train()
    reward = NeuralRewardModel(trained.model, tokenizer, use_sigmoid=True, name="sevens")
    seen = Seen()
    longer = {**args, "max_steps": 40, "learning_rate": 1e-2, "baseline": "leave_one_out"}
    trainer, first = run(model, tokenizer, [reward, seen], longer)
    last = trainer.state.log_history[-2]
    with_seven = ["7" in completion for _, completion, _ in seen.rows]
    assert sum(with_seven[:32]) / 32 < 0.5
    assert sum(with_seven[-128:]) / 128 > 0.9
    assert last["rewards/sevens/mean"] > first["rewards/sevens/mean"] + 0.3


# --- what cannot work


def test_a_language_model_on_disk_is_not_a_trained_reward_model(model, tokenizer, args, on_disk):
    path = on_disk(model, "policy")
    with pytest.raises(ValueError, match=r"is not a trained reward model: score.weight would be random"):
        run(model, tokenizer, path, args)


def test_a_module_without_a_tokenizer_is_refused(model, tokenizer, args):
    with pytest.raises(ValueError, match="was built in memory and has no tokenizer; pass it in reward_proc"):
        run(model, tokenizer, build_classifier(tokenizer), args)


def test_as_many_processing_classes_as_functions(model, tokenizer, args):
    with pytest.raises(ValueError, match="there are 1 reward_processing_classes for 2 reward_funcs"):
        run(model, tokenizer, [Seen(), build_classifier(tokenizer)], args, reward_processing_classes=tokenizer)


@pytest.mark.parametrize("option", [{"reward_use_sigmoid": True}, {"reward_max_length": 5}])
def test_an_option_that_no_reward_model_would_read_is_refused(model, tokenizer, args, option):
    with pytest.raises(ValueError, match="reward_use_sigmoid and reward_max_length are for reward models given as"):
        run(model, tokenizer, Seen(), {**args, **option})
