"""The policy's weights on their way to a real `online-sft serve`."""

import pytest
import requests
import torch
from atropos_tools import ScriptedAtropos, batch, group
from exact_on_cpu import EXACT_ON_CPU
from inference_server_tools import TOKEN, generate, running
from peft import LoraConfig
from torch.testing import assert_close
from transformers import TrainerCallback

from online_sft import PolicySyncError, WeightedSFTConfig, WeightedSFTTrainer
from recipes.quickstart.tiny_model import build_model
from trainers.atropos.policy_sync import PolicySync
from trainers.inference_server.policy import Policy
from trainers.whole_weights import whole_weights

STEP = {"per_device_train_batch_size": 2, "learning_rate": 1e-2, "atropos_refresh_interval": 0.05}


@pytest.fixture
def policy(tokenizer):
    """What the server begins with: other weights than the trainer's."""
    return Policy.of(build_model(tokenizer, seed=9), tokenizer)


def trainer_of(model, tokenizer, peft_config=None, **options):
    args = WeightedSFTConfig(**{**EXACT_ON_CPU, **STEP, **options})
    return WeightedSFTTrainer(model, args, processing_class=tokenizer, peft_config=peft_config)


def log_probs_of(model, tokens):
    with torch.no_grad():
        logits = model(torch.tensor([tokens])).logits[0, :-1]
    return logits.log_softmax(-1)[torch.arange(len(tokens) - 1), torch.tensor(tokens[1:])]


def small_group():
    return {**group(), "tokens": [[3, 4, 5, 6], [3, 4, 7, 8]], "masks": [[-100, -100, 5, 6], [-100, -100, 7, 8]]}


@pytest.mark.parametrize("peft_config", [None, LoraConfig(r=4, target_modules="all-linear")], ids=["full", "lora"])
def test_the_server_samples_from_the_weights_of_the_last_step(peft_config, policy, model, tokenizer, monkeypatch):
    monkeypatch.setenv("ONLINE_SFT_SERVE_TOKEN", TOKEN)
    with running(policy) as url, ScriptedAtropos(*[batch(small_group()) for _ in range(3)]) as atropos:
        sources = {"atropos_api_url": atropos.url, "atropos_sync_url": url, "max_steps": 3}
        trainer = trainer_of(
            model, tokenizer, peft_config, **sources, **({"learning_rate": 0.1} if peft_config else {})
        )
        trainer.train()
        answer = generate(url, [3, 4, 5], max_tokens=4, temperature=0.0)
    assert answer["policy_version"] == 3
    trainer.model.eval()
    tokens = [3, 4, 5, *answer["token_ids"][0]]
    found = [next(iter(at[0].values())) for at in answer["logprobs"][0]]
    assert_close(torch.tensor(found), log_probs_of(trainer.model, tokens)[2:], rtol=1e-5, atol=1e-5)
    assert [entry["atropos/seconds_sync"] > 0 for entry in trainer.state.log_history if "loss" in entry] == [True] * 3


def test_adapters_are_merged_for_the_server_and_the_policy_keeps_its_base_weights(model, tokenizer):
    args = WeightedSFTConfig(**{**EXACT_ON_CPU, **STEP}, max_steps=1, atropos_api_url="http://127.0.0.1:1")
    trainer = WeightedSFTTrainer(model, args, processing_class=tokenizer, peft_config=LoraConfig(r=4))
    for name, parameter in trainer.model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter)
    before = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    weights = whole_weights(trainer)
    plain = build_model(tokenizer, seed=0)
    missing, unexpected = plain.load_state_dict(weights, strict=False)
    assert (missing, unexpected) == (["lm_head.weight"], [])  # tied to the embeddings
    tokens = [3, 4, 5, 6, 7]
    assert_close(log_probs_of(plain.eval(), tokens), log_probs_of(trainer.model.eval(), tokens))
    assert abs(log_probs_of(plain, tokens) - log_probs_of(build_model(tokenizer, seed=0), tokens)).max() > 0.1
    for name, value in trainer.model.state_dict().items():
        assert torch.equal(value, before[name])


def test_between_syncs_the_server_keeps_the_weights_it_has(policy, model, tokenizer, monkeypatch):
    monkeypatch.setenv("ONLINE_SFT_SERVE_TOKEN", TOKEN)
    with running(policy) as url, ScriptedAtropos(*[batch(small_group()) for _ in range(5)]) as atropos:
        sources = {"atropos_api_url": atropos.url, "atropos_sync_url": url, "atropos_sync_every": 2}
        trainer_of(model, tokenizer, **sources, max_steps=5).train()
        assert requests.get(f"{url}/health").json()["policy_version"] == 4


