import copy
import json
import math
import re
import time
from pathlib import Path

import numpy as np
import pytest
from atropos_tools import REGISTRATION, Answer, ScriptedAtropos, batch, group
from hypothesis import given
from hypothesis import strategies as st

from online_sft.atropos.batch import AtroposBatchProcessor, BatchReader, Quarantined, padded
from online_sft.atropos.client import Registration
from online_sft.atropos.fetcher import Fetcher, FetcherError, FetcherOptions
from online_sft.atropos.group import MalformedGroupError
from online_sft.atropos.journal import Journal, JournalError, num_entries, read_entry
from online_sft.atropos.quarantine import Quarantine
from online_sft.atropos.stream import BatchStream, StaleBatchesError

FOLDER = Path(__file__).parent / "data" / "atropos"
BATCHES = sorted(path.name for path in FOLDER.glob("*.json") if path.read_bytes().startswith(b'{"batch":[{'))
ZERO_ONE = group() | {"masks": [[0, 1, 1, 1]] * 2}


def write_journal(*answers):
    journal = Journal("journal")
    for answer in answers:
        journal.append(answer.body, policy_version=0)
    journal.close()


def replay(reader=None, **options):
    return BatchStream("journal", reader or BatchReader(), Quarantine("quarantine.jsonl"), None, **options)


