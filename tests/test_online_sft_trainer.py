"""OnlineSFTTrainer: its first gradient against one written out on the same rollouts, its bookkeeping, its refusals."""

import copy
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from torch.testing import assert_close
from trl import GRPOConfig

from online_sft import MathVerificationReward, OnlineSFTConfig, OnlineSFTTrainer

PROMPTS = ["1 + 1 =", "2 + 3 =", "7 + 0 =", "5 + 2 ="]
STALE = {"num_iterations": 2}  # TRL keeps the log-probs of the policy that sampled
DATA = Dataset.from_list([{"prompt": prompt, "solution": str(eval(prompt[:-1]))} for prompt in PROMPTS])


class Recorder:
    """A reward that depends on the completion's tokens and remembers everything it saw."""

    __name__ = "recorder"

    def __init__(self, unscorable=lambda index: False):
        self.prompts, self.completion_ids, self.rewards, self.unscorable = [], [], [], unscorable

    def __call__(self, prompts, completions, completion_ids, **columns):
        start = len(self.rewards)
        rewards = [
            None if self.unscorable(start + i) else (sum(ids) % 7) / 3.0 - 0.5 for i, ids in enumerate(completion_ids)
        ]
        self.prompts += prompts
        self.completion_ids += completion_ids
        self.rewards += rewards
        return rewards


@pytest.fixture
def sgd_args(cpu_args):
    """One step of plain SGD at learning rate 1, without clipping, moves the parameters by minus the gradient."""
    return {
        **cpu_args,
        "max_steps": 1,
        "per_device_train_batch_size": 8,
        "num_generations": 4,
        "baseline": "leave_one_out",
        "max_completion_length": 6,
        "optim": "sgd",
        "learning_rate": 1.0,
        "max_grad_norm": 0.0,
        "weight_decay": 0.0,
    }


def run(model, tokenizer, reward, args, data=DATA, **options):
    trainer = OnlineSFTTrainer(model, reward, OnlineSFTConfig(**args), data, processing_class=tokenizer, **options)
    trainer.train()
    return trainer


def sequence_log_prob(model, tokenizer, prompt, completion_ids):
    """log pi(completion | prompt), from the dense logits of one unpadded sequence."""
    prompt_ids = tokenizer(prompt)["input_ids"]
    log_probs = model(torch.tensor([prompt_ids + completion_ids])).logits[0].log_softmax(-1)
    return sum(log_probs[len(prompt_ids) + t - 1, token] for t, token in enumerate(completion_ids))


@torch.no_grad()
def gradient_size(model, tokenizer, recorder, index):
    """sum_t (1 - p_t)^2 of a completion."""
    prompt_ids, ids = tokenizer(recorder.prompts[index])["input_ids"], recorder.completion_ids[index]
    probs = model(torch.tensor([prompt_ids + ids])).logits[0, len(prompt_ids) - 1 : -1].softmax(-1)
    return sum((1 - probs[t, token].item()) ** 2 for t, token in enumerate(ids))


def reinforce_gradient(model, tokenizer, recorder, *, baseline, beta, num_generations=4):
    """Gradient of -(1/N) sum_i (r_i - b_i) s_i at pi = pi_ref, over the N scored completions, in a loop.

    On the first step s = s_ref. Without a baseline the pathwise term + beta grad s stays; a baseline is of it, too.
    """
    policy = copy.deepcopy(model)
    scored = [i for i, reward in enumerate(recorder.rewards) if reward is not None]
    loss = 0.0
    for i in scored:
        group = range(i - i % num_generations, i - i % num_generations + num_generations)
        others = [recorder.rewards[j] for j in group if j != i and recorder.rewards[j] is not None]
        compared_with = sum(others) / len(others) if baseline == "leave_one_out" else 0.0
        if baseline == "optimal":  # the others of the whole batch, each with its weight
            weights = {j: gradient_size(model, tokenizer, recorder, j) for j in scored if j != i}
            compared_with = sum(g * recorder.rewards[j] for j, g in weights.items()) / sum(weights.values())
        s = sequence_log_prob(policy, tokenizer, recorder.prompts[i], recorder.completion_ids[i])
        pathwise = beta if baseline == "none" else 0.0
        loss = loss - (recorder.rewards[i] - compared_with - pathwise) * s / len(scored)
    loss.backward()
    return policy


