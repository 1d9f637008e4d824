"""Trainers that collect what they train on: who acts, what is kept, what a step sees, and what is said of it."""

import pytest
import torch
from collection_tools import (
    Dice,
    Ignorant,
    Snapshots,
    collecting,
    forced_model,
    greedy_actions,
    log_of,
    parameters,
    rounds,
)
from datasets import Dataset
from peft import LoraConfig
from torch.testing import assert_close
from trajectory_tools import chat_tokenizer, ragged_trajectories
from transformers import TrainerCallback

from online_sft.trajectories.dataset import TrajectoryDataset
from online_sft.trajectories.examples import examples_of
from online_sft.trajectories.imitation import action_weights, episode_of
from online_sft.trajectories.rendering import Renderer
from recipes.quickstart.tiny_model import build_model
from recipes.tiny_models import build_byte_tokenizer
from trainers.trajectories.policy import seed_of

TOKENIZER = chat_tokenizer()


class Recording:
    """A data collator that keeps the rows of each micro-batch, and the weights of all."""

    def __init__(self, trainer):
        self.collate, self.rows, self.weights = trainer.data_collator, [], {}
        trainer.data_collator = self

    def __call__(self, rows):
        self.rows.append([tuple(row["input_ids"]) for row in rows])
        self.weights |= {tuple(row["input_ids"]): row["advantages"] for row in rows}
        return self.collate(rows)


@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
def test_the_actions_of_a_round_are_those_of_the_policy_before_its_step(lora):
    snapshots = Snapshots()
    options = {"callbacks": [snapshots]}
    if lora:
        torch.manual_seed(0)
        options["peft_config"] = LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False)
    trainer = collecting(options=options, max_steps=3, sampling_temperature=1e-4)
    model = trainer.model
    configured = model.generation_config  # what a model brings along has no say
    configured.update(top_k=1, num_beams=3, typical_p=0.1, no_repeat_ngram_size=1, suppress_tokens=[*range(99)])
    before = configured.to_dict()
    trainer.train()
    assert model.generation_config.to_dict() == before
    said = [action["content"] for collected in rounds() for each in collected for action in each.actions]
    assert said == greedy_actions(model, TOKENIZER, snapshots.found, rounds())
    assert said != greedy_actions(model, TOKENIZER, [snapshots.found[0]] * 3, rounds())


@pytest.mark.parametrize(
    ("options", "kept", "stale"),
    [
        ({"max_trajectory_staleness": 1}, [7, 11, 11, 11], [0, 0, 4, 4]),
        ({"max_trajectory_staleness": 0}, [7, 7, 7, 7], [0, 4, 4, 4]),
        ({"collect_every": 2, "max_trajectory_staleness": 3, "max_steps": 6}, [7, 11, 11], [0, 0, 4]),
        ({"collect_every": 2, "max_trajectory_staleness": 2, "max_steps": 6}, [7, 7, 7], [0, 4, 4]),
        ({"max_trajectories": 9}, [7, 9, 9, 9], [0, 0, 0, 0]),
    ],
    ids=str,
)
def test_what_is_kept_is_the_newest_and_what_has_not_gone_stale_beside_the_demonstrations(options, kept, stale):
    trainer = collecting(train_dataset=ragged_trajectories(3), max_length=300, **options)
    trainer.train()
    entries = [entry for entry in trainer.state.log_history if "collect/trajectories" in entry]
    assert [entry["collect/trajectories"] for entry in entries] == kept
    assert [entry["collect/stale"] for entry in entries] == stale


@pytest.mark.parametrize("options", [{}, {"max_trajectories": 5}, {"max_trajectory_staleness": 1}], ids=str)
def test_a_step_trains_on_the_rows_of_what_is_kept_and_on_nothing_else(options):
    """Rewards to go, compared over all that is kept: the weights of a trajectory change with the others."""
    weighting = {"reward_weighting": "reward_to_go", "weighting": "exponential"}
    trainer = collecting(**weighting, **options, train_dataset=ragged_trajectories(2), max_length=300)
    recording = Recording(trainer)
    seen = []

    class Seen(TrainerCallback):
        def on_step_end(self, *args, **kwargs):
            seen.append(dict(recording.weights))
            recording.weights.clear()

    trainer.add_callback(Seen())
    trainer.train()
    kept = [(-9, each) for each in ragged_trajectories(2)]
    for step, (collected, rows) in enumerate(zip(rounds(), seen, strict=True)):
        kept = (kept + [(step, each) for each in collected])[-options.get("max_trajectories", 99) :]
        if "max_trajectory_staleness" in options:
            kept = [(version, each) for version, each in kept if version in (-9, step - 1, step)]
        weights = action_weights(
            [episode_of(each) for _, each in kept], values="reward_to_go", weighting=trainer.args.weighting_function()
        )
        wanted = [
            example
            for (_, each), own in zip(kept, weights, strict=True)
            for example in examples_of(each, Renderer(TOKENIZER), trainer.args.window, own)
        ]
        assert rows.items() <= {tuple(each.input_ids): each.advantages for each in wanted}.items()