def quarantined():
    return [json.loads(line) for line in Path("quarantine.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("name", BATCHES)
def test_the_rows_of_a_real_batch_are_those_of_the_processor(name):
    body = (FOLDER / name).read_bytes()
    write_journal(Answer(body))
    reader = BatchReader(25, "mean_std", 380)
    stream = BatchStream("journal", reader, Quarantine("quarantine.jsonl"), None)
    processor = AtroposBatchProcessor(7, 25, score_normalization="mean_std", vocab_size=380)
    taken = stream.take(0, 0.0)
    if taken is None:
        with pytest.raises(MalformedGroupError):
            processor.process_atropos_batch(json.loads(body)["batch"])
        return
    expected = processor.process_atropos_batch(json.loads(body)["batch"])
    found = padded(taken.rows, 7)
    for column, values in expected.items():
        np.testing.assert_array_equal(found[column], values, err_msg=column)
    bad = {each.group for each in processor.quarantined}
    sizes = [len(each["tokens"]) for each in json.loads(body)["batch"]]
    places = [place for place, size in enumerate(sizes) for _ in range(size) if place not in bad]
    assert [row.group for row in taken.rows] == places


def test_batches_come_in_order_from_the_position_to_the_end():
    write_journal(*(batch(group([float(number), 0.0])) for number in range(4)))
    stream = replay(position=1)
    for index in (1, 2, 3):
        assert not stream.is_over
        taken = stream.take(0, 0.0)
        assert (taken.index, taken.metrics["score"]) == (index, index / 2)
    assert stream.is_over
    assert stream.take(0, 5.0) is None
    assert replay(position=4).is_over


def test_a_journal_without_what_was_consumed_or_without_anything_is_refused():
    with pytest.raises(JournalError, match="there is no batch in the journal"):
        replay()
    write_journal(batch(group()))
    with pytest.raises(JournalError, match=r"holds 1 batches, and the run has consumed 2; set atropos_journal"):
        replay(position=2)


def test_metrics_are_means_over_sequences_also_of_each_environment():
    one, other = group([1.0, 0.0], env_id=0), group([0.5, 0.25, 0.25, 0.0], env_id=3)
    write_journal(batch(one, other), batch(one, one), batch(group(), one))
    stream = replay()
    metrics = stream.take(0, 0.0).metrics
    assert metrics["atropos/seconds_rollout"] < 1
    assert 0 < metrics["atropos/seconds_advantages"] < 1
    assert {name: value for name, value in metrics.items() if "seconds" not in name} == {
        "score": pytest.approx(2 / 6),
        "score/env_0": 0.5,
        "score/env_3": 0.25,
        "atropos/sequences": 6,
        "atropos/groups": 2,
    }
    assert not any("env" in name for name in stream.take(0, 0.0).metrics)
    assert stream.take(0, 0.0).metrics["score/env_None"] == 0.5


def test_a_malformed_group_is_kept_with_its_place_and_reason_and_the_others_are_used(caplog):
    write_journal(batch(group()), batch(group(), ZERO_ONE, None, group([3.0, 1.0])))
    stream = replay()
    stream.take(0, 0.0)
    taken = stream.take(0, 0.0)
    assert [row.group for row in taken.rows] == [0, 0, 3, 3]
    assert taken.metrics["score"] == 1.25
    assert taken.metrics["atropos/groups"] == 2
    assert taken.counts == {"atropos/quarantined_groups": 2, "atropos/cut_sequences": 0}
    first, second = quarantined()
    assert first | {"reason": ""} == {"batch": 1, "group": 1, "reason": "", "raw": ZERO_ONE}
    assert first["reason"].startswith("masks[0][0] is 0")
    assert (second["group"], second["reason"], second["raw"]) == (2, "a group must be an object, got NoneType", None)
    assert "2 of 4 groups of batch 1 are malformed and kept in quarantine.jsonl: group 1: masks[0][0]" in caplog.text


def test_a_resume_does_not_keep_a_group_twice():
    write_journal(batch(group(), ZERO_ONE), batch(ZERO_ONE, group()))
    for _ in range(2):
        stream = replay()
        taken = [stream.take(0, 0.0) for _ in range(2)]
    assert [(entry["batch"], entry["group"]) for entry in quarantined()] == [(0, 1), (1, 0)]
    assert taken[-1].counts["atropos/quarantined_groups"] == 2


@pytest.mark.parametrize("share", [0.01, 0.5, 1.0])
def test_half_a_line_that_a_killed_run_has_left_harms_no_other_line(share):
    path = Path("folder") / "quarantine.jsonl"
    Quarantine(path).add(0, [Quarantined(0, "first", None)])
    Quarantine(path).add(3, [Quarantined(1, "half", [1, 2])])
    lines = path.read_text().splitlines()
    path.write_text(lines[0] + "\n" + lines[1][: round(share * len(lines[1]))])
    for _ in range(2):
        quarantine = Quarantine(path)
        quarantine.add(0, [Quarantined(0, "first", None)])
        quarantine.add(3, [Quarantined(1, "half", [1, 2])])
        assert len(quarantine) == 2
        assert [line for line in path.read_text().splitlines() if line in lines] == lines


@pytest.mark.parametrize("share, num_malformed, is_raised", [
    (0.5, 2, False), (0.5, 3, True), (0.49, 2, True), (0.0, 0, False), (0.0, 1, True), (0.75, 3, False), (0.75, 4, True)
])  # fmt: skip
def test_a_batch_is_refused_when_a_larger_share_than_allowed_is_malformed(share, num_malformed, is_raised):
    write_journal(batch(*[ZERO_ONE] * num_malformed, *[group()] * (4 - num_malformed)))
    stream = replay(max_quarantined=share)
    if not is_raised:
        assert len(stream.take(0, 0.0).rows) == 2 * (4 - num_malformed)
        return
    for _ in range(2):  # the run resumes with this batch
        with pytest.raises(
            MalformedGroupError, match=rf"{num_malformed} of 4 .* atropos_max_quarantined={share:g}: mend"
        ):
            stream.take(0, 0.0)
    assert len(quarantined()) == num_malformed
    rest = replay(max_quarantined=1.0).take(0, 0.0)
    assert (rest is None) == (num_malformed == 4)


def test_a_batch_without_a_usable_group_is_left_out_and_counted(caplog):
    write_journal(batch(ZERO_ONE), batch(group()), batch(ZERO_ONE, ZERO_ONE))
    stream = replay()
    taken = stream.take(0, 0.0)
    assert (taken.index, taken.counts["atropos/unusable_batches"]) == (1, 1)
    assert taken.metrics["atropos/seconds_rollout"] < 5
    assert stream.take(0, 0.0) is None
    assert stream.is_over
    assert stream.counts["unusable_batches"] == 2
    assert "batch 2 of journal is left out: none of its groups can be used" in caplog.text


def sampled(policy_version, scores=(1.0, 0.0)):
    return group(scores, generation_params={"policy_version": policy_version})


@pytest.mark.parametrize("limit, used", [(None, [0, 1, 2]), (4, [0, 1, 2]), (3, [1, 2]), (2, [1, 2]), (1, [2])])
def test_groups_that_were_sampled_too_many_steps_ago_are_left_out(limit, used):
    write_journal(batch(sampled(3), sampled(5), group()))
    stream = replay(max_staleness=limit)
    taken = stream.take(7, 0.0)
    assert sorted({row.group for row in taken.rows}) == used
    assert taken.metrics["atropos/staleness"] == 3.0  # of the two that say it, 4 and 2 steps
    assert taken.counts["atropos/quarantined_groups"] == 3 - len(used)
    if limit == 3:
        (entry,) = quarantined()
        assert entry["reason"] == "sampled 4 optimizer steps ago; atropos_max_staleness=3"
        assert entry["raw"] == sampled(3)


def test_without_a_policy_version_there_is_no_staleness_and_a_batch_that_is_all_stale_is_left_out():
    write_journal(batch(group()), batch(sampled(0)), batch(sampled(5)))
    stream = replay(max_staleness=0)
    assert "atropos/staleness" not in stream.take(5, 0.0).metrics
    assert stream.take(5, 0.0).index == 2
    assert stream.counts["unusable_batches"] == 1


@pytest.fixture
def stream_from():
    """Makes streams from a server; ends their processes with the test."""
    streams = []

    def make(server, **options):
        fetcher = Fetcher(FetcherOptions(server.url, "journal", Registration(**REGISTRATION), refresh_interval_s=0.02))
        streams.append(BatchStream("journal", BatchReader(), Quarantine("quarantine.jsonl"), fetcher, **options))
        return streams[-1]

    yield make
    for stream in streams:
        stream.close()


def test_what_the_journal_holds_comes_first_and_then_what_the_server_brings(stream_from):
    write_journal(*(batch(group([float(number), 0.0])) for number in range(3)))
    with ScriptedAtropos(Answer(b"{}"), batch(group([3.0, 0.0])), batch(group([4.0, 0.0]))) as server:
        stream = stream_from(server, position=1)
        assert [stream.take(step, 20.0).index for step in (1, 2)] == [1, 2]
        assert server.requests == []
        taken = stream.take(3, 20.0)
        assert (taken.index, taken.metrics["score"]) == (3, 1.5)
        counts = {"atropos/garbled_answers": 1, "atropos/quarantined_groups": 0, "atropos/cut_sequences": 0}
        assert taken.counts == counts
        assert not stream.is_over
        time.sleep(0.2)
        assert num_entries("journal") == 4  # the next one comes when it is asked for
    assert read_entry("journal", 3).policy_version == 3


def test_taking_ends_in_time_and_the_batch_comes_later(stream_from):
    with ScriptedAtropos() as server:
        stream = stream_from(server)
        started = time.monotonic()
        assert stream.take(0, 1.0) is None
        assert 1.0 <= time.monotonic() - started < 3.0
        server.script.append(batch(group()))
        taken = stream.take(0, 20.0)
    assert taken.index == 0
    assert taken.metrics["atropos/seconds_rollout"] >= 1.0  # since it was first asked for


def test_a_caller_who_does_not_wait_gets_the_batch_too(stream_from):
    with ScriptedAtropos(batch(group(), delay_s=0.2)) as server:
        stream = stream_from(server)
        end = time.monotonic() + 20
        while (taken := stream.take(0, 0.0)) is None:
            assert time.monotonic() < end
            time.sleep(0.01)
    assert taken.index == 0


def test_a_run_that_has_lost_its_journal_is_refused(stream_from):
    with ScriptedAtropos(batch(group())) as server:
        stream = stream_from(server, position=3)
        with pytest.raises(JournalError, match="holds 0 batches, and the run has consumed 3; set atropos_journal"):
            stream.take(3, 20.0)
        assert server.requests == []


def test_the_fetchers_error_is_the_streams(stream_from):
    with ScriptedAtropos() as server:
        server.instead["/register"] = Answer(b"", status=404)
        with pytest.raises(FetcherError, match="404"):
            stream_from(server).take(0, 20.0)


HUGE = [
    ("scores", [1e308, 1e308], r"scores\[0\] is 1e\+308"),
    ("advantages", [[0.0, 1.0], [0.0, -1e39]], r"advantages\[1\]\[1\] is -1e\+39"),
    ("generation_params", {"temperature": 10**400}, "temperature must be a number above 0; got 1000"),
    ("group_overrides", {"temperature": 1e300}, r"temperature must be a number above 0; got 1e\+300"),
    ("generation_params", {"policy_version": -(10**400)}, "policy_version must be a whole number; got -1000"),
]


@pytest.mark.parametrize("field, value, message", HUGE)
def test_a_number_that_float32_cannot_hold_is_malformed(field, value, message):
    write_journal(batch(group([1.0, 0.0], 2) | {field: value}, group()))
    assert len(replay().take(0, 0.0).rows) == 2
    assert re.search(message, quarantined()[0]["reason"])


NUMBERS = st.integers() | st.just(10**400) | st.floats() | st.sampled_from([math.nan, 1e308, 2**63, -100, 1, 0, True])
VALUES = st.recursive(
    st.none() | NUMBERS | st.text(max_size=3),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["temperature", "policy_version", "set_advantage_to_zero"]), inner)
    ),
    max_leaves=6,
)
FIELDS = ["tokens", "masks", "scores", "advantages", "inference_logprobs", "overrides", "group_overrides"]


