import gzip
import json
import math
import time
from dataclasses import replace

import pytest
from atropos_tools import REGISTRATION, Answer, RunApi, ScriptedAtropos, batch, group

from online_sft.atropos.client import (
    AtroposClient,
    ConflictError,
    GarbledAnswerError,
    LostBatchError,
    NotRegisteredError,
    RefusedError,
    Registration,
    ServerFaultError,
    UnreachableError,
)
from online_sft.atropos.json_reading import read_json

OURS = Registration(**REGISTRATION)
THEIRS = replace(OURS, batch_size=4, max_token_len=128)


def client_of(server, **options):
    return AtroposClient(server.url, **options)


def test_a_batch_comes_byte_by_byte_as_it_was_sent():
    bodies = [b'{ "batch" :[{"scores": [1.0, 1e0]}],\n "more": "\xc3\xa9"}', batch(group(), group()).body]
    with ScriptedAtropos(*map(Answer, bodies)) as server:
        client = AtroposClient(server.url + "/")
        assert [client.batch(), client.batch()] == bodies


def test_null_is_no_batch_yet():
    with ScriptedAtropos() as server:
        assert client_of(server).batch() is None


GARBLED = {
    "a page": b"<html>Please log in</html>",
    "nothing": b"",
    "no text": b"\xff\xfe",
    "half an answer": batch(group()).body[:-3],
    "another object": b"{}",
    "a bare null": b"null",
    "a bare list": b'[{"tokens": []}]',
    "a batch that is an object": b'{"batch": {"tokens": []}}',
    "a batch that is text": b'{"batch": "groups"}',
    "a batch without groups": b'{"batch": []}',
    "lists in lists": b'{"batch": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
}


@pytest.mark.parametrize("garbled", GARBLED)
def test_what_is_no_answer_of_batch_is_garbled_and_comes_with_its_body(garbled):
    with ScriptedAtropos(Answer(GARBLED[garbled])) as server, pytest.raises(GarbledAnswerError) as raised:
        client_of(server).batch()
    assert raised.value.body == GARBLED[garbled]


def test_nan_and_infinity_reach_whoever_checks_the_values():
    with ScriptedAtropos(batch(group([math.nan, -math.inf]))) as server:
        body = client_of(server).batch()
    assert b"NaN" in body
    nan, infinity = read_json(body)["batch"][0]["scores"]
    assert math.isnan(nan)
    assert infinity == -math.inf


def test_a_server_fault_has_its_status_and_what_the_server_said():
    fault = Answer(b"Internal Server Error", status=500)
    message = r"http://127.0.0.1:\d+/batch answers 500: b'Internal Server Error'"
    with ScriptedAtropos(fault) as server, pytest.raises(ServerFaultError, match=message):
        client_of(server).batch()


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_is_not_followed(status):
    with ScriptedAtropos() as target:
        redirect = Answer(b"", status=status, headers={"Location": f"{target.url}/batch"})
        message = f"redirects to {target.url}/batch, which is not followed"
        with ScriptedAtropos(redirect) as server, pytest.raises(RefusedError, match=message):
            client_of(server).batch()
        assert target.requests == []


@pytest.mark.parametrize("status", [400, 401, 403, 404])
def test_a_refusal_has_its_status_and_the_way_out(status):
    no = Answer(b"no", status=status)
    with ScriptedAtropos(no) as server, pytest.raises(RefusedError, match=f"/batch answers {status}") as raised:
        client_of(server).batch()
    assert ("set ATROPOS_AUTHORIZATION" in str(raised.value)) == (status in (401, 403))


def test_an_answer_that_is_too_large_is_not_read_to_its_end():
    answer = batch(group())
    slow = replace(answer, pause_s=0.05)  # 7 s in all
    with ScriptedAtropos(answer, slow) as server:
        assert client_of(server, max_response_bytes=len(answer.body)).batch() == answer.body
        started = time.monotonic()
        with pytest.raises(LostBatchError, match=r"is larger than 10 bytes, .* raise atropos_max_response_bytes"):
            client_of(server, max_response_bytes=10).batch()
        assert time.monotonic() - started < 3


