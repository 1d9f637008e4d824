"""Real bodies of Atropos 0.4.0 (tests/data/atropos/README.md), and made-up ones that are wrong in one place."""

import copy
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close
from transformers import AutoModelForCausalLM

from online_sft import WeightedSFTInterface
from online_sft.atropos import AtroposBatchProcessor, MalformedGroupError, parse_group, token_weights
from online_sft.losses import token_log_probs

FOLDER = Path(__file__).parent / "data" / "atropos"
FILES = [file for file in json.loads((FOLDER / "MANIFEST.json").read_text())["files"] if "valid_for_training" in file]
VALID = [file["file"] for file in FILES if file["valid_for_training"]]
BAD = [file["file"] for file in FILES if not file["valid_for_training"]]
MANAGED = "real_env_managed_server_1.json"
VOCABULARY = 380  # of the fixtures' tokenizer
WHY = {
    "bad_20_advantages_fewer_rows.json": "advantages has 2 rows for 4 sequences",
    "bad_21_advantages_row_short.json": r"advantages\[0\] has \d+ entries for \d+ tokens",
    "bad_22_advantages_len1_rows.json": r"advantages\[0\] has 1 entries for \d+ tokens",
    "bad_24_masks_zero_one.json": r"masks\[0\]\[0\] is 0, .*a mask of 0 and 1, it seems",
    "bad_26_nothing_trainable.json": "all tokens are masked",
    "bad_27_scores_short.json": "scores has 3 entries for 4 sequences",
    "bad_28_token_out_of_vocab.json": "outside the vocabulary of 380 tokens",
    "bad_30_mask_ids_differ_from_tokens.json": r"masks\[0\]\[\d+\] is \d+, neither -100 nor the token \d+$",
}


def batch_of(name):
    return json.loads((FOLDER / name).read_text())["batch"]


def reference(batch, max_length, normalization):
    """Row by row and token by token, with plain Python numbers."""
    rows = []
    for group in batch:
        scores = group["scores"]
        mean = sum(scores) / len(scores)
        std = math.sqrt(sum((s - mean) ** 2 for s in scores) / len(scores))
        for index, tokens in enumerate(group["tokens"]):
            override = (group["overrides"] or [{}] * len(scores))[index]
            score = scores[index]
            if len(scores) > 1 and normalization != "none":
                score -= mean
            if len(scores) > 1 and normalization == "mean_std":
                score = score / std if std > 1e-6 else 0.0
            row = {"tokens": [], "loss_masks": [], "advantages": [], "labels": [], "inference_logprobs": []}
            for t, token in enumerate(tokens[:max_length]):
                is_loss = group["masks"][index][t] != -100
                weight = group["advantages"][index][t] if group["advantages"] else score
                log_prob = group["inference_logprobs"][index][t] if group["inference_logprobs"] else 1.0
                row["tokens"].append(token)
                row["loss_masks"].append(int(is_loss))
                row["labels"].append(token if is_loss else -100)
                row["advantages"].append(weight if is_loss and not override.get("set_advantage_to_zero") else 0.0)
                row["inference_logprobs"].append(math.nan if log_prob == 1.0 else log_prob)
            rows.append(row)
    width = max(len(row["tokens"]) for row in rows)
    padding = {"tokens": 7, "loss_masks": 0, "advantages": 0.0, "labels": -100, "inference_logprobs": math.nan}
    return {name: [row[name] + [pad] * (width - len(row[name])) for row in rows] for name, pad in padding.items()}


@pytest.mark.parametrize("normalization", ["none", "mean", "mean_std"])
@pytest.mark.parametrize("max_length", [None, 25])
@pytest.mark.parametrize("name", [*VALID, "real_env_default_collect_empty_lists.json", MANAGED])
def test_a_real_batch_becomes_what_a_slow_loop_makes_of_it(name, max_length, normalization):
    processor = AtroposBatchProcessor(7, max_length, score_normalization=normalization, vocab_size=VOCABULARY)
    found = processor.process_atropos_batch(batch_of(name))
    assert not processor.quarantined
    for column, rows in reference(batch_of(name), max_length, normalization).items():
        np.testing.assert_allclose(found[column], rows, rtol=1e-12, atol=1e-12, err_msg=column)


def test_every_bad_fixture_has_its_reason_here():
    assert set(WHY) == set(BAD)


@pytest.mark.parametrize("name", BAD)
def test_a_malformed_batch_is_refused_with_the_reason(name):
    for group in batch_of(name)[:1]:
        with pytest.raises(MalformedGroupError, match=WHY[name]):
            parse_group(group, vocab_size=VOCABULARY)


