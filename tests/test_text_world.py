"""The world of the text_world recipe is what its map says, and the recipe reaches what its README promises."""

import random
from functools import partial

import pytest
import torch

from online_sft.trajectories.collection import collect, one_at_a_time
from recipes.text_world import __main__ as text_world
from recipes.text_world import pretrain_then_online
from recipes.text_world.behaviour import WALKERS, Walker, behaviour_data, held_out_states, states_of
from recipes.text_world.environment import WalkEnv
from recipes.text_world.evaluate import prediction_accuracy, score
from recipes.text_world.stages import Stages, graded_actions
from recipes.text_world.tiny_model import build_tokenizer
from recipes.text_world.world import (
    ACTIONS,
    MAX_STEPS,
    SQUARES,
    STATES,
    State,
    distances_to,
    expected_return,
    next_state,
    read_state,
    reward_of,
    wasted_steps,
)


def walks(share_random, num_episodes, starts=STATES):
    walker = Walker(share_random, random.Random(0))
    environments = [partial(WalkEnv, starts)]
    return collect(one_at_a_time(walker), environments, range(num_episodes)).trajectories


@pytest.mark.parametrize(
    ("at", "action", "then", "why"),
    [
        ("a1", "north", "a2", "north is up"),
        ("d2", "east", "e2", "east is right"),
        ("f6", "south", "f5", "south is down"),
        ("c4", "west", "b4", "west is left"),
        ("a2", "east", "a2", "a wall"),
        ("c3", "south", "c3", "a wall"),
        ("a1", "west", "a1", "the edge"),
        ("a1", "south", "a1", "the edge"),
        ("f6", "east", "f6", "the edge"),
        ("f6", "north", "f6", "the edge"),
        ("a1", "up", "a1", "no action"),
        ("a1", " north", "a1", "no action"),
        ("a1", "", "a1", "no action"),
    ],
)
def test_a_step_follows_the_map_and_keeps_the_goal(at, action, then, why):
    assert next_state(State(at, "b1"), action) == State(then, "b1"), why


def test_a_state_reads_back_and_nothing_else_does():
    assert str(State("c4", "f1")) == "at c4, goal f1"
    assert all(read_state(str(state)) == state for state in STATES)
    assert len({str(state) for state in STATES}) == len(STATES) == len(SQUARES) * (len(SQUARES) - 1) == 812
    for text in ("", "at c4", "c4, goal f1", "at c4, goal f1 ", "at b2, goal a1", "at a7, goal a1", "at , goal "):
        with pytest.raises(ValueError, match="a state reads like"):
            read_state(text)


def test_distances_are_those_counted_on_the_map():
    assert distances_to("c3") == {**distances_to("c3"), "c3": 0, "c4": 1, "a2": 5, "c1": 4, "f6": 6, "e6": 5}
    assert all(set(distances_to(goal)) == set(SQUARES) for goal in SQUARES)
    assert max(distances_to(state.goal)[state.at] for state in STATES) == MAX_STEPS, "every goal can be reached in time"


def test_a_return_is_the_arrival_less_a_tenth_of_the_wasted_steps():
    for episode in walks(0.7, 100):
        first, last = (read_state(episode.observations[t][0]["content"]) for t in (0, -1))
        nearer = distances_to(first.goal)[first.at] - distances_to(last.goal)[last.at]
        assert episode.total_reward == pytest.approx(last.is_final - 0.1 * (len(episode) - nearer))


def test_an_expert_arrives_by_a_shortest_way_with_a_return_of_one():
    for episode in walks(0.0, 100):
        start = read_state(episode.observations[0][0]["content"])
        assert len(episode) == distances_to(start.goal)[start.at]
        assert episode.total_reward == 1.0
        assert episode.metadata["success"] and episode.metadata["terminated"] and not episode.metadata["truncated"]


def test_who_does_not_arrive_is_stopped_after_max_steps():
    (episode,) = collect(
        one_at_a_time(lambda messages: "stay"), [partial(WalkEnv, [State("a1", "a2")])], [0]
    ).trajectories
    assert episode.rewards == [-0.1] * MAX_STEPS
    assert episode.metadata["truncated"] and not episode.metadata["terminated"]
    assert episode.metadata["success"] is False


def test_an_arrival_with_the_last_step_is_no_truncation():
    environment = WalkEnv([State("a1", "a2")])
    environment.reset(seed=0)
    steps = [environment.step(action) for action in ["stay"] * (MAX_STEPS - 1) + ["north"]]
    assert [step[2:4] for step in steps] == [(False, False)] * (MAX_STEPS - 1) + [(True, False)]
    assert steps[-1][4] == {"success": True} and "success" not in steps[0][4]


def test_an_episode_begins_in_one_of_the_starts_that_its_seed_draws():
    starts = STATES[:5]
    environment = WalkEnv(starts)
    begun = [environment.reset(seed=seed) for seed in range(50)]
    assert {text for text, _ in begun} == {str(state) for state in starts}
    assert begun == [WalkEnv(starts).reset(seed=seed) for seed in range(50)]
    assert all(info == {"group": text} for text, info in begun)


