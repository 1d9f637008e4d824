"""WeightedSFTTrainer's options, in training: numbers against loops written out here."""

import json
import math
import statistics
from pathlib import Path

import pytest
import torch
from datasets import Dataset, IterableDataset
from peft import LoraConfig, PromptTuningConfig
from reference import weighted_nll_loop
from torch.testing import assert_close
from transformers import Qwen2MoeConfig, Qwen2MoeForCausalLM
from trl import SFTConfig, SFTTrainer

from online_sft import WeightedSFTConfig, WeightedSFTTrainer
from online_sft.weightings import effective_sample_size, exponential

SGD = {"optim": "sgd", "learning_rate": 0.1, "lr_scheduler_type": "constant"}


@pytest.fixture
def rows(tokenizer):
    """Sixteen tokenised rows of four prompts, of different lengths, with signed per-token advantages."""
    generator = torch.Generator().manual_seed(0)

    def draw(low, high, *shape):
        return torch.randint(low, high, shape, generator=generator).tolist()

    made = []
    for index in range(16):
        prompt = [2 + index // 4, 3]
        answer = draw(2, len(tokenizer), 1 + index % 5)
        advantages = torch.randn(len(prompt) + len(answer), generator=generator).tolist()
        made.append({"input_ids": prompt + answer, "labels": [-100, -100, *answer], "advantages": advantages})
    return made


@pytest.fixture
def make(model, tokenizer, cpu_args):
    def make(rows, model=model, stream=False, peft_config=None, **options):
        data = IterableDataset.from_generator(lambda: iter(rows)) if stream else Dataset.from_list(rows)
        args = WeightedSFTConfig(**{**cpu_args, "max_steps": 4, "per_device_train_batch_size": 4, **SGD, **options})
        return WeightedSFTTrainer(
            model, args, train_dataset=data, eval_dataset=data, processing_class=tokenizer, peft_config=peft_config
        )

    return make


@pytest.fixture
def trained(make):
    def trained(rows, **options):
        trainer = make(rows, **options)
        trainer.train()
        return trainer

    return trained


def logged(trainer, key):
    return [entry[key] for entry in trainer.state.log_history if key in entry]


def first_step_loss(model, rows, weights, denominator):
    """-(1/D) sum w log p by the loop of tests/reference.py; `weights` one list per row."""
    total = 0.0
    for row, of_row in zip(rows, weights, strict=True):
        logits = model(torch.tensor([row["input_ids"]])).logits.detach().double()
        total += weighted_nll_loop(logits, torch.tensor([row["labels"]]), torch.tensor([of_row]), denominator=1)
    return total / denominator


def z_scores(values):
    mean, std = statistics.fmean(values), statistics.pstdev(values)
    return [(value - mean) / (std + 1e-8) for value in values]


def normalised(rows, members):
    """Advantages of the rows with those of each set of rows in `members` made z-scores over their loss tokens."""
    weights = [[0.0] * len(row["labels"]) for row in rows]
    for indices in members:
        where = [(i, t) for i in indices for t, label in enumerate(rows[i]["labels"]) if label != -100]
        scores = z_scores([rows[i]["advantages"][t] for i, t in where])
        for (i, t), score in zip(where, scores, strict=True):
            weights[i][t] = score
    return weights


def num_loss_tokens(rows):
    return sum(label != -100 for row in rows for label in row["labels"])


MEMBERS = {
    "batch": [range(16)],
    "sequence": [[i] for i in range(16)],
    "group": [range(i, i + 4) for i in range(0, 16, 4)],
    "global": [range(16)],
}


@pytest.mark.parametrize("name", MEMBERS)
@pytest.mark.parametrize(("batch", "accumulation"), [(16, 1), (4, 4)])
def test_normalisation_spans_the_whole_step(model, rows, trained, name, batch, accumulation):
    """Shuffled by the sampler, over one micro-batch or four: the same numbers."""
    expected = first_step_loss(model, rows, normalised(rows, MEMBERS[name]), num_loss_tokens(rows))
    options = {"per_device_train_batch_size": batch, "gradient_accumulation_steps": accumulation, "max_steps": 1}
    trainer = trained(rows, advantage_normalization=name, **options)
    assert_close(logged(trainer, "loss"), [expected], rtol=0, atol=1e-5)


def test_global_statistics_run_over_all_steps_so_far_in_order(model, rows, trained):
    """Learning rate 0, a stream: the second step's z-scores use the first step's advantages too."""
    trainer = trained(rows, stream=True, advantage_normalization="global", learning_rate=0.0, max_steps=4)
    for step in range(4):
        seen, now = rows[: 4 * step + 4], rows[4 * step : 4 * step + 4]
        weights = normalised(seen, [range(len(seen))])[-4:]
        expected = first_step_loss(model, now, weights, num_loss_tokens(now))
        assert_close(logged(trainer, "loss")[step], expected, rtol=0, atol=1e-5)


def test_groups_scattered_over_steps_are_told_of_once(rows, trained, caplog):
    constant = [{**row, "advantages": float(index)} for index, row in enumerate(rows)]
    options = {"advantage_normalization": "group", "per_device_train_batch_size": 2}
    trained(constant, **options)
    assert caplog.text.count("all advantages are equal") == 1
    caplog.clear()
    trained(constant, **{**options, "per_device_train_batch_size": 4}, train_sampling_strategy="sequential")
    assert "all advantages are equal" not in caplog.text


def test_clipping_follows_normalisation(model, rows, trained):
    weights = [[min(max(w, -0.5), 1.0) for w in of_row] for of_row in normalised(rows, MEMBERS["batch"])]
    expected = first_step_loss(model, rows, weights, num_loss_tokens(rows))
    options = {"advantage_normalization": "batch", "advantage_clipping": [-0.5, 1.0], "max_steps": 1}
    trainer = trained(rows, per_device_train_batch_size=16, **options)
    assert_close(logged(trainer, "loss"), [expected], rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ["tokens", "sequences", "abs_advantages", "constant"])
def test_denominators(model, rows, trained, name):
    weights = [row["advantages"] for row in rows]
    absolute = sum(abs(a) for row in rows for a, y in zip(row["advantages"], row["labels"], strict=True) if y != -100)
    counts = {"tokens": num_loss_tokens(rows), "sequences": 16, "abs_advantages": absolute, "constant": 0.25}
    expected = first_step_loss(model, rows, weights, counts[name])
    for batch, accumulation in ((16, 1), (2, 8)):
        trainer = trained(
            rows,
            model=_copy(model),
            loss_denominator=name,
            **({"loss_denominator_value": 0.25} if name == "constant" else {}),
            per_device_train_batch_size=batch,
            gradient_accumulation_steps=accumulation,
            max_steps=1,
        )
        assert_close(logged(trainer, "loss"), [expected], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("options", [{}, {"packing": True, "max_length": 12}], ids=["padded", "packed"])
def test_accumulation_1x8_is_2x4_is_8x1(model, rows, trained, options):
    """Normalised over the step, three steps of SGD. Packed rows are fewer: their 8 micro-batches are 2 steps."""
    runs = [
        trained(
            rows,
            model=_copy(model),
            per_device_train_batch_size=batch,
            gradient_accumulation_steps=8 // batch,
            max_steps=3,
            advantage_normalization="batch",
            **options,
        )
        for batch in (1, 2, 8)
    ]
    for key in ("loss", "grad_norm", "ess", "nll", "negative_gradient_share"):
        for other in runs[1:]:
            assert_close(logged(other, key), logged(runs[0], key), rtol=1e-4, atol=1e-5)


def _copy(model):
    copy = type(model)(model.config)
    copy.load_state_dict(model.state_dict())
    return copy


@pytest.mark.parametrize("lm_head", ["weighted", "trl"])
def test_temperature_divides_the_logits(model, rows, trained, lm_head):
    logits = [model(torch.tensor([row["input_ids"]])).logits.detach().double() for row in rows]
    total = sum(
        weighted_nll_loop(x, torch.tensor([row["labels"]]), torch.tensor([row["advantages"]]), 1, temperature=1.7)
        for x, row in zip(logits, rows, strict=True)
    )
    trainer = trained(rows, temperature=1.7, lm_head=lm_head, per_device_train_batch_size=16, max_steps=1)
    assert_close(logged(trainer, "loss"), [total / num_loss_tokens(rows)], rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"negative_log_prob_floor": -2.5},
        {"policy_weighting": "dft"},
        {"advantage_normalization": "batch", "loss_denominator": "abs_advantages"},
        {"packing": True, "max_length": 16},
    ],
    ids=str,
)
def test_both_lm_heads_train_alike(model, rows, trained, options):
    runs = [trained(rows, model=_copy(model), lm_head=head, **options) for head in ("weighted", "trl")]
    for key in ("loss", "grad_norm", "entropy", "mean_token_accuracy", "nll", "ess"):
        assert_close(logged(runs[0], key), logged(runs[1], key), rtol=1e-5, atol=1e-5)


