"""The numbers of a dry run: by hand, and those that real trainers have."""

import math
import os
from dataclasses import replace

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from transformers import TrainerCallback

from online_sft import OnlineSFTConfig, OnlineSFTTrainer, WeightedSFTConfig, WeightedSFTTrainer
from trainers.dry_run import memory
from trainers.dry_run.arithmetic import OnlineBatches, RowBatches
from trainers.dry_run.blank_model import BlankModel
from trainers.dry_run.estimate import Sizes, parts_of
from trainers.dry_run.memory import Layers, Part
from trainers.dry_run.planned import Launch, planned

ALL = frozenset({"parameters", "gradients", "optimizer"})
# 18 per head and so on would hide a mistake: every size is another one
LAYERS = Layers(num_layers=3, hidden=10, attention=12, key_value=4, intermediate=20, vocabulary=1000)


def online(num_rows, per_device, accumulation, processes, generations, per_generation, iterations, **steps):
    return OnlineBatches(
        per_device,
        accumulation,
        processes,
        num_rows,
        **{"max_steps": -1, "num_epochs": 1.0, **steps},
        num_generations=generations,
        steps_per_generation=per_generation,
        num_iterations=iterations,
    )


@pytest.mark.parametrize(
    ("batches", "per_step", "prompts", "serves", "of_epoch", "steps", "sampled", "trained_on"),
    [
        (online(11, 4, 1, 1, 2, 1, 1, num_epochs=3), 4, 2, 1, 5, 15, 60, 60),  # the 11th prompt waits
        (online(10, 2, 2, 1, 2, 4, 1), 4, 4, 2, 4, 4, 16, 16),  # a generation batch serves two steps
        (online(6, 2, 2, 2, 4, 2, 3, max_steps=5), 8, 2, 3, 9, 5, 16, 40),  # three iterations; the 2nd batch is begun
        (online(3, 2, 2, 1, 2, 3, 1, num_epochs=2), 4, 3, 1.5, 2, 4, 12, 12),  # every other step is half a step
        (online(10, 2, 4, 1, 2, 1, 1, num_epochs=1), 8, 1, 0.25, 3, 3, 20, 20),  # four generation batches a step
        (online(None, 4, 2, 8, 2, 2, 2, max_steps=7), 64, 32, 2, None, 7, 256, 448),  # a stream
    ],
)
def test_online_by_hand(batches, per_step, prompts, serves, of_epoch, steps, sampled, trained_on):
    assert batches.per_step == per_step
    assert batches.prompts_per_generation == prompts
    assert batches.steps_of_a_generation == serves
    assert batches.steps_per_epoch == of_epoch
    assert batches.num_steps == steps
    assert batches.completions_sampled == sampled
    assert batches.completions_trained_on == trained_on
    assert batches.epochs == (None if of_epoch is None else steps / of_epoch)


@pytest.mark.parametrize(
    ("batches", "micro_batches", "of_epoch", "steps", "in_all"),
    [
        (RowBatches(4, 1, 1, 10, -1, 3.0), 3, 3, 9, 9),
        (RowBatches(2, 2, 2, 10, -1, 1.5), 3, 2, 3, 5),  # the last step of an epoch is half a step
        (RowBatches(4, 1, 2, 10, -1, 1.0, drop_last=True), 1, 1, 1, 1),
        (RowBatches(4, 1, 2, 10, -1, 1.0), 2, 2, 2, 2),
        (RowBatches(16, 4, 1, 3, -1, 1.0), 1, 1, 1, 1),
        (RowBatches(4, 2, 1, None, 5, 3.0), None, None, 5, 10),
    ],
)
def test_rows_by_hand(batches, micro_batches, of_epoch, steps, in_all):
    assert batches.micro_batches_per_epoch == micro_batches
    assert batches.steps_per_epoch == of_epoch
    assert batches.num_steps == steps
    assert batches.num_micro_batches == in_all


def test_total_episodes_are_the_completions_sampled(cpu_args, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "8")
    _, (config_class,) = planned([], (OnlineSFTConfig,))
    sizes = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2, "num_iterations": 3}
    config = config_class(**cpu_args, **sizes, total_episodes=100)
    batches = online(500, 4, 2, config.world_size, 2, config.steps_per_generation, 3, max_steps=config.max_steps)
    assert (batches.num_steps, batches.completions_sampled) == (5, 128)  # 300 to train on, 64 a step; 2 x 64 sampled