def test_all_rows_are_seen_before_one_is_seen_again_in_another_order_each_time():
    trainer = collecting(
        [Ignorant], collect_every=5, collect_episodes=6, max_steps=10, gradient_accumulation_steps=2, max_trajectories=6
    )
    recording = Recording(trainer)
    trainer.train()
    seen = [row for batch in recording.rows for row in batch]
    assert len(seen) == 2 * 20
    orders = []
    for start, collected in zip((0, 20), rounds(), strict=True):
        rows = [examples_of(each, Renderer(TOKENIZER), trainer.args.window) for each in collected]
        place = {tuple(example.input_ids): index for index, (example,) in enumerate(rows)}
        order = [place[row] for row in seen[start : start + 20]]
        passes = [tuple(order[i : i + 6]) for i in (0, 6, 12)]
        assert all(sorted(each) == list(range(6)) for each in passes)
        orders += passes
    assert len(set(orders)) == 6


def test_accumulation_of_eight_is_a_batch_of_eight():
    found = {}
    for size in (1, 8):
        sizes = {"per_device_train_batch_size": size, "gradient_accumulation_steps": 8 // size}
        sizes |= {"collect_every": 3, "max_steps": 3, "collect_episodes": 11}
        ending = forced_model({"end": 7.0}, others=0.0, is_blind=False)  # or nothing would be imitated
        trainer = collecting(model=ending, output_dir=f"size{size}", **sizes)
        trainer.train()
        found[size] = log_of(trainer, "loss", "grad_norm", "bc_loss", "world_model_loss")
    assert_close(torch.tensor(found[1]), torch.tensor(found[8]), rtol=1e-5, atol=1e-6)


def test_rounds_come_every_so_many_steps_and_are_logged_whenever_that_is():
    trainer = collecting(collect_every=2, max_steps=5, logging_steps=3, collect_episodes=3)
    trainer.train()
    assert [{each.metadata["policy_version"] for each in found} for found in rounds()] == [{0}, {2}, {4}]
    (entry,) = log_of(trainer, "collect/return", "collect/length", "collect/success", "collect/cut_actions", "step")
    logged = [each for found in rounds()[:2] for each in found]  # of the first three steps
    wanted = (
        sum(each.total_reward for each in logged) / 6,
        sum(map(len, logged)) / 6,
        sum(each.metadata["success"] for each in logged) / 6,
        # the mean over both rounds of each one's share
        sum(sum(len(t.metadata.get("cut_actions", ())) for t in r) / sum(map(len, r)) for r in rounds()[:2]) / 2,
        3,
    )
    assert_close(entry, wanted)


def test_episodes_of_all_rounds_have_other_seeds_and_other_actions():
    trainer = collecting(max_steps=5, learning_rate=0.0, collect_episodes=6)
    trainer.train()
    every = [each for found in rounds() for each in found]
    assert len({each.metadata["seed"] for each in every}) == 30
    actions = [action["content"] for each in every for action in each.actions]
    assert len(set(actions)) > 0.9 * len(actions)
    seeds = {seed_of(42, a, b) for a in range(50) for b in range(50)}
    assert len(seeds | {seed_of(42, a) for a in range(50)}) == 2550


def test_a_forced_policy_says_what_it_is_forced_to():
    """Nothing, or `6` up to the limit, where it would have gone on."""
    silent = collecting(model=forced_model({"end": 0.0}), output_dir="silent", max_steps=1)
    silent.train()
    (collected,) = rounds("silent")
    assert {action["content"] for each in collected for action in each.actions} == {""}
    assert all("cut_actions" not in each.metadata for each in collected)
    assert_close(log_of(silent, "bc_loss")[0], (0.0,))  # the end of turn is an action
    shouting = collecting(model=forced_model({"6": 0.0}), output_dir="shouting", max_steps=1)
    shouting.train()
    (collected,) = rounds("shouting")
    assert {action["content"] for each in collected for action in each.actions} == {"6" * 6}
    assert all(each.metadata["cut_actions"] == list(range(len(each))) for each in collected)
    assert "bc_loss" not in shouting.state.log_history[0]  # the end was never said, so nothing is imitated


class Talkative(Dice):
    """Its observations grow."""

    def step(self, action):
        return "x" * 30, 1.0, False, False, {}


def test_an_episode_ends_where_the_context_does():
    trainer = collecting([Talkative], model=forced_model({"end": 0.0}), max_steps=1, max_episode_steps=50)
    trainer.train()
    (collected,) = rounds()
    for each in collected:
        prompts = [len(Renderer(TOKENIZER).prompt_ids(each.messages(t))) for t in range(len(each) + 1)]
        assert prompts[-2] <= 128 - 6 < prompts[-1]
        assert each.metadata["truncated"]


def test_what_cannot_be_collected_or_learnt_is_said():
    class Long(Dice):
        def reset(self, *, seed=None):
            return "x" * 128, {}

    class First(Dice):
        def _show(self):
            self.face = 1
            return [{"role": "assistant", "content": "me first"}]

    class Failing(Dice):
        def step(self, action):
            raise LookupError("the lamp is gone")

    impossible = {"mode": "behavioral_cloning", "filter_low_reward": True, "min_reward_threshold": 99.0}
    cases = [
        (
            [Failing],
            {},
            RuntimeError,
            r"all 4 episodes before step 0 failed, the first: Failing, seed \d+: LookupError",
        ),
        ([Long], {}, RuntimeError, "cannot act on the first observation, which is too long"),
        ([Dice], {"max_completion_length": 128}, ValueError, "max_completion_length=128 leaves no room for a prompt"),
        ([First], {}, ValueError, "an episode of First: the assistant speaks first"),
        ([Dice], {"max_length": 5}, ValueError, "turns are longer than max_length=5"),
        ([Dice], impossible, ValueError, "the 4 trajectories .*none of them has a return of min_reward_threshold=99"),
    ]
    for index, (environments, options, error, words) in enumerate(cases):
        with pytest.raises(error, match=words):
            collecting(environments, output_dir=str(index), **options).train()
    cut = collecting(model=forced_model({"6": 0.0}), mode="behavioral_cloning")
    with pytest.raises(ValueError, match="each action is cut at max_completion_length"):
        cut.train()


def test_episodes_that_fail_are_counted_and_the_others_trained_on():
    class Failing(Dice):
        def step(self, action):
            raise LookupError

    trainer = collecting([Dice, Failing], max_steps=2)
    trainer.train()
    assert log_of(trainer, "collect/failed", "collect/trajectories") == [(0.5, 2.0), (0.5, 4.0)]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"max_steps": -1}, "collected trajectories never end: set max_steps"),
        ({"packing": True}, "packing=True is for data sets"),
        ({"weighting": "boltzmann", "target_ess": 0.5}, "target_ess fits a temperature to one data set"),
        ({"sampling_top_p": 1.5}, "sampling_top_p is a share of the probability, at most 1; got 1.5"),
        ({"use_vllm": True, "vllm_mode": "server"}, "vllm_mode='server' needs vllm_server_base_url"),
        ({"environments": []}, "a list of functions or ids, with one at least"),
        ({"environments": "Dice-v0"}, "a list of functions or ids, with one at least; got 'Dice-v0'"),
    ],
    ids=str,
)
def test_options_that_do_not_fit_collected_trajectories_are_refused(options, words):
    options = dict(options)
    environments = options.pop("environments", [Dice])
    with pytest.raises(ValueError, match=words):
        collecting(environments, **options)


