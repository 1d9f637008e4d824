"""What a collection brings, whatever environments do: the episodes that one by one by hand would give."""

import threading
import time
from dataclasses import dataclass

import numpy as np
import pytest
from collection_tools import Dice

from online_sft.environments.factories import environment_factories
from online_sft.trajectories.collection import Action, State, collect, one_at_a_time
from online_sft.trajectories.dataset import TrajectoryDataset
from online_sft.trajectories.trajectory import Trajectory


class Endless(Dice):
    """Never over; counts its instances, and what is done with them."""

    made: list

    def __init__(self):
        self.made.append(self)
        self.calls = []

    def reset(self, *, seed=None):
        self.calls.append("reset")
        self.seed = seed
        return f"seed {seed}", {}

    def step(self, action):
        self.calls.append("step")
        return f"after {action}", 1, False, False, {}

    def close(self):
        self.calls.append("close")


def counted(**methods):
    """A class of such environments of its own."""
    return type("Counted", (Endless,), {"made": [], **methods})


def answer(states):
    """Depends on everything that was said before."""
    return [Action(f"{len(s.messages)} {sum(len(m['content']) for m in s.messages)}") for s in states]


def by_hand(make, seed):
    """One episode, written out."""
    environment = make()
    observation, info = environment.reset(seed=seed)
    said, observations, actions, rewards = [{"role": "user", "content": observation}], [observation], [], []
    is_over, metadata = False, dict(info)
    while not is_over:
        (action,) = answer([State(said, None)])
        observation, reward, is_over, _, info = environment.step(action.text)
        said += [{"role": "assistant", "content": action.text}, {"role": "user", "content": observation}]
        metadata |= info
        observations.append(observation)
        actions.append(action.text)
        rewards.append(reward)
    metadata |= {"environment": make.__name__, "seed": seed, "terminated": True, "truncated": False}
    return Trajectory(observations, actions, rewards, metadata)


class Other(Dice):
    """Another environment, for seeds in turn."""

    def _show(self):
        return f"{super()._show()}!"


@pytest.mark.parametrize("num_environments", [1, 2, 3, 16])
def test_episodes_are_those_by_hand_in_the_order_of_their_seeds_however_many_run_at_a_time(num_environments):
    seeds = [11, 3, 8, 3, 7, 0, 5]
    found = collect(answer, [Dice, Other], seeds, num_environments=num_environments)
    wanted = [by_hand((Dice, Other)[index % 2], seed) for index, seed in enumerate(seeds)]
    assert found.trajectories == wanted
    assert found.failures == []


def test_the_policy_is_asked_once_for_all_who_wait():
    """Episodes of 3, 1, 2, 1 and 3 actions, three at a time: a place that becomes free is taken at once."""
    sizes = []

    def counting(states):
        sizes.append(len(states))
        return answer(states)

    collect(counting, [Dice], [2, 0, 1, 3, 5], num_environments=3)
    assert sizes == [3, 3, 2, 1, 1]


def test_instances_are_used_again_and_each_is_closed_once_at_the_end():
    make = counted()
    collect(answer, [make], range(7), num_environments=2, max_steps=2)
    assert len(make.made) == 2
    assert [call for each in make.made for call in each.calls].count("reset") == 7
    assert all(each.calls.index("close") == len(each.calls) - 1 for each in make.made)


def test_no_more_than_num_environments_act_at_a_time():
    now, most = set(), []

    def enter(self, *, seed=None):
        now.add(id(self))
        most.append(len(now))
        return "x", {}

    def leave(self, action):
        now.discard(id(self))
        return "x", 1, True, False, {}

    collect(answer, [counted(reset=enter, step=leave)], range(10), num_environments=3)
    assert max(most) == 3


class BrokenError(Exception):
    pass