class MicroBatches(TrainerCallback):
    count = 0

    def on_substep_end(self, *args, **kwargs):
        self.count += 1

    on_step_end = on_substep_end


@pytest.mark.parametrize(("rows", "accumulation", "epochs", "drop_last"), [(10, 2, 1.5, False), (11, 1, 1, True)])
def test_a_weighted_run_has_these_steps_and_micro_batches(folder, cpu_args, rows, accumulation, epochs, drop_last):
    config = WeightedSFTConfig(
        **cpu_args,
        per_device_train_batch_size=4,
        gradient_accumulation_steps=accumulation,
        num_train_epochs=epochs,
        dataloader_drop_last=drop_last,
    )
    data = Dataset.from_list([{"prompt": "1 + 1 =", "completion": " Answer: 2", "advantages": 1.0}] * rows)
    counted = MicroBatches()
    trainer = WeightedSFTTrainer(folder, config, train_dataset=data, callbacks=[counted])
    trainer.train()
    batches = RowBatches(4, accumulation, 1, rows, -1, epochs, drop_last)
    assert (trainer.state.max_steps, counted.count) == (batches.num_steps, batches.num_micro_batches)


@pytest.mark.parametrize(
    ("accumulation", "per_generation", "iterations", "steps"),
    [(2, 1, 1, {"num_train_epochs": 1}), (1, 2, 2, {"max_steps": 5}), (2, 3, 1, {"num_train_epochs": 2})],
)
def test_an_online_run_has_these_steps_and_completions(
    folder, cpu_args, accumulation, per_generation, iterations, steps
):
    sampled = []
    config = OnlineSFTConfig(
        **cpu_args,
        **steps,
        per_device_train_batch_size=4,
        gradient_accumulation_steps=accumulation,
        steps_per_generation=per_generation,
        num_iterations=iterations,
        max_completion_length=1,
    )
    counted = MicroBatches()
    trainer = OnlineSFTTrainer(
        folder,
        lambda completions, **columns: [sampled.append(each) or 0.0 for each in completions],
        config,
        Dataset.from_list([{"prompt": f"{n} + 1 ="} for n in range(10)]),
        callbacks=[counted],
    )
    trainer.train()
    of_steps = {"max_steps": config.max_steps, "num_epochs": config.num_train_epochs}
    batches = online(10, 4, accumulation, 1, 2, per_generation, iterations, **of_steps)
    assert trainer.state.max_steps == batches.num_steps
    assert len(sampled) == batches.completions_sampled
    assert counted.count * 4 == batches.completions_trained_on


# --- memory


class Held(TrainerCallback):
    """What a process holds just before an optimizer step."""

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        self.parameters = sum(p.numel() * p.element_size() for p in model.parameters())
        self.gradients = sum(p.grad.numel() * p.grad.element_size() for p in model.parameters() if p.grad is not None)

    def on_step_end(self, args, state, control, optimizer=None, **kwargs):
        tensors = [v for each in optimizer.state.values() for v in each.values() if isinstance(v, torch.Tensor)]
        self.optimizer = sum(t.numel() * t.element_size() for t in tensors)


def lora():  # peft notes the model's folder in it
    return LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")


def blank_model(folder, dtype, adapters):
    """As the trainer gives it adapters."""
    blank = BlankModel.of(folder, {"dtype": dtype}, False, None)
    return replace(blank, model=get_peft_model(blank.model, adapters())) if adapters else blank


PROMPTS = Dataset.from_list([{"prompt": "1 + 1 ="}] * 4)
ROWS = Dataset.from_list([{"prompt": "1 + 1 =", "completion": " Answer: 2", "advantages": 1.0}] * 4)