def test_a_wrong_token_stops_the_run_before_it_begins(policy, model, tokenizer, monkeypatch):
    monkeypatch.setenv("ONLINE_SFT_SERVE_TOKEN", "another")
    with running(policy) as url, ScriptedAtropos(batch(small_group())) as atropos:
        trainer = trainer_of(model, tokenizer, atropos_api_url=atropos.url, atropos_sync_url=url, max_steps=1)
        with pytest.raises(PolicySyncError, match=r"HTTP 401.*Set ONLINE_SFT_SERVE_TOKEN"):
            trainer.train()
        assert not atropos.requests


def test_a_server_with_another_model_refuses_the_weights_by_name(saved_model, tokenizer, monkeypatch):
    monkeypatch.setenv("ONLINE_SFT_SERVE_TOKEN", TOKEN)
    config = saved_model.config.__class__.from_dict({**saved_model.config.to_dict(), "intermediate_size": 100})
    other = Policy.of(type(saved_model)(config), tokenizer)
    with running(other) as url, ScriptedAtropos(batch(small_group())) as atropos:
        trainer = trainer_of(saved_model, tokenizer, atropos_api_url=atropos.url, atropos_sync_url=url, max_steps=1)
        with pytest.raises(PolicySyncError, match=r"HTTP 400.*mlp\.(gate|up|down)_proj"):
            trainer.train()
        assert not atropos.requests


def test_a_server_that_does_not_answer_stops_the_run_in_time(model, tokenizer):
    with ScriptedAtropos(batch(small_group())) as atropos:
        sources = {"atropos_api_url": atropos.url, "atropos_sync_url": "http://127.0.0.1:1"}
        trainer = trainer_of(model, tokenizer, **sources, atropos_sync_timeout=0.5, max_steps=1)
        with pytest.raises(PolicySyncError, match=r"atropos_sync_timeout=0.5 s .*Start it again with `online-sft"):
            trainer.train()
        assert not atropos.num_requests("/batch")  # nothing is sampled for a policy that the server has not


def test_neither_proxies_nor_netrc_get_the_weights_or_the_token(policy, model, tokenizer, monkeypatch, tmp_path):
    (tmp_path / "netrc").write_text("default login me password secret\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("ONLINE_SFT_SERVE_TOKEN", TOKEN)
    with running(policy) as url, ScriptedAtropos(batch(small_group())) as atropos, ScriptedAtropos() as proxy:
        monkeypatch.setenv("http_proxy", proxy.url)
        monkeypatch.setenv("no_proxy", "")
        trainer_of(model, tokenizer, atropos_api_url=atropos.url, atropos_sync_url=url, max_steps=1).train()
        assert not proxy.requests


def test_a_batch_that_is_too_stale_brings_the_server_the_weights_again(policy, model, tokenizer, monkeypatch):
    """It has been started anew, say: without this no step would follow, and no sync."""
    monkeypatch.setenv("ONLINE_SFT_SERVE_TOKEN", TOKEN)
    synced = []
    sync = PolicySync.sync
    monkeypatch.setattr(PolicySync, "sync", lambda self, version: synced.append(version) or sync(self, version))
    groups = [{**small_group(), "generation_params": {"policy_version": version}} for version in (0, 1, 0, 2)]
    with running(policy) as url, ScriptedAtropos(*map(batch, groups)) as atropos:
        sources = {"atropos_api_url": atropos.url, "atropos_sync_url": url, "atropos_max_staleness": 1}
        trainer = trainer_of(model, tokenizer, **sources, max_steps=3)
        trainer.train()
    assert trainer.state.global_step == 3
    assert synced == [0, 1, 2, 2, 3]


def test_after_an_exception_the_next_run_gets_the_journal_at_once(policy, model, tokenizer, monkeypatch):
    class Fails(TrainerCallback):
        def on_step_end(self, *args, **kwargs):
            raise ZeroDivisionError("of a callback")

    with ScriptedAtropos(*[batch(small_group())] * 4) as atropos:
        trainer = trainer_of(model, tokenizer, atropos_api_url=atropos.url, atropos_timeout=2.0, max_steps=2)
        trainer.add_callback(Fails)
        with pytest.raises(ZeroDivisionError) as held:
            trainer.train()
        trainer.remove_callback(Fails)
        trainer.train()
    assert held.value.args == ("of a callback",)
    assert trainer.state.global_step == 2
