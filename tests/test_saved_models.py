"""What a run leaves behind loads in plain transformers (and PEFT), to the bit."""

import json
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from exact_on_cpu import EXACT_ON_CPU
from peft import LoraConfig, PeftModel, PromptTuningConfig
from resume_tools import parameters, trainer_of
from torch.testing import assert_close
from transformers import AutoModelForCausalLM, AutoTokenizer

from online_sft import WeightedSFTConfig, WeightedSFTTrainer
from recipes.quickstart.tiny_model import build_model

KINDS = ["online: a batch a step", "weighted: rows", "trajectories: demonstrations"]
LORA = ["online: lora", "weighted: lora"]
TOKENS = torch.tensor([[2, 3, 4, 5, 6]])


@torch.no_grad()
def logits(model):
    return model.eval()(input_ids=TOKENS).logits


def loaded(folder):
    AutoTokenizer.from_pretrained(folder)
    return AutoModelForCausalLM.from_pretrained(folder)


@pytest.mark.parametrize("kind", KINDS)
def test_a_saved_model_and_each_checkpoint_load_in_plain_transformers(kind, tmp_path):
    trainer = trainer_of(kind, tmp_path / "out", max_steps=2, save_total_limit=1)
    trainer.train()
    trainer.save_model()
    assert [path.name for path in (tmp_path / "out").glob("checkpoint-*")] == ["checkpoint-2"]
    for folder in ("", "checkpoint-2"):
        assert torch.equal(logits(loaded(tmp_path / "out" / folder)), logits(trainer.model))


@pytest.mark.parametrize("kind", LORA)
def test_adapters_are_saved_alone_and_merged_and_the_policy_keeps_its_own(kind, tmp_path):
    trainer = trainer_of(kind, tmp_path / "out", max_steps=2)
    start = trainer.model.get_base_model()
    frozen = {name: value.clone() for name, value in start.state_dict().items() if "lora" not in name}
    trainer.train()
    before = parameters(trainer).clone()
    trainer.save_model()
    trainer.save_merged_model(str(tmp_path / "out" / "merged"))
    assert torch.equal(parameters(trainer), before)
    assert not list((tmp_path / "out").glob("model*.safetensors")), "the adapter alone"

    base = type(start)(start.config)
    base.load_state_dict({name.replace(".base_layer", ""): value for name, value in frozen.items()})
    adapted = PeftModel.from_pretrained(base, tmp_path / "out")
    assert torch.equal(logits(adapted), logits(trainer.model))
    merged = loaded(tmp_path / "out" / "merged")
    assert not any("lora" in name for name in merged.state_dict())
    assert torch.equal(logits(merged), logits(adapted.merge_and_unload()))
    assert_close(logits(merged), logits(trainer.model))


@pytest.mark.parametrize("kind", ["weighted: rows", "weighted: lora", "online: a batch a step"])
def test_the_best_model_is_loaded_at_the_end_and_its_checkpoint_outlives_the_limit(kind, tmp_path):
    metric = "eval_reward" if kind.startswith("online") else "eval_loss"
    saving = {"eval_strategy": "steps", "eval_steps": 1, "save_total_limit": 1, "metric_for_best_model": metric}
    trainer = trainer_of(kind, tmp_path / "out", **saving, load_best_model_at_end=True, learning_rate=10.0)
    trainer.train()
    found = {e["step"]: e[metric] for e in trainer.state.log_history if metric in e}
    best = max(found.values()) if metric == "eval_reward" else min(found.values())
    expected = tmp_path / "out" / f"checkpoint-{next(step for step, value in found.items() if value == best)}"
    assert trainer.state.best_model_checkpoint == str(expected)
    assert json.loads((expected / "trainer_state.json").read_text())["best_model_checkpoint"] == str(expected)
    assert [path.name for path in (tmp_path / "out").glob("checkpoint-*")] == [expected.name]
    steps = trainer.state.max_steps
    assert expected.name != f"checkpoint-{steps}", "a rate of 10 should not make the last model the best"
    file = "adapter_model.safetensors" if "lora" in kind else "model.safetensors"
    from safetensors.torch import load_file

    saved = torch.cat([value.flatten() for _, value in sorted(load_file(expected / file).items())])
    trainer.save_model(str(tmp_path / "final"))
    final = torch.cat([value.flatten() for _, value in sorted(load_file(tmp_path / "final" / file).items())])
    assert torch.equal(final, saved)


def test_the_best_checkpoint_is_found_where_the_folder_was_moved_to(tmp_path):
    saving = {"eval_strategy": "steps", "eval_steps": 1, "save_total_limit": 2, "metric_for_best_model": "eval_loss"}
    options = {**saving, "load_best_model_at_end": True, "learning_rate": 10.0}
    trainer_of("weighted: rows", tmp_path / "here", **options, max_steps=4).train()
    (tmp_path / "here").rename(tmp_path / "there")
    moved = trainer_of("weighted: rows", tmp_path / "there", **options, max_steps=6)
    moved.train("auto")
    best = tmp_path / "there" / "checkpoint-1"
    assert moved.state.best_model_checkpoint == str(best)
    assert torch.equal(logits(moved.model), logits(loaded(best)))


def test_adapters_with_tokens_of_their_own_are_merged_and_prompts_are_refused(tokenizer, tmp_path):
    """Which the names of LoRA's parameters alone do not tell."""
    tokens = {"target_modules": ["q_proj"], "trainable_token_indices": [3, 5]}
    untied = build_model(tokenizer, seed=0)
    untied.lm_head.weight = torch.nn.Parameter(untied.lm_head.weight.detach().clone())
    untied.config.tie_word_embeddings = False
    for name, model, config in (
        ("tokens", untied, LoraConfig(**tokens, task_type="CAUSAL_LM")),
        ("prompt", build_model(tokenizer, seed=0), PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2)),
    ):
        rows = Dataset.from_list([{"input_ids": [2, 3, 4, 5], "labels": [2, 3, 4, 5], "advantages": [1.0] * 4}] * 4)
        args = WeightedSFTConfig(**EXACT_ON_CPU, max_steps=2, per_device_train_batch_size=2, learning_rate=1e-2)
        trainer = WeightedSFTTrainer(model, args, train_dataset=rows, processing_class=tokenizer, peft_config=config)
        if name == "prompt":
            with pytest.raises(ValueError, match="adapters of PROMPT_TUNING cannot be merged"):
                trainer.save_merged_model(str(tmp_path / name))
        else:
            trainer.train()
            trainer.save_merged_model(str(tmp_path / name))
            assert_close(logits(loaded(tmp_path / name)), logits(trainer.model))


def test_the_command_line_writes_the_merged_model_beside_the_adapter(tmp_path, folder):
    from online_sft.cli import main

    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"prompt": "1 + 1 =", "completion": " 2", "advantages": 1.0}\n' * 4)
    main(
        f"weighted --model_name_or_path {folder} --dataset_name {rows} --output_dir {tmp_path / 'out'} --max_steps 1 "
        "--use_cpu true --bf16 false --report_to none --use_peft --lora_target_modules q_proj v_proj "
        "--save_merged_model true".split()
    )
    assert Path(tmp_path, "out", "adapter_model.safetensors").exists()
    loaded(tmp_path / "out" / "merged")