@pytest.mark.parametrize("method", ["online", "weighted"])
@pytest.mark.parametrize(
    ("dtype", "adapters", "optim"),
    [
        ("float32", None, "adamw_torch_fused"),
        ("bfloat16", None, "adamw_torch"),
        ("bfloat16", lora, "adamw_torch_fused"),
        ("float32", lora, "sgd"),
        ("float32", None, "adafactor"),
        ("float32", None, "adagrad"),
        ("float32", None, "rmsprop"),
    ],
)
def test_what_is_exact_is_what_a_run_holds(folder, cpu_args, method, dtype, adapters, optim):
    options = {**cpu_args, "max_steps": 1, "per_device_train_batch_size": 4, "optim": optim}
    held = Held()
    if method == "online":
        config_class, trainer_class, more = OnlineSFTConfig, OnlineSFTTrainer, {"train_dataset": PROMPTS}
        more["reward_funcs"] = lambda completions, **columns: [float(len(text)) for text in completions]
        options |= {"max_completion_length": 4}
    else:
        config_class, trainer_class, more = WeightedSFTConfig, WeightedSFTTrainer, {"train_dataset": ROWS}
    args = config_class(**options, model_init_kwargs={"dtype": dtype})
    trainer_class(folder, args=args, peft_config=adapters and adapters(), callbacks=[held], **more).train()
    blank = blank_model(folder, dtype, adapters)

    _, (planned_class,) = planned([], (config_class,))
    parts = parts_of(planned_class(**options), blank, Sizes(16, 4), has_weighted_head=method == "weighted")
    exact = {part.name: part.num_bytes for part in parts if part.is_exact}
    assert exact == {"parameters": held.parameters, "gradients": held.gradients, "optimizer": held.optimizer}


def test_the_reference_model_is_a_model_and_adapters_need_none(folder, cpu_args):
    _, (planned_class,) = planned([], (OnlineSFTConfig,))
    for beta, adapters, expected in ((0.1, None, 1), (0.1, lora, 0), (0.0, None, 0)):
        blank = blank_model(folder, "float32", adapters)
        parts = parts_of(planned_class(**cpu_args, beta=beta), blank, Sizes(16, 4), has_weighted_head=False)
        references = [part.num_bytes for part in parts if part.name == "reference model"]
        assert references == [4 * sum(p.numel() for p in blank.held)] * expected


def test_activations_by_hand():
    # 4 x 10 + 3 x 12 + 3 x 4 + 4 x 20 = 168 numbers per token and layer
    assert memory.activations(LAYERS, 100, width=2, is_checkpointed=False).num_bytes == 100 * 2 * 3 * 168
    assert memory.activations(LAYERS, 100, width=4, is_checkpointed=True).num_bytes == 100 * 4 * (3 * 10 + 168)


def test_heads_and_cache_by_hand():
    options = {"chunk_size": 64, "width": 2}
    head = 1000 * 10 * 4
    logits = memory.weighted_head(LAYERS, 100, is_trained=True, **options)
    assert logits.num_bytes == 2 * 64 * 1000 * 4 + 100 * 10 * 2 + head
    assert memory.weighted_head(LAYERS, 100, is_trained=False, **options).num_bytes == logits.num_bytes - head
    assert memory.weighted_head(LAYERS, 32, is_trained=False, **options).num_bytes == 2 * 32 * 1000 * 4 + 32 * 10 * 2
    assert memory.trl_head(LAYERS, 100, is_trained=True, width=2).num_bytes == 100 * 1000 * 6 + 100 * 10 * 4 + head
    assert memory.key_value_cache(LAYERS, 5, 30, width=2).num_bytes == 5 * 30 * 3 * 2 * 4 * 2


def test_8_bit_states_and_quantised_weights_by_hand():
    large, small = torch.empty(64, 64, device="meta"), torch.empty(100, device="meta")
    states = memory.optimizer_states("adamw_8bit", [large, small])
    assert states.num_bytes == 2 * (4096 + 4 * 16) + 8 * 100  # 16 scales
    quantised = memory.parameters([large, small], quantised=[large], bits=4)
    assert quantised.num_bytes == 4096 // 2 + 4096 // 64 * 4 + 100 * 4
    assert not states.is_exact and not quantised.is_exact


def test_an_unknown_optimizer_and_device_are_said_to_be_unknown():
    assert memory.optimizer_states("galore_adamw", []).num_bytes is None
    assert memory.vllm_share(0.3, None).num_bytes is None
    assert memory.vllm_share(0.25, 1000).num_bytes == 250


def test_training_and_sampling_do_not_add_up():
    parts = [Part("a", 5, ""), Part("b", 7, "", phase="training"), Part("c", 9, "", phase="sampling")]
    assert memory.total([*parts, Part("d", None, "")]) == 14
    assert memory.total([*parts, Part("d", 4, "", phase="training")]) == 16


