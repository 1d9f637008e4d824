"""One pass over packed, divided, accumulated rows gives the loss and the gradients of the two means by hand."""

import copy
import json

import pytest
import torch
from datasets import Dataset, IterableDataset, load_dataset
from torch.testing import assert_close
from trajectory_tools import chat_tokenizer, mean_losses, ragged_trajectories
from transformers import TrainerCallback

from online_sft.trajectories.dataset import TrajectoryDataset
from online_sft.trajectories.imitation import action_weights, episode_of
from online_sft.trajectories.trajectory import Trajectory
from recipes.quickstart.tiny_model import build_model
from trainers.trajectories.rows import as_trajectories
from trainers.trajectory_sft_config import TrajectorySFTConfig
from trainers.trajectory_sft_trainer import TrajectorySFTTrainer

TOKENIZER = chat_tokenizer()
ALL_AT_ONCE = {"per_device_train_batch_size": 99}
PACKED = {"packing": True, "max_length": 600}
UNPADDED = {"padding_free": True, "max_length": None}
PATHS = {
    "ragged": ALL_AT_ONCE,
    "accumulated": {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 5},
    "packed": {**ALL_AT_ONCE, **PACKED},
    "packed, accumulated": {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 99, **PACKED},
    "padding-free": {"per_device_train_batch_size": 5, "gradient_accumulation_steps": 2, **UNPADDED},
    "TRL's head": {**ALL_AT_ONCE, "lm_head": "trl"},
}


class Gradients(TrainerCallback):
    """Those of the first step."""

    def on_pre_optimizer_step(self, args, state, control, model, **kwargs):
        self.found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def step_of(trajectories, cpu_args, model=None, **options):
    """Log and gradients of one step, which sees everything."""
    args = TrajectorySFTConfig(**{**cpu_args, "max_steps": 1, "max_grad_norm": 0.0, "max_length": 4096, **options})
    model = copy.deepcopy(model) if model else build_model(TOKENIZER, seed=0)
    gradients = Gradients()
    trainer = TrajectorySFTTrainer(
        model, args, train_dataset=trajectories, processing_class=TOKENIZER, callbacks=[gradients]
    )
    trainer.train()
    return trainer.state.log_history[0], gradients.found