def raising_in(name):
    """Its third instance, or the episode of seed 2, raises; whoever uses it again hears of it."""

    def step(self, action):
        self.calls.append("step")
        assert not getattr(self, "is_broken", False), "it was used again"
        if name == "step" and self.seed == 2:
            self.is_broken = True
            raise BrokenError
        return "x", 1.0, True, False, {}

    def reset(self, *, seed=None):
        assert not getattr(self, "is_broken", False), "it was used again"
        self.seed = seed
        if name == "reset" and self.seed == 2:
            self.is_broken = True
            raise BrokenError
        return "x", {}

    make = counted(step=step, reset=reset)
    return make, lambda: make() if name != "make" or len(make.made) != 2 else _raise(make)


def _raise(make):
    make.made.append(None)
    raise BrokenError


@pytest.mark.parametrize("name", ["make", "reset", "step"])
def test_an_environment_that_raises_loses_this_episode_and_is_not_used_again(name, caplog):
    cls, make = raising_in(name)
    found = collect(answer, [make], range(8), num_environments=3)
    assert [each.metadata["seed"] for each in found.trajectories] == [0, 1, 3, 4, 5, 6, 7]
    where = "an environment" if name == "make" else "Counted"
    assert found.failures == [f"{where}, seed 2: BrokenError()"]
    assert f"1 of 8 episodes failed and are left out, the first: {where}, seed 2: BrokenError()" in caplog.text
    assert all(each.calls.count("close") == 1 for each in cls.made if each)


@pytest.mark.parametrize(
    ("step", "words"),
    [
        (lambda self, action: ("x", float("nan"), True, False, {}), "a reward must be a finite number; got nan"),
        (lambda self, action: ("x", -np.inf, True, False, {}), "a reward must be a finite number; got -inf"),
        (lambda self, action: ("x", "much", True, False, {}), "TypeError"),
        (lambda self, action: ("x", 1.0, True, {}), "ValueError"),
        (lambda self, action: (np.zeros(2), 1.0, True, False, {}), "a message has a role and content"),
        (lambda self, action: (7, 1.0, True, False, {}), "an observation is a string or messages"),
        (lambda self, action: ("half of \ud83d", 1.0, True, False, {}), "surrogates not allowed"),
        (lambda self, action: ("x", 1.0, True, False, {"group": object()}), "not JSON serializable"),
        (lambda self, action: exit(3), "SystemExit"),  # of code that a model wrote
    ],
)
def test_what_no_trajectory_can_hold_is_a_failure_of_this_episode(step, words):
    found = collect(answer, [Dice, counted(step=step)], [0, 1, 2])
    assert [each.metadata["seed"] for each in found.trajectories] == [0, 2]
    (failure,) = found.failures
    assert failure.startswith("Counted, seed 1: ")
    assert words in failure


def test_an_episode_without_a_first_message_fails_before_the_policy_sees_it():
    seen = []

    def looking(states):
        seen.extend(states)
        return answer(states)

    silent = counted(reset=lambda self, seed=None: ("x", {"messages": []}))
    found = collect(looking, [silent], [0])
    assert (found.trajectories, seen) == ([], [])
    assert "no message in the first observation" in found.failures[0]


def test_closing_may_fail_without_loss_and_the_others_are_closed(caplog):
    def close(self):
        self.calls.append("close")
        raise BrokenError

    make = counted(close=close)
    found = collect(answer, [make], range(3), num_environments=3, max_steps=1)
    assert len(found.trajectories) == 3
    assert [each.calls[-1] for each in make.made] == ["close"] * 3
    assert caplog.text.count("Counted cannot be closed: BrokenError()") == 3


def test_an_episode_is_truncated_after_max_steps_and_one_that_ends_then_is_not():
    found = collect(answer, [counted(), Dice], [5, 2], max_steps=3)
    endless, dice = found.trajectories
    for each, is_truncated in ((endless, True), (dice, False)):
        assert (len(each.actions), len(each.observations)) == (3, 4)
        assert (each.metadata["truncated"], each.metadata["terminated"]) == (is_truncated, not is_truncated)


