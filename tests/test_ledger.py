import pytest

from online_sft import bias_ledger


def test_nothing_in_force_is_an_empty_ledger():
    assert bias_ledger() == []


@pytest.mark.parametrize(
    ("options", "start"),
    [
        ({"temperature": 0.7}, "temperature=0.7:"),
        ({"top_p": 0.9}, "top_p=0.9:"),
        ({"top_k": 20}, "top_k=20:"),
        ({"min_p": 0.05}, "min_p=0.05:"),
        ({"repetition_penalty": 1.1}, "repetition_penalty=1.1:"),
        ({"other_sampling_options": ["typical_p"]}, "generation_kwargs typical_p:"),
        ({"sync_ref_model": True}, "sync_ref_model=True:"),
        ({"updates_per_rollout": 4}, "4 optimizer steps"),
        ({"use_vllm": True}, "use_vllm=True:"),
        ({"mask_truncated_completions": True}, "mask_truncated_completions=True:"),
        ({"baseline": "group_mean", "beta": 0.1}, "baseline=group_mean:"),
    ],
)
def test_each_option_has_its_one_sentence(options, start):
    (sentence,) = bias_ledger(**options)
    assert sentence.startswith(start)


def test_the_group_mean_alone_is_only_a_scale():
    assert bias_ledger(baseline="group_mean", beta=0.0) == []