def assert_moved_by_gradient(trainer, policy):
    """Within 1e-5 of the largest gradient entry, which is what rounding the moved float32 parameters leaves."""
    for (name, before), after in zip(policy.named_parameters(), trainer.model.parameters(), strict=True):
        moved = before.detach() - after.detach()
        assert_close(
            moved, before.grad, rtol=1e-5, atol=1e-5 * before.grad.abs().max().item(), msg=lambda m, n=name: n + m
        )


@pytest.mark.parametrize("estimator", ["prop3_stable", "prop3"])
@pytest.mark.parametrize("beta", [0.0, 0.3])
@pytest.mark.parametrize("baseline", ["none", "leave_one_out", "optimal"])
@pytest.mark.parametrize("micro_batches", [1, 4])
def test_first_gradient_is_the_written_out_reinforce_gradient(
    saved_model, tokenizer, sgd_args, micro_batches, baseline, beta, estimator
):
    before = copy.deepcopy(saved_model).double()
    recorder = Recorder()
    options = {"baseline": baseline, "beta": beta, "estimator": estimator}
    options |= {"per_device_train_batch_size": 8 // micro_batches, "gradient_accumulation_steps": micro_batches}
    trainer = run(saved_model.double(), tokenizer, recorder, {**sgd_args, **options})
    assert len(set(recorder.rewards)) > 2, "the rewards must differ for this test to mean anything"
    assert_moved_by_gradient(trainer, reinforce_gradient(before, tokenizer, recorder, baseline=baseline, beta=beta))


def written_out_second_step(model, first, tokenizer, recorder, beta=0.0):
    """Gradient of -(1/N) sum_i rho_i (r_i - b_i - beta (s_i - s_ref_i)) s_i at `first`, a step after `model`."""
    policy = copy.deepcopy(model)  # a copy of `first`, which TRL has patched, would run its forward pass
    policy.load_state_dict(first.state_dict())
    loss = 0.0
    for i, reward in enumerate(recorder.rewards):
        group = range(i - i % 4, i - i % 4 + 4)
        baseline = sum(recorder.rewards[j] for j in group if j != i) / 3
        s = sequence_log_prob(policy, tokenizer, recorder.prompts[i], recorder.completion_ids[i])
        with torch.no_grad():
            s_old = sequence_log_prob(model, tokenizer, recorder.prompts[i], recorder.completion_ids[i])
            ratio, kl = (s - s_old).exp(), s - s_old  # the first policy is the reference, too
        loss = loss - ratio * (reward - baseline - beta * kl) * s / len(recorder.rewards)
    loss.backward()
    return policy


@pytest.mark.parametrize("beta", [0.0, 0.3])
def test_the_second_step_on_the_same_completions_has_importance_weights(saved_model, tokenizer, sgd_args, beta):
    before = copy.deepcopy(saved_model).double()
    more = {"learning_rate": 0.2, "lr_scheduler_type": "constant", "num_iterations": 2, "beta": beta}
    args = {**sgd_args, **more, "importance_sampling_clip_max": None}
    recorder = Recorder()
    after_one = run(copy.deepcopy(before), tokenizer, recorder, args).model
    again = Recorder()
    trainer = run(copy.deepcopy(before), tokenizer, again, {**args, "max_steps": 2})
    assert again.completion_ids == recorder.completion_ids
    expected = written_out_second_step(before, after_one, tokenizer, recorder, beta)
    for name, parameter in expected.named_parameters():
        moved = (after_one.get_parameter(name) - trainer.model.get_parameter(name)).detach() / 0.2
        assert_close(moved, parameter.grad, rtol=1e-5, atol=1e-5 * parameter.grad.abs().max().item(), check_dtype=False)
    first, second = [entry for entry in trainer.state.log_history if "importance/ess" in entry]
    assert_close([first[f"importance/{name}"] for name in ("min", "max", "ess", "clipped")], [1.0, 1.0, 1.0, 0.0])
    assert second["importance/min"] < 0.9 * second["importance/max"]
    assert second["importance/ess"] < 0.999


def test_a_cut_importance_weight_is_cut_in_the_gradient(saved_model, tokenizer, sgd_args):
    """With an upper limit below every ratio, all completions have that weight."""
    before = copy.deepcopy(saved_model).double()
    recorder = Recorder()
    trainer = run(saved_model.double(), tokenizer, recorder, {**sgd_args, "importance_sampling_clip_max": 0.5} | STALE)
    policy = reinforce_gradient(before, tokenizer, recorder, baseline="leave_one_out", beta=0.0)
    for parameter in policy.parameters():
        parameter.grad *= 0.5
    assert_moved_by_gradient(trainer, policy)
    entry = trainer.state.log_history[0]
    assert (entry["importance/clipped"], entry["importance/max"]) == (1.0, pytest.approx(1.0))


def test_the_running_mean_is_that_of_earlier_batches_and_survives_a_resume(model, tokenizer, sgd_args):
    args = {**sgd_args, "baseline": "running_mean", "num_generations": 1, "max_steps": 3, "learning_rate": 0.0}
    args["per_device_train_batch_size"] = 4
    recorder = Recorder()
    trainer = run(model, tokenizer, recorder, {**args, "save_strategy": "steps", "save_steps": 2})
    means = [sum(recorder.rewards[i : i + 4]) / 4 for i in (0, 4)]
    # the first batch is compared with its own others
    baselines = [means[0], means[0], (0.9 * means[0] + means[1]) / 1.9]
    found = [entry["reward"] - entry["advantage"] for entry in trainer.state.log_history if "reward" in entry]
    assert_close(found, baselines, rtol=1e-5, atol=1e-6)
    again = OnlineSFTTrainer(model, Recorder(), OnlineSFTConfig(**args), DATA, processing_class=tokenizer)
    again.train(resume_from_checkpoint="out/checkpoint-2")
    entry = next(e for e in again.state.log_history if e["step"] == 3)
    assert_close(entry["reward"] - entry["advantage"], baselines[2], rtol=1e-5, atol=1e-6)


def regression_of_the_first_step(model, tokenizer, recorder):
    """Slope and intercept of r on the mean of the prompt's others, each weighted by sum_t (1 - p_t)^2."""
    rewards = torch.tensor(recorder.rewards[:8], dtype=torch.float64).view(2, 4)
    others = (rewards.sum(1, keepdim=True) - rewards) / 3
    sizes = [gradient_size(model, tokenizer, recorder, index) for index in range(8)]
    root = torch.tensor(sizes, dtype=torch.float64).sqrt()
    design = torch.stack([others.flatten(), torch.ones(8, dtype=torch.float64)], dim=1) * root.unsqueeze(1)
    slope, intercept = torch.linalg.lstsq(design, rewards.flatten() * root).solution.tolist()
    return slope, intercept


@pytest.mark.parametrize("split", [{}, {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4}], ids=str)
def test_the_optimal_baseline_of_the_second_step_is_the_weighted_regression_of_the_first(
    model, tokenizer, sgd_args, split
):
    class ByPrompt(Recorder):
        """Prompts differ in what they earn."""

        def __call__(self, prompts, completions, completion_ids, **columns):
            rewards = super().__call__(prompts, completions, completion_ids)
            self.rewards[-len(rewards) :] = [r + int(prompt[0]) for r, prompt in zip(rewards, prompts, strict=True)]
            return self.rewards[-len(rewards) :]

    before, recorder = copy.deepcopy(model).double(), ByPrompt()
    trainer = run(model.double(), tokenizer, recorder, {**sgd_args, "max_steps": 2, "baseline": "optimal", **split})
    slope, intercept = regression_of_the_first_step(before, tokenizer, recorder)
    assert 0 < slope < 1, "a slope at its limits would not show in this test"
    rewards = torch.tensor(recorder.rewards[8:]).view(2, 4)
    others = (rewards.sum(1, keepdim=True) - rewards) / 3
    found = torch.tensor(list(trainer._logs["advantages"]))
    assert_close(found, (rewards - slope * others - intercept).flatten(), rtol=1e-4, atol=1e-5, check_dtype=False)


def test_what_the_optimal_baseline_has_learnt_survives_a_resume(saved_model, tokenizer, sgd_args):
    args = {**sgd_args, "baseline": "optimal", "beta": 0.2, "max_steps": 4, "learning_rate": 0.01}
    args |= {"save_strategy": "steps", "save_steps": 2}
    data = Dataset.from_list([{"prompt": prompt} for prompt in PROMPTS * 3])
    straight = run(copy.deepcopy(saved_model), tokenizer, Recorder(), args, data)
    trainer = OnlineSFTTrainer(saved_model, Recorder(), OnlineSFTConfig(**args), data, processing_class=tokenizer)
    trainer.train(resume_from_checkpoint="out/checkpoint-2")
    assert trainer._running.optimal == straight._running.optimal
    for name in ("advantage", "loss", "grad_norm"):
        values = [[e[name] for e in t.state.log_history if e["step"] > 2 and name in e] for t in (straight, trainer)]
        assert values[0] == values[1]
        assert len(values[0]) == 2


def test_the_mean_price_of_the_kl_of_earlier_steps_is_part_of_the_baseline(saved_model, tokenizer, sgd_args):
    """Leave-one-out advantages add up to 0: the mean of A is beta (1 + running mean of earlier KLs - the step's "
    "own)."""
    args = {**sgd_args, "beta": 0.3, "max_steps": 4, "learning_rate": 0.02}
    steps = [e for e in run(saved_model, tokenizer, Recorder(), args).state.log_history if "kl" in e]
    total = count = 0.0
    for entry in steps:
        baseline = total / count if count else 0.0
        assert_close(entry["advantage"], 0.3 * (1 + baseline - entry["kl"]), rtol=1e-4, atol=1e-6)
        total, count = 0.9 * total + entry["kl"], 0.9 * count + 1
    assert abs(steps[-1]["kl"]) > 0.01


def test_without_a_baseline_the_kl_has_none_either(saved_model, tokenizer, sgd_args):
    args = {**sgd_args, "beta": 0.3, "max_steps": 3, "learning_rate": 0.02, "baseline": "none"}
    for entry in [e for e in run(saved_model, tokenizer, Recorder(), args).state.log_history if "kl" in e]:
        assert_close(entry["advantage"], entry["reward"] - 0.3 * entry["kl"], rtol=1e-4, atol=1e-6)


def test_scale_and_shift_make_the_reward(model, tokenizer, sgd_args):
    recorder = Recorder()
    args = {**sgd_args, "baseline": "none", "reward_scale": 2.0, "reward_shift": -0.5}
    trainer = run(model, tokenizer, recorder, args)
    assert_close(sorted(trainer._logs["advantages"]), sorted(2 * reward - 0.5 for reward in recorder.rewards))
    assert_close(trainer.state.log_history[0]["reward"], 2 * sum(recorder.rewards) / 8 - 0.5)


def test_rewards_over_their_groups_spread_are_grpos_advantages(model, tokenizer, sgd_args):
    recorder = Recorder()
    trainer = run(model, tokenizer, recorder, {**sgd_args, "baseline": "group_mean", "scale_rewards": "group"})
    by_group = torch.tensor(recorder.rewards).view(-1, 4)
    expected = (by_group - by_group.mean(1, keepdim=True)) / (by_group.std(1, keepdim=True) + 1e-4)
    assert_close(torch.tensor(list(trainer._logs["advantages"])), expected.flatten())


def test_the_overlong_penalty_is_one_of_the_rewards(model, tokenizer, sgd_args):
    """Up to 24 tokens; it begins after 8: -2 * (L - 8)/16."""
    recorder = Recorder()
    options = {"apply_overlong_penalty": True, "overlong_buffer_length": 16, "overlong_penalty_factor": 2.0}
    args = {**sgd_args, **options, "max_completion_length": 24, "baseline": "none", "reward_weights": [0.5]}
    trainer = run(model, tokenizer, recorder, args)
    penalties = [-2 * max(len(ids) - 8, 0) / 16 for ids in recorder.completion_ids]
    assert len(set(penalties)) > 1
    expected = [0.5 * r + p for r, p in zip(recorder.rewards, penalties, strict=True)]
    assert_close(sorted(trainer._logs["advantages"]), sorted(expected))
    assert_close(trainer.state.log_history[0]["rewards/overlong_penalty/mean"], sum(penalties) / 8)


def test_math_by_name_gives_the_rewards_of_the_configuration(model, tokenizer, sgd_args):
    args = {**sgd_args, "correct_reward": 3.0, "incorrect_reward": -0.25, "baseline": "none"}
    trainer = run(model, tokenizer, "math", args)
    assert trainer.reward_funcs[0](completions=["Answer: 2", "Answer: 3"], solution=["2", "2"]) == [3.0, -0.25]
    assert "rewards/math_verification/mean" in trainer.state.log_history[0]


def test_rewards_of_the_configuration_need_the_math_reward(model, tokenizer, sgd_args):
    with pytest.raises(ValueError, match=r"correct_reward=3\.0 .* not among reward_funcs"):
        run(model, tokenizer, Recorder(), {**sgd_args, "correct_reward": 3.0})


def test_the_log_has_the_quantiles_of_the_weights_and_both_kls(saved_model, tokenizer, sgd_args):
    recorder = Recorder()
    before = copy.deepcopy(saved_model).double()
    args = {**sgd_args, "max_steps": 1, "beta": 0.1, "baseline": "none"}
    trainer = run(saved_model.double(), tokenizer, recorder, args)
    s = [
        sequence_log_prob(before, tokenizer, prompt, ids).item()
        for prompt, ids in zip(recorder.prompts, recorder.completion_ids, strict=True)
    ]
    weights = torch.tensor(recorder.rewards) / torch.tensor(s)
    entry = trainer.state.log_history[0]
    for name, q in {"q05": 0.05, "q50": 0.5, "q95": 0.95}.items():
        assert_close(entry[f"weight/{name}"], weights.quantile(q).item(), rtol=1e-4, atol=1e-6)
    assert_close(entry["log_prob"], sum(s) / 8)
    assert (entry["kl"], entry["kl_k3"]) == pytest.approx((0.0, 0.0), abs=1e-6)


def test_the_model_card_has_the_ledger(model, tokenizer, sgd_args):
    trainer = run(model, tokenizer, Recorder(), {**sgd_args, "top_p": 0.9})
    trainer.create_model_card(model_name="mine")
    card = Path("out/README.md").read_text()
    assert "## What was optimised\n\nE[r], estimated with `prop3_stable`" in card
    assert "- `top_p=0.9`: unlikely tokens are never sampled" in card


def test_unscorable_completions_are_in_neither_sum_nor_denominator_nor_baseline(saved_model, tokenizer, sgd_args):
    before = copy.deepcopy(saved_model).double()
    recorder = Recorder(unscorable=lambda index: index in (1, 4, 5))
    trainer = run(saved_model.double(), tokenizer, recorder, {**sgd_args, "beta": 0.3})
    assert_moved_by_gradient(
        trainer, reinforce_gradient(before, tokenizer, recorder, baseline="leave_one_out", beta=0.3)
    )


def test_accumulation_and_micro_batches_do_not_change_the_first_gradient(model, tokenizer, sgd_args):
    split = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4}
    recorder = Recorder()
    before = copy.deepcopy(model).double()
    trainer = run(model.double(), tokenizer, recorder, {**sgd_args, **split})
    assert_moved_by_gradient(
        trainer, reinforce_gradient(before, tokenizer, recorder, baseline="leave_one_out", beta=0.0)
    )


