"""One weight per token of a row."""

import pytest

from online_sft.advantages import group_id, message_weights, prompt_of, shifted_to_targets, token_advantages

LABELS = [-100, 5, -100, 6]


def test_a_list_is_kept_and_a_number_is_repeated():
    assert token_advantages([0, -1.5, 2.0, 1], LABELS, row="row 0") == [0.0, -1.5, 2.0, 1.0]
    assert token_advantages(2, LABELS, row="row 0") == [2.0] * 4


def test_text_may_have_one_advantage_per_loss_token():
    assert token_advantages([3.0, -1.0], LABELS, row="row 0", from_text=True) == [0.0, 3.0, 0.0, -1.0]
    assert token_advantages([1.0, 2.0, 3.0, 4.0], LABELS, row="row 0", from_text=True) == [1.0, 2.0, 3.0, 4.0]


@pytest.mark.parametrize(
    ("advantages", "from_text", "message"),
    [
        ([1.0], False, "row 3 has 1 advantages for 4 tokens; give one number per token"),
        ([1.0], True, "row 3 has 1 advantages for 4 tokens, of which 2 carry loss"),
        ([1.0, 2.0], False, "row 3 has 2 advantages for 4 tokens"),
        (None, False, "row 3 has advantages None for 4 tokens"),
        ("1.0", False, "row 3 has advantages '1.0' for 4 tokens"),
        ([1.0, None, 1.0, 1.0], False, "row 3 has advantages None at token 1"),
        ([1.0, "x", 1.0, 1.0], False, "row 3 has advantages 'x' at token 1"),
        ([1.0, 1.0, float("nan"), 1.0], False, "row 3 has advantages nan at token 2"),
        (float("inf"), False, "row 3 has advantages inf at token 0"),
    ],
)
def test_what_cannot_be_used_is_named(advantages, from_text, message):
    with pytest.raises(ValueError, match=message):
        token_advantages(advantages, LABELS, row="row 3", from_text=from_text)


def test_source_alignment_moves_right_by_one():
    assert shifted_to_targets([1.0, 2.0, 3.0], first=0.0) == [0.0, 1.0, 2.0]


def test_message_weights_cover_their_tokens():
    assert message_weights([0.0, 1.0, -2.0], [2, 3, 6]) == [0.0, 0.0, 1.0, -2.0, -2.0, -2.0]


def test_the_prompt_ends_where_the_loss_begins():
    assert prompt_of([4, 5, 6], [-100, -100, 6]) == [4, 5]
    assert prompt_of([4, 5], [-100, -100]) == [4, 5]
    assert prompt_of([4, 5], [4, 5]) == []


def test_group_ids_are_the_same_in_every_run_and_fit_int64():
    assert group_id("question 1") == 429365505065708835
    assert group_id([1, 2]) != group_id([2, 1])
    assert all(0 <= group_id(i) < 2**63 for i in range(100))