@given(st.sampled_from([*FIELDS, "generation_params"]), st.none() | st.integers(0, 1), VALUES)
def test_whatever_is_in_a_group_it_is_kept_aside_or_has_weights_that_float32_can_hold(field, row, value):
    raw = group([1.0, 0.0], 2, advantages=[[0.0, 1.0]] * 2, inference_logprobs=[[1.0, -1.0]] * 2, overrides=[{}, {}])
    if row is None or field not in raw:
        raw[field] = value
    else:
        raw[field] = copy.deepcopy(raw[field])
        raw[field][row] = value
    reader = BatchReader(score_normalization="mean_std")
    groups, malformed = reader.groups([raw])
    assert len(groups) + len(malformed) == 1
    for row in [row for each in groups.values() for row in reader.rows(0, each)]:
        assert np.isfinite(row.weights.astype(np.float32)).all()
        assert np.isfinite(np.float32(row.temperature))
        assert not row.weights[~row.is_loss].any()
        json.dumps(row.tokens.tolist())


def test_another_runs_groups_are_kept_beside_those_of_the_same_place():
    path = Path("quarantine.jsonl")
    Quarantine(path).add(0, [Quarantined(0, "first", 1)])
    Quarantine(path).add(0, [Quarantined(0, "first", 2)])
    Quarantine(path).add(0, [Quarantined(0, "second", 2)])
    assert [(entry["reason"], entry["raw"]) for entry in quarantined()] == [("first", 1), ("first", 2), ("second", 2)]