SLOW = {
    "did not begin within": {"delay_s": 30.0},
    "fell silent for": {"pause_s": 30.0},
    "was not whole within": {"pause_s": 0.1},
}


@pytest.mark.parametrize("what", SLOW)
def test_a_slow_answer_is_given_up_in_time(what):
    with ScriptedAtropos(batch(group(), **SLOW[what])) as server:
        started = time.monotonic()
        with pytest.raises(LostBatchError, match=rf"/batch {what} 0.4 s; raise atropos_timeout"):
            client_of(server, timeout_s=0.4).batch()
        assert 0.3 < time.monotonic() - started < 3


def test_a_slow_answer_within_the_time_is_waited_for():
    answer = batch(group(), delay_s=0.6, pause_s=0.001)
    with ScriptedAtropos(answer) as server:
        assert client_of(server, timeout_s=5).batch() == answer.body


BROKEN = {
    "cut off": {"num_sent": 20},
    "cut off in a chunk": {"num_sent": 20, "is_chunked": True},
    "reset": {"is_reset": True},
    "gzip that is none": {"headers": {"Content-Encoding": "gzip"}},
}


@pytest.mark.parametrize("broken", BROKEN)
def test_an_answer_that_breaks_off_is_a_lost_batch(broken):
    answer, message = batch(group(), **BROKEN[broken]), r"the answer of http://.*/batch broke off"
    with ScriptedAtropos(answer) as server, pytest.raises(LostBatchError, match=message):
        client_of(server).batch()


def test_where_no_batch_was_asked_for_none_is_lost():
    with ScriptedAtropos() as server:
        for answer in (Answer(b"", is_reset=True), Answer(b"", delay_s=9.0), Answer(b"x" * 99, num_sent=9)):
            server.instead["/register"] = answer
            with pytest.raises(UnreachableError, match=rf"the answer of {server.url}/register"):
                client_of(server, timeout_s=0.2).register(OURS)


def test_a_server_that_is_not_there_is_unreachable():
    with ScriptedAtropos() as server:
        pass
    with pytest.raises(UnreachableError, match=rf"nothing answers at {server.url}: .*Connection refused"):
        client_of(server).batch()


def test_a_server_that_does_not_speak_tls_is_unreachable():
    with ScriptedAtropos() as server, pytest.raises(UnreachableError, match="SSL"):
        AtroposClient(server.url.replace("http:", "https:")).batch()


@pytest.mark.parametrize("url", ["127.0.0.1:8000", "localhost:8000", "http://", "htp://127.0.0.1:8000", ""])
def test_what_is_no_url_is_refused_rather_than_waited_for(url):
    with pytest.raises(RefusedError, match=f"{url.rstrip('/')}' cannot be asked"):
        AtroposClient(url).batch()


def test_answers_are_asked_for_as_they_are_and_read_zipped_all_the_same():
    answer = batch(group(), group())
    zipped = Answer(gzip.compress(answer.body), headers={"Content-Encoding": "gzip"})
    with ScriptedAtropos(zipped, replace(answer, is_chunked=True)) as server:
        client = client_of(server)
        assert client.batch() == client.batch() == answer.body
        assert {headers["Accept-Encoding"] for _, headers in server.requests} == {"identity"}


TROUBLES = [{"status": 500}, {"status": 503, "headers": {"Retry-After": "0"}}, {"status": 404}, *BROKEN.values()]


@pytest.mark.parametrize("trouble", [*TROUBLES, {"delay_s": 9.0}, {"status": 408}, {"status": 302}])
def test_a_request_is_never_repeated(trouble):
    with ScriptedAtropos(batch(group(), **trouble)) as server:
        with pytest.raises((RuntimeError, ConnectionError)):
            client_of(server, timeout_s=0.3).batch()
        assert server.num_requests("/batch") == 1


def test_a_connection_that_the_server_has_given_up_does_not_look_like_a_lost_batch():
    with ScriptedAtropos(batch(group())) as server:
        client = client_of(server)
        client.register(OURS)
        assert client.batch() == batch(group()).body
        assert client.batch() is None


