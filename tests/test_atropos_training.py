"""`WeightedSFTTrainer` on batches of Atropos that a journal holds: real bodies, against a dense loss written out."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset
from exact_on_cpu import EXACT_ON_CPU
from torch.testing import assert_close
from transformers import AutoModelForCausalLM, AutoTokenizer

from online_sft import WeightedSFTConfig, WeightedSFTTrainer
from online_sft.atropos.batch import AtroposBatchProcessor
from online_sft.atropos.group import MalformedGroupError
from online_sft.atropos.journal import Journal
from trainers.atropos.micro_batches import micro_batch, parts_of

FOLDER = Path(__file__).parent / "data" / "atropos"
MODEL = str(FOLDER / "model")
VALID = [
    file["file"]
    for file in json.loads((FOLDER / "MANIFEST.json").read_text())["files"]
    if file.get("valid_for_training")
]
SIXTEEN = [
    "03_token_advantages.json",
    "07_overrides.json",
    "02_logprobs_no_advantages.json",
    "01_scores_only_ragged.json",
]


def write_journal(bodies, folder="journal"):
    journal = Journal(folder)
    for body in bodies:
        journal.append(body, policy_version=0)
    journal.close()
    return str(folder)


def bodies_of(*names):
    return [(FOLDER / name).read_bytes() for name in names]


def trainer_of(journal, model=MODEL, eval_dataset=None, **options):
    options = {"per_device_train_batch_size": 8, "max_length": None, **options}
    args = WeightedSFTConfig(**{**EXACT_ON_CPU, **options}, atropos_replay=journal)
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    trainer = WeightedSFTTrainer(model, args, processing_class=tokenizer, eval_dataset=eval_dataset)
    trainer.model.eval()  # has no dropout; `train` sets it back
    return trainer


def logged(trainer, name):
    return [entry[name] for entry in trainer.state.log_history if name in entry]


def dense(body, max_length=None, *, importance_max=None, score_normalization="mean", **replaced):
    """Loss and the norm of its gradient, row by row, at each row's own temperature."""
    model = AutoModelForCausalLM.from_pretrained(MODEL)
    processor = AtroposBatchProcessor(0, max_length, score_normalization=score_normalization)
    batch = {**processor.process_atropos_batch(json.loads(body)["batch"]), **replaced}
    total, num_tokens = torch.zeros(()), 0
    for index, tokens in enumerate(batch["tokens"]):
        is_loss = torch.tensor(batch["loss_masks"][index, 1:], dtype=torch.bool)
        logits = model(torch.tensor(tokens).unsqueeze(0)).logits[0, :-1] / batch["temperatures"][index]
        log_probs = logits.log_softmax(-1)[torch.arange(len(tokens) - 1), torch.tensor(tokens[1:])]
        weights = torch.tensor(batch["advantages"][index, 1:], dtype=torch.float32)
        if importance_max is not None:
            sampler = torch.tensor(batch["inference_logprobs"][index, 1:], dtype=torch.float32)
            known = is_loss & ~sampler.isnan()
            weights = weights * (log_probs - sampler)[known].sum().exp().clamp(max=importance_max).detach()
        total = total - (weights * log_probs)[is_loss].sum()
        num_tokens += int(is_loss.sum())
    loss = total / num_tokens
    loss.backward()
    grads = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    return loss.item(), torch.stack([grad.norm() for grad in grads]).norm().item()


@pytest.mark.parametrize("accumulation", [1, 4])
@pytest.mark.parametrize("name", VALID)
def test_a_step_has_the_loss_and_the_gradient_of_a_dense_loop(name, accumulation):
    body = (FOLDER / name).read_bytes()
    trainer = trainer_of(write_journal([body]), gradient_accumulation_steps=accumulation, max_grad_norm=1e9)
    trainer.train()
    loss, grad_norm = dense(body)
    assert_close(logged(trainer, "loss"), [loss], rtol=1e-5, atol=1e-6)
    assert_close(logged(trainer, "grad_norm"), [grad_norm], rtol=1e-4, atol=1e-6)