def test_no_episode_comes_through_a_held_out_state_and_all_walkers_are_there():
    held_out = held_out_states(seed=3)
    assert len(set(held_out)) == 81 and set(held_out) <= set(STATES)
    data = behaviour_data(held_out, seed=3)
    assert not set().union(*map(states_of, data)) & set(held_out)
    returns = {name: [each.total_reward for each in data if each.metadata["walker"] == name] for name in WALKERS}
    means = {name: sum(values) / len(values) for name, values in returns.items()}
    assert means["expert"] == 1.0 > means["hesitant"] > means["random"]
    assert -0.2 < data.statistics().mean_return < 0.4


def test_the_states_of_an_episode_are_all_that_it_shows_with_the_last():
    for episode in walks(0.0, 20):
        assert states_of(episode) == {read_state(each[0]["content"]) for each in episode.observations}
        assert len(states_of(episode)) == len(episode) + 1


@pytest.mark.parametrize("share_random", [0.0, 0.5, 1.0])
def test_the_expected_return_is_the_mean_of_many_walks(share_random):
    start = State("a1", "c3")
    returns = torch.tensor([each.total_reward for each in walks(share_random, 1500, [start])])
    error = returns.std().item() / len(returns) ** 0.5
    assert abs(returns.mean().item() - expected_return(start, share_random)) <= 4 * error


def test_the_score_is_0_at_random_and_100_by_shortest_ways():
    starts = STATES[:50]
    at_random = sum(expected_return(state, 1.0) for state in starts) / len(starts)
    assert [score(value, starts) for value in (at_random, (at_random + 1) / 2, 1.0)] == pytest.approx(
        [0.0, 50.0, 100.0]
    )


def test_the_grade_of_an_action_is_its_reward_in_the_state():
    said = [[{"role": "assistant", "content": action}] for action in ("north", "south", "west", "north", "??")]
    states = ["at a1, goal a2", "at a2, goal a4", "at a1, goal a4", "at a2, goal a4", "at a2, goal a4"]
    assert graded_actions(completions=said, state=states) == pytest.approx([1.0, -0.2, -0.1, 0.0, -0.1])


def test_the_best_action_of_one_turn_begins_a_shortest_way():
    for state in STATES:
        best = max(ACTIONS, key=lambda action: reward_of(state, action))
        assert wasted_steps(state, best) == 0


class Oracle:
    """Knows the world, and says what `mistaken` makes of it."""

    def __init__(self, tokenizer, mistaken):
        self.tokenizer, self.mistaken = tokenizer, mistaken

    def eval(self):
        pass

    def generate(self, input_ids, attention_mask, do_sample, max_new_tokens):
        assert not do_sample
        answers = []
        for prompt in self.tokenizer.batch_decode(input_ids, skip_special_tokens=True):
            _, observation, action, _ = prompt.split("<")
            state = read_state(observation.removeprefix("user>"))
            answers.append(self.mistaken(next_state(state, action.removeprefix("assistant>"))) + "<|end|>")
        ids = self.tokenizer(answers, padding="max_length", max_length=max_new_tokens, padding_side="right")[
            "input_ids"
        ]
        return torch.cat([input_ids, torch.tensor(ids)], dim=1)


def test_the_accuracy_counts_observations_without_any_fault():
    tokenizer, states = build_tokenizer(), STATES[::40]

    def accuracy(mistaken):
        return prediction_accuracy(Oracle(tokenizer, mistaken), tokenizer, states)

    assert accuracy(str) == 1.0
    assert accuracy(lambda state: f"at {state.at}, goal {state.at}") < 0.2
    assert accuracy(lambda state: f"{state}a1") == 0.0
    elsewhere = [next_state(state, action) for state in states for action in ACTIONS]
    assert accuracy(lambda s: "at a1, goal a2" if s.at > "c" else str(s)) == sum(s.at <= "c" for s in elsewhere) / len(
        elsewhere
    )


def test_an_observation_and_an_action_have_a_token_for_each_word():
    tokenizer = build_tokenizer()
    for text, num_tokens in [(str(state), 4) for state in STATES] + [(action, 1) for action in ACTIONS]:
        ids = tokenizer(text)["input_ids"]
        assert len(ids) == num_tokens and tokenizer.decode(ids) == text


@pytest.mark.slow
def test_the_recipe_runs_two_steps_and_leaves_its_files(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr("sys.argv", ["text_world", "--steps", "2"])
    text_world.main()
    printed = capsys.readouterr().out
    for name in ("the episodes", "a_world_model", "b_cloning", "c_combined", "s in all"):
        assert name in printed
    left = tmp_path / "runs" / "text_world"
    assert (left / "curves.png").stat().st_size > 10_000 and (left / "episodes.jsonl").stat().st_size > 1_000_000
    assert (left / "c_combined" / "model.safetensors").exists()


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_one_model_predicts_the_world_and_walks_as_well_as_two_that_learn_one_thing_each(tmp_path):
    found = {stage.name: stage for stage in text_world.train(Stages(tmp_path / "out", seed=0, steps=None))}
    world_model, cloning, combined = found["a_world_model"], found["b_cloning"], found["c_combined"]
    assert world_model.accuracy >= 0.99
    assert cloning.mean_return > found["the episodes"].mean_return
    assert combined.accuracy >= world_model.accuracy - 0.02
    assert combined.score >= cloning.score - 2.0


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_online_sft_improves_a_pretrained_model(tmp_path):
    _, pretrained, online = pretrain_then_online.train(Stages(tmp_path / "out", seed=0, steps=None))
    assert online.mean_return > pretrained.mean_return + 0.1