def test_reward_weights_multiply_and_rewards_add_up(model, tokenizer, sgd_args):
    first, second = Recorder(), Recorder()
    trainer = run(model, tokenizer, [first, second], {**sgd_args, "reward_weights": [2.0, -0.5], "baseline": "none"})
    assert_close(sorted(trainer._logs["advantages"]), sorted(1.5 * reward for reward in first.rewards))


def test_a_single_generation_works_without_a_group_baseline(model, tokenizer, sgd_args):
    args = {**sgd_args, "num_generations": 1, "baseline": "constant", "baseline_value": 0.25}
    recorder = Recorder()
    trainer = run(model, tokenizer, recorder, {**args, "per_device_train_batch_size": 4})
    assert len(recorder.rewards) == 4
    assert_close(list(trainer._logs["advantages"]), [reward - 0.25 for reward in recorder.rewards])


def test_the_completions_table_shows_reward_minus_baseline(model, tokenizer, sgd_args):
    recorder = Recorder()
    trainer = run(model, tokenizer, recorder, sgd_args)
    rewards = torch.tensor(recorder.rewards).view(-1, 4)
    expected = rewards - (rewards.sum(1, keepdim=True) - rewards) / 3
    assert_close(torch.tensor(list(trainer._logs["advantages"])), expected.flatten())


