import pytest

from online_sft import Method, bias_ledger

STALE = {"stale_samples": True}


def test_nothing_in_force_is_an_empty_ledger():
    assert bias_ledger(Method()) == []


@pytest.mark.parametrize(
    ("options", "start"),
    [
        ({"temperature": 0.7}, "temperature=0.7:"),
        ({"top_p": 0.9}, "top_p=0.9:"),
        ({"top_k": 20}, "top_k=20:"),
        ({"min_p": 0.05}, "min_p=0.05:"),
        ({"repetition_penalty": 1.1}, "repetition_penalty=1.1:"),
        ({"other_sampling_options": ("typical_p",)}, "generation_kwargs=typical_p:"),
        ({"sync_ref_model": True}, "sync_ref_model=True:"),
        ({"num_iterations": 2}, "num_iterations=2: .* fitted to the same completions"),
        ({"disable_dropout": False}, "disable_dropout=False:"),
        ({"use_transformers_continuous_batching": True}, "use_transformers_continuous_batching=True:"),
        ({"rollout_func": True}, "rollout_func=True: .* if it returns their `logprobs`"),
        (STALE | {"importance_sampling_mode": "none"}, "importance_sampling_mode=none: samples of an older policy"),
        ({"use_vllm": True, "importance_sampling_mode": "none"}, "importance_sampling_mode=none: another engine's"),
        (STALE | {"importance_sampling_mode": "token_mask"}, "importance_sampling_mode=token_mask:"),
        (STALE | {"importance_sampling_clip_max": 3.0}, "importance_sampling_clip_max=3: .* are cut to it"),
        (
            STALE | {"importance_sampling_mode": "sequence_mask", "importance_sampling_clip_min": 0.5},
            "importance_sampling_clip_min=0.5: .* are set to 0",
        ),
        ({"mask_truncated_completions": True}, "mask_truncated_completions=True:"),
        ({"baseline": "group_mean"}, r"baseline=group_mean: scales the reward's gradient by \(G-1\)/G; "),
        ({"baseline": "group_mean", "beta": 0.1}, "baseline=group_mean: .* but not the KL's"),
        ({"scale_rewards": "batch"}, "scale_rewards=batch:"),
        ({"filter_groups_min_std": 0.0}, "filter_groups_min_std=0:"),
        ({"normalize_logprob_by_length": True}, "normalize_logprob_by_length=True:"),
        ({"estimator": "prop3", "clip_weight_value": 1.0}, "clip_weight_value=1:"),
        ({"clip_logprob_min": -50.0}, "clip_logprob_min=-50:"),
    ],
)
def test_each_option_has_its_one_sentence(options, start):
    import re

    (bias,) = bias_ledger(Method(**options))
    assert re.match(start, str(bias))


@pytest.mark.parametrize("limit", ["importance_sampling_clip_min", "importance_sampling_clip_max"])
def test_importance_weights_of_the_policys_own_samples_bias_nothing(limit):
    assert bias_ledger(Method(importance_sampling_mode="token_mask", **{limit: 1.0})) == []


def test_importance_weights_without_limits_bias_nothing():
    assert bias_ledger(Method(stale_samples=True, use_vllm=True)) == []
