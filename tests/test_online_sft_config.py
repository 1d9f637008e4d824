"""OnlineSFTConfig: what it refuses, what it resolves, and the method and ledger that follow from it."""

import json
import logging
import re

import pytest

from online_sft import Method, OnlineSFTConfig


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"baseline": "leave_one_out"}, "baseline=leave_one_out"),
        ({"baseline": "group_mean"}, "baseline=group_mean"),
        ({"baseline": "none", "scale_rewards": "group"}, "scale_rewards=group"),
        ({"baseline": "none", "filter_groups_enable": True}, "filter_groups_enable"),
    ],
)
def test_what_compares_within_a_group_needs_a_group(cpu_args, options, named):
    with pytest.raises(ValueError, match=f"{named} compares answers .* num_generations must be at least 2; got 1"):
        OnlineSFTConfig(**cpu_args, num_generations=1, **options)


@pytest.mark.parametrize("baseline", ["none", "constant", "running_mean", "optimal"])
def test_what_does_not_works_with_single_samples(cpu_args, baseline):
    args = OnlineSFTConfig(**cpu_args, num_generations=1, baseline=baseline)
    assert type(args.num_generations) is int
    assert args.bias_ledger() == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"estimator": "prop4"}, "estimator must be one of prop3, prop3_stable; got 'prop4'"),
        (
            {"baseline": "mean"},
            "baseline must be one of constant, group_mean, leave_one_out, none, optimal, running_mean; got 'mean'",
        ),
        ({"scale_rewards": "std"}, "scale_rewards must be one of batch, group, none; got 'std'"),
        ({"importance_sampling_mode": "on"}, "importance_sampling_mode must be one of .*; got 'on'"),
        ({"unscorable_if": "some"}, "unscorable_if must be one of all, any; got 'some'"),
        ({"beta": -0.1}, "beta must be 0 or more; got -0.1"),
        ({"denom_eps": 0.0}, "denom_eps must be greater than 0; got 0.0"),
        ({"clip_weight_value": 0.0, "estimator": "prop3"}, "clip_weight_value must be greater than 0; got 0.0"),
        ({"max_filter_retries": -1}, "max_filter_retries must be 0 or more; got -1"),
        ({"filter_groups_patience": 0}, "filter_groups_patience must be greater than 0; got 0"),
        ({"total_episodes": 0}, "total_episodes must be greater than 0; got 0"),
        (
            {"importance_sampling_clip_min": 3.0},
            "importance_sampling_clip_min=3.0 must be less than importance_sampling_clip_max=3.0",
        ),
        ({"epsilon": 0.3}, "epsilon=0.3 belongs to GRPO's loss; .* Remove it"),
        ({"loss_type": "grpo"}, "loss_type='grpo' belongs to GRPO's loss"),
        (
            {"vllm_importance_sampling_clip_max": 2.0},
            "vllm_importance_sampling_clip_max=2.0 belongs to GRPO's loss.* Set importance_sampling_clip_max instead",
        ),
        (
            {"vllm_importance_sampling_correction": False},
            "vllm_importance_sampling_correction=False belongs to GRPO's loss.* Set importance_sampling_mode instead",
        ),
        ({"baseline_value": 0.5}, "baseline_value=0.5 is for baseline=constant; got baseline=optimal"),
        ({"clip_weight_value": 1.0}, "clip_weight_value=1.0 cuts the weight .* set estimator=prop3"),
        ({"generation_kwargs": {"temperature": 0.7}}, "generation_kwargs sets temperature"),
        (
            {"response_length": 100, "max_completion_length": 200},
            "response_length=100 and max_completion_length=200 are two names of one limit",
        ),
        ({"total_episodes": 100, "max_steps": 3}, "total_episodes=100 is 13 steps of 8 completions, and max_steps=3"),
    ],
)
def test_options_that_cannot_work_are_refused(cpu_args, options, message):
    with pytest.raises(ValueError, match=message):
        OnlineSFTConfig(**cpu_args, **{"per_device_train_batch_size": 8, **options})


def test_groups_that_are_filtered_must_lie_on_one_process(cpu_args):
    """With one process TRL refuses the same sizes first."""
    args = OnlineSFTConfig(**cpu_args, filter_groups_enable=True, num_generations=8, per_device_train_batch_size=8)
    args.per_device_train_batch_size = 4  # as on two processes
    with pytest.raises(ValueError, match=r"steps_per_generation \(4\) must be a multiple of num_generations \(8\)"):
        args._refuse_split_groups()