def test_a_malformed_group_is_left_out_and_the_others_are_used():
    good, bad = batch_of("03_token_advantages.json"), batch_of("bad_24_masks_zero_one.json")
    processor = AtroposBatchProcessor(0)
    found = processor.process_atropos_batch([good[0], bad[0], good[1]])
    expected = AtroposBatchProcessor(0).process_atropos_batch(good)
    for name, values in expected.items():
        np.testing.assert_array_equal(found[name], values)
    (quarantined,) = processor.quarantined
    assert quarantined.raw == bad[0]
    assert "0 and 1" in quarantined.reason
    with pytest.raises(MalformedGroupError, match="no group of the batch can be used: masks"):
        processor.process_atropos_batch(bad)
    with pytest.raises(MalformedGroupError, match="it has no groups"):
        processor.process_atropos_batch([])


def test_of_a_real_environment_whose_advantages_lost_rows_only_that_group_is_left_out():
    batch = batch_of("real_env_default_collect_partial_advantages.json")
    processor = AtroposBatchProcessor(0)
    found = processor.process_atropos_batch(batch)
    assert [each.reason for each in processor.quarantined] == ["advantages has 2 rows for 4 sequences"]
    assert len(found["tokens"]) == len(batch[0]["tokens"])


def test_the_log_probs_of_the_model_that_sampled_are_those_that_were_posted():
    model = AutoModelForCausalLM.from_pretrained(FOLDER / "model", dtype="float32")
    processor = AtroposBatchProcessor(pad_token_id=0)
    tensors = processor.to_tensors(processor.process_atropos_batch(batch_of(MANAGED)))
    known = ~tensors["inference_logprobs"].isnan()
    assert torch.equal(known, tensors["loss_masks"].bool())
    with torch.no_grad():  # padding is behind the tokens, so a causal model needs no attention mask
        logits = model(tensors["tokens"]).logits / tensors["temperatures"].view(-1, 1, 1)
    log_probs = token_log_probs(logits, tensors["labels"])
    assert_close(log_probs[known[:, 1:]], tensors["inference_logprobs"][known], rtol=0, atol=1e-5)


@pytest.fixture
def group():
    return {
        "tokens": [[5, 6, 7], [5, 8]],
        "masks": [[-100, 6, 7], [-100, 8]],
        "scores": [1.0, 0.0],
        "advantages": [[0.0, 0.5, -0.5], [0.0, 2.0]],
        "inference_logprobs": [[1.0, -0.1, -0.2], [1.0, -3.0]],
        "overrides": None,
    }