def test_evaluation_may_use_larger_batches_than_training(model, tokenizer, sgd_args):
    args = {**sgd_args, "per_device_train_batch_size": 4, "per_device_eval_batch_size": 16}
    recorder = Recorder()
    trainer = OnlineSFTTrainer(
        model, recorder, OnlineSFTConfig(**args), DATA, eval_dataset=DATA, processing_class=tokenizer
    )
    metrics = trainer.evaluate()
    assert len(recorder.rewards) == 16
    assert_close(metrics["eval_reward"], sum(recorder.rewards) / 16)
    assert_close(metrics["eval_advantage"], 0.0, rtol=0, atol=1e-6)  # leave-one-out advantages of a group add up to 0


def test_kl_is_zero_at_the_reference_and_is_logged_per_completion(saved_model, tokenizer, cpu_args):
    args = {**cpu_args, "max_steps": 3, "per_device_train_batch_size": 8, "num_generations": 4, "beta": 0.1}
    trainer = run(saved_model, tokenizer, Recorder(), {**args, "max_completion_length": 6, "learning_rate": 1e-2})
    kl = [entry["kl"] for entry in trainer.state.log_history if "kl" in entry]
    assert abs(kl[0]) < 1e-5
    assert abs(kl[2]) > 1e-3


def test_lora_moves_the_adapter_only_and_uses_the_base_model_as_reference(model, tokenizer, cpu_args):
    frozen = copy.deepcopy(model.state_dict())
    args = {**cpu_args, "max_steps": 2, "per_device_train_batch_size": 8, "num_generations": 4, "beta": 0.1}
    trainer = run(
        model,
        tokenizer,
        Recorder(),
        {**args, "max_completion_length": 6, "learning_rate": 1e-2},
        peft_config=LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM"),
    )
    with trainer.model.disable_adapter():
        base = {
            name.replace(".base_layer", ""): value
            for name, value in trainer.model.get_base_model().state_dict().items()
        }
    for name, value in frozen.items():
        assert_close(base[name], value, rtol=0, atol=0)
    kl = [entry["kl"] for entry in trainer.state.log_history if "kl" in entry]
    assert abs(kl[0]) < 1e-5 < abs(kl[1])