@pytest.mark.parametrize(
    ("options", "warning"),
    [
        ({"temperature": 0.7}, "bias: temperature=0.7: .* the tempered policy is trained"),
        ({"top_p": 0.9}, "bias: top_p=0.9: .* the gradient is biased.*; top_p=1.0"),
        ({"top_k": 50}, "bias: top_k=50: .* the gradient is biased.*; top_k=0"),
        ({"min_p": 0.1}, "bias: min_p=0.1: .* the gradient is biased"),
        ({"generation_kwargs": {"typical_p": 0.9}}, "bias: generation_kwargs=typical_p: .* the gradient is biased"),
        (
            {"num_iterations": 2},
            "bias: importance_sampling_clip_max=3: importance ratios of samples of an older policy",
        ),
        ({"num_iterations": 2}, "bias: num_iterations=2: .* fitted to the same completions"),
        ({"disable_dropout": False}, "bias: disable_dropout=False"),
        ({"steps_per_generation": 2}, "bias: importance_sampling_clip_max=3"),
        ({"baseline": "group_mean", "beta": 0.1}, "bias: baseline=group_mean"),
        ({"scale_rewards": True}, "bias: scale_rewards=group"),
        ({"filter_groups_enable": True}, "bias: filter_groups_min_std=0:"),
    ],
)
def test_options_that_bias_are_named_in_a_warning(cpu_args, caplog, options, warning):
    with caplog.at_level(logging.WARNING):
        OnlineSFTConfig(**cpu_args, **options)
    assert re.search(warning, caplog.text)


def test_the_defaults_are_unbiased(cpu_args, caplog):
    assert OnlineSFTConfig(**cpu_args).bias_ledger() == []
    assert "bias:" not in caplog.text


def test_the_ledger_is_among_the_arguments_that_trackers_store(cpu_args):
    stored = json.loads(OnlineSFTConfig(**cpu_args, top_p=0.9).to_json_string())["bias_ledger"]
    assert [sentence[:9] for sentence in stored] == ["top_p=0.9"]


def test_every_field_of_the_method_comes_from_the_configuration(cpu_args):
    changed = {
        "estimator": "prop3",
        "beta": 0.2,
        "normalize_logprob_by_length": True,
        "clip_logprob_min": -9.0,
        "clip_weight_value": 2.0,
        "denom_eps": 0.5,
        "importance_sampling_mode": "token_mask",
        "importance_sampling_clip_min": 0.1,
        "importance_sampling_clip_max": 7.0,
        "baseline": "constant",
        "baseline_value": 0.3,
        "num_generations": 4,
        "scale_rewards": "batch",
        "temperature": 0.9,
        "top_p": 0.8,
        "top_k": 5,
        "min_p": 0.1,
        "repetition_penalty": 1.1,
        "mask_truncated_completions": True,
        "sync_ref_model": True,
        "num_iterations": 2,
        "use_transformers_continuous_batching": True,
        "disable_dropout": False,
    }
    args = OnlineSFTConfig(
        **cpu_args,
        **changed,
        filter_groups_enable=True,
        filter_groups_min_std=0.2,
        generation_kwargs={"typical_p": 0.5},
    )
    expected = Method(
        **changed, filter_groups_min_std=0.2, stale_samples=True, other_sampling_options=("typical_p",), use_vllm=False
    )
    assert args.method == expected
    default, fields = Method(), vars(expected)
    assert [name for name in fields if fields[name] == getattr(default, name)] == [
        "use_vllm",  # which excludes continuous batching
        "rollout_func",  # an argument of the trainer
    ]


@pytest.mark.parametrize(
    ("options", "stale"),
    [
        ({}, False),
        ({"num_iterations": 2}, True),
        ({"gradient_accumulation_steps": 4, "steps_per_generation": 2}, False),
        ({"gradient_accumulation_steps": 2, "steps_per_generation": 4}, True),
        ({"gradient_accumulation_steps": 4, "steps_per_generation": 3}, True),  # some batches span two steps
    ],
)
def test_samples_are_stale_when_a_step_may_lie_between_sampling_and_use(cpu_args, options, stale):
    assert OnlineSFTConfig(**cpu_args, **options).method.stale_samples == stale


@pytest.mark.parametrize(
    ("options", "steps"),
    [
        ({"total_episodes": 64}, 4),
        ({"total_episodes": 65}, 5),
        ({"total_episodes": 64, "max_steps": 4}, 4),
        ({"total_episodes": 64, "num_iterations": 2}, 8),  # two steps on each completion
        ({"total_episodes": 64, "steps_per_generation": 4}, 4),
    ],
)
def test_total_episodes_are_completions(cpu_args, options, steps):
    sizes = {"per_device_train_batch_size": 8, "gradient_accumulation_steps": 2}
    assert OnlineSFTConfig(**cpu_args, **sizes, **options).max_steps == steps


def test_response_length_is_max_completion_length(cpu_args):
    assert OnlineSFTConfig(**cpu_args, response_length=100).max_completion_length == 100