def test_environments_are_classes_functions_and_ids():
    environments = [Dice, lambda: Ignorant(), "collection_tools:Dice-v0", "online-sft/MathRetries-v0"]
    collecting(environments, max_steps=1).train()
    names = [each.metadata["environment"] for each in rounds()[0]]
    assert names == ["Dice", "Ignorant", "Dice-v0", "online-sft/MathRetries-v0"]


@pytest.mark.parametrize("form", ["TrajectoryDataset", "list", "Dataset"])
def test_a_run_begins_with_demonstrations_in_any_form(form, tmp_path):
    demonstrations = ragged_trajectories(5)
    as_rows = [each.to_dict() for each in demonstrations]
    data = {
        "TrajectoryDataset": lambda: TrajectoryDataset(demonstrations),
        "list": lambda: demonstrations,
        "Dataset": lambda: Dataset.from_list(
            [{**row, "metadata": {"group": row["metadata"]["group"]}} for row in as_rows]
        ),
    }[form]()
    trainer = collecting(train_dataset=data, max_length=300, per_device_train_batch_size=9, max_steps=2)
    recording = Recording(trainer)
    trainer.train()
    rows = {row for batch in recording.rows for row in batch}

    def of(trajectories):
        examples = [e for each in trajectories for e in examples_of(each, Renderer(TOKENIZER), trainer.args.window)]
        return {tuple(example.input_ids) for example in examples}

    assert of(demonstrations) <= rows <= of([*demonstrations, *rounds()[0], *rounds()[1]])
    assert log_of(trainer, "collect/trajectories") == [(9.0,), (13.0,)]