def test_scores_are_normalised_and_sequences_cut_as_asked():
    (body,) = bodies_of("01_scores_only_ragged.json")
    options = {"atropos_score_normalization": "mean_std", "max_length": 30, "max_grad_norm": 1e9}
    trainer = trainer_of(write_journal([body]), **options)
    trainer.train()
    loss, grad_norm = dense(body, 30, score_normalization="mean_std")
    assert_close([logged(trainer, "loss"), logged(trainer, "grad_norm")], [[loss], [grad_norm]], rtol=1e-4, atol=1e-6)
    assert abs(loss - dense(body)[0]) > 1e-3


def test_rows_whose_temperature_nobody_says_have_that_of_the_run():
    (body,) = bodies_of("01_scores_only_ragged.json")
    trainer = trainer_of(write_journal([body]), temperature=0.7, max_grad_norm=1e9)
    trainer.train()
    loss, grad_norm = dense(body, temperatures=np.full(8, 0.7))
    assert_close([logged(trainer, "loss"), logged(trainer, "grad_norm")], [[loss], [grad_norm]], rtol=1e-4, atol=1e-6)


def test_advantages_are_compared_within_atropos_groups_where_that_is_asked_for():
    (body,) = bodies_of("03_token_advantages.json")
    trainer = trainer_of(write_journal([body]), advantage_normalization="group", max_grad_norm=1e9)
    trainer.train()
    batch = AtroposBatchProcessor(0).process_atropos_batch(json.loads(body)["batch"])
    advantages, is_loss = batch["advantages"].copy(), batch["loss_masks"] == 1
    for rows in (slice(0, 4), slice(4, 8)):
        of_group = advantages[rows][is_loss[rows]]
        advantages[rows][is_loss[rows]] = (of_group - of_group.mean()) / of_group.std()
    loss, grad_norm = dense(body, advantages=advantages)
    assert_close([logged(trainer, "loss"), logged(trainer, "grad_norm")], [[loss], [grad_norm]], rtol=1e-3, atol=1e-5)


def test_the_log_probs_that_train_are_those_that_the_model_had_when_it_sampled():
    trainer = trainer_of(write_journal(bodies_of("real_env_managed_server_1.json")))
    trainer.train()
    assert logged(trainer, "sampling/sampling_logp_difference/max")[0] < 1e-5  # measured: 2e-6


def test_importance_weights_are_those_of_whole_sequences_and_cut():
    (body,) = bodies_of("03_token_advantages.json")
    answer = json.loads(body)
    for group in answer["batch"]:  # of a policy that was near this one, and unknown in one place
        group["inference_logprobs"] = [
            [1.0 if mask == -100 else -5.9 - 0.02 * (t % 3) for t, mask in enumerate(row)] for row in group["masks"]
        ]
        group["inference_logprobs"][0][-1] = 1.0
    body = json.dumps(answer).encode()
    options = {"policy_weighting": "importance", "importance_max": 1.3, "max_grad_norm": 1e9}
    trainer = trainer_of(write_journal([body]), **options)
    trainer.train()
    loss, grad_norm = dense(body, importance_max=1.3)
    assert_close([logged(trainer, "loss"), logged(trainer, "grad_norm")], [[loss], [grad_norm]], rtol=1e-4, atol=1e-6)
    assert abs(loss - dense(body)[0]) > 1e-3
    assert abs(loss - dense(body, importance_max=1e9)[0]) > 1e-3


def test_temperatures_that_trls_head_does_not_have_are_refused():
    journal = write_journal(bodies_of("07_overrides.json"))
    with pytest.raises(ValueError, match=r"sampled at temperature [\d.]+ need our LM head"):
        trainer_of(journal, policy_weighting="importance").train()


@pytest.mark.parametrize("rows", [0, 1, 3, 8, 9])
def test_rows_are_split_in_order_into_parts_of_like_size(rows):
    parts = parts_of(list(range(rows)), 4)
    assert [row for part in parts for row in part] == list(range(rows))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_a_part_without_rows_has_no_loss():
    batch = micro_batch([], pad_token_id=3, device=torch.device("cpu"))
    assert batch["input_ids"].tolist() == [[3, 3]]
    assert (batch["labels"] == -100).all()
    assert not batch["advantages"].any()