def test_dft_with_weights_one_is_trls(model, rows, trained, tokenizer, cpu_args):
    ones = [{**row, "advantages": 1.0} for row in rows]
    ours = trained(ones, model=_copy(model), policy_weighting="dft", seed=1)
    args = SFTConfig(**cpu_args, **SGD, max_steps=4, per_device_train_batch_size=4, loss_type="dft", seed=1)
    theirs = SFTTrainer(_copy(model), args, train_dataset=Dataset.from_list(rows), processing_class=tokenizer)
    theirs.train()
    for key in ("loss", "grad_norm"):
        assert_close(logged(ours, key), logged(theirs, key), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("options", [{}, {"packing": True, "max_length": 40}], ids=["padded", "packed"])
def test_importance_weighting_uses_the_cut_ratio_of_each_sequence(model, rows, trained, options):
    generator = torch.Generator().manual_seed(1)
    noise = [torch.randn(len(row["labels"]), generator=generator) for row in rows]
    rows = [{**row, "ref_log_probs": (-2.8 + 0.3 * x).tolist()} for row, x in zip(rows, noise, strict=True)]
    weights = []
    for row in rows:
        log_probs = model(torch.tensor([row["input_ids"]])).logits[0].detach().double().log_softmax(-1)
        answer = [t for t, label in enumerate(row["labels"]) if label != -100]
        log_ratio = sum(log_probs[t - 1, row["labels"][t]].item() - row["ref_log_probs"][t] for t in answer)
        weights.append([min(math.exp(log_ratio), 1.2) * advantage for advantage in row["advantages"]])
    ratios = [w[0] / row["advantages"][0] for w, row in zip(weights, rows, strict=True)]
    assert min(ratios) < 0.9 and pytest.approx(max(ratios)) == 1.2
    expected = first_step_loss(model, rows, weights, num_loss_tokens(rows))
    trainer = trained(
        rows, policy_weighting="importance", importance_max=1.2, per_device_train_batch_size=16, max_steps=1, **options
    )
    assert_close(logged(trainer, "loss"), [expected], rtol=0, atol=1e-5)


def test_importance_weighting_names_the_column_it_needs(make, rows):
    with pytest.raises(ValueError, match="needs a `ref_log_probs` column"):
        make(rows, policy_weighting="importance")


def test_running_statistics_resume_to_the_bit(model, rows, make, saved_model):
    """Two steps, a checkpoint, two more steps: exactly the losses of four steps without a break."""
    options = {"advantage_normalization": "global", "save_strategy": "steps", "save_steps": 2, "learning_rate": 1e-2}
    whole = make(rows, model=_copy(model), **options)
    whole.train()
    resumed = make(rows, model=_copy(model), **options)
    resumed.train(resume_from_checkpoint="out/checkpoint-2")
    assert logged(resumed, "loss") == logged(whole, "loss")
    assert logged(resumed, "grad_norm") == logged(whole, "grad_norm")
    moments = resumed.state.stateful_callbacks["RunningAdvantages"]["attributes"]["moments"]
    assert moments == whole.state.stateful_callbacks["RunningAdvantages"]["attributes"]["moments"]
    assert moments[0] == num_loss_tokens(rows)


@pytest.mark.parametrize("options", [{"activation_checkpointing": True}, {"bf16": True}], ids=str)
def test_checkpointing_and_bf16_keep_the_loss(model, rows, trained, options):
    weights = [row["advantages"] for row in rows]
    expected = first_step_loss(model, rows, weights, num_loss_tokens(rows))
    trainer = trained(rows, model=_copy(model), per_device_train_batch_size=16, max_steps=1, **options)
    tolerance = 1e-2 if "bf16" in options else 1e-5  # bf16: 8 bits; measured 2e-3
    assert_close(logged(trainer, "loss"), [expected], rtol=0, atol=tolerance)


def test_evaluation_normalises_its_batch_and_leaves_the_running_statistics(model, rows, make):
    trainer = make(rows, advantage_normalization="batch", per_device_eval_batch_size=16)
    expected = first_step_loss(model, rows, normalised(rows, MEMBERS["batch"]), num_loss_tokens(rows))
    assert_close(trainer.evaluate()["eval_loss"], expected, rtol=0, atol=1e-5)
    running = make(rows, advantage_normalization="global", per_device_eval_batch_size=16)
    before = running._step_weights._running.moments
    assert_close(running.evaluate()["eval_loss"], expected, rtol=0, atol=1e-5)
    assert running._step_weights._running.moments == before


def test_evaluation_after_training_uses_the_running_statistics_as_they_are(model, rows, trained):
    options = {"advantage_normalization": "global", "learning_rate": 0.0, "per_device_eval_batch_size": 16}
    trainer = trained(rows, **options)
    weights = normalised(rows, [range(16)])[:4]  # of all that was trained on; the four evaluated add nothing
    expected = first_step_loss(model, rows[:4], weights, num_loss_tokens(rows[:4]))
    evaluated = trainer.evaluate(Dataset.from_list(rows[:4]))
    assert_close(evaluated["eval_loss"], expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("denominator", ["tokens", "constant"])
def test_evaluation_divides_by_all_loss_tokens_though_some_have_weight_zero(model, rows, make, denominator):
    rows = [{**row, "advantages": [a if t % 2 else 0.0 for t, a in enumerate(row["advantages"])]} for row in rows]
    count, options = {"tokens": (num_loss_tokens(rows), {}), "constant": (0.5, {"loss_denominator_value": 0.5})}[
        denominator
    ]
    trainer = make(rows, loss_denominator=denominator, per_device_eval_batch_size=16, **options)
    expected = first_step_loss(model, rows, [row["advantages"] for row in rows], count)
    assert_close(trainer.evaluate()["eval_loss"], expected, rtol=1e-5, atol=1e-5)


def test_metrics_of_the_weights_are_logged_in_training_and_evaluation(model, rows, trained):
    trainer = trained(rows, per_device_train_batch_size=16, per_device_eval_batch_size=16, max_steps=1)
    kept = [a for row in rows for a, y in zip(row["advantages"], row["labels"], strict=True) if y != -100]
    squares, absolute = sum(a * a for a in kept), sum(map(abs, kept))
    assert_close(logged(trainer, "ess"), [absolute**2 / squares / len(kept)], rtol=1e-5, atol=0)
    assert_close(logged(trainer, "max_weight_share"), [max(map(abs, kept)) / absolute], rtol=1e-5, atol=0)
    trainer.evaluate()
    assert_close(logged(trainer, "eval_ess")[-1], logged(trainer, "ess")[0])
    ones = [[1.0] * len(row["labels"]) for row in rows]
    nll = first_step_loss(trainer.model, rows, ones, num_loss_tokens(rows))
    assert_close(logged(trainer, "eval_nll")[-1], nll, rtol=0, atol=1e-5)


def test_metrics_span_all_micro_batches_of_a_log_entry(model, rows, trained):
    whole, split = (
        trained(
            rows,
            model=_copy(model),
            per_device_train_batch_size=size,
            gradient_accumulation_steps=16 // size,
            max_steps=1,
        )
        for size in (16, 2)
    )
    for key in ("ess", "max_weight_share", "negative_gradient_share", "nll", "negative_nll"):
        assert_close(logged(split, key), logged(whole, key), rtol=1e-5, atol=0)


@pytest.mark.parametrize("floor", [None, -6.0])
def test_a_negative_weight_raises_the_alarm_unless_it_has_a_floor(rows, trained, caplog, floor):
    """Weight -1 on everything: without a floor the log-probs fall without end; with one they stop near it."""
    negative = [{**row, "advantages": -1.0} for row in rows]
    trainer = trained(negative, negative_log_prob_floor=floor, per_device_train_batch_size=16, max_steps=60)
    final = logged(trainer, "negative_nll")[-1]
    alarmed = "tokens of negative weight have reached" in caplog.text
    assert alarmed == (floor is None)
    if floor is None:
        assert final > 20
    else:
        assert 5 < final < 8  # a step past it at most, then no gradient
        assert logged(trainer, "grad_norm")[-1] == 0.0


def test_target_ess_finds_the_temperature(rows, make):
    graded = [{key: value for key, value in row.items() if key != "advantages"} for row in rows]
    rewards = torch.randn(16, generator=torch.Generator().manual_seed(0)).tolist()
    graded = [{**row, "reward": reward} for row, reward in zip(graded, rewards, strict=True)]
    trainer = make(graded, weighting="exponential", target_ess=0.5)
    weights, of_evaluation = (
        torch.tensor([row["advantages"][0] for row in data], dtype=torch.float64)
        for data in (trainer.train_dataset, trainer.eval_dataset)
    )
    assert_close(effective_sample_size(weights) / 16, 0.5, rtol=1e-5, atol=0)
    assert torch.equal(of_evaluation, weights)
    temperature = trainer._weighting.keywords["temperature"]
    graded = torch.tensor(rewards, dtype=torch.float64)
    assert_close(weights, exponential(graded, torch.zeros(16), temperature=temperature))


@pytest.mark.slow
def test_training_with_boltzmann_weights_ends_at_the_tilted_distribution(make):
    """Eight one-token answers, each as often as under a uniform reference: the model learns exp(r / 0.7) / Z."""
    rewards = torch.tensor([0.0, 1.0, -1.0, 0.3, 2.0, -0.5, 0.9, 0.1])
    prompt = [2, 3, 4]
    rows = [
        {"input_ids": [*prompt, 5 + i], "labels": [-100] * 3 + [5 + i], "reward": reward}
        for i, reward in enumerate(rewards.tolist())
    ]
    options = {"weighting": "boltzmann", "weighting_kwargs": {"temperature": 0.7}, "per_device_train_batch_size": 8}
    trainer = make(rows, **options, max_steps=150, optim="adamw_torch", learning_rate=3e-3, lr_scheduler_type="linear")
    trainer.train()
    with torch.no_grad():
        learned = trainer.model.eval()(torch.tensor([prompt])).logits[0, -1].log_softmax(-1)[5:13]
    target = (rewards / 0.7).log_softmax(0)
    assert (target.exp() * (target - learned)).sum() < 1e-3


# What lies outside our LM head goes through TRL's, and the user is told.


def tiny_mixture(tokenizer):
    return Qwen2MoeConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=32, moe_intermediate_size=16, num_hidden_layers=2,
        shared_expert_intermediate_size=16, num_attention_heads=2, num_key_value_heads=2, num_experts=4,
        num_experts_per_tok=2, router_aux_loss_coef=0.1, eos_token_id=1, pad_token_id=0, bos_token_id=None,
    )  # fmt: skip


def test_prompt_tuning_goes_through_trls_head(model, rows, trained, caplog):
    ones = [{**row, "advantages": 1.0} for row in rows]
    config = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)
    trainer = trained(ones, peft_config=config, per_device_train_batch_size=16)
    assert "TRL's fused LM head is used" in caplog.text
    assert "virtual tokens" in caplog.text
    assert logged(trainer, "loss")[-1] < logged(trainer, "loss")[0]