@pytest.mark.slow
def test_reward_rises_on_a_task_a_newcomer_understands(model, tokenizer, cpu_args):
    """Say the digit 7 as often as you can: from one token in twenty to nine in ten."""

    def sevens(completions, **columns):
        return [text.count("7") / 6 for text in completions]

    args = {**cpu_args, "max_steps": 60, "per_device_train_batch_size": 32, "num_generations": 8}
    trainer = run(
        model,
        tokenizer,
        sevens,
        {**args, "max_completion_length": 6, "learning_rate": 1e-2, "lr_scheduler_type": "linear"},
    )
    rewards = [entry["reward"] for entry in trainer.state.log_history if "reward" in entry]
    assert rewards[0] < 0.15
    assert sum(rewards[-5:]) / 5 > 0.9


# --- what cannot be scored


def ones(completions, **columns):
    return [1.0] * len(completions)


def counted(completions, **columns):
    return [float(i) for i in range(len(completions))]


@pytest.mark.parametrize(("unscorable_if", "unscored"), [("any", {0, 3, 5}), ("all", set())])
def test_a_sample_that_one_function_cannot_score_is_left_out_though_another_can(
    model, tokenizer, sgd_args, unscorable_if, unscored
):
    """The other function's reward alone would be half-way between right and wrong, in loss, baseline and metrics."""
    reward = Recorder(unscorable=lambda index: index in (0, 3, 5))
    args = {**sgd_args, "baseline": "none", "unscorable_if": unscorable_if, "log_completions": False}
    trainer = run(model, tokenizer, [reward, counted], args)
    scored = [i for i in range(8) if i not in unscored]
    sums = [i + (reward.rewards[i] or 0.0) for i in scored]
    entry = trainer.state.log_history[0]
    assert_close(entry["reward"], sum(sums) / len(sums))
    assert_close(entry["advantage"], sum(sums) / len(sums))
    assert entry["unscorable"] == len(unscored) / 8
    assert_close(entry["rewards/counted/mean"], sum(scored) / len(scored))
    assert_close(entry["rewards/counted/std"], torch.tensor(scored).float().std().item())


