"""With the process itself, against a server whose answers are scripted, and against Atropos."""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path

import pytest
from atropos_tools import REGISTRATION, Answer, RunApi, ScriptedAtropos, batch, group

from online_sft.atropos.client import Registration
from online_sft.atropos.fetcher import Fetcher, FetcherError, FetcherOptions
from online_sft.atropos.journal import Journal, JournalBusyError, num_entries, read_entry

TRAINER = """
import json, sys
from online_sft.atropos.client import Registration
from online_sft.atropos.fetcher import Fetcher, FetcherOptions
given = json.loads(sys.argv[1])
fetcher = Fetcher(FetcherOptions(**{**given, "registration": Registration(**given["registration"])}))
fetcher.ask(3)
while True:
    fetcher.poll(1.0)
"""


@pytest.fixture
def journal(tmp_path):
    return tmp_path / "journal"


@pytest.fixture
def options(journal):
    """What fetchers of the test are started with, unless it says otherwise."""

    def make(server, **others):
        url = server if isinstance(server, str) else server.url
        defaults = {"refresh_interval_s": 0.02, "timeout_s": 5.0}
        return FetcherOptions(url, str(journal), Registration(**REGISTRATION), **{**defaults, **others})

    return make


@pytest.fixture
def fetcher_of(options):
    """Starts fetchers; at the end of the test none is left."""
    fetchers = []

    def start(server, **others):
        fetchers.append(Fetcher(options(server, **others)))
        return fetchers[-1]

    yield start
    for fetcher in fetchers:
        fetcher.close()
        with contextlib.suppress(ProcessLookupError):
            os.kill(fetcher._process.pid, signal.SIGKILL)
        wait_for_end(fetcher)


@pytest.fixture
def atropos():
    with RunApi() as server:
        yield server


def wait_for_end(fetcher):
    """The exit status of the process."""
    with contextlib.suppress(ChildProcessError):  # `close` has waited already
        return os.waitpid(fetcher._process.pid, 0)[1]


def wait_until(condition, fetcher=None, timeout_s=20.0):
    end = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end
        if fetcher is None:
            time.sleep(0.01)
        else:
            fetcher.poll(0.05)


def wait_for_batches(fetcher, number):
    wait_until(lambda: (fetcher.num_delivered or 0) >= number, fetcher)
    assert fetcher.num_delivered == number


def post_once_registered(atropos, fetcher, *args):
    wait_until(lambda: atropos.get("/info")["batch_size"] == REGISTRATION["batch_size"], fetcher)
    atropos.post_group(*args)


def entries(journal):
    return [read_entry(journal, index) for index in range(num_entries(journal))]


def scores_of(journal):
    return [json.loads(entry.body)["batch"][0]["scores"] for entry in entries(journal)]


def warnings_with(caplog, text):
    return [record.getMessage() for record in caplog.records if text in record.getMessage()]


def test_a_batch_comes_for_each_request_and_none_without(fetcher_of, journal):
    answers = [batch(group([float(number), 0.0])) for number in range(3)]
    with ScriptedAtropos(*answers) as server:
        fetcher = fetcher_of(server)
        wait_until(lambda: fetcher.num_delivered == 0, fetcher)
        fetcher.poll(0.3)
        assert server.requests == []
        for number, policy_version in enumerate((7, 9)):
            fetcher.ask(policy_version)
            fetcher.ask(policy_version + 1)  # before the first was answered: the same request
            wait_for_batches(fetcher, number + 1)
            fetcher.poll(0.1)
            assert server.num_requests("/batch") == number + 1
        assert server.num_requests("/register") == 1
    found = [(entry.index, entry.body, entry.policy_version) for entry in entries(journal)]
    assert found == [(0, answers[0].body, 7), (1, answers[1].body, 9)]
    assert not fetcher.counts


def test_a_batch_that_was_asked_for_before_the_process_was_there_comes_too(fetcher_of, journal):
    with ScriptedAtropos(batch(group())) as server:
        fetcher = fetcher_of(server)
        fetcher.ask(1)
        wait_for_batches(fetcher, 1)
        fetcher.poll(0.1)
        assert server.num_requests("/batch") == 1