def test_evaluations_between_the_steps_change_nothing():
    found = {}
    for strategy in ("no", "steps"):
        options = {"eval_dataset": ragged_trajectories(3, seed=1)}
        evaluation = {"eval_strategy": strategy, "eval_steps": 1, "max_length": 300, "weighting": "boltzmann"}
        # without dropout: any evaluation takes a random number, for its data loader
        trainer = collecting(options=options, output_dir=strategy, collect_every=2, **evaluation)
        trainer.train()
        found[strategy] = (log_of(trainer, "loss", "grad_norm"), parameters(trainer).tolist())
    assert found["no"] == found["steps"]


@pytest.mark.parametrize("lacks", ["chat template", "pad token"])
def test_a_tokenizer_may_lack(lacks):
    tokenizer = build_byte_tokenizer() if lacks == "chat template" else chat_tokenizer()
    if lacks == "pad token":
        tokenizer.pad_token = None
    trainer = collecting([Ignorant], tokenizer=tokenizer, max_steps=1)
    recording = Recording(trainer)
    trainer.train()
    conversations = [each.messages() for each in rounds()[0]]
    end = tokenizer.eos_token
    texts = {
        "chat template": ["".join(m["content"] + end for m in said) for said in conversations],
        "pad token": ["".join(f"<{m['role']}>{m['content']}{end}" for m in said) for said in conversations],
    }[lacks]
    assert {tokenizer.decode(row) for batch in recording.rows for row in batch} <= set(texts)


@pytest.mark.slow
@pytest.mark.parametrize("options", [{}, {"bf16": True}], ids=["float32", "bf16"])
def test_continuous_batching_collects_what_the_policy_says(options):
    continuous = {
        "use_transformers_continuous_batching": True,
        "transformers_continuous_batching_config": {"num_blocks": 64, "max_batch_tokens": 256},
    }
    snapshots = Snapshots()
    greedily = {"sampling_temperature": 1e-4, "max_steps": 2}
    trainer = collecting(options={"callbacks": [snapshots]}, **continuous, **greedily, **options)
    trainer.train()
    said = [action["content"] for collected in rounds() for each in collected for action in each.actions]
    if options:  # it computes in the dtype of the parameters
        trainer.model.forward = trainer.model._original_forward
    assert said == greedy_actions(trainer.model, TOKENIZER, snapshots.found, rounds())
    small = {"num_blocks": 2, "max_batch_tokens": 256, "page_size": 16}
    trainer = collecting(
        [Talkative], output_dir="small", **{**continuous, "transformers_continuous_batching_config": small}
    )
    with pytest.raises(RuntimeError, match=r"continuous batching has answered . of 3 prompts.*num_blocks"):
        trainer.train()


@pytest.mark.gpu
def test_collected_rows_are_trained_on_where_the_model_is():
    trainer = collecting(model=build_model(TOKENIZER, seed=0), use_cpu=False, max_steps=2)
    trainer.train()
    assert next(trainer.model.parameters()).is_cuda
    assert len(log_of(trainer, "loss", "collect/return", "bc_loss")) == 2