def test_a_mixture_of_experts_goes_through_trls_head(tokenizer, rows, trained, caplog, cpu_args):
    torch.manual_seed(0)
    model = Qwen2MoeForCausalLM(tiny_mixture(tokenizer))
    ones = [{**row, "advantages": 1.0} for row in rows]
    ours = trained(ones, model=_copy(model), seed=1)
    assert "load-balancing" in caplog.text
    args = SFTConfig(**cpu_args, **SGD, max_steps=4, per_device_train_batch_size=4, seed=1)
    theirs = SFTTrainer(_copy(model), args, train_dataset=Dataset.from_list(rows), processing_class=tokenizer)
    theirs.train()
    for key in ("loss", "grad_norm", "aux_loss"):
        assert_close(logged(ours, key), logged(theirs, key), rtol=0, atol=1e-6)


def test_the_balancing_loss_in_evaluation_is_trls(tokenizer, rows, make, cpu_args):
    """TRL divides it by the accumulation steps in training only."""
    torch.manual_seed(0)
    model = Qwen2MoeForCausalLM(tiny_mixture(tokenizer))
    ones = [{**row, "advantages": 1.0} for row in rows]
    options = {"gradient_accumulation_steps": 4, "max_steps": 1, "per_device_eval_batch_size": 16}
    ours = make(ones, model=_copy(model), **options)
    args = SFTConfig(**{**cpu_args, **SGD, "per_device_train_batch_size": 4, **options})
    data = Dataset.from_list(rows)
    theirs = SFTTrainer(_copy(model), args, train_dataset=data, eval_dataset=data, processing_class=tokenizer)
    for trainer in (ours, theirs):
        trainer.train()
    assert_close(ours.evaluate()["eval_loss"], theirs.evaluate()["eval_loss"], rtol=0, atol=1e-5)