def test_it_asks_again_until_there_is_enough_data(fetcher_of, atropos, journal):
    fetcher = fetcher_of(atropos)
    fetcher.ask(0)
    post_once_registered(atropos, fetcher, [0.5])
    fetcher.poll(0.2)
    assert fetcher.num_delivered == 0
    atropos.post_group([0.25])
    wait_for_batches(fetcher, 1)
    assert [each["scores"] for each in json.loads(entries(journal)[0].body)["batch"]] == [[0.5], [0.25]]


def killed_while_it_waits_for_an_answer(server, options):
    """Kills a trainer, and all that it has started in its process group, once the request has been received."""
    command = [sys.executable, "-c", TRAINER, json.dumps(asdict(options))]
    trainer = subprocess.Popen(command, start_new_session=True)
    wait_until(lambda: server.num_requests("/batch") == 1)
    os.killpg(trainer.pid, signal.SIGKILL)
    trainer.wait()


def test_the_batch_that_a_killed_trainer_waited_for_is_kept(options, journal):
    answer = batch(group(), delay_s=1.0)
    with ScriptedAtropos(answer) as server:
        killed_while_it_waits_for_an_answer(server, options(server))
        assert num_entries(journal) == 0
        wait_until(lambda: num_entries(journal) == 1, timeout_s=4)

        def is_free():
            with contextlib.suppress(JournalBusyError):
                Journal(journal).close()
                return True

        wait_until(is_free, timeout_s=2)
        assert server.num_requests("/batch") == 1
    assert [(entry.body, entry.policy_version) for entry in entries(journal)] == [(answer.body, 3)]


def test_the_next_run_waits_for_the_batch_of_a_killed_one(options, fetcher_of, journal, caplog):
    with ScriptedAtropos(batch(group([1.0, 0.0]), delay_s=1.0), batch(group([2.0, 0.0]))) as server:
        killed_while_it_waits_for_an_answer(server, options(server))
        fetcher = fetcher_of(server)
        wait_until(lambda: fetcher.num_delivered is not None, fetcher)
        assert fetcher.num_delivered == 1
        assert warnings_with(caplog, "another process writes to the journal")
        fetcher.ask(0)
        wait_for_batches(fetcher, 2)
    assert scores_of(journal) == [[1.0, 0.0], [2.0, 0.0]]


@pytest.mark.slow
def test_a_journal_that_stays_with_another_run_is_refused(fetcher_of, journal):
    other = Journal(journal)
    fetcher = fetcher_of("http://127.0.0.1:1", timeout_s=0.1)
    with pytest.raises(FetcherError, match=r"another process writes to the journal .*; give each run its own"):
        wait_until(lambda: False, fetcher)
    other.close()


def test_a_server_that_is_killed_and_started_again_is_waited_for_and_registered_with(
    fetcher_of, atropos, journal, caplog
):
    fetcher = fetcher_of(atropos)
    fetcher.ask(0)
    post_once_registered(atropos, fetcher, [1.0, 0.0])
    wait_for_batches(fetcher, 1)
    atropos.kill()
    fetcher.ask(1)
    end = time.monotonic() + 1
    wait_until(lambda: time.monotonic() > end, fetcher)
    assert 3 <= fetcher.counts["outages"] <= 8  # pauses double; without that it were 50
    atropos.start()
    post_once_registered(atropos, fetcher, [2.0, 0.0])
    wait_for_batches(fetcher, 2)
    assert scores_of(journal) == [[1.0, 0.0], [2.0, 0.0]]
    assert fetcher.counts["new_registrations"] == 1
    assert set(fetcher.counts) == {"outages", "new_registrations"}
    (warning,) = warnings_with(caplog, "nothing answers at")
    assert "Start it with `run-api`, or set atropos_api_url" in warning


def test_a_run_may_begin_before_its_server(fetcher_of, atropos):
    atropos.kill()
    fetcher = fetcher_of(atropos)
    fetcher.ask(0)
    wait_until(lambda: fetcher.counts["outages"], fetcher)
    atropos.start()
    post_once_registered(atropos, fetcher)
    wait_for_batches(fetcher, 1)
    assert set(fetcher.counts) == {"outages"}