def by_hand(trajectories, bc_weight, world_model_weight, weights=None):
    model = build_model(TOKENIZER, seed=0)
    means = mean_losses(model, TOKENIZER, trajectories, weights)
    loss = bc_weight * means.get("action", 0.0) + world_model_weight * means.get("observation", 0.0)
    loss.backward()
    return loss.item(), means, {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def assert_gradients_are(found, wanted):
    assert found.keys() == wanted.keys()
    norm = torch.cat([g.flatten() for g in wanted.values()]).norm()
    difference = torch.cat([(found[name] - wanted[name]).flatten() for name in wanted]).norm()
    assert difference / norm < 1e-6, difference / norm


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(
    ("options", "coefficients"),
    [
        ({}, (0.5, 0.5)),
        ({"bc_weight": 0.7, "world_model_weight": 2.0}, (0.7, 2.0)),
        ({"mode": "behavioral_cloning"}, (1.0, 0.0)),
        ({"mode": "world_model"}, (0.0, 1.0)),
    ],
    ids=["combined", "weighted", "behavioral_cloning", "world_model"],
)
def test_the_loss_is_that_by_hand_to_1e_6_and_so_are_its_gradients(path, options, coefficients, cpu_args):
    trajectories = ragged_trajectories(9)
    log, gradients = step_of(trajectories, cpu_args, **options, **PATHS[path])
    loss, means, wanted = by_hand(trajectories, *coefficients)
    assert_close(log["loss"], loss, rtol=1e-6, atol=0.0)
    assert_gradients_are(gradients, wanted)
    for name, kind, coefficient in zip(("bc", "world_model"), means, coefficients, strict=True):
        if coefficient:
            assert_close(log[f"{name}_loss"], means[kind].item(), rtol=1e-6, atol=0.0)
            assert_close(log[f"{name}_perplexity"], means[kind].exp().item(), rtol=1e-5, atol=0.0)
        else:
            assert f"{name}_loss" not in log


@pytest.mark.parametrize(
    "options",
    [
        {"reward_weighting": "reward_to_go"},
        {"reward_weighting": "per_step"},
        {"reward_weighting": "return", "reward_discount": 0.5},
        {"weighting": "exponential", "weighting_kwargs": {"temperature": 2.0}},
        {"reward_weighting": "reward_to_go", "weighting": "advantage_exponential"},
        {"filter_low_reward": True, "min_reward_threshold": 0.5},
    ],
    ids=str,
)
def test_weights_and_filter_are_those_of_the_actions(options, cpu_args):
    trajectories = ragged_trajectories(9)
    args = TrajectorySFTConfig(**cpu_args, **options)
    weights = action_weights(
        [episode_of(each) for each in trajectories],
        min_return=0.5 if args.filter_low_reward else None,
        values=args.reward_weighting,
        discount=args.reward_discount,
        weighting=args.weighting_function(),
    )
    log, gradients = step_of(trajectories, cpu_args, per_device_train_batch_size=99, **options)
    loss, means, wanted = by_hand(trajectories, 0.5, 0.5, weights)
    assert_close(log["loss"], loss, rtol=1e-6, atol=1e-6)
    assert_close(log["bc_loss"], means["action"].item(), rtol=1e-6, atol=1e-6)
    assert_gradients_are(gradients, wanted)


@pytest.mark.parametrize("denominator", ["sequences", "abs_advantages"])
def test_each_kind_has_its_own_denominator_of_the_kind_that_is_asked_for(denominator, cpu_args):
    trajectories = ragged_trajectories(9)
    options = {"reward_weighting": "reward_to_go", "loss_denominator": denominator}
    log, _ = step_of(trajectories, cpu_args, per_device_train_batch_size=2, gradient_accumulation_steps=5, **options)
    weights = action_weights([episode_of(each) for each in trajectories], values="reward_to_go")
    model = build_model(TOKENIZER, seed=0)
    means = mean_losses(model, TOKENIZER, trajectories, weights)
    sizes = {"action": [], "observation": []}  # of every trajectory: its tokens, and the weights of its action tokens
    for trajectory, own in zip(trajectories, weights, strict=True):
        lengths = [len(TOKENIZER.encode(action["content"])) + 1 for action in trajectory.actions]
        sizes["action"].append((sum(lengths), sum(abs(w) * n for w, n in zip(own, lengths, strict=True))))
        said = [len(TOKENIZER.encode(m["content"])) + 1 for o in trajectory.observations[1:] for m in o]
        sizes["observation"].append((sum(said), sum(said)))
    for name, kind in (("bc", "action"), ("world_model", "observation")):
        total = means[kind].item() * sum(tokens for tokens, _ in sizes[kind])
        wanted = {
            "sequences": sum(tokens > 0 for tokens, _ in sizes[kind]),
            "abs_advantages": sum(weight for _, weight in sizes[kind]),
        }[denominator]
        assert_close(log[f"{name}_loss"], total / wanted, rtol=1e-5, atol=0.0)
    assert_close(log["loss"], 0.5 * log["bc_loss"] + 0.5 * log["world_model_loss"], rtol=1e-6, atol=0.0)


def test_a_kind_whose_weights_are_all_0_adds_nothing(cpu_args):
    trajectories = [Trajectory(each.observations, each.actions, [0.0] * len(each)) for each in ragged_trajectories(9)]
    options = {"reward_weighting": "per_step", "loss_denominator": "abs_advantages", **ALL_AT_ONCE}
    log, gradients = step_of(trajectories, cpu_args, **options)
    loss, _, wanted = by_hand(trajectories, 0.0, 0.5)
    assert_close(log["loss"], loss, rtol=1e-6, atol=0.0)
    assert_gradients_are(gradients, wanted)
    assert "bc_loss" not in log


def test_metrics_are_means_over_the_tokens_of_all_steps_since_the_last_entry(cpu_args):
    trajectories = ragged_trajectories(8)
    options = {"learning_rate": 0.0, "max_steps": 4, "logging_steps": 4, "per_device_train_batch_size": 2}
    log, _ = step_of(trajectories, cpu_args, **options)
    _, means, _ = by_hand(trajectories, 0.5, 0.5)
    assert_close([log["bc_loss"], log["world_model_loss"]], [m.item() for m in means.values()], rtol=1e-6, atol=0.0)


def test_evaluation_is_a_mean_over_all_tokens_whatever_the_batches(cpu_args):
    trajectories = ragged_trajectories(7)
    args = TrajectorySFTConfig(**cpu_args, per_device_eval_batch_size=2, max_length=4096)
    model = build_model(TOKENIZER, seed=0)
    trainer = TrajectorySFTTrainer(
        model,
        args,
        train_dataset=trajectories,
        eval_dataset=TrajectoryDataset(trajectories),
        processing_class=TOKENIZER,
    )
    trainer.evaluate()
    found = trainer.state.log_history[-1]
    means = mean_losses(model, TOKENIZER, trajectories)
    assert_close(found["eval_bc_loss"], means["action"].item(), rtol=1e-6, atol=0.0)
    assert_close(found["eval_world_model_loss"], means["observation"].item(), rtol=1e-6, atol=0.0)
    trainer.evaluate(trajectories[:3])
    means = mean_losses(model, TOKENIZER, trajectories[:3])
    assert_close(trainer.state.log_history[-1]["eval_bc_loss"], means["action"].item(), rtol=1e-6, atol=0.0)


def test_accuracy_counts_the_likeliest_tokens_of_its_kind(cpu_args):
    """A model that always says the end of turn: one token of each message is right."""
    trajectories = ragged_trajectories(6)
    model = build_model(TOKENIZER, seed=0)
    with torch.no_grad():
        model.model.norm.weight.zero_()
        model.lm_head.bias = torch.nn.Parameter(torch.zeros(len(TOKENIZER)))
        model.lm_head.bias[TOKENIZER.eos_token_id] = 1.0
    log, _ = step_of(trajectories, cpu_args, model, per_device_train_batch_size=99)
    actions = [len(TOKENIZER.encode(a["content"])) + 1 for each in trajectories for a in each.actions]
    said = [len(TOKENIZER.encode(m["content"])) + 1 for each in trajectories for o in each.observations[1:] for m in o]
    assert_close(log["bc_accuracy"], len(actions) / sum(actions))
    assert_close(log["world_model_accuracy"], len(said) / sum(said))


def as_stream(trajectories, folder):
    return IterableDataset.from_generator(lambda: ({"trajectory": json.dumps(t.to_dict())} for t in trajectories))


def as_file(trajectories, folder):
    TrajectoryDataset(trajectories).save(folder / "t.jsonl")
    return load_dataset("json", data_files=str(folder / "t.jsonl"), split="train")


@pytest.mark.parametrize("form", [TrajectoryDataset, as_stream, as_file])
def test_every_form_of_a_data_set_gives_the_same_step(form, cpu_args, tmp_path):
    trajectories = ragged_trajectories(6)
    data = form(trajectories) if form is TrajectoryDataset else form(trajectories, tmp_path)
    options = {"per_device_train_batch_size": 6, "train_sampling_strategy": "sequential", "max_length": 600}
    found, gradients = step_of(data, cpu_args, **options)
    wanted, same = step_of(trajectories, cpu_args, **options)
    names = ("loss", "grad_norm", "bc_loss", "world_model_loss", "bc_accuracy")
    assert [found[name] for name in names] == [wanted[name] for name in names]
    assert all(torch.equal(gradients[name], same[name]) for name in same)


def test_keys_that_other_messages_have_do_not_come_into_a_trajectory_by_a_table():
    trajectories = [
        Trajectory([{"role": "user", "content": "a", "name": "bob"}, "b"], ["x"], [0.0], {"seed": 1}),
        Trajectory(["a", "b"], ["x"], [0.0], {"group": "g"}),
    ]
    table = Dataset.from_list([each.to_dict() for each in trajectories])
    assert list(as_trajectories(table)) == trajectories


def test_what_is_no_trajectory_is_named(cpu_args):
    args = TrajectorySFTConfig(**cpu_args)

    def build(data, args=args):
        TrajectorySFTTrainer(build_model(TOKENIZER, seed=0), args, train_dataset=data, processing_class=TOKENIZER)

    with pytest.raises(ValueError, match=r"needs the columns observations, actions and rewards.*it has prompt"):
        build(Dataset.from_list([{"prompt": "a", "completion": "b"}]))
    with pytest.raises(ValueError, match=r"trajectory 1 of the train dataset: .*2 actions and 1 rewards"):
        build(
            Dataset.from_list(
                [{"observations": ["a", "b", "c"], "actions": ["x", "y"], "rewards": [0.0] * n} for n in (2, 1)]
            )
        )
    with pytest.raises(ValueError, match=r"nothing is to be learnt .*min_reward_threshold=99"):
        settings = {"mode": "behavioral_cloning", "filter_low_reward": True, "min_reward_threshold": 99.0}
        build(ragged_trajectories(3), TrajectorySFTConfig(**cpu_args, **settings))
    with pytest.raises(ValueError, match="which is a stream"):
        build(
            as_stream(ragged_trajectories(2), None), TrajectorySFTConfig(**cpu_args, weighting="boltzmann", max_steps=1)
        )


def test_what_is_left_out_and_cut_is_counted(cpu_args, caplog):
    long = Trajectory(["o", "x" * 100, "o2"], ["a", "b" * 100], [1.0, 0.0])
    args = TrajectorySFTConfig(**cpu_args, max_length=60, filter_low_reward=True, min_reward_threshold=0.5)
    low = Trajectory(["o", "p"], ["a"], [0.0])
    TrajectorySFTTrainer(build_model(TOKENIZER, seed=0), args, train_dataset=[long, low], processing_class=TOKENIZER)
    assert "1 turns of the train dataset are longer than max_length=60 and left out" in caplog.text
    assert "1 turns of the train dataset are longer than max_length=60 and lose the end" in caplog.text
    assert "1 of 2 trajectories of the train dataset have a return below min_reward_threshold=0.5" in caplog.text


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"mode": "bc"}, "mode must be one of behavioral_cloning, world_model, combined; got 'bc'"),
        ({"bc_weight": 0.0}, "bc_weight must be positive; got 0.0"),
        ({"mode": "world_model", "bc_weight": 0.7}, "bc_weight=0.7 has no effect with mode='world_model'"),
        ({"mode": "world_model", "filter_low_reward": True}, "filter_low_reward=True is about actions"),
        ({"mode": "world_model", "weighting": "reward"}, "weighting='reward' is about actions"),
        ({"min_reward_threshold": 1.0}, "min_reward_threshold=1.0 has no effect without filter_low_reward"),
        ({"reward_weighting": "q"}, "reward_weighting must be one of"),
        ({"reward_discount": 1.5}, "reward_discount must lie above 0"),
        ({"history_length": -1}, "history_length counts turns, 0 or more"),
        ({"advantage_normalization": "batch"}, "advantage_normalization='batch' does not fit trajectories"),
        ({"loss_denominator": "constant"}, "loss_denominator='constant' would weigh"),
        ({"policy_weighting": "importance"}, "needs log-probs of who acted"),
        ({"atropos_data_path": "x.jsonl"}, "atropos_data_path is a source for WeightedSFTTrainer"),
        ({"collect_every": 0}, "collect_every must be at least 1"),
        ({"collect_every": 5, "max_trajectory_staleness": 3}, "collect_every=5 lets trajectories get 4 steps old"),
        ({"sampling_temperature": 0.0}, "sampling_temperature must be positive"),
        ({"use_vllm": True, "use_transformers_continuous_batching": True}, "drop one"),
    ],
    ids=str,
)
def test_options_that_cannot_be_are_refused_with_the_reason(options, words, cpu_args):
    with pytest.raises(ValueError, match=words):
        TrajectorySFTConfig(**cpu_args, **options)