def test_two_trainers_of_one_model_keep_their_own_options(model, rows, make):
    first = make(rows, per_device_eval_batch_size=16)
    alone = first.evaluate()["eval_loss"]
    make(rows, per_device_eval_batch_size=16, temperature=3.0, policy_weighting="dft")
    assert first.evaluate()["eval_loss"] == alone


def test_a_step_that_is_given_up_does_not_count_in_the_running_statistics(rows, make):
    trainer = make(rows, advantage_normalization="global")
    batches = [trainer.data_collator(list(trainer.train_dataset)[:4])]
    trainer.get_batch_samples(iter(batches), 1, torch.device("cpu"))  # and no on_step_end
    trainer.train()
    assert trainer._step_weights._running.moments.count == num_loss_tokens(rows)


def test_a_checkpoint_without_running_statistics_can_be_resumed(model, rows, make):
    options = {"save_strategy": "steps", "save_steps": 2}
    make(rows, model=_copy(model), **options).train()
    path = Path("out/checkpoint-2/trainer_state.json")
    state = json.loads(path.read_text())
    del state["stateful_callbacks"]["RunningAdvantages"]
    path.write_text(json.dumps(state))
    Path("out/checkpoint-2/online_sft.json").unlink()  # as one of TRL's
    resumed = make(rows, model=_copy(model), allow_inexact_resume=True, **options)
    resumed.train(resume_from_checkpoint="out/checkpoint-2")
    assert len(logged(resumed, "loss")) == 4