def test_after_an_outage_the_batch_of_another_trainer_is_not_taken(fetcher_of):
    with ScriptedAtropos() as server:
        fetcher = fetcher_of(server)
        fetcher.ask(0)
        wait_until(lambda: server.num_requests("/batch") > 0, fetcher)
        server.instead["/info"] = Answer(b"", is_reset=True)
        wait_until(lambda: fetcher.counts["outages"], fetcher)
        server.info = (4, 128)
        server.script.append(batch(group([1.0, 2.0, 3.0, 4.0])))
        del server.instead["/info"]
        wait_until(lambda: fetcher.counts["conflicts"], fetcher)
        assert len(server.script) == 1


def test_a_server_that_was_started_anew_while_nothing_was_asked_is_registered_with(fetcher_of, atropos, journal):
    fetcher = fetcher_of(atropos)
    fetcher.ask(0)
    post_once_registered(atropos, fetcher)
    wait_for_batches(fetcher, 1)
    atropos.kill()
    atropos.start()
    fetcher.ask(1)
    post_once_registered(atropos, fetcher)
    wait_for_batches(fetcher, 2)
    assert fetcher.counts == {"new_registrations": 1}


def test_a_server_that_somebody_resets_is_registered_with_again(fetcher_of, atropos, journal):
    fetcher = fetcher_of(atropos)
    fetcher.ask(0)
    post_once_registered(atropos, fetcher, [1.0, 0.0])
    wait_for_batches(fetcher, 1)
    atropos.get("/reset_data")
    fetcher.ask(1)
    post_once_registered(atropos, fetcher, [2.0, 0.0])
    wait_for_batches(fetcher, 2)
    assert scores_of(journal) == [[1.0, 0.0], [2.0, 0.0]]
    assert fetcher.counts == {"new_registrations": 1}


@pytest.mark.parametrize("reset_on_conflict", [False, True])
def test_a_server_that_got_data_after_somebody_reset_it_is_a_conflict(fetcher_of, atropos, journal, reset_on_conflict):
    """It answers null for ever, rather than that it knows no trainer."""
    fetcher = fetcher_of(atropos, reset_on_conflict=reset_on_conflict)
    fetcher.ask(0)
    post_once_registered(atropos, fetcher)
    wait_for_batches(fetcher, 1)
    atropos.get("/reset_data")
    atropos.post_group()
    fetcher.ask(1)
    if not reset_on_conflict:
        wait_until(lambda: fetcher.counts["conflicts"] > 1, fetcher)
        atropos.get("/reset_data")
    post_once_registered(atropos, fetcher)
    wait_for_batches(fetcher, 2)


@pytest.mark.parametrize("how", ["started anew", "reset"])
def test_a_server_that_got_data_before_it_was_registered_with_again_is_waited_for(
    fetcher_of, atropos, journal, caplog, how
):
    fetcher = fetcher_of(atropos)
    fetcher.ask(0)
    post_once_registered(atropos, fetcher, [1.0, 0.0])
    wait_for_batches(fetcher, 1)
    atropos.kill()
    atropos.start()
    atropos.post_group([2.0, 0.0])
    fetcher.ask(1)
    wait_until(lambda: fetcher.counts["conflicts"] > 2, fetcher)
    (warning,) = warnings_with(caplog, "data was posted to it before a trainer had registered. Start it anew")
    assert warning.endswith("Until then no batch will come")
    if how == "reset":
        atropos.get("/reset_data")
    else:
        atropos.kill()
        atropos.start()
    post_once_registered(atropos, fetcher, [3.0, 0.0])
    wait_for_batches(fetcher, 2)
    assert scores_of(journal) == [[1.0, 0.0], [3.0, 0.0]]


def test_a_server_that_got_data_before_the_run_began_is_refused_unless_it_may_be_reset(fetcher_of, atropos, journal):
    atropos.post_group([1.0, 0.0])
    fetcher = fetcher_of(atropos)
    fetcher.ask(0)
    with pytest.raises(FetcherError, match=r"data was posted .* Start it anew, or .* \(atropos_reset_on_conflict\)"):
        wait_until(lambda: False, fetcher)
    fetcher = fetcher_of(atropos, reset_on_conflict=True)
    fetcher.ask(0)
    post_once_registered(atropos, fetcher, [2.0, 0.0])
    wait_for_batches(fetcher, 1)
    assert scores_of(journal) == [[2.0, 0.0]]