def test_who_ends_an_episode_is_told_apart():
    ends = [(True, False), (False, True), (np.True_, np.False_)]
    environments = [counted(step=lambda self, action, end=end: ("x", 1.0, *end, {})) for end in ends]
    found = collect(answer, environments, range(3)).trajectories
    told = [(each.metadata["terminated"], each.metadata["truncated"]) for each in found]
    assert told == [(True, False), (False, True), (True, False)]


def test_a_policy_that_cannot_act_truncates_and_at_the_first_observation_the_episode_fails():
    def hesitant(states):
        return [None if len(s.messages) > 3 or s.messages[0]["content"] == "seed 1" else Action("go") for s in states]

    make = counted()
    found = collect(hesitant, [make], range(3), num_environments=3)
    assert found.failures == [
        "Counted, seed 1: ValueError('the policy cannot act on the first observation, which is too long')"
    ]
    for each, seed in zip(found.trajectories, (0, 2), strict=True):
        assert each.messages() == [
            {"role": "user", "content": f"seed {seed}"},
            {"role": "assistant", "content": "go"},
            {"role": "user", "content": "after go"},
            {"role": "assistant", "content": "go"},
            {"role": "user", "content": "after go"},
        ]
        assert (each.metadata["truncated"], each.metadata["terminated"]) == (True, False)


def test_the_places_of_cut_actions_are_kept_and_only_where_there_are_some():
    def rambling(states):
        return [Action("x", is_cut=s.messages[0]["content"] == "seed 0" and len(s.messages) != 3) for s in states]

    cut, whole = collect(rambling, [counted()], range(2), max_steps=4).trajectories
    assert cut.metadata["cut_actions"] == [0, 2, 3]
    assert "cut_actions" not in whole.metadata


def test_messages_and_tools_reach_the_policy_and_group_and_success_the_trajectory():
    tools = [{"type": "function", "function": {"name": "add", "parameters": {"type": "object", "properties": {}}}}]
    opening = [{"role": "system", "content": "be kind"}, {"role": "user", "content": "hello"}]
    result = {"role": "tool", "content": "4", "name": "add"}

    def reset(self, *, seed=None):
        self.left = 3
        return "not this", {"messages": opening, "tools": tools, "group": np.int64(4), "other": object()}

    def step(self, action):
        self.left -= 1
        said = {2: result, 1: [], 0: "done"}[self.left]  # one message, none, a string
        return "nor this", np.float32(0.5), np.bool_(self.left == 0), np.False_, {"messages": said, "success": np.True_}

    states = []

    def looking(now):
        states.extend(now)
        return [Action("a") for _ in now]

    (found,) = collect(looking, [counted(reset=reset, step=step)], [9]).trajectories
    action = {"role": "assistant", "content": "a"}
    assert [state.messages for state in states] == [
        opening,
        [*opening, action, result],
        [*opening, action, result, action],
    ]
    assert [state.tools for state in states] == [tools] * 3
    assert found.messages() == [*opening, action, result, action, action, {"role": "user", "content": "done"}]
    assert found.rewards == [0.5] * 3
    assert found.metadata == {
        "tools": tools,
        "group": 4,
        "success": True,
        "environment": "Counted",
        "seed": 9,
        "terminated": True,
        "truncated": False,
    }
    assert TrajectoryDataset([found])[0] == found  # it can be saved as it is


def test_what_an_environment_changes_later_does_not_change_what_it_said():
    messages = [{"role": "user", "content": "first"}]

    def step(self, action):
        messages[0]["content"] = "second"
        messages.append({"role": "user", "content": "third"})
        return "over", 0.0, True, False, {}

    make = counted(reset=lambda self, seed=None: ("", {"messages": messages}), step=step)
    (found,) = collect(answer, [make], [0]).trajectories
    assert found.observations[0] == [{"role": "user", "content": "first"}]