WRONG = {
    "a score that is not finite": (["scores", 0], math.nan, r"scores\[0\] is nan"),
    "an advantage that is not finite": (["advantages", 1, 1], math.inf, r"advantages\[1\]\[1\] is inf"),
    "a log-prob above 0": (["inference_logprobs", 0, 1], 0.3, r"inference_logprobs\[0\]\[1\] is 0.3, which is no log"),
    "a negative token": (["tokens", 1, 0], -1, r"tokens\[1\]\[0\] is -1"),
    "a token that is no whole number": (["tokens", 1], [5.0, 8.0], r"tokens\[1\] must be a row of whole numbers"),
    "a token that is text": (["tokens", 1], ["5", "8"], r"tokens\[1\] must be a row of whole numbers"),
    "an empty sequence": (["tokens", 1], [], r"tokens\[1\] is empty"),
    "a nested row": (["tokens", 1], [[5], [8]], r"tokens\[1\] must be a row"),
    "a ragged row": (["advantages", 1], [[5], 8], r"advantages\[1\] must be a row"),
    "no scores": (["scores"], None, "scores is missing or empty"),
    "scores that are text": (["scores"], "10", "scores must be a row"),
    "a mask that is too short": (["masks", 0], [-100, 6], r"masks\[0\] has 2 entries for 3 tokens"),
    "fewer masks": (["masks"], [[-100, 6, 7]], "masks has 1 rows for 2 sequences"),
    "tokens that are an object": (["tokens"], {"a": 1}, "tokens must be a list of rows; got dict"),
    "fewer overrides": (["overrides"], [{}], "overrides must have an entry for each of the 2 sequences; got 1"),
    "overrides that are numbers": (["overrides"], [1, 2], r"overrides\[0\] must be an object; got int"),
    "a temperature of 0": (
        ["overrides"],
        [{"temperature": 0}, {}],
        r"overrides\[0\]: temperature must be a number above",
    ),
    "log-probs that are an object": (["inference_logprobs"], {"a": 1}, "inference_logprobs must be a list of rows"),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_what_is_wrong_is_named(group, wrong):
    (*path, last), value, message = WRONG[wrong]
    place = group
    for key in path:
        place = place[key]
    place[last] = value
    with pytest.raises(MalformedGroupError, match=message):
        parse_group(group)


@pytest.mark.parametrize("raw", [None, [], "group", 5])
def test_what_is_no_group_is_refused(raw):
    with pytest.raises(MalformedGroupError):
        parse_group(raw)


def test_the_tokens_of_atropos_dummy_server_are_refused():
    dummy = {"tokens": [[0, 1, 2]], "masks": [[0, 1, 2]], "scores": [1.0], "inference_logprobs": [[-0.5, -0.5, -0.5]]}
    with pytest.raises(MalformedGroupError, match="dummy server"):
        parse_group(dummy)
    dummy["inference_logprobs"] = [[-0.5, -0.5, -0.4]]
    assert parse_group(dummy).sequences[0].tokens.tolist() == [0, 1, 2]


def test_a_row_of_one_advantage_is_of_the_sequence_only_where_the_user_says_so(group):
    group["advantages"] = [[0.5], [-2.0]]
    with pytest.raises(MalformedGroupError, match=r"advantages\[0\] has 1 entries for 3 tokens"):
        parse_group(group)
    weights = token_weights(parse_group(group, advantages_of_sequences=True))
    assert [row.tolist() for row in weights] == [[0.0, 0.5, 0.5], [0.0, -2.0]]


def test_temperature_is_the_sequences_or_the_generations_or_the_groups(group):
    group["overrides"] = [{}, {"temperature": 0.25}]
    assert [s.temperature for s in parse_group(group).sequences] == [1.0, 0.25]
    group["group_overrides"] = {"temperature": 0.5}
    assert [s.temperature for s in parse_group(group).sequences] == [0.5, 0.25]
    group["generation_params"] = {"temperature": 0.75, "top_p": 0.9}
    assert [s.temperature for s in parse_group(group).sequences] == [0.75, 0.25]


def test_what_is_not_ours_is_passed_on(group):
    group |= {"env_id": 3, "messages": [["hello"], []]}
    assert parse_group(group).others == {"env_id": 3, "messages": [["hello"], []]}


def test_scores_that_differ_by_rounding_only_do_not_explode(group):
    group |= {"advantages": None, "scores": [0.1 + 0.2, 0.3]}
    weights = token_weights(parse_group(group), "mean_std")
    assert all(row.tolist() == [0.0] * len(row) for row in weights)
    with pytest.raises(ValueError, match="score_normalization must be one of none, mean, mean_std; got 'std'"):
        token_weights(parse_group(group), "std")


@given(st.lists(st.floats(-1e6, 1e6), min_size=2, max_size=8))
def test_normalised_scores_have_mean_0_and_are_never_larger_than_the_root_of_their_number(scores):
    raw = {"tokens": [[1, 2]] * len(scores), "masks": [[-100, 2]] * len(scores), "scores": scores}
    weights = np.array([row[1] for row in token_weights(parse_group(raw), "mean_std")])
    assert np.abs(weights).max() <= math.sqrt(len(scores)) + 1e-9
    assert abs(weights.mean()) < 1e-6


def test_nothing_given_is_changed(group):
    before = copy.deepcopy(group)
    AtroposBatchProcessor(0, 2).process_atropos_batch([group])
    assert group == before


def test_the_tensors_are_what_the_interface_takes(group):
    processor = AtroposBatchProcessor(pad_token_id=0, max_length=512)
    tensors = processor.to_tensors(processor.process_atropos_batch([group]))
    assert {name: tensor.dtype for name, tensor in tensors.items()} == {
        "tokens": torch.int64,
        "loss_masks": torch.int64,
        "labels": torch.int64,
        "advantages": torch.float32,
        "inference_logprobs": torch.float32,
        "temperatures": torch.float32,
    }
    torch.manual_seed(0)
    logits = torch.randn(2, 3, 10)
    interface = WeightedSFTInterface({"advantage_normalization": "none"})
    loss = interface.compute_weighted_loss(
        logits, tensors["tokens"], tensors["loss_masks"], tensors["advantages"], tensors["labels"]
    )["loss"]
    log_probs = logits.log_softmax(-1)
    by_hand = -(0.5 * log_probs[0, 0, 6] - 0.5 * log_probs[0, 1, 7] + 2.0 * log_probs[1, 0, 8]) / 3
    assert_close(loss, by_hand)