def test_proxies_and_passwords_of_the_surroundings_are_not_used(monkeypatch, tmp_path):
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    monkeypatch.setenv("ALL_PROXY", "http://127.0.0.1:1")
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    (tmp_path / "netrc").write_text("default login me password secret\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    with ScriptedAtropos() as server:
        assert client_of(server).batch() is None
        assert "Authorization" not in server.requests[0][1]


def test_the_authorization_is_sent_with_each_request():
    with ScriptedAtropos() as server:
        client = client_of(server, authorization="Bearer ours")
        client.register(OURS)
        client.batch()
        client.queue_size()
        assert [path for path, _ in server.requests] == ["/register", "/info", "/batch", "/status"]
        assert {headers["Authorization"] for _, headers in server.requests} == {"Bearer ours"}


@pytest.fixture
def atropos():
    with RunApi() as server:
        yield server


def test_batches_of_atropos_come_once_it_knows_the_trainer(atropos):
    client = client_of(atropos)
    with pytest.raises(NotRegisteredError, match="Trainer not registered"):
        client.batch()
    assert not client.is_registered(OURS)
    client.register(OURS)
    assert client.is_registered(OURS)
    assert client.batch() is None
    atropos.post_group()
    atropos.post_group([0.5, 0.25])
    assert client.queue_size() == 2
    scores = [json.loads(client.batch())["batch"][0]["scores"] for _ in range(2)]
    assert scores == [[0.5, 0.25], [1.0, 0.0]]  # the newest first
    assert client.batch() is None


def test_registering_again_like_before_keeps_the_data_that_waits(atropos):
    client = client_of(atropos)
    client.register(OURS)
    atropos.post_group()
    client.register(replace(OURS, starting_step=5), reset_on_conflict=True)
    assert client.queue_size() == 1


def test_a_registration_that_atropos_ignores_is_a_conflict(atropos):
    client = client_of(atropos)
    client.register(THEIRS)
    with pytest.raises(ConflictError, match="another trainer has registered with batch_size=4 and max_token_len=128"):
        client.register(OURS)
    assert not client.is_registered(OURS)
    assert not client.is_registered(replace(THEIRS, max_token_len=64))
    client.register(OURS, reset_on_conflict=True)
    assert client.is_registered(OURS)


def test_a_server_that_got_data_before_a_trainer_is_a_conflict_until_it_is_reset(atropos):
    client = client_of(atropos)
    atropos.post_group()
    with pytest.raises(ConflictError, match=r"data was posted to it before a trainer.*atropos_reset_on_conflict"):
        client.register(OURS)
    client.register(OURS, reset_on_conflict=True)
    assert client.batch() is None  # what was there is gone
    atropos.post_group()
    assert json.loads(client.batch())["batch"][0]["scores"] == [1.0, 0.0]


def test_a_server_that_no_reset_helps_is_a_conflict():
    with ScriptedAtropos() as server:
        server.info = (-1, 64)
        server.instead = {"/register": Answer(b"{}"), "/reset_data": Answer(b"Reset successful")}
        with pytest.raises(ConflictError):
            client_of(server).register(OURS)
        assert server.num_requests("/reset_data") == 0
        with pytest.raises(ConflictError):
            client_of(server).register(OURS, reset_on_conflict=True)
        assert server.num_requests("/reset_data") == 1


@pytest.mark.parametrize(
    "body",
    [b"<html>", b"[]", b"{}", b'{"batch_size": 2}', b'{"batch_size": 2, "max_token_len": null}', b"null"]
    + [b'{"batch_size": 1e999, "max_token_len": 2}', b'{"batch_size": "two", "max_token_len": 2}'],
)
def test_info_that_is_no_info_is_garbled(body):
    with ScriptedAtropos() as server:
        server.instead["/info"] = Answer(body)
        with pytest.raises(GarbledAnswerError, match="/info does not give batch_size and max_token_len") as raised:
            client_of(server).register(OURS)
    assert raised.value.body == body