def test_metadata_is_added_to_all_and_an_environment_of_a_registry_has_its_id():
    make = environment_factories(["collection_tools:Dice-v0"])
    found = collect(answer, [*make, Dice], [0, 1], metadata={"policy_version": 7, "seed": "overruled"}).trajectories
    assert [each.metadata["environment"] for each in found] == ["Dice-v0", "Dice"]
    assert [each.metadata["policy_version"] for each in found] == [7, 7]
    assert [each.metadata["seed"] for each in found] == ["overruled"] * 2


def test_environments_take_their_time_at_the_same_time():
    def step(self, action):
        time.sleep(0.2)
        return "x", 1.0, True, False, {}

    started = time.monotonic()
    collect(answer, [counted(step=step)], range(8), num_environments=8)
    assert time.monotonic() - started < 0.8  # one after the other: 1.6 s


def test_an_environment_lives_in_one_thread_from_its_making_to_its_end():
    """SQLite and Playwright, for two, refuse to work in another."""
    threads = {}

    class Bound(Endless):
        made = []

        def __init__(self):
            super().__init__()
            self._here()

        def reset(self, *, seed=None):
            self._here()
            return super().reset(seed=seed)

        def step(self, action):
            self._here()
            time.sleep(0.001 * (self.seed % 3))
            return super().step(action)

        def close(self):
            self._here()
            super().close()

        def _here(self):
            threads.setdefault(self, set()).add(threading.get_ident())

    collect(answer, [Bound], range(9), num_environments=3, max_steps=3)
    assert [len(each) for each in threads.values()] == [1, 1, 1]
    assert len(set.union(*threads.values(), {threading.get_ident()})) == 4


@pytest.mark.parametrize("error", [KeyboardInterrupt, BrokenError])
def test_whatever_ends_the_policy_ends_the_collection_and_environments_are_closed_and_threads_gone(error):
    make, threads = counted(), threading.active_count()

    def failing(states):
        if len(states[0].messages) == 3:
            raise error
        return answer(states)

    with pytest.raises(error):
        collect(failing, [make], range(3), num_environments=3)
    assert [each.calls for each in make.made] == [["reset", "step", "close"]] * 3
    assert threading.active_count() == threads


def test_too_few_actions_are_an_error_of_the_policy():
    make = counted()
    with pytest.raises(RuntimeError, match="the policy returned 1 actions for 2 states"):
        collect(lambda states: [Action("x")], [make], range(2), num_environments=2)
    assert [each.calls[-1] for each in make.made] == ["close"] * 2


def test_one_instance_for_two_episodes_at_a_time_is_refused():
    shared = counted()()
    with pytest.raises(ValueError, match="returned the same one twice, among them Counted"):
        collect(answer, [lambda: shared], range(2), num_environments=2)
    found = collect(answer, [lambda: shared], range(2), num_environments=1, max_steps=1)  # one after the other
    assert len(found.trajectories) == 2


def test_a_function_that_makes_environments_need_not_be_hashable():
    @dataclass
    class Make:
        sides: int = 6

        def __call__(self):
            return Dice()

    assert collect(answer, [Make(), Dice], [3, 4]).trajectories == [by_hand(Dice, 3), by_hand(Dice, 4)]


def test_a_process_without_episodes_asks_the_policy_as_often_as_the_others():
    elsewhere, asked = iter([True, True, False]), []

    def policy(states):
        asked.append(list(states))
        return []

    found = collect(policy, [], [], anywhere=lambda here: here or next(elsewhere))
    assert (found.trajectories, asked) == ([], [[], []])


@pytest.mark.parametrize("options", [{"num_environments": 0}, {"max_steps": 0}, {"environments": []}])
def test_numbers_that_cannot_be_are_refused(options):
    options = {"environments": [Dice], "seeds": [0], **options}
    with pytest.raises(ValueError, match="at least one is needed"):
        collect(answer, **options)


def test_a_function_of_one_conversation_is_a_policy():
    policy = one_at_a_time(lambda messages: messages[-1]["content"].upper())
    (found,) = collect(policy, [counted()], [3], max_steps=2).trajectories
    assert [each["content"] for each in found.actions] == ["SEED 3", "AFTER SEED 3"]