def test_a_score_that_is_not_finite_costs_its_batch_and_no_other(fetcher_of, atropos, journal, caplog):
    fetcher = fetcher_of(atropos)
    fetcher.ask(0)
    wait_until(lambda: atropos.get("/info")["batch_size"] == 2, fetcher)
    atropos.post("/scored_data", json.dumps(group([float("nan"), 0.0])))
    wait_until(lambda: fetcher.counts, fetcher)
    assert fetcher.counts == {"lost_batches": 1}
    (warning,) = warnings_with(caplog, "/batch answers 500")
    assert "a score or a log-prob that is NaN or infinite; look for it in the environments" in warning
    atropos.post_group([2.0, 0.0])
    wait_for_batches(fetcher, 1)
    assert scores_of(journal) == [[2.0, 0.0]]
    assert fetcher.counts == {"lost_batches": 1}


TROUBLES = {
    "a page": (Answer(b"<html>"), "garbled_answers", "no JSON: .* begins with b'<html>' and is kept in .*garbled"),
    "another object": (Answer(b"{}"), "garbled_answers", "holds no batch; it begins with b'{}'"),
    "too large": (Answer(b"[" * 3000), "lost_batches", "raise atropos_max_response_bytes.* hands each out once"),
    "too late": (Answer(b"", delay_s=9.0), "lost_batches", "raise atropos_timeout.* hands each out once"),
    "reset": (Answer(b"", is_reset=True), "lost_batches", "broke off.* hands each out once"),
    "cut off": (Answer(b"{" * 99, num_sent=50), "lost_batches", "broke off.* hands each out once"),
    "a fault": (Answer(b"", status=500), "lost_batches", "answers 500.* NaN or infinite"),
    "not registered": (Answer(b'{"status": "error", "batch": []}'), "new_registrations", "registered .* again"),
}


@pytest.mark.parametrize("trouble, warn_after_s", [*((name, 300.0) for name in TROUBLES), ("a page", 1e-6)])
def test_a_trouble_is_counted_and_warned_of_and_the_next_batch_comes(
    fetcher_of, journal, caplog, trouble, warn_after_s
):
    answer, name, message = TROUBLES[trouble]
    with ScriptedAtropos(answer, answer, batch(group())) as server:
        timeout_s = 0.5 if trouble == "too late" else 5.0
        fetcher = fetcher_of(server, timeout_s=timeout_s, max_response_bytes=2000, warn_after_s=warn_after_s)
        fetcher.ask(0)
        wait_for_batches(fetcher, 1)
        assert server.num_requests("/batch") == 3
    assert entries(journal)[0].body == batch(group()).body
    assert fetcher.counts == {name: 2}
    warnings = [record.getMessage() for record in caplog.records if "groups wait there" not in record.getMessage()]
    assert len(warnings) == (1 if warn_after_s == 300.0 else 2)
    assert all(re.search(message, warning) for warning in warnings)


def test_garbled_answers_are_kept_the_same_once(fetcher_of, journal):
    bodies = [b"<html>", b"{}", b"<html>"]
    with ScriptedAtropos(*map(Answer, bodies), batch(group())) as server:
        fetcher = fetcher_of(server)
        fetcher.ask(0)
        wait_for_batches(fetcher, 1)
    kept = [path.read_bytes() for path in (journal / "garbled").iterdir()]
    assert sorted(kept) == [b"<html>", b"{}"]
    assert fetcher.counts == {"garbled_answers": 3}


def test_a_fault_while_registering_costs_no_batch(fetcher_of):
    with ScriptedAtropos(batch(group())) as server:
        server.instead["/register"] = Answer(b"", status=502)
        fetcher = fetcher_of(server)
        fetcher.ask(0)
        wait_until(lambda: fetcher.counts, fetcher)
        assert set(fetcher.counts) == {"server_faults"}
        del server.instead["/register"]
        wait_for_batches(fetcher, 1)


