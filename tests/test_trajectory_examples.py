import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from trajectory_tools import chat_tokenizer, ragged_trajectories, tokens_by_hand

from online_sft.trajectories.examples import MODES, Window, examples_of
from online_sft.trajectories.rendering import ACTION, OBSERVATION, Renderer
from online_sft.trajectories.trajectory import Trajectory

TOKENIZER = chat_tokenizer()
RENDERER = Renderer(TOKENIZER)
KINDS = {"action": ACTION, "observation": OBSERVATION}
EPISODE = Trajectory(
    [[{"role": "system", "content": "S"}, {"role": "user", "content": "o0"}], "o1", "o2", "o3"],
    ["a0", "a1", "a2"],
    [0.0, 1.0, 2.0],
)


def rows_of(trajectory, weights=None, **window):
    return examples_of(trajectory, RENDERER, Window(**window), weights)


def learnt(rows, kind):
    """The texts that are learnt, in order; what follows one without a gap is the same text."""
    text = "".join(
        TOKENIZER.decode([token]) if its == kind else "|"
        for row in rows
        for token, its in zip(row.labels, row.kinds, strict=True)
    )
    return [part for part in text.replace("<|end|>", ".|").split("|") if part]


def shown(rows):
    return [TOKENIZER.decode(row.input_ids) for row in rows]


def test_a_row_is_what_is_learnt_by_hand():
    for trajectory in ragged_trajectories(20):
        (row,) = rows_of(trajectory)
        by_hand = tokens_by_hand(trajectory, TOKENIZER)
        end = max(place for place, (_, kind, _) in enumerate(by_hand, 1) if kind)
        assert row.input_ids == [token for token, _, _ in by_hand[:end]]
        assert row.labels == [token if kind else -100 for token, kind, _ in by_hand[:end]]
        assert row.kinds == [KINDS.get(kind, 0) for _, kind, _ in by_hand[:end]]
        assert row.advantages == [float(kind is not None) for _, kind, _ in by_hand[:end]]


@pytest.mark.parametrize(
    ("mode", "actions", "observations"),
    [
        ("behavioral_cloning", ["a0.", "a1.", "a2."], []),
        ("world_model", [], ["o1.", "o2.", "o3."]),
        ("combined", ["a0.", "a1.", "a2."], ["o1.", "o2.", "o3."]),
    ],
)
def test_each_mode_learns_its_kinds_and_ends_with_them(mode, actions, observations):
    (row,) = rows_of(EPISODE, learns=MODES[mode])
    assert learnt([row], ACTION) == actions
    assert learnt([row], OBSERVATION) == observations
    assert row.kinds[-1] != 0  # what stands behind would be computed for nothing


def test_weights_are_those_of_the_actions_and_none_is_not_learnt_while_its_observation_is():
    (row,) = rows_of(EPISODE, weights=[0.5, None, -2.0])
    assert learnt([row], ACTION) == ["a0.", "a2."]
    assert learnt([row], OBSERVATION) == ["o1.", "o2.", "o3."]
    assert sorted({(kind, weight) for kind, weight in zip(row.kinds, row.advantages, strict=True)}) == [
        (0, 0.0), (ACTION, -2.0), (ACTION, 0.5), (OBSERVATION, 1.0),
    ]  # fmt: skip
    assert rows_of(EPISODE, weights=[None] * 3, learns=MODES["behavioral_cloning"]) == []


def test_with_a_history_every_action_sees_that_many_turns_and_the_system_messages():
    assert shown(rows_of(EPISODE, history_length=0)) == [
        "<system>S<|end|><user>o0<|end|><assistant>a0<|end|><user>o1<|end|>",
        "<system>S<|end|><user>o1<|end|><assistant>a1<|end|><user>o2<|end|>",
        "<system>S<|end|><user>o2<|end|><assistant>a2<|end|><user>o3<|end|>",
    ]
    rows = rows_of(EPISODE, history_length=1)  # the first two actions have no more history than one row shows
    assert shown(rows) == [
        "<system>S<|end|><user>o0<|end|><assistant>a0<|end|><user>o1<|end|><assistant>a1<|end|><user>o2<|end|>",
        "<system>S<|end|><user>o1<|end|><assistant>a1<|end|><user>o2<|end|><assistant>a2<|end|><user>o3<|end|>",
    ]
    assert learnt(rows[1:], ACTION) == ["a2."]
    assert learnt(rows[1:], OBSERVATION) == ["o3."]
    assert rows_of(EPISODE, history_length=2) == rows_of(EPISODE)


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 10_000), st.sampled_from(sorted(MODES)), st.sampled_from([None, 0, 1, 3]), st.integers(20, 200))
def test_whatever_is_cut_every_turn_is_learnt_once_or_counted_and_no_action_in_part(seed, mode, history, max_length):
    (trajectory,) = ragged_trajectories(1, seed, max_turns=6)
    whole = rows_of(trajectory, learns=MODES[mode], history_length=None)
    rows = rows_of(trajectory, learns=MODES[mode], history_length=history, max_length=max_length)
    left_out, kept = [row for row in rows if not row.input_ids], [row for row in rows if row.input_ids]
    assert all(len(row.input_ids) <= max_length for row in kept)
    assert all(len(row.input_ids) == max_length for row in kept if row.is_cut)

    def of_kind(rows, kind):
        return [[t for t, its in zip(row.labels, row.kinds, strict=True) if its == kind] for row in rows]

    for kind in MODES[mode]:
        (wanted,) = of_kind(whole, kind) or [[]]
        found = [token for row in of_kind(kept, kind) for token in row]
        if not left_out and not any(row.is_cut for row in kept):
            assert found == wanted
        elif kind == ACTION:
            ends = TOKENIZER.eos_token_id
            assert wanted.count(ends) - found.count(ends) == len(left_out)  # whole actions are gone, and counted
        else:
            assert len(found) <= len(wanted)


@pytest.mark.parametrize(("max_length", "ends"), [(88, ["o3"]), (65, ["o2", "o3"]), (64, ["o1", "o2", "o3"])])
def test_a_long_episode_is_divided_between_turns_as_late_as_possible(max_length, ends):
    """The system message has 10 tokens, a turn 23, its next observation 9."""
    rows = rows_of(EPISODE, max_length=max_length)
    assert [text[-len("o1<|end|>") :][:2] for text in shown(rows)] == ends
    assert all(text.startswith("<system>S<|end|><user>o") for text in shown(rows))
    assert learnt(rows, ACTION) == ["a0.", "a1.", "a2."]
    assert learnt(rows, OBSERVATION) == ["o1.", "o2.", "o3."]


def test_an_observation_loses_its_end_and_an_action_without_room_is_left_out():
    episode = Trajectory(["o", "x" * 50, "o2"], ["act", "b" * 50], [0.0, 0.0])
    (row, left_out) = rows_of(episode, max_length=40)
    assert row.is_cut
    assert len(row.input_ids) == 40
    assert learnt([row], ACTION) == ["act."]
    assert learnt([row], OBSERVATION) == ["x" * len(learnt([row], OBSERVATION)[0])]
    assert left_out.input_ids == []


def test_tools_of_the_metadata_reach_the_template():
    tokenizer = chat_tokenizer()
    tokenizer.chat_template = "{{ tools | length if tools else 0 }}<|end|>" + tokenizer.chat_template
    tools = [{"type": "function", "function": {"name": "f"}}]
    episode = Trajectory(["o", "p"], ["a"], [1.0], {"tools": tools})
    (row,) = examples_of(episode, Renderer(tokenizer), Window())
    assert tokenizer.decode(row.input_ids).startswith("1<|end|>")