def test_functions_that_take_turns_are_told_of_unscorable_if_all(model, tokenizer, sgd_args, caplog):
    never = Recorder(unscorable=lambda index: True)
    before = copy.deepcopy(model.state_dict())
    trainer = run(model, tokenizer, [never, ones], sgd_args)
    assert "no completion of this batch can be scored" in caplog.text
    assert "set unscorable_if=all" in caplog.text
    for name, value in trainer.model.state_dict().items():
        assert_close(value, before[name], rtol=0, atol=0)


def test_bad_golds_are_reported_when_the_data_is_loaded_and_left_out_in_training(model, tokenizer, sgd_args, caplog):
    data = Dataset.from_list([{"prompt": "1 + 1 =", "solution": "2"}] * 7 + [{"prompt": "2 =", "solution": "9^{9^9}"}])
    trainer = run(model, tokenizer, MathVerificationReward(), {**sgd_args, "max_steps": 4}, data=data)
    assert "1 of 8 rows of the train dataset cannot be graded" in caplog.text
    assert "row 7: gold '9^{9^9}': screened" in caplog.text
    shares = [entry["math_verification/bad_gold"] for entry in trainer.state.log_history[:4]]
    assert sum(shares) == 0.5  # 4 samples of one prompt in 4 batches of 8
    assert [entry["unscorable"] for entry in trainer.state.log_history[:4]] == shares
    for entry in trainer.state.log_history[:4]:  # the unscorable are in neither
        assert_close(entry["rewards/math_verification/mean"], 2 * entry["math_verification/accuracy"] - 1)


