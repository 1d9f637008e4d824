"""An episode: what is accepted, and what it says of itself."""

import pytest

from online_sft.trajectories.trajectory import Trajectory, Transition, as_messages


def user(text):
    return {"role": "user", "content": text}


def assistant(text):
    return {"role": "assistant", "content": text}


SYSTEM, TOOL = {"role": "system", "content": "S"}, {"role": "tool", "content": "T"}
TWO_TURNS = Trajectory([[SYSTEM, user("o0")], [TOOL, user("o1")], "o2"], ["a0", assistant("a1")], [0.5, -2])
SAID = [SYSTEM, user("o0"), assistant("a0"), TOOL, user("o1"), assistant("a1"), user("o2")]


def test_strings_are_messages_of_the_user_and_the_assistant():
    trajectory = Trajectory(["o0", user("o1")], ["a0"], [1])
    assert trajectory.observations == [[user("o0")], [user("o1")]]
    assert trajectory.actions == [assistant("a0")]
    assert [type(reward) for reward in trajectory.rewards] == [float]
    assert as_messages("S", "system") == [SYSTEM]
    assert as_messages([TOOL, user("a")], "system") == [TOOL, user("a")]


def test_what_a_message_has_besides_is_kept():
    call = assistant(None) | {"tool_calls": [{"name": "add"}]}
    assert Trajectory(["o0"], [call], [1]).actions == [call]


def test_its_length_is_that_of_its_actions_and_its_return_their_sum():
    assert len(TWO_TURNS) == 2
    assert TWO_TURNS.total_reward == -1.5
    assert Trajectory(["o"] * 10, ["a"] * 10, [0.1] * 10).total_reward == 1.0  # sum() is 0.9999999999999999


@pytest.mark.parametrize(("num_turns", "num_messages"), [(0, 2), (1, 5), (2, 7), (None, 7)])
def test_the_state_before_an_action_is_all_that_was_said_before_it(num_turns, num_messages):
    assert TWO_TURNS.messages(num_turns) == SAID[:num_messages]


def test_a_conversation_whose_last_observation_is_unknown_ends_with_the_action():
    assert Trajectory(["o0", "o1"], ["a0", "a1"], [0, 0]).messages()[-1] == assistant("a1")


def test_a_transition_is_state_action_new_messages_and_the_reward_of_that_action():
    assert TWO_TURNS.transitions() == [
        Transition(SAID[:2], assistant("a0"), [TOOL, user("o1")], 0.5),
        Transition(SAID[:5], assistant("a1"), [user("o2")], -2.0),
    ]
    unknown = Trajectory(TWO_TURNS.observations[:2], TWO_TURNS.actions, TWO_TURNS.rewards)
    assert unknown.transitions() == TWO_TURNS.transitions()[:1]


DONE = {
    "over": (3, {}, [False, False, True]),
    "cut short": (3, {"truncated": True}, [False, False, False]),
    "not cut short": (3, {"truncated": False}, [False, False, True]),
    "the end unknown": (2, {}, [False, False]),
}


@pytest.mark.parametrize("case", DONE)
def test_the_last_observation_is_done_unless_the_episode_was_cut_short(case):
    num_observations, metadata, done = DONE[case]
    row = Trajectory(TWO_TURNS.observations[:num_observations], TWO_TURNS.actions, [0, 0], metadata).to_dict()
    assert [each["done"] for each in row["observations"]] == done


def test_from_dict_reads_what_to_dict_wrote_and_plainer_rows():
    metadata = {"seed": 3, "tools": [{"type": "function"}]}
    trajectory = Trajectory(TWO_TURNS.observations, TWO_TURNS.actions, TWO_TURNS.rewards, metadata)
    row = trajectory.to_dict()
    assert row["rewards"] == [{"value": 0.5}, {"value": -2.0}]
    assert Trajectory.from_dict(row) == trajectory
    plain = {"observations": ["o0", [user("o1")]], "actions": ["a0"], "rewards": [1], "metadata": None}
    assert Trajectory.from_dict(plain) == Trajectory(["o0", "o1"], ["a0"], [1])


def test_its_lists_are_its_own():
    observation, metadata = [user("o0")], {"seed": 1}
    trajectory = Trajectory([observation], ["a0"], [1], metadata)
    observation.append(user("more"))
    observation[0]["content"] = "changed"
    metadata["seed"] = 2
    assert trajectory == Trajectory(["o0"], ["a0"], [1], {"seed": 1})


WRONG = {
    "no action": (([["o"]], [], []), "needs an action at least and as many rewards; got 0 actions and 0 rewards"),
    "a reward too few": ((["o"], ["a"], []), "got 1 actions and 0 rewards"),
    "an observation too many": (
        (["o"] * 3, ["a"], [1]),
        "has 2 observations, or 1 where the last one is unknown; got 3",
    ),
    "an observation too few": ((["o"], ["a"] * 2, [1] * 2), "got 1"),
    "nothing said at first": (([[], "o"], ["a"], [1]), "the first observation of a trajectory has no message"),
    "a reward of NaN": ((["o"] * 2, ["a"] * 2, [1, float("nan")]), "reward 1 of a trajectory is nan"),
    "an infinite reward": ((["o"], ["a"], [float("-inf")]), "reward 0 of a trajectory is -inf"),
    "no reward": ((["o"], ["a"], [None]), "reward 0 of a trajectory is None; it must be a finite number"),
    "a reward that is a truth": ((["o"], ["a"], [True]), "reward 0 of a trajectory is True"),
    "a reward that is a text": ((["o"], ["a"], ["1.5"]), "reward 0 of a trajectory is '1.5'"),
    "an observation that is a number": (([5], ["a"], [1]), "an observation is a string or messages .*; got 5"),
    "a message without a role": (([{"content": "o"}], ["a"], [1]), "a message has a role and content; got"),
    "a message without content": (([[{"role": "user"}]], ["a"], [1]), "a message has a role and content; got"),
    "an action of the user": ((["o"], [user("a")], [1]), "an action is one message of the assistant; got"),
    "two actions in one": ((["o"], [[assistant("a")] * 2], [1]), "an action is one message of the assistant; got"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_no_trajectory_is_refused(case):
    fields, message = WRONG[case]
    with pytest.raises(ValueError, match=message):
        Trajectory(*fields)


@pytest.mark.parametrize("name", ["observations", "actions", "rewards"])
def test_a_row_without_a_field_is_refused_by_its_name(name):
    for value in (None, "ab"):
        with pytest.raises(ValueError, match=f"{name} is none here"):
            Trajectory.from_dict({**TWO_TURNS.to_dict(), name: value})


def test_an_episode_that_is_not_done_at_its_end_is_truncated():
    """MRLM says no more of an episode that it cut at max_steps."""
    row = TWO_TURNS.to_dict()
    row["observations"][-1]["done"] = False
    trajectory = Trajectory.from_dict(row)
    assert trajectory.metadata["truncated"] is True
    assert trajectory.to_dict()["observations"][-1]["done"] is False
