import pytest
from torch import tensor
from torch.testing import assert_close

from online_sft.advantages import pad_advantages, token_advantages


def test_a_list_stays_and_a_number_is_repeated():
    assert token_advantages([1.0, -2.0], 2, row="row 0") == [1.0, -2.0]
    assert token_advantages(-0.5, 3, row="row 0") == [-0.5, -0.5, -0.5]


@pytest.mark.parametrize(
    ("advantages", "message"),
    [
        ([1.0], "row 7 has 1 advantages for 2 tokens"),
        ([1.0, 2.0, 3.0], "row 7 has 3 advantages for 2 tokens"),
        (None, "row 7 has no advantages for 2 tokens"),
        ([1.0, None], "row 7 has advantage None at token 1"),
        (float("nan"), "row 7 has advantage nan at token 0"),
    ],
)
def test_what_does_not_fit_is_named(advantages, message):
    with pytest.raises(ValueError, match=message):
        token_advantages(advantages, 2, row="row 7")


def test_padding_has_no_weight():
    assert_close(pad_advantages([[1.0, 2.0], [3.0]], 3), tensor([[1.0, 2.0, 0.0], [3.0, 0.0, 0.0]]))
