"""What `environments=` takes."""

import gymnasium
import pytest
from collection_tools import Dice, GymnasiumDice
from gymnasium.utils import seeding

from online_sft.environments.factories import environment_factories
from online_sft.trajectories.collection import collect, one_at_a_time


def test_functions_are_taken_as_they_are_and_ids_import_their_module():
    function, by_id = environment_factories([Dice, "collection_tools:Dice-v0"])
    assert function is Dice
    assert isinstance(by_id().unwrapped, GymnasiumDice)
    assert by_id() is not by_id()


@pytest.mark.parametrize(
    ("environments", "words"),
    [
        ("online-sft/MathRetries-v0", "a list of functions or ids, with one at least; got 'online-sft/MathRetries-v0'"),
        ([], "a list of functions or ids, with one at least"),
        ([Dice()], "an id or as a function that makes one, such as its class; got a Dice"),
        (["online-sft/Chess-v9"], "no environment 'online-sft/Chess-v9'.*Ours are online-sft/MathRetries-v0"),
        (["no_such_module:Dice-v0"], "no environment 'no_such_module:Dice-v0'"),
    ],
)
def test_what_makes_no_environment_is_named(environments, words):
    with pytest.raises(ValueError, match=words):
        environment_factories(environments)


def test_ids_are_environments_with_the_seed_of_the_episode():
    (make,) = environment_factories(["online-sft/MathRetries-v0"])
    found = collect(one_at_a_time(lambda messages: "Answer: no"), [make], [5, 5, 6], num_environments=2).trajectories
    tasks = [each.observations[0][0]["content"] for each in found]
    assert tasks[0] == tasks[1] != tasks[2]
    numbers = seeding.np_random(5)[0].integers(0, 100, 2)  # as Gymnasium seeds
    assert f"{numbers[0]} " in tasks[0]
    assert f" {numbers[1]}?" in tasks[0]
    assert isinstance(make(), gymnasium.Env)