def test_a_resume_goes_on_with_what_the_checkpoint_has_not_consumed(tmp_path):
    """One batch is unusable and one has a malformed group: positions in the journal are not steps."""
    names = [*SIXTEEN[:2], "bad_26_nothing_trainable.json", *SIXTEEN[2:], *SIXTEEN]
    bodies = bodies_of(*names)
    mixed = json.loads(bodies[4])
    mixed["batch"][1]["masks"] = [[0] * len(row) for row in mixed["batch"][1]["masks"]]
    bodies[4] = json.dumps(mixed).encode()
    journal = write_journal(bodies)
    options = {"save_strategy": "steps", "save_steps": 1, "learning_rate": 1e-2, "atropos_max_quarantined": 1.0}
    whole = trainer_of(journal, **options, output_dir="whole")
    whole.train()
    assert whole.state.global_step == 8
    assert logged(whole, "atropos/unusable_batches")[-1] == 1
    kept = (tmp_path / "whole" / "quarantine.jsonl").read_text()
    assert [(entry["batch"], entry["group"]) for entry in map(json.loads, kept.splitlines())] == [(2, 0), (4, 1)]
    for step in (1, 2, 5):
        resumed = trainer_of(journal, **options, output_dir=f"resumed_{step}")
        resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / f"checkpoint-{step}"))
        assert logged(resumed, "loss") == logged(whole, "loss")
        assert logged(resumed, "grad_norm") == logged(whole, "grad_norm")
        assert logged(resumed, "epoch") == logged(whole, "epoch")
        for ours, theirs in zip(resumed.model.parameters(), whole.model.parameters(), strict=True):
            assert torch.equal(ours, theirs)
        shutil.rmtree(tmp_path / f"resumed_{step}")


def test_a_resume_in_the_same_folder_does_not_keep_a_group_twice(tmp_path):
    journal = write_journal(bodies_of(SIXTEEN[0], "bad_24_masks_zero_one.json", SIXTEEN[1]))
    options = {"save_strategy": "steps", "save_steps": 1, "atropos_max_quarantined": 1.0}
    trainer_of(journal, **options).train()
    trainer_of(journal, **options).train(resume_from_checkpoint="out/checkpoint-1")
    assert len((tmp_path / "out" / "quarantine.jsonl").read_text().splitlines()) == 1


def test_too_many_malformed_groups_stop_the_run_and_a_resume_with_another_limit_goes_on():
    journal = write_journal(bodies_of(SIXTEEN[0], "bad_24_masks_zero_one.json", SIXTEEN[1]))
    options = {"save_strategy": "steps", "save_steps": 1}
    with pytest.raises(MalformedGroupError, match=r"1 of 1 groups of batch 1 .* atropos_max_quarantined=0.5"):
        trainer_of(journal, **options).train()
    resumed = trainer_of(journal, **options, atropos_max_quarantined=1.0)
    resumed.train(resume_from_checkpoint="out/checkpoint-1")
    assert resumed.state.global_step == 2


def test_a_journal_ends_the_run_whatever_max_steps():
    trainer = trainer_of(write_journal(bodies_of(*SIXTEEN)), max_steps=50)
    trainer.train()
    assert trainer.state.global_step == 4