def test_sequences_that_are_cut_are_counted_and_warned_of_once(caplog):
    write_journal(*[batch(group(length=6), group(length=4))] * 2)
    stream = replay(BatchReader(max_length=5))
    assert [stream.take(0, 0.0).counts["atropos/cut_sequences"] for _ in range(2)] == [2, 4]
    assert caplog.text.count("2 of 4 sequences of a batch are cut at max_length=5") == 1


def test_a_batch_that_is_cut_to_its_prompts_is_not_trained_on():
    write_journal(batch(group()), batch({**group(), "masks": [[-100, 10, 11, -100], [-100, 20, 21, -100]]}))
    stream = replay(BatchReader(max_length=1))
    assert stream.take(0, 0.0) is None
    assert stream.counts["unusable_batches"] == 2


def stale_batch(version):
    return batch(group(generation_params={"policy_version": version}))


def test_a_batch_that_is_all_stale_is_told_of_and_many_in_a_row_end_the_run(stream_from):
    with ScriptedAtropos(stale_batch(4), *[stale_batch(0)] * 25) as server:
        stream = stream_from(server, max_staleness=3)
        assert stream.take(5, 20.0).index == 0
        assert not stream.is_behind
        for _ in range(19):
            assert stream.take(5, 20.0) is None
            assert stream.is_behind
        with pytest.raises(StaleBatchesError, match=r"20 batches in a row .*atropos_max_staleness=3"):
            stream.take(5, 20.0)


def test_waiting_after_a_stale_batch_is_no_reason_to_send_the_weights_again_and_again(stream_from):
    with ScriptedAtropos(stale_batch(0)) as server:
        stream = stream_from(server, max_staleness=3)
        assert stream.take(5, 20.0) is None
        assert stream.is_behind
        assert stream.take(5, 0.1) is None
        assert not stream.is_behind


def test_what_was_stale_in_the_journal_of_a_resume_does_not_end_the_run(stream_from):
    write_journal(*[stale_batch(0)] * 30)
    with ScriptedAtropos(stale_batch(9)) as server:
        stream = stream_from(server, max_staleness=3)
        while not stream.is_open(1.0):
            pass
        assert stream.take(9, 20.0).index == 30


def test_batches_of_an_earlier_run_are_told_of(stream_from, caplog):
    write_journal(batch(group()), batch(group()))
    with ScriptedAtropos() as server:
        stream = stream_from(server, position=1)
        while not stream.is_open(1.0):
            pass
        assert "1 batches in the journal journal are there already, from an earlier run" in caplog.text