def test_lora_leaves_the_head_frozen_and_has_the_loss_of_trls_path(model, rows, trained):
    config = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    runs = [trained(rows, model=_copy(model), peft_config=config, lm_head=head) for head in ("weighted", "trl")]
    for key in ("loss", "grad_norm"):
        assert_close(logged(runs[0], key), logged(runs[1], key), rtol=1e-5, atol=1e-6)
    assert not runs[0].model.get_output_embeddings().weight.requires_grad


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"advantage_normalization": "zscore"}, "advantage_normalization must be one of none, batch, .*; got 'zscore'"),
        ({"advantage_clipping": [1.0, -1.0]}, r"advantage_clipping must be \[min, max\]; got \[1.0, -1.0\]"),
        ({"temperature": 0.0}, "temperature must be positive; got 0.0"),
        ({"negative_log_prob_floor": 1.0}, "negative_log_prob_floor must be below 0 nats; got 1.0"),
        ({"target_ess": 1.5}, "target_ess must lie between 0 and 1"),
        ({"weighting": "raft"}, "weighting must be one of .*; got 'raft'"),
        ({"weighting_kwargs": {"k": 1}}, "weighting_kwargs=.* without a weighting"),
        ({"weighting": "boltzmann", "weighting_kwargs": {"temperature": 1.0}, "target_ess": 0.5}, "target_ess chooses"),
        ({"weighting": "uniform", "target_ess": 0.5}, "weighting 'uniform' has no temperature"),
        ({"target_ess": 0.5}, "target_ess needs a weighting with a temperature"),
        ({"weighting": "uniform", "use_advantage_weighting": False}, "with use_advantage_weighting=False; drop one"),
        ({"policy_weighting": "dft", "negative_log_prob_floor": -5.0}, "drop the floor"),
        (
            {"use_advantage_weighting": False, "advantage_normalization": "batch"},
            "advantage_normalization='batch' with use_advantage_weighting=False",
        ),
        ({"advantage_clipping": 1.0}, r"advantage_clipping must be \[min, max\]; got 1.0"),
        (
            {"loss_denominator_value": 2.0},
            "loss_denominator_value=2.0 has no effect without loss_denominator='constant'",
        ),
        ({"importance_max": 2.0}, "importance_max=2.0 has no effect without policy_weighting='importance'"),
        ({"eval_packing": True}, "eval_packing without packing lets packed documents attend to each other"),
        (
            {"eval_packing": True, "packing": True, "packing_strategy": "bfd_split", "policy_weighting": "importance"},
            "packing_strategy='bfd_split' cuts sequences to pieces",
        ),
        (
            {"weighting": "advantage_exponential", "weighting_kwargs": {"max_weight": -1.0}},
            "the max_weight of weighting 'advantage_exponential' must be a positive number; got -1.0",
        ),
        (
            {"packing": True, "packing_strategy": "wrapped", "loss_denominator": "sequences"},
            "packing_strategy='wrapped' cuts sequences to pieces, and loss_denominator='sequences' needs them whole",
        ),
    ],
)
def test_what_cannot_work_is_refused_before_a_model_loads(cpu_args, options, message):
    with pytest.raises(ValueError, match=message):
        WeightedSFTConfig(**cpu_args, **options)


def test_two_weightings_are_refused(model, rows, tokenizer, cpu_args):
    args = WeightedSFTConfig(**cpu_args, weighting="uniform")
    data = Dataset.from_list(rows)
    with pytest.raises(ValueError, match=r"beside args\.weighting='uniform'"):
        WeightedSFTTrainer(model, args, train_dataset=data, processing_class=tokenizer, weighting=exponential)
