"""The real vLLM, on a CPU: after training, the engine computes what the policy computes; a broken sync stops the run.

`make test-vllm` runs these, in an environment of their own (tests/vllm_cpu/install.sh).
"""

import pytest
import torch
from transformers import Qwen3Config, Qwen3ForCausalLM
from vllm_tools import engine, spec, train

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(600)]


@pytest.fixture(params=["untied", "tied"])
def folder(request, model, tokenizer, tmp_path):
    if request.param == "untied":
        config = Qwen3Config(
            vocab_size=len(tokenizer),
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=3,
            num_attention_heads=2,
            num_key_value_heads=1,
            head_dim=32,
            max_position_embeddings=128,
            tie_word_embeddings=False,
            initializer_range=0.1,
            bos_token_id=None,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
        torch.manual_seed(0)
        model = Qwen3ForCausalLM(config)
    assert model.config.tie_word_embeddings == (request.param == "tied")
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    return str(tmp_path / "model")


@pytest.mark.parametrize("mode", ["colocate", "server"])
def test_after_training_the_engine_computes_what_the_policy_computes(mode, folder, tmp_path):
    with engine(mode, folder, tmp_path) as url:
        results = train(folder, [spec(), spec(lora=True)], tmp_path, url)
    for result in results:
        assert "error" not in result, result["error"]
        assert result["synced"]["same_tokens"]
        assert result["synced"]["max_dlogp"] < 1e-4
        assert result["moved_by_sync"] == 0.0
        assert result["at_first"]["max_dlogp"] > 1e-2, "the policy has not moved, so this test says nothing"
        log = result["log"]
        assert [entry["weight_sync/policy_version"] for entry in log] == [0, 1, 2]
        assert max(entry["weight_sync/probe_max_dlogp"] for entry in log) < 1e-4
        assert max(entry["sampling/sampling_logp_difference/max"] for entry in log) < 1e-4
        assert all(entry["weight_sync/seconds"] > 0 and entry["weight_sync/gigabytes"] > 0 for entry in log)
        assert result["policy_version"] == 3
        assert [row[0] for row in result["rollouts"]] == [result["rollouts"][0][0]] * 2 + [result["rollouts"][2][0]] * 2
        for _, ids, log_probs, _ in result["rollouts"]:
            assert len(ids) == len(log_probs) > 0


@pytest.mark.parametrize("mode", ["colocate", "server"])
def test_a_broken_sync_stops_the_run_and_names_the_suspects(mode, folder, tmp_path):
    runs = [
        spec("nothing is sent"),
        spec("a layer is left out"),
        spec("a layer is left out", weight_sync_probe_every=100),  # the rollouts of step 1 ask for a proof
        spec("adapters are not merged", lora=True),
        spec(),
    ]
    with engine(mode, folder, tmp_path) as url:
        nothing, layer, rollouts, adapters, good = train(folder, runs, tmp_path, url)
    for result in (nothing, layer, rollouts, adapters):
        assert result["error"].startswith("WeightSyncError: after the weight sync of step 1 ")
        assert len(result["log"]) == 1
    assert "no weight has arrived" in nothing["error"]
    for result in (layer, rollouts):
        assert "Suspect parameters: model.layers.1.*. " in result["error"]
    assert "The engine computes the model without its adapters" in adapters["error"]
    assert "error" not in good


def test_a_run_with_an_engine_of_its_own_resumes_to_the_bit(folder, tmp_path):
    """vLLM draws from the random numbers of the process that it runs in, which the checkpoint has."""
    saving = {"max_steps": 4, "save_strategy": "steps", "save_steps": 1, "steps_per_generation": 2}
    whole, *resumed = train(
        folder, [spec(**saving)] + [{**spec(**saving), "resume": f"out/checkpoint-{n}"} for n in (1, 2)], tmp_path
    )
    for result in resumed:
        assert "error" not in result, result["error"]
        for name in ("loss", "grad_norm", "reward", "log_prob"):
            assert [entry.get(name) for entry in result["log"]] == [entry.get(name) for entry in whole["log"]], name