# --- bad input


def asks_for_a_hint(completions, hint):
    return [0.0] * len(completions)


@pytest.mark.parametrize(
    ("data", "reward", "message"),
    [
        (
            Dataset.from_list([{"question": "1"}]),
            Recorder(),
            "the train dataset needs a `prompt` column; it has question",
        ),
        (
            Dataset.from_list([{"prompt": "1"}]),
            MathVerificationReward(),
            "the math reward needs one column of golds, and the data has none of solution, ground_truth, reward_model",
        ),
        (
            Dataset.from_list([{"prompt": "1"}]),
            asks_for_a_hint,
            "reward function 'asks_for_a_hint' needs the column hint; the dataset has prompt",
        ),
    ],
)
def test_missing_columns_are_named_before_the_model_loads(tokenizer, cpu_args, data, reward, message):
    with pytest.raises(ValueError, match=message):
        OnlineSFTTrainer("no/such-model", reward, OnlineSFTConfig(**cpu_args), data, processing_class=tokenizer)


async def too_many(completions, **columns):
    return [0.0] * 9


@pytest.mark.parametrize(
    ("reward", "message"),
    [
        (lambda completions, **columns: [1.0], "'<lambda>' returned 1 rewards for 8 completions"),
        (too_many, "'too_many' returned 9 rewards for 8 completions"),
        (lambda completions, **columns: [0.0] * 7 + [float("nan")], "returned nan for completion 7 of 8"),
        (lambda completions, **columns: [float("inf")] * 8, "returned inf for completion 0 of 8"),
    ],
)
def test_bad_rewards_are_named_with_function_completion_and_value(model, tokenizer, sgd_args, reward, message):
    with pytest.raises(ValueError, match=message):
        run(model, tokenizer, reward, sgd_args)


def test_fewer_prompts_than_one_batch_are_refused_instead_of_training_no_step(model, tokenizer, sgd_args):
    with pytest.raises(
        ValueError, match=r"has 1 rows and one batch takes 2 prompts .*=8 over num_generations=4\); lower"
    ):
        run(model, tokenizer, Recorder(), sgd_args, data=DATA.select([0]))
    assert run(model, tokenizer, Recorder(), sgd_args, data=DATA.select([0, 1])).state.global_step == 1


def test_beta_needs_a_model_that_has_a_name(model, tokenizer, cpu_args):
    args = OnlineSFTConfig(**cpu_args, beta=0.1)
    with pytest.raises(ValueError, match=r"beta=0\.1 needs a reference model,.* save_pretrained"):
        OnlineSFTTrainer(model, Recorder(), args, DATA, processing_class=tokenizer)


def test_a_plain_grpo_config_is_refused(model, tokenizer, cpu_args):
    args = GRPOConfig(**cpu_args, per_device_train_batch_size=8)
    with pytest.raises(ValueError, match="args must be an OnlineSFTConfig; got GRPOConfig"):
        OnlineSFTTrainer(model, Recorder(), args, DATA, processing_class=tokenizer)