def parts_under(environment, folder, monkeypatch, cpu_args, **options):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    _, (planned_class,) = planned([], (WeightedSFTConfig,))
    waits_for_others = {"WORLD_SIZE", "ACCELERATE_USE_FSDP", "ACCELERATE_USE_DEEPSPEED"}
    assert not waits_for_others & set(os.environ)
    blank = BlankModel.of(folder, {}, False, None)
    config = planned_class(**{**cpu_args, **options})
    parts = parts_of(config, blank, Sizes(16, 4), has_weighted_head=True)
    return sum(p.numel() for p in blank.held), len(blank.held), {part.name: part for part in parts}


def test_ddp_holds_everything_and_its_buckets(folder, cpu_args, monkeypatch):
    count, _, parts = parts_under({"WORLD_SIZE": "8"}, folder, monkeypatch, cpu_args, bf16=True)
    assert parts["parameters"].num_bytes == parts["gradients"].num_bytes == parts["buckets of DDP"].num_bytes
    assert parts["parameters"].num_bytes == 2 * parts["copies in 16 bits"].num_bytes == 4 * count


def test_fsdp_divides_parameters_gradients_and_states(folder, cpu_args, monkeypatch):
    environment = {"WORLD_SIZE": "8", "ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}
    count, num_tensors, parts = parts_under(environment, folder, monkeypatch, cpu_args, bf16=True)
    assert parts["parameters"].num_bytes == parts["gradients"].num_bytes == math.ceil(4 * count / 8)
    assert parts["optimizer"].num_bytes == math.ceil((8 * count + 4 * num_tensors) / 8)
    assert not {"buckets of DDP", "copies in 16 bits"} & set(parts)
    assert not any(part.is_exact for part in parts.values())


def test_zero_2_divides_gradients_and_states_of_a_model_of_16_bits(folder, cpu_args, monkeypatch):
    environment = {"WORLD_SIZE": "4", "ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_ZERO_STAGE": "2"}
    count, num_tensors, parts = parts_under(environment, folder, monkeypatch, cpu_args, bf16=True)
    assert parts["parameters"].num_bytes == 2 * count
    assert parts["gradients"].num_bytes == math.ceil(2 * count / 4)
    assert parts["optimizer"].num_bytes == math.ceil((12 * count + 4 * num_tensors) / 4)


@pytest.mark.parametrize(
    ("environment", "method", "divided", "num_parts"),
    [
        ({}, "", set(), 1),
        ({"FSDP_SHARDING_STRATEGY": "SHARD_GRAD_OP"}, "FSDP1", {"gradients", "optimizer"}, 8),
        ({"FSDP_VERSION": "2", "FSDP_RESHARD_AFTER_FORWARD": "false"}, "FSDP2", {"gradients", "optimizer"}, 8),
        ({"FSDP_SHARDING_STRATEGY": "HYBRID_SHARD", "LOCAL_WORLD_SIZE": "4"}, "FSDP1, hybrid", ALL, 4),
        ({"FSDP_SHARDING_STRATEGY": "NO_SHARD"}, "FSDP1, NO_SHARD", set(), 8),
        ({"FSDP_SHARDING_STRATEGY": "FULL_SHARD"}, "FSDP1", ALL, 8),
    ],
)
def test_what_fsdp_divides(environment, method, divided, num_parts):
    if environment:
        environment = {"ACCELERATE_USE_FSDP": "true", "WORLD_SIZE": "8", **environment}
    launch = Launch.taken_from(environment)
    assert launch.method.startswith(method)
    assert (launch.divided, launch.num_parts) == (divided, num_parts)


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_what_zero_divides(stage, tmp_path):
    (tmp_path / "ds.json").write_text(f'{{"zero_optimization": {{"stage": {stage}}}}}')
    environment = {"ACCELERATE_USE_DEEPSPEED": "true", "WORLD_SIZE": "2", "ACCELERATE_DEEPSPEED_CONFIG_FILE": "ds.json"}
    launch = Launch.taken_from(environment)
    order = ("optimizer", "gradients", "parameters")
    assert [name for name in order if launch.parts_of(name) == 2] == list(order[:stage])
    assert launch.is_zero and launch.method == f"ZeRO-{stage}"
