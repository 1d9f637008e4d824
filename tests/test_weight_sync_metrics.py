import time

import pytest

from trainers.engine.weight_sync import WeightSync


@pytest.fixture
def sync():
    """Two syncs of 1.5 s in the last 10 s."""
    sync = object.__new__(WeightSync)
    sync._seconds, sync._num_syncs, sync._since = 3.0, 2, time.perf_counter() - 10
    sync._bytes = {"a": 3_000_000_000, "b": 1_000_000_000}
    sync._max_dlogp, sync.policy_version, sync._has_warned = 0.25, 7, False
    return sync


def test_seconds_and_bytes_are_of_one_sync_and_the_share_is_of_the_time_since_the_last_entry(sync):
    metrics = sync.pop_metrics()
    assert metrics.pop("weight_sync/share_of_time") == pytest.approx(0.3, rel=0.01)
    assert metrics == {
        "weight_sync/seconds": 1.5,
        "weight_sync/gigabytes": 4.0,
        "weight_sync/probe_max_dlogp": 0.25,
        "weight_sync/policy_version": 7.0,
    }
    assert sync.pop_metrics() == {"weight_sync/policy_version": 7.0}  # no sync since


def test_syncs_that_take_more_than_a_fifth_of_the_time_are_warned_of_once(sync, caplog):
    sync.pop_metrics()
    sync._seconds, sync._num_syncs, sync._since = 3.0, 2, time.perf_counter() - 10
    sync.pop_metrics()
    (record,) = caplog.records
    assert record.message.startswith("30 % of the time goes into weight syncs (1.50 s each).")


def test_cheap_syncs_are_not_warned_of(sync, caplog):
    sync._since = time.perf_counter() - 20
    sync.pop_metrics()
    assert not caplog.records