def test_a_long_wait_is_warned_of_with_its_cause_again_and_again(fetcher_of, atropos, caplog):
    fetcher = fetcher_of(atropos, warn_after_s=0.6)
    wait_until(lambda: fetcher.num_delivered == 0, fetcher)
    started = time.monotonic()
    fetcher.ask(0)
    wait_until(lambda: atropos.get("/info")["batch_size"] == 2, fetcher)
    for scores in ([1.0, 2.0, 3.0], [1.0, 0.0], [2.0, 0.0]):
        atropos.post_group(scores)
    wait_until(lambda: len(caplog.records) == 2, fetcher)
    assert 1.2 <= time.monotonic() - started < 3
    assert fetcher.num_delivered == 0
    for record in caplog.records:
        assert "3 groups wait there (queue_size)" in record.getMessage()
        assert "batch_size=2, which the largest of them must divide" in record.getMessage()
        assert "a group of another size is in the way: restart Atropos" in record.getMessage()


def test_the_time_in_which_nothing_is_asked_is_no_long_wait(fetcher_of, caplog):
    with ScriptedAtropos(batch(group()), batch(group(), delay_s=0.2)) as server:
        fetcher = fetcher_of(server, warn_after_s=0.5)
        for number in (1, 2):
            fetcher.poll(0.7)
            fetcher.ask(0)
            wait_for_batches(fetcher, number)
    assert not caplog.records


def kill(fetcher):
    fetcher._process.kill()
    fetcher._process.wait()


def test_a_killed_process_is_replaced_and_nothing_is_lost_or_there_twice(fetcher_of, journal, caplog):
    with ScriptedAtropos(batch(group([1.0, 0.0]))) as server:
        fetcher = fetcher_of(server, refresh_interval_s=0.2)
        fetcher.ask(0)
        wait_for_batches(fetcher, 1)
        fetcher.ask(1)
        wait_until(lambda: server.num_requests("/batch") == 2)
        kill(fetcher)
        server.script += [batch(group([2.0, 0.0])), batch(group([3.0, 0.0]))]
        wait_for_batches(fetcher, 2)
        kill(fetcher)
        fetcher.poll(1.0)
        fetcher.poll(0.5)
        assert server.num_requests("/batch") == 3  # nothing was asked for
        fetcher.ask(5)
        wait_for_batches(fetcher, 3)
    assert scores_of(journal) == [[1.0, 0.0], [2.0, 0.0], [3.0, 0.0]]
    assert [entry.policy_version for entry in entries(journal)] == [0, 1, 5]
    assert fetcher.counts == {"fetcher_restarts": 2}
    assert len(warnings_with(caplog, "is gone; another one is started")) == 2


def test_a_batch_that_a_killed_process_kept_and_had_no_time_to_tell_of_is_the_one_asked_for(fetcher_of, journal):
    with ScriptedAtropos(batch(group([2.0, 0.0]))) as server:
        server.instead["/batch"] = Answer(b'{"batch": null}')
        fetcher = fetcher_of(server)
        fetcher.ask(0)
        wait_until(lambda: server.num_requests("/batch") > 0, fetcher)
        kill(fetcher)
        entry = Journal(journal)
        entry.append(batch(group([1.0, 0.0])).body, policy_version=0)
        entry.close()
        del server.instead["/batch"]
        wait_for_batches(fetcher, 1)
        fetcher.poll(0.3)
        assert len(server.script) == 1
        fetcher.ask(1)
        wait_for_batches(fetcher, 2)
    assert scores_of(journal) == [[1.0, 0.0], [2.0, 0.0]]


def test_a_process_that_dies_again_and_again_is_given_up(fetcher_of):
    with ScriptedAtropos() as server:
        fetcher = fetcher_of(server)
        with pytest.raises(FetcherError, match="has ended 4 times without bringing one; its error is above"):
            for _ in range(4):
                fetcher.ask(0)
                number = server.num_requests("/batch")
                wait_until(lambda number=number: server.num_requests("/batch") > number, fetcher)
                kill(fetcher)
            wait_until(lambda: False, fetcher)


def test_a_process_that_cannot_begin_is_given_up_at_once(fetcher_of):
    fetcher = fetcher_of("http://127.0.0.1:1")
    fetcher._process.kill()
    with pytest.raises(FetcherError, match="has ended 1 times"):
        wait_until(lambda: False, fetcher)