def test_a_run_that_is_resumed_at_its_end_makes_no_further_step():
    journal = write_journal(bodies_of(*SIXTEEN))
    options = {"save_strategy": "steps", "save_steps": 1, "max_steps": 2, "lr_scheduler_type": "constant"}
    first = trainer_of(journal, **options)
    first.train()
    again = trainer_of(journal, **options)
    again.train(resume_from_checkpoint="out/checkpoint-2")
    assert again.state.global_step == 2
    for ours, theirs in zip(again.model.parameters(), first.model.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_a_second_replay_in_one_process_begins_at_the_beginning():
    trainer = trainer_of(write_journal(bodies_of(*SIXTEEN)))
    for _ in range(2):
        trainer.train()
        assert trainer.state.global_step == 4


def test_evaluation_on_rows_goes_on_beside_and_leaves_the_training_metrics_alone():
    bodies = bodies_of("real_env_managed_server_1.json") * 3
    rows = Dataset.from_list([{"input_ids": [4, 5, 6], "labels": [-100, 5, 6], "advantages": [0.0, 1.0, 1.0]}] * 3)
    options = {"save_strategy": "steps", "save_steps": 1, "learning_rate": 0.0}
    journal = write_journal(bodies)
    evaluated = trainer_of(journal, eval_dataset=rows, eval_strategy="steps", eval_steps=1, **options)
    evaluated.train()
    assert len(logged(evaluated, "eval_loss")) == 3
    assert max(logged(evaluated, "sampling/sampling_logp_difference/max")) < 1e-5
    plain = trainer_of(journal, **options, output_dir="plain")
    plain.train()
    assert logged(plain, "loss") == logged(evaluated, "loss")


@pytest.mark.parametrize("normalization", ["batch", "group", "global"])
def test_no_normalisation_gives_a_row_a_gradient_that_the_environment_wants_none_from(normalization):
    """Nor does it count among what it is compared with."""
    (body,) = bodies_of("03_token_advantages.json")
    answer = json.loads(body)
    answer["batch"][0]["overrides"] = [{}, {"set_advantage_to_zero": True}, {}, {}]
    trainer = trainer_of(write_journal([json.dumps(answer).encode()]), advantage_normalization=normalization)
    batch = AtroposBatchProcessor(0).process_atropos_batch(json.loads(body)["batch"])
    kept = batch["loss_masks"] == 1
    kept[1] = False
    seen = []
    weighed = trainer._weighed
    trainer._weighed = lambda batches, **options: seen.append(weighed(batches, **options)) or seen[-1]
    trainer.train()
    found = seen[0][0][0]["advantages"].numpy()
    groups = [slice(0, 4), slice(4, 8)] if normalization == "group" else [slice(0, 8)]
    expected = np.zeros_like(found)
    for rows in groups:
        of_group = batch["advantages"][rows][kept[rows]]
        expected[rows][kept[rows]] = (of_group - of_group.mean()) / of_group.std()
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4)
    assert seen[0][1] == batch["loss_masks"].sum()  # its tokens stay in the denominator


def test_stale_groups_are_left_out_when_a_limit_is_set():
    (body,) = bodies_of(SIXTEEN[0])
    answer = json.loads(body)
    for group, version in zip(answer["batch"], (0, 2), strict=True):
        group["generation_params"] = {"policy_version": version}
    journal = write_journal([json.dumps(answer).encode()] * 4)
    trainer = trainer_of(journal, atropos_max_staleness=2)
    trainer.train()
    assert logged(trainer, "atropos/sequences") == [8, 8, 8, 4]
    assert logged(trainer, "atropos/staleness") == [-1, 0, 1, 2]
    assert logged(trainer, "atropos/quarantined_groups") == [0, 0, 0, 1]


def test_scores_and_the_time_of_each_phase_are_logged():
    trainer = trainer_of(write_journal(bodies_of("05_multi_env_heterogeneous.json")), per_device_train_batch_size=16)
    trainer.train()
    groups = json.loads((FOLDER / "05_multi_env_heterogeneous.json").read_text())["batch"]
    scores = {env: [s for g in groups if g["env_id"] == env for s in g["scores"]] for env in (0, 1)}
    (entry,) = (entry for entry in trainer.state.log_history if "loss" in entry)
    assert entry["score"] == pytest.approx(np.mean(scores[0] + scores[1]))
    assert [entry[f"score/env_{env}"] for env in (0, 1)] == pytest.approx([np.mean(scores[env]) for env in (0, 1)])
    for phase in ("rollout", "advantages", "training"):
        assert entry[f"atropos/seconds_{phase}"] > 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"atropos_api_url": "http://127.0.0.1:1"}, "set max_steps"),
        ({"atropos_api_url": "http://127.0.0.1:1", "max_steps": 2, "atropos_batch_size": 32}, "step has 8 sequences"),
        ({"atropos_api_url": "http://127.0.0.1:1", "atropos_data_path": "x"}, "are sources of data; set one"),
        ({"atropos_api_url": "http://127.0.0.1:1", "max_steps": 2, "packing": True}, "packing=True is for data sets"),
        ({"atropos_replay": "nowhere"}, "no batch in the journal"),
        ({"atropos_sync_url": "http://127.0.0.1:1"}, "without atropos_api_url"),
        ({"atropos_max_staleness": 3}, "atropos_max_staleness has no effect without atropos_api_url"),
        (
            {
                "atropos_api_url": "http://a",
                "atropos_sync_url": "http://b",
                "atropos_sync_every": 6,
                "atropos_max_staleness": 3,
            },
            "atropos_sync_every=6 makes every batch more than atropos_max_staleness=3",
        ),
        ({"atropos_sync_engine": "sglang"}, "must be serve or vllm; got 'sglang'"),
        ({"atropos_score_normalization": "std"}, "must be one of none, mean, mean_std"),
        ({"atropos_refresh_interval": 0}, "atropos_refresh_interval must be above 0; got 0"),
        ({"atropos_max_quarantined": 2}, "is a share, 0 to 1; got 2"),
        ({"atropos_max_staleness": -1}, "must be 0 or more; got -1"),
    ],
)
def test_what_cannot_work_is_refused_before_a_model_is_loaded(options, message):
    with pytest.raises(ValueError, match=message):
        WeightedSFTConfig(**{**EXACT_ON_CPU, "per_device_train_batch_size": 8, **options})


