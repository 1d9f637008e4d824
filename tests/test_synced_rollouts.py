from types import SimpleNamespace

import pytest
import torch
from datasets import Dataset

from online_sft import OnlineSFTConfig, OnlineSFTTrainer
from trainers.engine.rollouts import synced_rollouts

CONTINUOUS = {
    "use_transformers_continuous_batching": True,
    "transformers_continuous_batching_config": {"num_blocks": 64, "max_batch_tokens": 256},
}


def trainer_for(model, tokenizer, args):
    data = Dataset.from_list([{"prompt": f"{a} + 2 ="} for a in range(8)])
    args = OnlineSFTConfig(**args, max_completion_length=6, max_steps=2, per_device_train_batch_size=4)
    return OnlineSFTTrainer(model, lambda completion_ids, **_: [float(len(x)) for x in completion_ids], args, data,
                            processing_class=tokenizer)  # fmt: skip


@pytest.mark.parametrize("options", [{}, CONTINUOUS], ids=["transformers", "continuous batching"])
def test_each_prompt_has_its_completions_in_its_place(model, tokenizer, cpu_args, options):
    trainer = trainer_for(model, tokenizer, {**cpu_args, **options})
    trainer.train()
    with trainer.synced_rollouts() as engine:
        rollouts = engine.generate(["1 + 2 =", "17 ="], num_generations=3)
    assert engine.policy_version == 2
    assert [tokenizer.decode(rollout.prompt_ids) for rollout in rollouts] == ["1 + 2 ="] * 3 + ["17 ="] * 3
    for rollout in rollouts:
        assert 1 <= len(rollout.completion_ids) <= 6
        assert rollout.text == tokenizer.decode(rollout.completion_ids, skip_special_tokens=True)
        assert rollout.log_probs is None


def test_the_policy_as_it_is_now_answers(model, tokenizer, cpu_args):
    trainer = trainer_for(model, tokenizer, cpu_args)
    with torch.no_grad():
        trainer.model.lm_head.weight.zero_()
        trainer.model.lm_head.weight[5] = 0.0
        trainer.model.model.norm.weight.zero_()  # all logits are 0 now: every token is as likely
    with trainer.synced_rollouts() as engine:
        tokens = [t for rollout in engine.generate(["1 ="], num_generations=200) for t in rollout.completion_ids]
    counts = torch.bincount(torch.tensor(tokens), minlength=len(tokenizer)).float()
    assert (counts / counts.sum()).max() < 0.15


def test_a_sleeping_engine_is_awake_in_the_body_and_asleep_after_it_even_after_an_exception():
    """The order of calls only: vLLM's sleep mode needs a GPU."""
    calls = []
    llm = SimpleNamespace(wake_up=lambda tags: calls.append(tags), sleep=lambda level: calls.append(level))
    generation = SimpleNamespace(
        mode="colocate", enable_sleep_mode=True, llm=llm, sync_weights=lambda: calls.append("sync")
    )
    state = SimpleNamespace(global_step=7)
    trainer = SimpleNamespace(use_vllm=True, state=state, vllm_generation=generation, processing_class=None)
    with pytest.raises(KeyError), synced_rollouts(trainer) as engine:
        assert not generation.enable_sleep_mode  # `generate` neither sleeps nor asks for the weights again
        assert engine.policy_version == trainer._last_loaded_step == 7
        raise KeyError
    assert calls == ["sync", ["kv_cache"], 2]
    assert generation.enable_sleep_mode
    assert generation._llm_weights_sleeping