REFUSALS = {
    "not found": (Answer(b"", status=404), "/register answers 404"),
    "unauthorized": (Answer(b"", status=401), "/register answers 401 .set ATROPOS_AUTHORIZATION"),
    "redirect": (Answer(b"", status=307, headers={"Location": "http://else.where"}), "redirects to http://else.where"),
}


@pytest.mark.parametrize("refusal", REFUSALS)
def test_a_server_that_refuses_to_register_us_ends_the_run(fetcher_of, refusal):
    with ScriptedAtropos() as server:
        server.instead["/register"], message = REFUSALS[refusal]
        fetcher = fetcher_of(server)
        fetcher.ask(0)
        with pytest.raises(FetcherError, match=message):
            wait_until(lambda: False, fetcher)
        assert len(server.requests) == 1


def test_an_address_that_is_none_ends_the_run(fetcher_of):
    fetcher = fetcher_of("localhost:8000")
    fetcher.ask(0)
    with pytest.raises(FetcherError, match="'localhost:8000' cannot be asked"):
        wait_until(lambda: False, fetcher)


def test_a_journal_that_cannot_be_trusted_or_made_ends_the_run(fetcher_of, journal):
    kept = Journal(journal)
    for _ in range(2):
        kept.append(batch(group()).body, policy_version=0)
    kept.close()
    (journal / "00000000.batch").unlink()
    with pytest.raises(FetcherError, match=r"entry 0 of the journal .* is missing"):
        wait_until(lambda: False, fetcher_of("http://127.0.0.1:1"))
    journal.rename(journal.with_name("elsewhere"))
    journal.write_text("a file")
    with pytest.raises(FetcherError, match="File exists"):
        wait_until(lambda: False, fetcher_of("http://127.0.0.1:1"))


@pytest.mark.parametrize("is_asked", [False, True])
def test_closing_ends_the_process_within_a_second(fetcher_of, is_asked):
    with ScriptedAtropos() as server:
        fetcher = fetcher_of(server, refresh_interval_s=30.0)
        wait_until(lambda: fetcher.num_delivered == 0, fetcher)
        if is_asked:
            fetcher.ask(0)
            wait_until(lambda: server.num_requests("/info") == 2, fetcher)
        started = time.monotonic()
        fetcher.close()
        assert time.monotonic() - started < 1
        assert fetcher._process.returncode == 0
        with pytest.raises(ProcessLookupError):
            os.kill(fetcher._process.pid, 0)


def test_closing_does_not_wait_for_an_answer_which_is_kept_all_the_same(fetcher_of, journal):
    with ScriptedAtropos(batch(group(), delay_s=2.0)) as server:
        fetcher = fetcher_of(server)
        fetcher.ask(4)
        wait_until(lambda: server.num_requests("/batch") == 1, fetcher)
        started = time.monotonic()
        fetcher.close()
        assert time.monotonic() - started < 1.7
        assert num_entries(journal) == 0
        assert wait_for_end(fetcher) == 0
    assert [(entry.body, entry.policy_version) for entry in entries(journal)] == [(batch(group()).body, 4)]


def test_the_authorization_of_the_environment_is_sent(fetcher_of, monkeypatch):
    monkeypatch.setenv("ATROPOS_AUTHORIZATION", "Bearer ours")
    with ScriptedAtropos(batch(group())) as server:
        fetcher = fetcher_of(server)
        fetcher.ask(0)
        wait_for_batches(fetcher, 1)
        assert {headers.get("Authorization") for _, headers in server.requests} == {"Bearer ours"}


def test_a_file_of_the_users_that_is_named_like_a_package_is_not_imported(fetcher_of):
    for name in ("requests.py", "online_sft.py", "hashlib.py"):
        Path(name).write_text("raise RuntimeError('decoy')")
    with ScriptedAtropos(batch(group())) as server:
        fetcher = fetcher_of(server)
        fetcher.ask(0)
        wait_for_batches(fetcher, 1)


def test_the_process_starts_without_torch_and_its_like():
    code = "import online_sft.atropos.fetcher, sys; print({'torch', 'numpy', 'transformers', 'trl'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