def test_a_data_set_beside_a_source_is_refused():
    args = WeightedSFTConfig(**EXACT_ON_CPU, atropos_replay=write_journal(bodies_of(SIXTEEN[0])))
    with pytest.raises(ValueError, match="train_dataset beside a source of Atropos batches"):
        WeightedSFTTrainer(MODEL, args, train_dataset=[{"prompt": "a"}])


def test_a_file_of_process_mode_is_a_data_set(caplog):
    path = FOLDER / "process_mode_groups.jsonl"
    options = {"per_device_train_batch_size": 1, "num_train_epochs": 1, "max_length": None}
    args = WeightedSFTConfig(**{**EXACT_ON_CPU, **options}, atropos_data_path=str(path))
    trainer = WeightedSFTTrainer(MODEL, args)
    groups = [json.loads(line) for line in path.read_text().splitlines()]
    assert len(trainer.train_dataset) == sum(len(group["tokens"]) for group in groups)
    expected = AtroposBatchProcessor(0).process_atropos_batch(groups)
    for index, row in enumerate(trainer.train_dataset):
        length = len(row["input_ids"])
        assert row["labels"] == expected["labels"][index, :length].tolist()
        assert_close(row["advantages"], expected["advantages"][index, :length].tolist(), rtol=1e-12, atol=1e-12)
    trainer.train()
    assert trainer.state.global_step == len(trainer.train_dataset)


@pytest.mark.parametrize("name", ["gen_sft_text.jsonl", "gen_sft_msgs.jsonl"])
def test_a_file_of_atropos_sft_gen_is_a_data_set_whose_answers_have_their_score(name):
    args = WeightedSFTConfig(**EXACT_ON_CPU, atropos_data_path=str(FOLDER / name))
    trainer = WeightedSFTTrainer(MODEL, args)
    scores = [json.loads(line)["score"] for line in (FOLDER / name).read_text().splitlines()]
    for row, score in zip(trainer.train_dataset, scores, strict=True):
        first = next(t for t, label in enumerate(row["labels"]) if label != -100)
        assert first > 5
        assert row["labels"][:first] == [-100] * first
        assert row["advantages"][first:] == pytest.approx([score] * (len(row["labels"]) - first))


def test_a_file_of_which_most_groups_are_malformed_is_refused(tmp_path):
    line = json.loads((FOLDER / "process_mode_groups.jsonl").read_text().splitlines()[0])
    bad = {**line, "scores": line["scores"][:1]}
    (tmp_path / "groups.jsonl").write_text("".join(json.dumps(each) + "\n" for each in (line, bad, bad)))
    options = {**EXACT_ON_CPU, "atropos_data_path": "groups.jsonl"}
    with pytest.raises(ValueError, match=r"2 of 3 groups of groups.jsonl are malformed, .*: line 2: scores has 1"):
        WeightedSFTTrainer(MODEL, WeightedSFTConfig(**options))
    trainer = WeightedSFTTrainer(MODEL, WeightedSFTConfig(**options, atropos_max_quarantined=0.7))
    assert len(trainer.train_dataset) == len(line["tokens"])
    kept = (tmp_path / "out" / "quarantine.jsonl").read_text().splitlines()
    assert [json.loads(each)["batch"] for each in kept] == [1, 2]


def test_groups_that_are_given_as_a_data_set_are_shown_the_way():
    rows = Dataset.from_json(str(FOLDER / "process_mode_groups.jsonl"))
    with pytest.raises(ValueError, match="holds groups of Atropos; give its file as atropos_data_path"):
        WeightedSFTTrainer(MODEL, WeightedSFTConfig(**EXACT_ON_CPU), train_dataset=rows)
