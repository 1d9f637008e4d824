"""Small runs of every kind of which a resume has something to forget, and what two runs have to have in common."""

import re

import torch
from collection_tools import Dice
from datasets import Dataset
from exact_on_cpu import EXACT_ON_CPU
from peft import LoraConfig
from trajectory_tools import chat_tokenizer, ragged_trajectories
from transformers import set_seed

from online_sft import (
    OnlineSFTConfig,
    OnlineSFTTrainer,
    TrajectorySFTConfig,
    TrajectorySFTTrainer,
    WeightedSFTConfig,
    WeightedSFTTrainer,
)
from recipes.quickstart.tiny_model import build_model, build_tokenizer

STEPS = 8
_SAVING = {"max_steps": STEPS, "save_strategy": "steps", "save_steps": 1, "learning_rate": 1e-2}

# Ten prompts: two a step, or eight for four steps. So the second epoch begins with step 6, or 5.
ONLINE = {
    "a batch a step": {},
    "4 steps a generation": {"steps_per_generation": 4},
    "4 steps a generation, twice": {"steps_per_generation": 4, "num_iterations": 2},
    "accumulation": {"steps_per_generation": 4, "num_iterations": 2, "gradient_accumulation_steps": 2},
    "filtered": {
        "steps_per_generation": 4,
        "num_iterations": 2,
        "filter_groups_enable": True,
        "max_filter_retries": 2,
        "baseline": "optimal",
        "beta": 0.1,
    },
    "lora": {"steps_per_generation": 4, "peft": True},
    "stream": {"stream": True},  # its second pass begins with the sixth step, too
}
WEIGHTED = {
    "rows": {},
    "grouped by length": {"train_sampling_strategy": "group_by_length"},
    "stream": {"stream": True},
    "packed, normalised": {"packing": True, "max_length": 24, "advantage_normalization": "global"},
    "lora": {"peft": True},
}
TRAJECTORIES = {"demonstrations": {}, "collected": {"environments": [Dice]}}
KINDS = {
    **{f"online: {name}": name for name in ONLINE},
    **{f"weighted: {name}": name for name in WEIGHTED},
    **{f"trajectories: {name}": name for name in TRAJECTORIES},
}


def graded(completion_ids, **columns):
    """Takes two values, so that some groups say nothing, and now and then none."""
    return [None if sum(ids) % 11 == 0 else float(sum(ids) % 3 == 0) for ids in completion_ids]


def _peft(options):
    wanted = options.pop("peft", False)
    config = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], lora_dropout=0.1, task_type="CAUSAL_LM")
    return {"peft_config": config} if wanted else {}


def _online(name, output_dir, more):
    tokenizer = build_tokenizer([" + ", " =", " Answer: "])
    model, folder = build_model(tokenizer, seed=0), f"{output_dir}-model"
    model.save_pretrained(folder)  # where the reference model is loaded from
    tokenizer.save_pretrained(folder)
    options = {**_SAVING, "num_generations": 4, "max_completion_length": 6, **ONLINE[name], **more}
    data = Dataset.from_list([{"prompt": f"{a} + {b} ="} for a in range(5) for b in range(2)])
    if options.pop("stream", False):
        data = data.to_iterable_dataset(num_shards=2)
    adapters = _peft(options)
    sizes = {"per_device_train_batch_size": 8, "output_dir": output_dir}
    args = OnlineSFTConfig(**{**EXACT_ON_CPU, **sizes, **options})
    evaluated = data if args.eval_strategy != "no" else None
    return OnlineSFTTrainer(folder, graded, args, data, evaluated, processing_class=tokenizer, **adapters)


def _weighted(name, output_dir, more):
    tokenizer = build_tokenizer([" + ", " =", " Answer: "])
    options = {**_SAVING, **WEIGHTED[name], **more}
    rows = []
    for index in range(14):  # an epoch ends within step 4
        length = 3 + (5 * index) % 11
        tokens = [2 + (index * 7 + 3 * t) % (len(tokenizer) - 2) for t in range(length)]
        rows.append({"input_ids": tokens, "labels": tokens, "advantages": [((index + t) % 5) - 1.5 for t in tokens]})
    data = Dataset.from_list(rows)
    if options.pop("stream", False):
        data = data.to_iterable_dataset(num_shards=2).shuffle(seed=1, buffer_size=5)
    adapters = _peft(options)
    sizes = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2, "output_dir": output_dir}
    args = WeightedSFTConfig(**{**EXACT_ON_CPU, **sizes, **options})
    model = build_model(tokenizer, seed=0)
    evaluated = {"eval_dataset": data} if args.eval_strategy != "no" else {}
    return WeightedSFTTrainer(model, args, train_dataset=data, processing_class=tokenizer, **evaluated, **adapters)


def _trajectories(name, output_dir, more):
    tokenizer = chat_tokenizer()
    options = {**_SAVING, "max_length": 300, "weighting": "exponential", **more}
    environments = TRAJECTORIES[name].get("environments")
    if environments:
        options |= {"collect_every": 3, "collect_episodes": 3, "max_completion_length": 6}
    sizes = {"per_device_train_batch_size": 2, "output_dir": output_dir}
    args = TrajectorySFTConfig(**{**EXACT_ON_CPU, **sizes, **options})
    return TrajectorySFTTrainer(
        build_model(tokenizer, seed=0),
        args,
        train_dataset=ragged_trajectories(7),
        processing_class=tokenizer,
        environments=environments,
    )


def trainer_of(kind, output_dir, **more):
    """A run of a kind of `KINDS`, from its beginning: 8 steps, a checkpoint after each."""
    set_seed(1234)  # of adapters
    family, _, name = kind.partition(": ")
    builders = {"online": _online, "weighted": _weighted, "trajectories": _trajectories}
    return builders[family](name, str(output_dir), more)


def parameters(trainer):
    return torch.cat([value.detach().flatten() for value in trainer.model.parameters()])


def numbers(trainer, after=0):
    """All that was logged, but for times and memory."""
    return [
        {name: value for name, value in entry.items() if not re.search("second|time|memory", name)}
        for entry in trainer.state.log_history
        if entry["step"] > after and "train_loss" not in entry
    ]
